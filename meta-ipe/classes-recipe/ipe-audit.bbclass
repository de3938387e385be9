# Image recipes (or IMAGE_CLASSES += "ipe-image ipe-disk ipe-audit"): the finished disk is audited; an error fails the build, the report
# is deployed as JSON and SARIF.

inherit ipe-task

IPE_AUDIT_IMAGE ??= "${DEPLOY_DIR_IMAGE}/${IPE_DISK_NAME}"
IPE_AUDIT_IMAGE[doc] = "The disk image that is audited."
IPE_AUDIT_ARGS ??= "${@'' if d.getVar('IPE_BOOT_LOADER') or d.getVar('IPE_UKI') else '--kernel ${IPE_KERNEL_IMAGE}'}"
IPE_AUDIT_ARGS[doc] = "More arguments for `ipe-build audit`, such as --ledger FILE. Without a boot loader on the disk: the kernel, which something else starts."
IPE_AUDIT_DEPENDS ??= "mtools-native:do_populate_sysroot ${@{'erofs': 'erofs-utils', 'squashfs': 'squashfs-tools', 'ext4': 'e2fsprogs'}[d.getVar('IPE_ROOT_FILESYSTEM')]}-native:do_populate_sysroot"
IPE_AUDIT_DEPENDS[doc] = "Tasks that make the programs which read the disk."

SSTATETASKS += "do_ipe_audit"
do_ipe_audit[doc] = "Audits the finished disk; an error fails the build, the report is deployed"
do_ipe_audit[depends] += "${IPE_AUDIT_DEPENDS} virtual/kernel:do_deploy"
do_ipe_audit () {
    ipe_need_file IPE_AUDIT_IMAGE "${IPE_AUDIT_IMAGE}"
    report="${IPE_OUT}/${IMAGE_LINK_NAME}.audit"
    ${IPE_BUILD_CMD} audit "${IPE_AUDIT_IMAGE}" ${IPE_AUDIT_ARGS} --sarif "$report.sarif" --findings "$report.json" --quiet || \
        bbfatal "IPE_AUDIT_IMAGE ${IPE_AUDIT_IMAGE} would not boot and enforce; the log says why"
}
addtask ipe_audit after do_ipe_seal do_ipe_disk before do_ipe_evidence do_build
