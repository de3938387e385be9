# Recipes with kernel modules (the kernel's, module.bbclass's): each .ko is signed after it is stripped and before it is packaged.
#
# The signature is the one that the kernel's sign-file makes; compressed modules stay compressed.

inherit ipe-keys

IPE_MODULE_DIGEST ??= "sha256"
IPE_MODULE_DIGEST[wanted] = "sha256|sha384|sha512"
IPE_MODULE_DIGEST[doc] = "Digest of the modules' signatures: sha256, sha384 or sha512."

DEPENDS:append = " ${IPE_BUILD_DEPENDS}"
do_package[depends] += "${IPE_KEYS_TASK}"
do_package[file-checksums] += "${@ipe_certificates(d, 'IPE_MODULE_CERT')}"

# Prepended: before the packages are split, and after process_split_and_strip_files.
PACKAGESPLITFUNCS:prepend = "ipe_sign_modules "

ipe_sign_modules () {
    if [ "${IPE_SEALED}" != "1" ] && [ -n "$(find "${PKGD}" -name '*.ko' -o -name '*.ko.gz' -o -name '*.ko.xz' -o -name '*.ko.zst')" ]; then
        ipe_need IPE_MODULE_KEY "${@ipe_key(d, 'MODULE')}"
        ipe_need_file IPE_MODULE_CERT "${IPE_MODULE_CERT}"
        ipe_build modules sign "${PKGD}" --digest "${IPE_MODULE_DIGEST}" --key "${@ipe_key(d, 'MODULE')}" --cert "${IPE_MODULE_CERT}"
    fi
}
ipe_sign_modules[vardepsexclude] += "IPE_MODULE_CERT"
