# Image recipes (IMAGE_CLASSES += "ipe-image ipe-disk ipe-audit ipe-attest"): for somebody who is not at the device: which files are this
# build, made from what, signed by you (in-toto and SLSA in a DSSE envelope), and what a machine measures when it boots the disk.
#
#   ipe-build attest statement DEPLOY_DIR_IMAGE --statement IMAGE.provenance.dsse.json --verify --others --trusted PEM

inherit ipe-common

IPE_ROOT_FILESYSTEM ??= "erofs"
IPE_ATTESTATION_KEY ??= ""
IPE_ATTESTATION_KEY[doc] = "URI of the key that signs statements; no device trusts it."
IPE_ATTESTATION_CERT ??= ""
IPE_ATTESTATION_CERT[doc] = "Certificate (PEM) of IPE_ATTESTATION_KEY."
IPE_STATEMENT_FILES ??= "${@ipe_statement_files(d)}"
IPE_STATEMENT_FILES[doc] = "What the statement is about: files and folders in DEPLOY_DIR_IMAGE. Disk, flash files, signatures, UKI, update, audit, reference values."
IPE_STATEMENT_MATERIALS ??= "${@ipe_statement_materials(d)}"
IPE_STATEMENT_MATERIALS[doc] = "What it says they were made from, WHAT=PATH words: root filesystem, hash tree, kernel, initramfs, policies, boot loader."
IPE_STATEMENT_BUILDER ??= "urn:ipe-build:local"
IPE_STATEMENT_BUILDER[doc] = "SLSA builder.id: a URI that says whose machine this is."
IPE_REFERENCE_VALUES ??= "${@'1' if d.getVar('IPE_UKI') or d.getVar('IPE_BOOT_LOADER') else '0'}"
IPE_REFERENCE_VALUES[doc] = "1: what a boot of the disk measures (docs/attestation.md). Without a UKI or systemd-boot nobody can say."
IPE_REFERENCE_ARGS ??= ""
IPE_REFERENCE_ARGS[doc] = "More arguments for `ipe-build attest measure`, such as --variables FILE: the Secure Boot keys of the device."

IPE_MADE_SUFFIXES = "--bmap=.bmap --zstd=.zst --partitions=.partitions --sparse=.partitions folder=.update rauc=.raucb swupdate=.swu"

def ipe_statement_files(d):
    image, flash = d.getVar("IMAGE_LINK_NAME"), d.getVar("IPE_FLASH").split()
    made = dict(pair.split("=") for pair in d.getVar("IPE_MADE_SUFFIXES").split())
    files = [d.getVar("IPE_DISK_NAME")] + sorted({d.getVar("IPE_DISK_NAME") + made[one] for one in flash})
    root = "%s.%s" % (image, d.getVar("IPE_ROOT_FILESYSTEM"))
    outputs = {
        "do_ipe_sign": [root + ".roothash.p7s", root + ".verity-sig"],
        "do_ipe_seal": [image + ".kernel"],
        "do_ipe_uki": [image + ".uki.efi"],
        "do_ipe_update": [image + made[one] for one in ["folder"] + (d.getVar("IPE_UPDATE_FORMATS") or "").split()],
        "do_ipe_audit": [image + ".audit.json", image + ".audit.sarif"],
        "do_ipe_measure": [image + ".reference.json", image + ".reference.pcrlock"],
    }
    return " ".join(files + [one for task in outputs if d.getVarFlag(task, "task") for one in outputs[task]])

def ipe_statement_materials(d):
    folder, sealed = d.getVar("DEPLOY_DIR_IMAGE"), d.getVar("IPE_SEALED") == "1"
    root = "%s/%s.%s" % (folder, d.getVar("IMAGE_LINK_NAME"), d.getVar("IPE_ROOT_FILESYSTEM"))
    rows = [("root-filesystem", root), ("hash-tree", root + ".verity"), ("boot-policy", folder + "/ipe-boot.pol")]
    kernel = d.getVar("IPE_UNSEALED_KERNEL") if sealed else d.getVar("IPE_KERNEL_IMAGE")
    rows += [("kernel", kernel), ("initramfs", d.getVar("IPE_INITRAMFS_IMAGE"))]
    rows += [] if sealed else [("device-policy", folder + "/ipe-policy.pol")]
    rows += [("boot-loader", d.getVar("IPE_BOOT_LOADER"))] if d.getVar("IPE_BOOT_LOADER") else []
    return " ".join("%s=%s" % row for row in rows)

