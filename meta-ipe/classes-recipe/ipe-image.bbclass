# Image recipes (or IMAGE_CLASSES += "ipe-image"): the conversion type `verity`, and its root hash signed.
#
#   IMAGE_FSTYPES = "erofs erofs.verity"     hash tree, root hash and env file beside the image; the signature by do_ipe_sign
#
# Sidecars of IMAGE.TYPE: .verity .roothash .verity.env (do_image_TYPE), .roothash.p7s .verity-sig (do_ipe_sign)
# The image itself goes to sstate (OE-core leaves it out): so what comes after it, a signature or a policy, never makes it again.

inherit ipe-sign ipe-spdx

IPE_VERITY_HASH ??= "sha256"
IPE_VERITY_HASH[wanted] = "sha(1|224|256|384|512|3-224|3-256|3-384|3-512)|blake2b-(160|256|384|512)|blake2s-(128|160|224|256)"
IPE_VERITY_HASH[doc] = "Hash algorithm of the tree, as the kernel and veritysetup name it."
IPE_VERITY_SALT ??= ""
IPE_VERITY_SALT[wanted] = "-|([0-9a-fA-F]{2})*"
IPE_VERITY_SALT[doc] = "Salt in hex, or - for none. Empty: derived from the image's name and machine, the same in every build."
IPE_VERITY_BLOCK_SIZE ??= "4096"
IPE_VERITY_BLOCK_SIZE[wanted] = "[0-9]+"
IPE_VERITY_BLOCK_SIZE[doc] = "Data and hash block size in bytes; not above the device's page size."
IPE_IMAGE_SSTATE ??= "1"
IPE_IMAGE_SSTATE[wanted] = "0|1"
IPE_IMAGE_SSTATE[doc] = "1: images with a hash tree go to sstate. 0, as in OE-core: another builder makes the root filesystem again from packages."

# Without this mkfs takes a random UUID: every build that sstate does not serve would have another root hash.
def ipe_uuid_argument(d):
    import uuid
    return "-U %s" % uuid.uuid5(uuid.NAMESPACE_URL, "urn:ipe-build:%s-%s" % (d.getVar("IMAGE_BASENAME"), d.getVar("MACHINE"))) if ipe_verity_types(d) else ""
EXTRA_IMAGECMD:append:erofs = " ${@ipe_uuid_argument(d)}"
EXTRA_IMAGECMD:append:ext4 = " ${@ipe_uuid_argument(d)}"

CONVERSIONTYPES:append = " verity"
CONVERSION_CMD:verity = "ipe_verity_image ${type}"
CONVERSION_DEPENDS_verity = "${IPE_BUILD_DEPENDS}"

ipe_verity_image () {
    salt="--salt-from=${IMAGE_BASENAME}-${MACHINE}-$1"
    [ -z "${IPE_VERITY_SALT}" ] || salt="--salt=${IPE_VERITY_SALT}"
    ipe_build root "${IMGDEPLOYDIR}/${IMAGE_NAME}.$1" --pad --force --hash "${IPE_VERITY_HASH}" "$salt" \
        --data-block-size "${IPE_VERITY_BLOCK_SIZE}" --hash-block-size "${IPE_VERITY_BLOCK_SIZE}"
    ipe_list_sidecars "$1"
}

# Links and the image output manifest cover only what image.bbclass knows of: the sidecars' are made here.
ipe_list_sidecars () {
    listed=""
    for suffix in roothash verity.env; do
        file="${IMAGE_NAME}.$1.$suffix"
        [ -z "${IMAGE_LINK_NAME}" ] || [ "${IMAGE_LINK_NAME}" = "${IMAGE_NAME}" ] || \
            ln -sf "$file" "${IMGDEPLOYDIR}/${IMAGE_LINK_NAME}.$1.$suffix"
        listed="$listed${listed:+, }{\"filename\": \"$file\"}"
    done
    [ ! -d "${IMGMANIFESTDIR}" ] || echo "[{\"taskname\": \"image_ipe_$1\", \"imagetype\": \"$1\", \"images\": [$listed]}]" \
        > "${IMGMANIFESTDIR}/do_image_ipe_$1.json"
}

python () {
    wanted = (d.getVar("IMAGE_FSTYPES") or "").split()
    for one in ipe_verity_types(d):
        if one not in wanted:
            bb.fatal("IMAGE_FSTYPES has %s.verity without %s: image.bbclass would remove the image that the tree is for; add it" % (one, one))
    root = d.getVar("IPE_ROOT_FILESYSTEM")
    if bb.data.inherits_class("ipe-disk", d) and ipe_verity_types(d) and root not in ipe_verity_types(d):
        bb.fatal("IPE_ROOT_FILESYSTEM is %s, and IMAGE_FSTYPES has no %s.verity: there would be no disk" % (root, root))
    if ipe_verity_types(d) and d.getVar("IPE_IMAGE_SSTATE") == "1":
        for task in ("image-complete", "image-qa"):
            d.delVar("SSTATE_SKIP_CREATION:task-" + task)
        # image.bbclass runs its tasks in TOPDIR, which so is in their hashes: no other builder would find the image.
        d.setVarFlag("TOPDIR", "vardepvalue", "")
}
