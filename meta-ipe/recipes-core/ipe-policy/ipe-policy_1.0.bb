SUMMARY = "The device's IPE policy, signed"
DESCRIPTION = "Loaded and activated at boot: code runs only from the dm-verity root whose root hash is signed."
HOMEPAGE = "https://docs.kernel.org/admin-guide/LSM/ipe.html"
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit features_check
inherit ipe-policy

REQUIRED_DISTRO_FEATURES = "ipe"
IPE_POLICY_NAME = "ipe-policy"
IPE_POLICY_VARIABLES ?= "allow_modules=true allow_firmware=true"
