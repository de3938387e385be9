# Kernel recipes (or KERNEL_CLASSES += "ipe-kernel"): IPE, dm-verity, trusted certificates and the boot policy in the kernel.
#
# After the recipe's own configuration the fragment is merged and resolved; a symbol that kconfig dropped or changed fails the build.
# Files that CONFIG_ values name are relative to ${B}, so that no build path gets into the kernel.

inherit ipe-keys

IPE_KERNEL_FEATURES ??= "ipe dm-verity ${@'sealed' if d.getVar('IPE_SEALED') == '1' else 'dm-verity-signature modules'} initramfs ${IPE_ROOT_FILESYSTEM} ${@bb.utils.contains('MACHINE_FEATURES', 'efi', 'efi', '', d) if d.getVar('TARGET_ARCH') in ('x86_64', 'aarch64') else ''}"
IPE_KERNEL_FEATURES[doc] = "What the kernel must be able to do: `ipe-build kernel fragment --list`."
IPE_KERNEL_PROPERTIES ??= "boot_verified ${@'dmverity_roothash' if d.getVar('IPE_SEALED') == '1' else 'dmverity_signature'}"
IPE_KERNEL_PROPERTIES[doc] = "IPE properties that policies of this device use."
IPE_BOOT_POLICY ??= "${DEPLOY_DIR_IMAGE}/ipe-boot.pol"
IPE_BOOT_POLICY[doc] = "Text of the policy that is compiled into the kernel; the recipe ipe-boot-policy deploys it."
IPE_BOOT_POLICY_DEPENDS ??= "ipe-boot-policy:do_deploy"
IPE_BOOT_POLICY_DEPENDS[doc] = "Task that makes IPE_BOOT_POLICY. Empty for a file of your own."

DEPENDS:append = " ${IPE_BUILD_DEPENDS}"
do_configure[depends] += "${IPE_BOOT_POLICY_DEPENDS} ${IPE_KEYS_TASK}"
do_configure[file-checksums] += "${@ipe_certificates(d, 'IPE_TRUSTED_CERTS')}"

do_configure:append () {
    ipe_configure_kernel
}

ipe_configure_kernel () {
    ipe_need_file IPE_BOOT_POLICY "${IPE_BOOT_POLICY}"
    install -m 0644 "${IPE_BOOT_POLICY}" "${B}/ipe-boot.pol"
    set -- --policy "${B}/ipe-boot.pol" --boot-policy ipe-boot.pol
    if [ "${IPE_SEALED}" != "1" ]; then
        ipe_need IPE_TRUSTED_CERTS "${IPE_TRUSTED_CERTS}"
        for certificate in ${IPE_TRUSTED_CERTS}; do
            ipe_need_file IPE_TRUSTED_CERTS "$certificate"
        done
        cat ${IPE_TRUSTED_CERTS} > "${B}/ipe-trusted.pem"
        set -- "$@" --trusted-keys ipe-trusted.pem
    fi
    for feature in ${IPE_KERNEL_FEATURES}; do
        set -- "$@" --feature "$feature"
    done
    for property in ${IPE_KERNEL_PROPERTIES}; do
        set -- "$@" --property "$property"
    done
    rm -f "${B}/ipe.config"
    ipe_build kernel fragment "$@" -o "${B}/ipe.config"
    (cd "${B}" && "${S}/scripts/kconfig/merge_config.sh" -m -O "${B}" "${B}/.config" "${B}/ipe.config")
    oe_runmake -C "${S}" O="${B}" olddefconfig
    ipe_build kernel check "${B}/.config" "$@"
}
ipe_configure_kernel[vardepsexclude] += "IPE_TRUSTED_CERTS"

# Modules are signed by ipe-modules with a key that the kernel's build never sees. A key that the kernel made for itself would be
# copied into work-shared for out-of-tree modules: it must not exist.
do_compile:append () {
    for key in "${B}/certs/signing_key.pem" "${B}/certs/signing_key.priv" "${B}/signing_key.priv"; do
        [ ! -e "$key" ] || bbfatal "$key: the kernel made a private key of its own; CONFIG_MODULE_SIG_KEY must be empty (IPE_KERNEL_FEATURES: modules)"
    done
}

do_deploy:append () {
    install -m 0644 "${B}/.config" "${DEPLOYDIR}/ipe-kernel-${MACHINE}.config"
}
