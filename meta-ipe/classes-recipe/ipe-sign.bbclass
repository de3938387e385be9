# By ipe-image: the root hashes' signatures, a task behind the image: a new certificate makes new signatures and never the image again.

inherit ipe-task ipe-keys

SSTATETASKS += "do_ipe_sign"
do_ipe_sign[doc] = "Signs the root hashes: .roothash.p7s for the kernel, .verity-sig for the signature partition"
do_ipe_sign[depends] += "${IPE_KEYS_TASK}"
do_ipe_sign[file-checksums] += "${@ipe_certificates(d, 'IPE_VERITY_CERT')}"
do_ipe_sign[vardepsexclude] += "IPE_VERITY_CERT"
do_ipe_sign () {
    ipe_need IPE_VERITY_KEY "${@ipe_key(d, 'VERITY')}"
    ipe_need_file IPE_VERITY_CERT "${IPE_VERITY_CERT}"
    for type in ${@" ".join(ipe_verity_types(d))}; do
        image="${IMAGE_LINK_NAME}.$type"
        ipe_build sign root-hash "${DEPLOY_DIR_IMAGE}/$image.roothash" --key "${@ipe_key(d, 'VERITY')}" --cert "${IPE_VERITY_CERT}" \
            -o "${IPE_OUT}/$image.roothash.p7s" --verity-sig "${IPE_OUT}/$image.verity-sig"
    done
}
addtask ipe_sign after do_image_complete before do_ipe_disk do_build

python () {
    if d.getVar("IPE_SEALED") == "1":
        bb.build.deltask("do_ipe_sign", d)
}
