SUMMARY = "An image of SMALL_ROOTFS"
LICENSE = "MIT"
IMAGE_CLASSES ?= "ipe-image ipe-disk ipe-audit"
IMAGE_FSTYPES ?= "erofs erofs.verity ext4 ext4.verity"
inherit image
