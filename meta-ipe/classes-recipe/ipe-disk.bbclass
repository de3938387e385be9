# Image recipes (or IMAGE_CLASSES += "ipe-image ipe-disk"): the whole disk, as discoverable partitions: EFI system partition, root,
# root-verity, root-verity-sig. Only where IMAGE_FSTYPES has IPE_ROOT_FILESYSTEM.verity.
#
# A task after the image, not an image type: a new policy, initramfs or kernel makes a new disk and never the root filesystem again.

inherit ipe-task ipe-spdx
inherit_defer ${@' '.join(name for name, wanted in (('ipe-seal', 'IPE_SEALED'), ('ipe-update', 'IPE_SLOTS')) if d.getVar(wanted) == '1')}

IPE_COMMAND_LINE ??= "console=ttyS0 panic=-1"
IPE_COMMAND_LINE[doc] = "Kernel command line; roothash= is added, but not with IPE_SEALED."
IPE_KERNEL_IMAGE ??= "${DEPLOY_DIR_IMAGE}/${KERNEL_IMAGETYPE}"
IPE_KERNEL_IMAGE[doc] = "Kernel on the disk."
IPE_INITRAMFS_IMAGE ??= "${DEPLOY_DIR_IMAGE}/ipe-initrd-${MACHINE}"
IPE_INITRAMFS_IMAGE[doc] = "Initramfs on the disk; the recipe ipe-initramfs deploys it."
IPE_BOOT_LOADER ??= "${@'${DEPLOY_DIR_IMAGE}/systemd-boot%s.efi' % ipe_efi_suffix(d) if ipe_needs_loader(d) else ''}"
IPE_BOOT_LOADER[doc] = "EFI boot loader on the disk: systemd-boot on machines with `efi` in MACHINE_FEATURES. Empty: none, something else (U-Boot, QEMU) starts the kernel."
IPE_DISK_DEPENDS ??= "virtual/kernel:do_deploy ipe-initramfs:do_deploy dosfstools-native:do_populate_sysroot mtools-native:do_populate_sysroot ${@'systemd-boot:do_deploy' if ipe_needs_loader(d) else ''}"
IPE_DISK_DEPENDS[doc] = "Tasks that make what the disk is put together from."
IPE_UKI ??= ""
IPE_UKI[doc] = "Unified kernel image that firmware starts, instead of kernel, initramfs and boot loader; ipe-uki makes one and sets this."
IPE_DISK_ARGS ??= ""
IPE_DISK_ARGS[doc] = "More arguments for `ipe-build image disk`, such as --uuid UUID."
IPE_SLOTS ??= "0"
IPE_SLOTS[wanted] = "0|1"
IPE_SLOTS[doc] = "1: two slots for A/B updates, this image in the first. The root gets the recipe ipe-slot's files, and ipe-update makes the updates."
IPE_SLOT_ROOT_MIB ??= "0"
IPE_SLOT_ROOT_MIB[wanted] = "[0-9]+"
IPE_SLOT_ROOT_MIB[doc] = "Size of a slot's root in MiB; later builds must fit into it. 0: half more than this build's root."
IPE_FLASH ??= "--bmap --zstd"
IPE_FLASH[wanted] = "( *--(bmap|zstd|partitions|sparse))* *"
IPE_FLASH[doc] = "What is deployed beside the disk (`ipe-build image flash`): --bmap, --zstd, --partitions, --sparse. Empty: nothing."
IPE_ESP_MIB ??= "64"
IPE_ESP_MIB[wanted] = "[1-9][0-9]*"
IPE_ESP_MIB[doc] = "Size of the EFI system partition in MiB."
IPE_DISK_NAME ??= "${IMAGE_LINK_NAME}.ipedisk"
IPE_DISK_NAME[doc] = "File name of the disk in DEPLOY_DIR_IMAGE."

def ipe_efi_suffix(d):
    return {"x86-64": "x64", "arm64": "aa64"}.get(d.getVar("IPE_ARCHITECTURE"), d.getVar("IPE_ARCHITECTURE"))

# A unified kernel image needs none: firmware starts it.
def ipe_needs_loader(d):
    return "efi" in (d.getVar("MACHINE_FEATURES") or "").split() and not d.getVar("IPE_UKI")

IMAGE_INSTALL:append = " ${@'ipe-slot' if d.getVar('IPE_SLOTS') == '1' and d.getVar('IPE_ROOT_FILESYSTEM') in ipe_verity_types(d) else ''}"

SSTATETASKS += "do_ipe_disk"
do_ipe_disk[doc] = "Puts the signed root, kernel and initramfs together on one disk"
do_ipe_disk[depends] += "${IPE_DISK_DEPENDS}"
do_ipe_disk () {
    ipe_set_command_line
    if [ -n "${IPE_UKI}" ]; then
        ipe_need_file IPE_UKI "${IPE_UKI}"
        set -- --uki "${IPE_UKI}"
    else
        ipe_need_file IPE_KERNEL_IMAGE "${IPE_KERNEL_IMAGE}"
        ipe_need_file IPE_INITRAMFS_IMAGE "${IPE_INITRAMFS_IMAGE}"
        set -- --kernel "${IPE_KERNEL_IMAGE}" --initramfs "${IPE_INITRAMFS_IMAGE}" --name "${IMAGE_BASENAME}"
        set -- "$@" --command-line "$command_line"
        if [ -n "${IPE_BOOT_LOADER}" ]; then
            ipe_need_file IPE_BOOT_LOADER "${IPE_BOOT_LOADER}"
            set -- "$@" --boot-loader "${IPE_BOOT_LOADER}"
        else
            set -- "$@" --no-boot-loader
        fi
    fi
    [ "${IPE_SEALED}" = "1" ] || set -- "$@" --verity-sig "${IPE_ROOT}.verity-sig"
    [ "${IPE_SLOTS}" != "1" ] || set -- "$@" --slots --slot-root-mib "${IPE_SLOT_ROOT_MIB}"
    ipe_build image disk "${IPE_ROOT}" --root-hash "${IPE_ROOT}.roothash" --architecture "${IPE_ARCHITECTURE}" --esp-mib "${IPE_ESP_MIB}" "$@" \
        ${IPE_DISK_ARGS} ${IPE_FLASH} -o "${IPE_OUT}/${IPE_DISK_NAME}"
}
addtask ipe_disk after do_image_complete before do_build

# A sealed initramfs knows its root hash, and takes none from outside.
ipe_set_command_line () {
    command_line="${IPE_COMMAND_LINE}"
    [ "${IPE_SEALED}" = "1" ] || command_line="$command_line roothash=$(cat "${IPE_ROOT}.roothash")"
}
