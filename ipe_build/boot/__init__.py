"""Boots images in QEMU and probes what runs and what is denied."""
