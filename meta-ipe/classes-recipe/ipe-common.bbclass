# What all ipe classes share: the program, keys and certificates by purpose, how a missing one is reported.
#
# Keys are URIs (file:, pkcs11:, command:), so a private key never is in the metadata. Signatures with RSA are deterministic and the
# URI is not part of any task's hash: builders that reach the same key in different ways share sstate. The certificate's content is
# part of it (file-checksums).

IPE_BUILD_CMD ?= "ipe-build"
IPE_BUILD_CMD[doc] = "The program that the ipe classes call."
IPE_BUILD_DEPENDS ?= "python3-ipe-build-native"
IPE_BUILD_DEPENDS[doc] = "Recipes that provide IPE_BUILD_CMD. Empty when it comes from the host (then add it to HOSTTOOLS)."

IPE_POLICY_KEY ??= ""
IPE_POLICY_KEY[doc] = "URI of the key that signs policies: file:PATH, pkcs11:… (with pin-source=, never pin-value=) or command:…."
IPE_POLICY_CERT ??= ""
IPE_POLICY_CERT[doc] = "Certificate (PEM) of IPE_POLICY_KEY."
IPE_VERITY_KEY ??= ""
IPE_VERITY_KEY[doc] = "URI of the key that signs root hashes."
IPE_VERITY_CERT ??= ""
IPE_VERITY_CERT[doc] = "Certificate (PEM) of IPE_VERITY_KEY."
IPE_MODULE_KEY ??= ""
IPE_MODULE_KEY[doc] = "URI of the key that signs kernel modules."
IPE_MODULE_CERT ??= ""
IPE_MODULE_CERT[doc] = "Certificate (PEM) of IPE_MODULE_KEY."
IPE_TRUSTED_CERTS ??= ""
IPE_TRUSTED_CERTS[doc] = "Certificates (PEM) that are built into the kernel: the issuers, or the three signers' own."

IPE_SIGNING ??= "key"
IPE_SIGNING[doc] = "key: the IPE_*_KEY sign while building. plan: nobody here has them; a task that wants a signature writes what is to be signed to IPE_SIGNATURES and fails, and goes on when the answer lies there."
IPE_SIGNATURES ??= "${TOPDIR}/ipe-signatures"
IPE_SIGNATURES[doc] = "Folder of IPE_SIGNING = plan: ID.json and ID.digest are the requests, ID.sig (the raw signature) is the answer. Outside TMPDIR."

IPE_SEALED ??= "0"
IPE_SEALED[doc] = "1: no key anywhere. The kernel is built with a reserved boot policy, and the root hash is written into it after the image (ipe-seal). Set it for the whole build."

IPE_UPDATE_COMPATIBLE ??= "${MACHINE}"
IPE_UPDATE_COMPATIBLE[doc] = "What devices updates are for, one word: RAUC's compatible, SWUpdate's board name. Device and updates must agree."
IPE_UPDATE_BOOTLOADER ??= "efi"
IPE_UPDATE_BOOTLOADER[doc] = "What RAUC switches slots with: efi, uboot, barebox, grub or noop."
IPE_UPDATE_KEYRING ??= ""
IPE_UPDATE_KEYRING[doc] = "Certificates (PEM) that the device trusts for updates, installed by ipe-slot. Empty: another recipe brings /etc/rauc/keyring.pem."

IPE_ALLOW_TEST_KEYS ??= "0"
IPE_ALLOW_TEST_KEYS[doc] = "1 lets the recipe ipe-keys-test make keys in IPE_TEST_KEYS_DIR. For trying it out, never for a product."
IPE_TEST_KEYS_DIR ??= "${TOPDIR}/ipe-test-keys"
IPE_TEST_KEYS_DIR[doc] = "Where ipe-keys-test makes its keys; outside TMPDIR, so never in sstate. conf/ipe-test-keys.inc names them."

# For a task's [depends]: test keys are made before they are used.
IPE_KEYS_TASK = "${@'ipe-keys-test:do_create_keys' if d.getVar('IPE_ALLOW_TEST_KEYS') == '1' else ''}"

# For a task's [depends]: ipe-build is in the recipe's sysroot, whatever of the tasks before it came from sstate.
IPE_BUILD_TASKS = "${@' '.join(one + ':do_populate_sysroot' for one in (d.getVar('IPE_BUILD_DEPENDS') or '').split())}"

# For a task's [file-checksums]: the content of the certificates that the named variables name.
def ipe_certificates(d, *names):
    return " ".join("%s:%s" % (path, os.path.exists(path)) for name in names for path in (d.getVar(name) or "").split())

# The key URI of a purpose: POLICY, VERITY, MODULE, SECUREBOOT, UPDATE or ATTESTATION. In no task's hash: what a key is called does not change what it signs.
def ipe_key(d, purpose):
    if d.getVar("IPE_SIGNING") == "plan":
        return "plan:" + d.getVar("IPE_SIGNATURES")
    return d.getVar("IPE_%s_KEY" % purpose) or ""
ipe_key[vardepsexclude] = "IPE_SIGNING IPE_SIGNATURES"

# Tasks of image recipes: a recipe whose images have no hash tree (an initramfs, say) does not get them.
def ipe_verity_types(d):
    return [one[: -len(".verity")] for one in (d.getVar("IMAGE_FSTYPES") or "").split() if one.endswith(".verity")]

def ipe_only_with_root(d, task):
    if d.getVar("IPE_ROOT_FILESYSTEM") not in ipe_verity_types(d):
        bb.build.deltask(task, d)

ipe_build () {
    ${IPE_BUILD_CMD} "$@" --quiet || ipe_failed "$1"
}

ipe_failed () {
    if [ "${IPE_SIGNING}" = "plan" ]; then
        for request in "${IPE_SIGNATURES}"/*.json; do
            answer="${request%.json}.sig"
            [ ! -f "$request" ] || [ -f "$answer" ] || bbfatal "IPE_SIGNING is plan and $request is not answered: put its signature into $answer, run again"
        done
    fi
    bbfatal "${IPE_BUILD_CMD} $1 failed; it says why above"
}
ipe_failed[vardepsexclude] += "IPE_SIGNING IPE_SIGNATURES"

# ipe_need VARIABLE VALUE: the variable must be set. Single-valued variables that are files: ipe_need_file.
ipe_need () {
    [ -n "$2" ] || bbfatal "$1 is not set; docs/yocto.md says what it is for (conf/ipe-test-keys.inc has test values)"
}

ipe_need_file () {
    ipe_need "$1" "$2"
    [ -f "$2" ] || bbfatal "$1 names '$2', which is no file"
}

python () {
    if d.getVar("IPE_SIGNING") not in ("key", "plan"):
        bb.fatal("IPE_SIGNING is '%s'; wanted key or plan" % d.getVar("IPE_SIGNING"))
    for purpose in ("POLICY", "VERITY", "MODULE", "SECUREBOOT", "UPDATE", "ATTESTATION"):
        name = "IPE_%s_KEY" % purpose
        if "pin-value=" in (d.getVar(name) or ""):
            bb.fatal("%s holds a PIN (pin-value=), which would end up in logs: name a file with pin-source=" % name)
}
