# Image recipes (or IMAGE_CLASSES += "ipe-audit"): the finished disk is audited; an error fails the build, the report is deployed.

inherit ipe-common

IPE_AUDIT_IMAGE ??= "${DEPLOY_DIR_IMAGE}/${IMAGE_LINK_NAME}.ipedisk"
IPE_AUDIT_IMAGE[doc] = "The disk image that is audited."
IPE_AUDIT_DIR = "${WORKDIR}/ipe-audit"

do_ipe_audit[doc] = "Audits the finished disk; an error fails the build, the report is deployed"
do_ipe_audit[cleandirs] = "${IPE_AUDIT_DIR}"
do_ipe_audit[sstate-inputdirs] = "${IPE_AUDIT_DIR}"
do_ipe_audit[sstate-outputdirs] = "${DEPLOY_DIR_IMAGE}"
SSTATETASKS += "do_ipe_audit"
do_ipe_audit () {
    ipe_need_file IPE_AUDIT_IMAGE "${IPE_AUDIT_IMAGE}"
    ${IPE_BUILD_CMD} audit "${IPE_AUDIT_IMAGE}" --json --quiet > "${IPE_AUDIT_DIR}/${IMAGE_LINK_NAME}.audit.json" || \
        bbfatal "IPE_AUDIT_IMAGE ${IPE_AUDIT_IMAGE} would not boot and enforce: $(cat "${IPE_AUDIT_DIR}/${IMAGE_LINK_NAME}.audit.json")"
}
addtask ipe_audit after do_image_complete before do_build

python do_ipe_audit_setscene () {
    sstate_setscene(d)
}
addtask do_ipe_audit_setscene
