# Image recipes (IMAGE_CLASSES += "ipe-image ipe-wic ipe-audit", in the place of ipe-disk): wic puts the disk together, from a kickstart
# file of yours, with bootloaders, data partitions and offsets as any wks file has them.
#
#   IPE_WKS_FILE = "my-board.wks.in"        include ${IPE_WKS}/esp.wks       EFI system partition with kernel and initramfs, or the UKI
#                                           include ${IPE_WKS}/root.wks      root, root-verity, root-verity-sig
#
# The included lines have the partitions' UUIDs, which follow from the root hash: do_ipe_disk writes them, with what it would put on a
# disk of its own. A task behind the image, not the image type `wic`: that is made before the root hash is signed.

inherit ipe-disk

IPE_WKS_FILE ??= "ipe-disk.wks.in"
IPE_WKS_FILE[doc] = "Kickstart file, in a layer's files/wic or wic. wic expands its ${…}: WICVARS, and IPE_WKS, the folder of the lines to include."
IPE_WIC_DEPENDS ??= "${@ipe_wic_tasks(d)}"
IPE_WIC_DEPENDS[doc] = "Tasks that make wic, its programs, and what the kickstart file names, such as virtual/bootloader:do_deploy."
IPE_DISK_NAME = "${IMAGE_LINK_NAME}.wic"

# do_ipe_disk makes the folder, do_ipe_wic the disk.
IPE_DISK_NAME:task-ipe-disk = "${IMAGE_LINK_NAME}.wks.d"
IPE_DISK_ARGS:append:task-ipe-disk = " --wks"
IPE_FLASH:task-ipe-disk = ""

IPE_WKS_PATH = "${@bb.utils.which(':'.join('%s/files/wic:%s/wic' % (one, one) for one in d.getVar('BBPATH').split(':')), d.getVar('IPE_WKS_FILE'))}"
IPE_WIC_WORK = "${WORKDIR}/ipe-wic-work"
IPE_WIC_VARS = "${WORKDIR}/ipe-wic-vars"
SSTATETASKS += "do_ipe_wic"
do_ipe_wic[doc] = "Puts the disk together with wic"
do_ipe_wic[cleandirs] += "${IPE_WIC_WORK}"
do_ipe_wic[depends] += "${IPE_WIC_DEPENDS}"
do_ipe_wic[file-checksums] += "${@'%s:True' % d.getVar('IPE_WKS_PATH') if d.getVar('IPE_WKS_PATH') else ''}"
do_ipe_wic[vardeps] += "APPEND IMAGE_BOOT_FILES IMAGE_EFI_BOOT_FILES IMAGE_EXTRA_PARTITION_FILES"
do_ipe_wic[vardepsexclude] += "IPE_WKS_PATH TOPDIR"
do_ipe_wic[prefuncs] += "ipe_wic_variables"
IPE_SPDX_TASKS:append = " ipe_wic"
SPDX_IMAGE_PURPOSE:ipe-wic ?= "diskImage"
SPDX_IMAGE_PURPOSE:ipe-disk = "archive"

# As image_types_wic of this series has it; what the machine adds to it is for its own kickstart file.
def ipe_wic_tasks(d):
    programs = ("wic", "parted", "gptfdisk", "dosfstools", "mtools")
    tasks = (d.getVarFlag("do_image_wic", "depends") or "").split()
    return " ".join(one for one in tasks if one.partition("-native:")[0] in programs)

# What wic asks of an image. Its root filesystem as a folder is not there any more, and no partition is made of it.
python ipe_wic_variables () {
    values = {name: d.getVar(name) for name in (d.getVar("WICVARS") or "").split()}
    values["IMAGE_ROOTFS"] = d.getVar("IPE_WIC_WORK") + "/root"
    values["IPE_WKS"] = "%s/%s.wks.d" % (d.getVar("DEPLOY_DIR_IMAGE"), d.getVar("IMAGE_LINK_NAME"))
    with open("%s/%s.env" % (d.getVar("IPE_WIC_VARS"), d.getVar("IMAGE_BASENAME")), "w") as file:
        file.writelines('%s="%s"\n' % (name, value.strip()) for name, value in sorted(values.items()) if value)
}
ipe_wic_variables[cleandirs] = "${IPE_WIC_VARS}"

do_ipe_wic () {
    [ -n "${IPE_WKS_PATH}" ] || bbfatal "IPE_WKS_FILE names '${IPE_WKS_FILE}', which no layer has in files/wic or wic"
    install -d "${IPE_WIC_WORK}/root"
    install -m 0644 "${IPE_WKS_PATH}" "${IPE_WIC_WORK}/disk.wks"
    BUILDDIR="${TOPDIR}" wic create "${IPE_WIC_WORK}/disk.wks" --vars "${IPE_WIC_VARS}" -e "${IMAGE_BASENAME}" -o "${IPE_WIC_WORK}/out" \
        -w "${IPE_WIC_WORK}/tmp" ${WIC_CREATE_EXTRA_ARGS} || bbfatal "wic failed with the kickstart file of IPE_WKS_FILE, ${IPE_WKS_FILE}"
    mv "${IPE_WIC_WORK}/out"/disk-*.direct "${IPE_OUT}/${IPE_DISK_NAME}"
    [ -z "${IPE_FLASH}" ] || ipe_build image flash "${IPE_OUT}/${IPE_DISK_NAME}" ${IPE_FLASH}
}
addtask ipe_wic after do_ipe_disk before do_ipe_audit do_ipe_evidence do_ipe_update do_ipe_measure do_ipe_attest do_build

python () {
    if any(one.split(".")[0] == "wic" for one in (d.getVar("IMAGE_FSTYPES") or "").split()) and ipe_verity_types(d):
        bb.fatal("IMAGE_FSTYPES has wic, which is made before the root hash is signed: take it out, ipe-wic makes the disk (IPE_WKS_FILE)")
}