IPE_MEASURE_DIR = "${WORKDIR}/ipe-measure"
do_ipe_measure[doc] = "Says what a machine measures when it boots the disk: reference values"
do_ipe_measure[cleandirs] = "${IPE_MEASURE_DIR}"
do_ipe_measure[sstate-inputdirs] = "${IPE_MEASURE_DIR}"
do_ipe_measure[sstate-outputdirs] = "${DEPLOY_DIR_IMAGE}"
do_ipe_measure[depends] += "${IPE_BUILD_TASKS}"
SSTATETASKS += "do_ipe_measure"
do_ipe_measure () {
    ipe_build attest measure "${DEPLOY_DIR_IMAGE}/${IPE_DISK_NAME}" ${IPE_REFERENCE_ARGS} \
        -o "${IPE_MEASURE_DIR}/${IMAGE_LINK_NAME}.reference.json" --pcrlock "${IPE_MEASURE_DIR}/${IMAGE_LINK_NAME}.reference.pcrlock"
}
addtask ipe_measure after do_ipe_disk before do_build

IPE_ATTEST_DIR = "${WORKDIR}/ipe-attest"
do_ipe_attest[doc] = "Signs the statement of what the build's files are and what they were made from"
do_ipe_attest[cleandirs] = "${IPE_ATTEST_DIR}"
do_ipe_attest[sstate-inputdirs] = "${IPE_ATTEST_DIR}"
do_ipe_attest[sstate-outputdirs] = "${DEPLOY_DIR_IMAGE}"
do_ipe_attest[depends] += "${IPE_BUILD_TASKS} ${IPE_KEYS_TASK} ${IPE_DISK_DEPENDS} ipe-boot-policy:do_deploy ${@'' if d.getVar('IPE_SEALED') == '1' else 'ipe-policy:do_deploy'}"
do_ipe_attest[file-checksums] += "${@ipe_certificates(d, 'IPE_ATTESTATION_CERT')}"
do_ipe_attest[vardepsexclude] += "IPE_ATTESTATION_CERT"
SSTATETASKS += "do_ipe_attest"
do_ipe_attest () {
    ipe_need IPE_ATTESTATION_KEY "${@ipe_key(d, 'ATTESTATION')}"
    ipe_need_file IPE_ATTESTATION_CERT "${IPE_ATTESTATION_CERT}"
    set -- --name "${IMAGE_LINK_NAME}" --builder "${IPE_STATEMENT_BUILDER}"
    for file in ${IPE_STATEMENT_FILES}; do
        set -- "$@" --file "$file"
    done
    for material in ${IPE_STATEMENT_MATERIALS}; do
        set -- "$@" --material "$material"
    done
    ipe_build attest statement "${DEPLOY_DIR_IMAGE}" "$@" --key "${@ipe_key(d, 'ATTESTATION')}" --cert "${IPE_ATTESTATION_CERT}" \
        --statement "${IPE_ATTEST_DIR}/${IMAGE_LINK_NAME}.provenance.dsse.json"
}
addtask ipe_attest after do_image_complete do_ipe_sign do_ipe_seal do_ipe_uki do_ipe_disk do_ipe_update do_ipe_audit do_ipe_measure before do_build

python do_ipe_measure_setscene () {
    sstate_setscene(d)
}
addtask do_ipe_measure_setscene

python do_ipe_attest_setscene () {
    sstate_setscene(d)
}
addtask do_ipe_attest_setscene

python () {
    ipe_only_with_root(d, "do_ipe_attest")
    ipe_only_with_root(d, "do_ipe_measure")
    if d.getVar("IPE_REFERENCE_VALUES") != "1":
        bb.build.deltask("do_ipe_measure", d)
}
