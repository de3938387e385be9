# IPE_SLOTS = "1" makes ipe-disk inherit this: what updaters take of this build, to be written into a slot as it is.
#
#   IPE_UPDATE_FORMATS = "swupdate"      IMAGE.swu, and rauc: IMAGE.raucb (rauc-native is meta-rauc's)
#
# Always: IMAGE.update, the folder that `rauc bundle` takes, with sw-description. docs/updates.md says what the device does with it.

inherit ipe-task ipe-keys

IPE_UPDATE_VERSION ??= "1"
IPE_UPDATE_VERSION[wanted] = "[A-Za-z0-9._/:+-]+"
IPE_UPDATE_VERSION[doc] = "Version of the update, one word."
IPE_UPDATE_FORMATS ??= ""
IPE_UPDATE_FORMATS[wanted] = "( *(rauc|swupdate))* *"
IPE_UPDATE_FORMATS[doc] = "Signed updates that are made: rauc, swupdate. Empty: only the folder, for signing elsewhere."
IPE_UPDATE_KEY ??= ""
IPE_UPDATE_KEY[doc] = "URI of the key that signs updates. RAUC signs itself: file: or pkcs11: there, and never the same bytes twice."
IPE_UPDATE_CERT ??= ""
IPE_UPDATE_CERT[doc] = "Certificate (PEM) of IPE_UPDATE_KEY."
IPE_UPDATE_DEPENDS ??= "${@'rauc-native:do_populate_sysroot' if 'rauc' in d.getVar('IPE_UPDATE_FORMATS').split() else ''}"
IPE_UPDATE_DEPENDS[doc] = "Tasks that make the programs which make updates."

SSTATETASKS += "do_ipe_update"
do_ipe_update[doc] = "Makes the updates of the disk's slot"
do_ipe_update[depends] += "${IPE_UPDATE_DEPENDS}"
do_ipe_update[file-checksums] += "${@ipe_certificates(d, 'IPE_UPDATE_CERT')}"
do_ipe_update[vardepsexclude] += "IPE_UPDATE_CERT"
do_ipe_update () {
    set -- --compatible "${IPE_UPDATE_COMPATIBLE}" --update-version "${IPE_UPDATE_VERSION}" --bootloader "${IPE_UPDATE_BOOTLOADER}"
    for updater in ${IPE_UPDATE_FORMATS}; do
        ipe_need IPE_UPDATE_KEY "${@ipe_key(d, 'UPDATE')}"
        ipe_need_file IPE_UPDATE_CERT "${IPE_UPDATE_CERT}"
        set -- "$@" --updater "$updater" --key "${@ipe_key(d, 'UPDATE')}" --cert "${IPE_UPDATE_CERT}"
    done
    ipe_build update make "${DEPLOY_DIR_IMAGE}/${IPE_DISK_NAME}" "$@" -o "${IPE_OUT}/${IMAGE_LINK_NAME}"
}
addtask ipe_update after do_ipe_disk before do_build

python () {
    if d.getVar("IPE_SEALED") == "1":
        bb.fatal("IPE_SLOTS is 1 and IPE_SEALED too: the device reads a slot's root hash off its signature partition, which sealed images have none of")
}
