# Image recipes (IMAGE_CLASSES += "ipe-image ipe-disk ipe-measure", or by ipe-attest): what a machine measures when it boots the disk, for a
# verifier: IMAGE.reference.json and IMAGE.reference.pcrlock (docs/attestation.md).

inherit ipe-task

IPE_REFERENCE_VALUES ??= "${@'1' if d.getVar('IPE_UKI') or d.getVar('IPE_BOOT_LOADER') else '0'}"
IPE_REFERENCE_VALUES[wanted] = "0|1"
IPE_REFERENCE_VALUES[doc] = "1: what a boot of the disk measures (docs/attestation.md). Without a UKI or systemd-boot nobody can say."
IPE_REFERENCE_ARGS ??= ""
IPE_REFERENCE_ARGS[doc] = "More arguments for `ipe-build attest measure`, such as --variables FILE: the Secure Boot keys of the device."

SSTATETASKS += "do_ipe_measure"
do_ipe_measure[doc] = "Says what a machine measures when it boots the disk: reference values"
do_ipe_measure () {
    ipe_build attest measure "${DEPLOY_DIR_IMAGE}/${IPE_DISK_NAME}" ${IPE_REFERENCE_ARGS} \
        -o "${IPE_OUT}/${IMAGE_LINK_NAME}.reference.json" --pcrlock "${IPE_OUT}/${IMAGE_LINK_NAME}.reference.pcrlock"
}
addtask ipe_measure after do_ipe_disk before do_build

python () {
    if d.getVar("IPE_REFERENCE_VALUES") != "1":
        bb.build.deltask("do_ipe_measure", d)
}
