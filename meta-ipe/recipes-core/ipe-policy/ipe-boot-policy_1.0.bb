SUMMARY = "The IPE policy that is compiled into the kernel"
DESCRIPTION = "In force from the first program on: only what is in the initramfs runs."
HOMEPAGE = "https://docs.kernel.org/admin-guide/LSM/ipe.html"
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit features_check nopackages
inherit ipe-policy

REQUIRED_DISTRO_FEATURES = "ipe"
INHIBIT_DEFAULT_DEPS = "1"
IPE_POLICY_ROLE = "${@'reserved' if d.getVar('IPE_SEALED') == '1' else 'boot'}"
IPE_POLICY_NAME = "ipe-boot"
IPE_POLICY_TEMPLATE = "allow-initramfs"
