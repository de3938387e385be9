# Image recipes (IMAGE_CLASSES += "ipe-image ipe-uki ipe-disk"): kernel, initramfs and command line with this root's hash in one EFI
# program, signed for Secure Boot; firmware starts it from the disk.

inherit ipe-disk ipe-keys

IPE_SECUREBOOT_KEY ??= ""
IPE_SECUREBOOT_KEY[doc] = "URI of the key that signs EFI programs. Empty: the UKI is not signed."
IPE_SECUREBOOT_CERT ??= ""
IPE_SECUREBOOT_CERT[doc] = "Certificate (PEM) of IPE_SECUREBOOT_KEY; in the firmware's db."
IPE_UKI_STUB ??= "${DEPLOY_DIR_IMAGE}/linux${@ipe_efi_suffix(d)}.efi.stub"
IPE_UKI_STUB[doc] = "EFI stub of the UKI; systemd-boot deploys it."
IPE_UKI_DEPENDS ??= "systemd-boot:do_deploy virtual/kernel:do_deploy ipe-initramfs:do_deploy"
IPE_UKI_DEPENDS[doc] = "Tasks that make what the UKI is put together from."
IPE_UKI_ARGS ??= ""
IPE_UKI_ARGS[doc] = "More arguments for `ipe-build image uki`, such as --dtb FILE or --sbat FILE."
IPE_UKI = "${DEPLOY_DIR_IMAGE}/${IMAGE_LINK_NAME}.uki.efi"

SSTATETASKS += "do_ipe_uki"
do_ipe_uki[doc] = "Makes and signs the unified kernel image"
do_ipe_uki[depends] += "${IPE_UKI_DEPENDS} ${IPE_KEYS_TASK}"
do_ipe_uki[file-checksums] += "${@ipe_certificates(d, 'IPE_SECUREBOOT_CERT')}"
do_ipe_uki[vardepsexclude] += "IPE_SECUREBOOT_CERT"
do_ipe_uki () {
    ipe_need_file IPE_KERNEL_IMAGE "${IPE_KERNEL_IMAGE}"
    ipe_need_file IPE_INITRAMFS_IMAGE "${IPE_INITRAMFS_IMAGE}"
    ipe_need_file IPE_UKI_STUB "${IPE_UKI_STUB}"
    set -- --architecture "${IPE_ARCHITECTURE}"
    if [ -n "${IPE_SECUREBOOT_CERT}" ]; then
        ipe_need IPE_SECUREBOOT_KEY "${@ipe_key(d, 'SECUREBOOT')}"
        ipe_need_file IPE_SECUREBOOT_CERT "${IPE_SECUREBOOT_CERT}"
        set -- "$@" --key "${@ipe_key(d, 'SECUREBOOT')}" --cert "${IPE_SECUREBOOT_CERT}"
    fi
    ipe_set_command_line
    ipe_build image uki "$@" --kernel "${IPE_KERNEL_IMAGE}" --initramfs "${IPE_INITRAMFS_IMAGE}" --stub "${IPE_UKI_STUB}" \
        --command-line "$command_line" ${IPE_UKI_ARGS} -o "${IPE_OUT}/${IMAGE_LINK_NAME}.uki.efi"
}
addtask ipe_uki after do_image_complete before do_ipe_disk do_build
