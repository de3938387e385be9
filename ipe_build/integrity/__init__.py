"""Hash trees: dm-verity over images, fs-verity over files."""
