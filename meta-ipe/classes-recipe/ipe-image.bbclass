# Image recipes (or IMAGE_CLASSES += "ipe-image"): the conversion type `verity` and the image type `ipedisk`.
#
#   IMAGE_FSTYPES = "erofs erofs.verity"     hash tree, root hash, its signature, env file: sidecars beside the image
#   IMAGE_FSTYPES = "ipedisk"                the whole disk: EFI system partition, root, root-verity, root-verity-sig
#   IMAGE_FSTYPES = "ipedisk ipedisk.zst ipedisk.bmap"
#
# Sidecars of IMAGE.TYPE: .verity .roothash .roothash.p7s .verity-sig .verity.env

inherit ipe-common

IPE_ROOT_FILESYSTEM ??= "erofs"
IPE_ROOT_FILESYSTEM[doc] = "Filesystem of the verity root: erofs, squashfs or ext4."
IPE_VERITY_HASH ??= "sha256"
IPE_VERITY_HASH[doc] = "Hash algorithm of the tree, as the kernel and veritysetup name it."
IPE_VERITY_SALT ??= ""
IPE_VERITY_SALT[doc] = "Salt in hex, or - for none. Empty: derived from the image's name and machine, the same in every build."
IPE_VERITY_BLOCK_SIZE ??= "4096"
IPE_VERITY_BLOCK_SIZE[doc] = "Data and hash block size in bytes; not above the device's page size."
IPE_COMMAND_LINE ??= "console=ttyS0 panic=-1"
IPE_COMMAND_LINE[doc] = "Kernel command line of the ipedisk; roothash= is added."
IPE_ARCHITECTURE ??= "${@{'x86_64': 'x86-64', 'aarch64': 'arm64'}.get(d.getVar('TARGET_ARCH'), d.getVar('TARGET_ARCH'))}"
IPE_ARCHITECTURE[doc] = "Whose discoverable-partition types: x86-64, arm64, arm, riscv64."
IPE_KERNEL_IMAGE ??= "${DEPLOY_DIR_IMAGE}/${KERNEL_IMAGETYPE}"
IPE_KERNEL_IMAGE[doc] = "Kernel for the ipedisk."
IPE_INITRAMFS_IMAGE ??= "${DEPLOY_DIR_IMAGE}/ipe-initrd-${MACHINE}"
IPE_INITRAMFS_IMAGE[doc] = "Initramfs for the ipedisk; the recipe ipe-initramfs deploys it."
IPE_BOOT_LOADER ??= ""
IPE_BOOT_LOADER[doc] = "EFI boot loader for the ipedisk, such as systemd-boot's in DEPLOY_DIR_IMAGE. Empty: none, the firmware starts the kernel."
IPE_DISK_DEPENDS ??= "virtual/kernel:do_deploy ipe-initramfs:do_deploy dosfstools-native:do_populate_sysroot mtools-native:do_populate_sysroot"
IPE_DISK_DEPENDS[doc] = "Tasks that make what the ipedisk is put together from."
IPE_ESP_MIB ??= "64"
IPE_ESP_MIB[doc] = "Size of the EFI system partition in MiB."

CONVERSIONTYPES:append = " verity"
CONVERSION_CMD:verity = "ipe_verity_image ${type}"
CONVERSION_DEPENDS_verity = "${IPE_BUILD_DEPENDS}"

IMAGE_TYPES:append = " ipedisk"
# Both: image.bbclass removes an image that is only the way to another type.
IMAGE_TYPEDEP:ipedisk = "${IPE_ROOT_FILESYSTEM} ${IPE_ROOT_FILESYSTEM}.verity"
IMAGE_CMD:ipedisk = "ipe_disk_image"
do_image_ipedisk[depends] += "${IPE_DISK_DEPENDS}"

ipe_verity_image () {
    ipe_need IPE_VERITY_KEY "${IPE_VERITY_KEY}"
    ipe_need_file IPE_VERITY_CERT "${IPE_VERITY_CERT}"
    salt="--salt-from=${IMAGE_BASENAME}-${MACHINE}-$1"
    [ -z "${IPE_VERITY_SALT}" ] || salt="--salt=${IPE_VERITY_SALT}"
    ipe_build root "${IMGDEPLOYDIR}/${IMAGE_NAME}.$1" --pad --force --hash "${IPE_VERITY_HASH}" "$salt" \
        --data-block-size "${IPE_VERITY_BLOCK_SIZE}" --hash-block-size "${IPE_VERITY_BLOCK_SIZE}" \
        --key "${IPE_VERITY_KEY}" --cert "${IPE_VERITY_CERT}"
    ipe_list_sidecars "$1"
}
ipe_verity_image[vardepsexclude] += "IPE_VERITY_KEY IPE_VERITY_CERT"

# Links and the image output manifest cover only what image.bbclass knows of: the sidecars' are made here.
ipe_list_sidecars () {
    listed=""
    for suffix in roothash roothash.p7s verity-sig verity.env; do
        file="${IMAGE_NAME}.$1.$suffix"
        [ -z "${IMAGE_LINK_NAME}" ] || [ "${IMAGE_LINK_NAME}" = "${IMAGE_NAME}" ] || \
            ln -sf "$file" "${IMGDEPLOYDIR}/${IMAGE_LINK_NAME}.$1.$suffix"
        listed="$listed${listed:+, }{\"filename\": \"$file\"}"
    done
    [ ! -d "${IMGMANIFESTDIR}" ] || echo "[{\"taskname\": \"image_ipe_$1\", \"imagetype\": \"$1\", \"images\": [$listed]}]" \
        > "${IMGMANIFESTDIR}/do_image_ipe_$1.json"
}

ipe_disk_image () {
    root="${IMGDEPLOYDIR}/${IMAGE_NAME}.${IPE_ROOT_FILESYSTEM}"
    loader="--no-boot-loader"
    [ -z "${IPE_BOOT_LOADER}" ] || loader="--boot-loader=${IPE_BOOT_LOADER}"
    ipe_need_file IPE_KERNEL_IMAGE "${IPE_KERNEL_IMAGE}"
    ipe_need_file IPE_INITRAMFS_IMAGE "${IPE_INITRAMFS_IMAGE}"
    ipe_build image disk "$root" --root-hash "$root.roothash" --verity-sig "$root.verity-sig" --name "${IMAGE_BASENAME}" \
        --kernel "${IPE_KERNEL_IMAGE}" --initramfs "${IPE_INITRAMFS_IMAGE}" --architecture "${IPE_ARCHITECTURE}" "$loader" \
        --command-line "${IPE_COMMAND_LINE} roothash=$(cat "$root.roothash")" --esp-mib "${IPE_ESP_MIB}" \
        -o "${IMGDEPLOYDIR}/${IMAGE_NAME}.ipedisk" --force
}

# The tasks that sign are those of the types before `.verity`: their hash takes in the certificate's content.
python () {
    wanted = (d.getVar("IMAGE_FSTYPES") or "").split()
    types = [one.split(".verity")[0] for one in wanted if ".verity" in one]
    for one in types:
        if one not in wanted:
            bb.fatal("IMAGE_FSTYPES has %s.verity without %s: image.bbclass would remove the image that the tree is for; add it" % (one, one))
    for one in set(types + [d.getVar("IPE_ROOT_FILESYSTEM")]):
        task = "do_image_%s" % one.split(".")[0].replace("-", "_")
        d.appendVarFlag(task, "file-checksums", " " + ipe_certificates(d, "IPE_VERITY_CERT"))
        d.appendVarFlag(task, "depends", " " + d.getVar("IPE_KEYS_TASK"))
}
