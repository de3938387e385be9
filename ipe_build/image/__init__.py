"""Root filesystems, filesystem images, initramfs, disk images."""
