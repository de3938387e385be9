# IPE_SEALED = "1" makes ipe-disk inherit this: a kernel that runs this root and no other, with no key anywhere.
#
# The kernel is built once, with a reserved boot policy that denies everything; the root hash is written into it after the image. So the
# kernel does not depend on the image, and a new root makes a new sealed kernel in seconds.

inherit ipe-task

IPE_UNSEALED_KERNEL ??= "${DEPLOY_DIR_IMAGE}/${KERNEL_IMAGETYPE}"
IPE_UNSEALED_KERNEL[doc] = "Kernel with the reserved boot policy."
IPE_SEAL_VERSION ??= "0.0.1"
IPE_SEAL_VERSION[wanted] = "[0-9]+[.][0-9]+[.][0-9]+"
IPE_SEAL_VERSION[doc] = "policy_version A.B.C of the policy that is sealed in."
IPE_SEAL_ROOT_HASHES ??= ""
IPE_SEAL_ROOT_HASHES[doc] = "More root hashes (ALGORITHM:HEX) that may run, such as the old slot's while an update is under way."
IPE_KERNEL_IMAGE = "${DEPLOY_DIR_IMAGE}/${IMAGE_LINK_NAME}.kernel"

SSTATETASKS += "do_ipe_seal"
do_ipe_seal[doc] = "Writes the root hash into the kernel's reserved boot policy"
do_ipe_seal[depends] += "virtual/kernel:do_deploy xz-native:do_populate_sysroot"
do_ipe_seal () {
    ipe_need_file IPE_UNSEALED_KERNEL "${IPE_UNSEALED_KERNEL}"
    set -- --root-hash "${IPE_VERITY_HASH}:$(cat "${IPE_ROOT}.roothash")"
    for root_hash in ${IPE_SEAL_ROOT_HASHES}; do
        set -- "$@" --root-hash "$root_hash"
    done
    ipe_build kernel seal "${IPE_UNSEALED_KERNEL}" "$@" --version "${IPE_SEAL_VERSION}" -o "${IPE_OUT}/${IMAGE_LINK_NAME}.kernel"
}
addtask ipe_seal after do_image_complete before do_ipe_uki do_ipe_disk do_build
