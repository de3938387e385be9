# The initramfs: one static program that opens the verity root with its signature, loads the device policy and starts the root's init.
#
# It holds the signed policy, so a new policy makes a new initramfs and disk, and never a new root filesystem.

inherit ipe-common deploy

IPE_ROOT_IMAGE ??= ""
IPE_ROOT_IMAGE[doc] = "With IPE_SEALED: the image recipe whose root hash the initramfs holds."
IPE_ROOT_HASH_FILE ??= "${DEPLOY_DIR_IMAGE}/${IPE_ROOT_IMAGE}-${MACHINE}.rootfs.${IPE_ROOT_FILESYSTEM}.roothash"
IPE_ROOT_HASH_FILE[doc] = "With IPE_SEALED: the root hash of IPE_ROOT_IMAGE, as its do_image_complete deploys it."
IPE_INITRAMFS_ROOT_HASH ??= "${@d.getVar('IPE_ROOT_HASH_FILE') if d.getVar('IPE_SEALED') == '1' else 'cmdline'}"
IPE_INITRAMFS_ROOT_HASH[doc] = "cmdline: roothash= names the root and its signature decides. Else the one root hash (hex, or a .roothash file) that is opened."
IPE_INITRAMFS_POLICY ??= "${@'' if d.getVar('IPE_SEALED') == '1' else '${DEPLOY_DIR_IMAGE}/ipe-policy.p7b'}"
IPE_INITRAMFS_POLICY[doc] = "Signed policy in the initramfs; its file's stem is the policy's name. Empty with IPE_SEALED."
IPE_INITRAMFS_DEPENDS ??= "${@'${IPE_ROOT_IMAGE}:do_image_complete' if d.getVar('IPE_SEALED') == '1' else 'ipe-policy:do_deploy'}"
IPE_INITRAMFS_DEPENDS[doc] = "Task that makes IPE_INITRAMFS_POLICY; with IPE_SEALED the root hash."
IPE_INITRAMFS_DROP ??= "CAP_MAC_ADMIN CAP_SYS_RAWIO CAP_SYS_PTRACE"
IPE_INITRAMFS_DROP[wanted] = "( *CAP_[A-Z_]+)* *"
IPE_INITRAMFS_DROP[doc] = "Capabilities that no process of the device gets. Without CAP_MAC_ADMIN enforcement cannot be switched off, nor a policy updated, until reboot."
IPE_INITRAMFS_ARGS ??= ""
IPE_INITRAMFS_ARGS[doc] = "More arguments for `ipe-build image initramfs`, such as --init /lib/systemd/systemd or --on-failure recovery."

DEPENDS:append = " ${IPE_BUILD_DEPENDS}"
PACKAGE_ARCH = "${MACHINE_ARCH}"
do_compile[depends] += "${IPE_INITRAMFS_DEPENDS}"
do_compile[cleandirs] += "${B}"
do_compile () {
    # CC is a program with options; ipe-build runs one program.
    printf '#!/bin/sh\nexec %s "$@"\n' "${CC}" > "${B}/cc"
    chmod 0755 "${B}/cc"
    if [ "${IPE_SEALED}" = "1" ]; then
        # Its boot policy allows the initramfs for good: nothing may be added to that.
        set -- --signature none --freeze --drop-capability CAP_LINUX_IMMUTABLE
    else
        ipe_need_file IPE_INITRAMFS_POLICY "${IPE_INITRAMFS_POLICY}"
        policy="/etc/ipe/$(basename "${IPE_INITRAMFS_POLICY}")"
        set -- --policy "initramfs:$policy" --carry "$policy=${IPE_INITRAMFS_POLICY}"
    fi
    for capability in ${IPE_INITRAMFS_DROP}; do
        set -- "$@" --drop-capability "$capability"
    done
    ipe_build image initramfs --root-hash "${IPE_INITRAMFS_ROOT_HASH}" --filesystem "${IPE_ROOT_FILESYSTEM}" \
        --architecture "${IPE_ARCHITECTURE}" "$@" --compiler "${B}/cc" ${IPE_INITRAMFS_ARGS} -o "${B}/ipe-initrd"
}

do_deploy () {
    install -m 0644 "${B}/ipe-initrd" "${DEPLOYDIR}/ipe-initrd-${MACHINE}"
}
addtask deploy after do_compile before do_build

python () {
    if d.getVar("IPE_SEALED") == "1" and not d.getVar("IPE_ROOT_IMAGE"):
        raise bb.parse.SkipRecipe("IPE_SEALED is 1, so the initramfs holds a root hash: set IPE_ROOT_IMAGE to the image recipe that it is of")
}
