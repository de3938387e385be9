SUMMARY = "The initramfs that opens the verity root, or stops"
DESCRIPTION = "One static program: opens the signed verity root, loads and activates the policy, drops capabilities, starts init."
HOMEPAGE = "https://docs.kernel.org/admin-guide/LSM/ipe.html"
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit features_check nopackages
inherit ipe-initramfs

REQUIRED_DISTRO_FEATURES = "ipe"
