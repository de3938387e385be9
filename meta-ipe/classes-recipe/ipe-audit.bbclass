# Image recipes (or IMAGE_CLASSES += "ipe-image ipe-disk ipe-audit"): the finished disk is audited; an error fails the build, the report
# is deployed as JSON and SARIF.

inherit ipe-common

IPE_ROOT_FILESYSTEM ??= "erofs"
IPE_AUDIT_IMAGE ??= "${DEPLOY_DIR_IMAGE}/${IPE_DISK_NAME}"
IPE_AUDIT_IMAGE[doc] = "The disk image that is audited."
IPE_AUDIT_ARGS ??= "${@'' if d.getVar('IPE_BOOT_LOADER') or d.getVar('IPE_UKI') else '--kernel ${IPE_KERNEL_IMAGE}'}"
IPE_AUDIT_ARGS[doc] = "More arguments for `ipe-build audit`, such as --ledger FILE. Without a boot loader on the disk: the kernel, which something else starts."
IPE_AUDIT_DEPENDS ??= "mtools-native:do_populate_sysroot ${@{'erofs': 'erofs-utils', 'squashfs': 'squashfs-tools', 'ext4': 'e2fsprogs'}[d.getVar('IPE_ROOT_FILESYSTEM')]}-native:do_populate_sysroot"
IPE_AUDIT_DEPENDS[doc] = "Tasks that make the programs which read the disk."

IPE_AUDIT_DIR = "${WORKDIR}/ipe-audit"
do_ipe_audit[doc] = "Audits the finished disk; an error fails the build, the report is deployed"
do_ipe_audit[cleandirs] = "${IPE_AUDIT_DIR}"
do_ipe_audit[sstate-inputdirs] = "${IPE_AUDIT_DIR}"
do_ipe_audit[sstate-outputdirs] = "${DEPLOY_DIR_IMAGE}"
do_ipe_audit[depends] += "${IPE_BUILD_TASKS} ${IPE_AUDIT_DEPENDS} virtual/kernel:do_deploy"
SSTATETASKS += "do_ipe_audit"
do_ipe_audit () {
    ipe_need_file IPE_AUDIT_IMAGE "${IPE_AUDIT_IMAGE}"
    report="${IPE_AUDIT_DIR}/${IMAGE_LINK_NAME}.audit"
    if ! ${IPE_BUILD_CMD} audit "${IPE_AUDIT_IMAGE}" ${IPE_AUDIT_ARGS} --sarif "$report.sarif" --json --quiet > "$report.json"; then
        ${IPE_BUILD_CMD} audit "${IPE_AUDIT_IMAGE}" ${IPE_AUDIT_ARGS} --quiet || bbfatal "IPE_AUDIT_IMAGE ${IPE_AUDIT_IMAGE} would not boot and enforce; the log says why"
    fi
}
addtask ipe_audit after do_ipe_seal do_ipe_disk before do_ipe_evidence do_build

python do_ipe_audit_setscene () {
    sstate_setscene(d)
}
addtask do_ipe_audit_setscene

python () {
    ipe_only_with_root(d, "do_ipe_audit")
}
