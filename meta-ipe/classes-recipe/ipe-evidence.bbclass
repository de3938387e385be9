# Image recipes (IMAGE_CLASSES += "ipe-image ipe-disk ipe-audit ipe-evidence"): the finished disk is booted in QEMU and probed; what ran and
# what was denied is deployed as JSON, and a row that is not as it must be fails the build.
#
# The probes' programs are in the image: RDEPENDS on ipe-probe, or /usr/lib/ipe-probe by your own means (docs/boot.md).

inherit ipe-task ipe-keys

IPE_EVIDENCE_IMAGE ??= "${DEPLOY_DIR_IMAGE}/${IPE_DISK_NAME}"
IPE_EVIDENCE_IMAGE[doc] = "The disk image that is booted."
IPE_EVIDENCE_POLICY ??= "${@'' if d.getVar('IPE_SEALED') == '1' else '${DEPLOY_DIR_IMAGE}/ipe-policy.pol'}"
IPE_EVIDENCE_POLICY[doc] = "Text of the policy in force after boot. Empty: none; its probes are left out."
IPE_EVIDENCE_ARGS ??= "--no-modules"
IPE_EVIDENCE_ARGS[doc] = "More arguments for `ipe-build boot`, such as --application '/bin/true', --dropped CAP_NAME or (with ipe-uki) --db CERT."
IPE_EVIDENCE_DEPENDS ??= "qemu-system-native:do_populate_sysroot"
IPE_EVIDENCE_DEPENDS[doc] = "Tasks that make the emulator. Empty when it comes from the host (then add it to HOSTTOOLS)."

SSTATETASKS += "do_ipe_evidence"
do_ipe_evidence[doc] = "Boots the finished disk with probes; what was denied is the evidence, and deployed"
do_ipe_evidence[depends] += "${IPE_EVIDENCE_DEPENDS}"
do_ipe_evidence[file-checksums] += "${@ipe_certificates(d, 'IPE_POLICY_CERT')}"
do_ipe_evidence[vardepsexclude] += "IPE_POLICY_CERT"
do_ipe_evidence () {
    ipe_need_file IPE_EVIDENCE_IMAGE "${IPE_EVIDENCE_IMAGE}"
    set --
    [ "${IPE_SEALED}" != "1" ] || set -- --sealed --dropped CAP_LINUX_IMMUTABLE
    if [ -n "${IPE_EVIDENCE_POLICY}" ]; then
        ipe_need_file IPE_EVIDENCE_POLICY "${IPE_EVIDENCE_POLICY}"
        ipe_need IPE_POLICY_KEY "${@ipe_key(d, 'POLICY')}"
        set -- "$@" --policy "${IPE_EVIDENCE_POLICY}" --key "${@ipe_key(d, 'POLICY')}" --cert "${IPE_POLICY_CERT}"
    fi
    ipe_build boot "${IPE_EVIDENCE_IMAGE}" "$@" ${IPE_EVIDENCE_ARGS} --evidence "${IPE_OUT}/${IMAGE_LINK_NAME}.evidence.json"
}
addtask ipe_evidence after do_ipe_disk before do_build
