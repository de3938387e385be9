# Image recipes (IMAGE_CLASSES += "ipe-image ipe-disk ipe-audit ipe-attest"): for somebody who is not at the device: which files are this
# build, made from what, signed by you (in-toto and SLSA in a DSSE envelope), and what a machine measures when it boots the disk.
#
#   ipe-build attest statement DEPLOY_DIR_IMAGE --statement IMAGE.provenance.dsse.json --verify --others --trusted PEM
#
# The statement is about all that the tasks of these classes deployed, as sstate recorded it; but not about evidence, whose times differ.

inherit ipe-measure ipe-keys

IPE_ATTESTATION_KEY ??= ""
IPE_ATTESTATION_KEY[doc] = "URI of the key that signs statements; no device trusts it."
IPE_ATTESTATION_CERT ??= ""
IPE_ATTESTATION_CERT[doc] = "Certificate (PEM) of IPE_ATTESTATION_KEY."
IPE_STATEMENT_TASKS ??= "${@ipe_statement_tasks(d)}"
IPE_STATEMENT_TASKS[doc] = "Tasks of the image recipe whose deployed files the statement is about: signatures, seal, UKI, disk with flash files, update, audit, reference values."
IPE_STATEMENT_MATERIALS ??= "root-filesystem=${IPE_ROOT} hash-tree=${IPE_ROOT}.verity boot-policy=${DEPLOY_DIR_IMAGE}/ipe-boot.pol kernel=${@d.getVar('IPE_UNSEALED_KERNEL') or d.getVar('IPE_KERNEL_IMAGE')} initramfs=${IPE_INITRAMFS_IMAGE} ${@'' if d.getVar('IPE_SEALED') == '1' else 'device-policy=${DEPLOY_DIR_IMAGE}/ipe-policy.pol'} ${@'boot-loader=${IPE_BOOT_LOADER}' if d.getVar('IPE_BOOT_LOADER') else ''}"
IPE_STATEMENT_MATERIALS[doc] = "What it says they were made from, WHAT=PATH words: root filesystem, hash tree, kernel, initramfs, policies, boot loader."
IPE_STATEMENT_BUILDER ??= "urn:ipe-build:local"
IPE_STATEMENT_BUILDER[doc] = "SLSA builder.id: a URI that says whose machine this is."

def ipe_statement_tasks(d):
    ours = [one for one in sorted(d.getVar("SSTATETASKS").split()) if one.startswith("do_ipe_") and d.getVarFlag(one, "task")]
    return " ".join(one[3:] for one in ours if one not in ("do_ipe_attest", "do_ipe_evidence"))

SSTATETASKS += "do_ipe_attest"
do_ipe_attest[doc] = "Signs the statement of what the build's files are and what they were made from"
do_ipe_attest[depends] += "${IPE_KEYS_TASK} ${IPE_DISK_DEPENDS} ipe-boot-policy:do_deploy ${@'' if d.getVar('IPE_SEALED') == '1' else 'ipe-policy:do_deploy'}"
do_ipe_attest[file-checksums] += "${@ipe_certificates(d, 'IPE_ATTESTATION_CERT')}"
do_ipe_attest[vardepsexclude] += "IPE_ATTESTATION_CERT SSTATE_MANFILEPREFIX"
do_ipe_attest () {
    ipe_need IPE_ATTESTATION_KEY "${@ipe_key(d, 'ATTESTATION')}"
    ipe_need_file IPE_ATTESTATION_CERT "${IPE_ATTESTATION_CERT}"
    set -- --name "${IMAGE_LINK_NAME}" --builder "${IPE_STATEMENT_BUILDER}"
    for task in ${IPE_STATEMENT_TASKS}; do
        for file in $(grep -v '/$' "${SSTATE_MANFILEPREFIX}.$task"); do
            set -- "$@" --file "${file#${DEPLOY_DIR_IMAGE}/}"
        done
    done
    for material in ${IPE_STATEMENT_MATERIALS}; do
        set -- "$@" --material "$material"
    done
    ipe_build attest statement "${DEPLOY_DIR_IMAGE}" "$@" --key "${@ipe_key(d, 'ATTESTATION')}" --cert "${IPE_ATTESTATION_CERT}" \
        --statement "${IPE_OUT}/${IMAGE_LINK_NAME}.provenance.dsse.json"
}
addtask ipe_attest after do_image_complete do_ipe_sign do_ipe_seal do_ipe_uki do_ipe_disk do_ipe_update do_ipe_audit do_ipe_measure before do_build
