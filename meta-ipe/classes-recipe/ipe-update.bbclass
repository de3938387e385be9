# IPE_SLOTS = "1" makes ipe-disk inherit this: what updaters take of this build, to be written into a slot as it is.
#
#   IPE_UPDATE_FORMATS = "swupdate"      IMAGE.swu, and rauc: IMAGE.raucb (rauc-native is meta-rauc's)
#
# Always: IMAGE.update, the folder that `rauc bundle` takes, with sw-description. docs/updates.md says what the device does with it.

inherit ipe-common

IPE_UPDATE_VERSION ??= "1"
IPE_UPDATE_VERSION[doc] = "Version of the update, one word."
IPE_UPDATE_FORMATS ??= ""
IPE_UPDATE_FORMATS[doc] = "Signed updates that are made: rauc, swupdate. Empty: only the folder, for signing elsewhere."
IPE_UPDATE_KEY ??= ""
IPE_UPDATE_KEY[doc] = "URI of the key that signs updates. RAUC signs itself: file: or pkcs11: there, and never the same bytes twice."
IPE_UPDATE_CERT ??= ""
IPE_UPDATE_CERT[doc] = "Certificate (PEM) of IPE_UPDATE_KEY."
IPE_UPDATE_DEPENDS ??= "${@'rauc-native:do_populate_sysroot' if 'rauc' in d.getVar('IPE_UPDATE_FORMATS').split() else ''}"
IPE_UPDATE_DEPENDS[doc] = "Tasks that make the programs which make updates."

IPE_UPDATE_DIR = "${WORKDIR}/ipe-update"
do_ipe_update[doc] = "Makes the updates of the disk's slot"
do_ipe_update[cleandirs] = "${IPE_UPDATE_DIR}"
do_ipe_update[sstate-inputdirs] = "${IPE_UPDATE_DIR}"
do_ipe_update[sstate-outputdirs] = "${DEPLOY_DIR_IMAGE}"
do_ipe_update[depends] += "${IPE_BUILD_TASKS} ${IPE_UPDATE_DEPENDS}"
do_ipe_update[file-checksums] += "${@ipe_certificates(d, 'IPE_UPDATE_CERT')}"
do_ipe_update[vardepsexclude] += "IPE_UPDATE_CERT"
SSTATETASKS += "do_ipe_update"
do_ipe_update () {
    set -- "${DEPLOY_DIR_IMAGE}/${IPE_DISK_NAME}" --compatible "${IPE_UPDATE_COMPATIBLE}" --update-version "${IPE_UPDATE_VERSION}" \
        --bootloader "${IPE_UPDATE_BOOTLOADER}"
    update="${IPE_UPDATE_DIR}/${IMAGE_LINK_NAME}"
    ipe_build update config "$@" -o "$update.update"
    for format in ${IPE_UPDATE_FORMATS}; do
        case "$format" in
            rauc) suffix=raucb ;;
            swupdate) suffix=swu ;;
            *) bbfatal "IPE_UPDATE_FORMATS has '$format'; wanted rauc or swupdate" ;;
        esac
        ipe_need IPE_UPDATE_KEY "${@ipe_key(d, 'UPDATE')}"
        ipe_need_file IPE_UPDATE_CERT "${IPE_UPDATE_CERT}"
        ipe_build update "$format" "$@" --key "${@ipe_key(d, 'UPDATE')}" --cert "${IPE_UPDATE_CERT}" -o "$update.$suffix"
    done
}
addtask ipe_update after do_ipe_disk before do_build

python do_ipe_update_setscene () {
    sstate_setscene(d)
}
addtask do_ipe_update_setscene

python () {
    ipe_only_with_root(d, "do_ipe_update")
    if d.getVar("IPE_SEALED") == "1":
        bb.fatal("IPE_SLOTS is 1 and IPE_SEALED too: the device reads a slot's root hash off its signature partition, which sealed images have none of")
}
