SUMMARY = "What the root of a device with A/B slots needs"
DESCRIPTION = "ipe-slot, which gives a written slot the UUIDs of its root hash; RAUC's system.conf and SWUpdate's hwrevision for the slots."
HOMEPAGE = "https://docs.kernel.org/admin-guide/LSM/ipe.html"
SECTION = "base"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/MIT;md5=0835ade698e0bcf8506ecda2f7b4f302"

inherit features_check
inherit ipe-keys

REQUIRED_DISTRO_FEATURES = "ipe"
INHIBIT_DEFAULT_DEPS = "1"
DEPENDS:append = " ${IPE_BUILD_DEPENDS}"
PACKAGE_ARCH = "${MACHINE_ARCH}"

IPE_UPDATE_KEYRING ??= ""
IPE_UPDATE_KEYRING[doc] = "Certificates (PEM) that the device trusts for updates, installed by ipe-slot. Empty: another recipe brings /etc/rauc/keyring.pem."

# What is the same on the device for every version of an update: none is named here.
do_compile[cleandirs] += "${B}"
do_compile () {
    ipe_build update device --compatible "${IPE_UPDATE_COMPATIBLE}" --bootloader "${IPE_UPDATE_BOOTLOADER}" --update-version 0 \
        --keyring "${sysconfdir}/rauc/keyring.pem" -o "${B}"
}

do_install[file-checksums] += "${@ipe_certificates(d, 'IPE_UPDATE_KEYRING')}"
do_install[vardepsexclude] += "IPE_UPDATE_KEYRING"
do_install () {
    install -D -m 0755 "${B}/usr/lib/ipe/ipe-slot" "${D}${nonarch_libdir}/ipe/ipe-slot"
    install -D -m 0644 "${B}/etc/rauc/system.conf" "${D}${sysconfdir}/rauc/system.conf"
    install -D -m 0644 "${B}/etc/hwrevision" "${D}${sysconfdir}/hwrevision"
    if [ -n "${IPE_UPDATE_KEYRING}" ]; then
        ipe_need_file IPE_UPDATE_KEYRING "${IPE_UPDATE_KEYRING}"
        install -m 0644 "${IPE_UPDATE_KEYRING}" "${D}${sysconfdir}/rauc/keyring.pem"
    fi
}

FILES:${PN} += "${nonarch_libdir}/ipe"
RDEPENDS:${PN} += "util-linux-sfdisk"
# meta-rauc's rauc asks for a virtual-rauc-conf: PREFERRED_RPROVIDER_virtual-rauc-conf = "ipe-slot".
RPROVIDES:${PN} += "virtual-rauc-conf"
