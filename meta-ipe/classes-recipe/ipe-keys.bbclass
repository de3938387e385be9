# Keys and certificates by purpose, for the classes that sign.
#
# Keys are URIs (file:, pkcs11:, command:), so a private key never is in the metadata. Signatures with RSA are deterministic and the
# URI is not part of any task's hash: builders that reach the same key in different ways share sstate. The certificate's content is
# part of it (file-checksums).

inherit ipe-common

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
IPE_SIGNING[wanted] = "key|plan"
IPE_SIGNATURES ??= "${TOPDIR}/ipe-signatures"
IPE_SIGNATURES[doc] = "Folder of IPE_SIGNING = plan: ID.json and ID.digest are the requests, ID.sig (the raw signature) is the answer. Outside TMPDIR."

IPE_ALLOW_TEST_KEYS ??= "0"
IPE_ALLOW_TEST_KEYS[doc] = "1 lets the recipe ipe-keys-test make keys in IPE_TEST_KEYS_DIR. For trying it out, never for a product."
IPE_ALLOW_TEST_KEYS[wanted] = "0|1"
IPE_TEST_KEYS_DIR ??= "${TOPDIR}/ipe-test-keys"
IPE_TEST_KEYS_DIR[doc] = "Where ipe-keys-test makes its keys; outside TMPDIR, so never in sstate. conf/ipe-test-keys.inc names them."

# For a task's [depends]: test keys are made before they are used.
IPE_KEYS_TASK = "${@'ipe-keys-test:do_create_keys' if d.getVar('IPE_ALLOW_TEST_KEYS') == '1' else ''}"

# For a task's [file-checksums]: the content of the certificates that the named variables name.
def ipe_certificates(d, *names):
    return " ".join("%s:%s" % (path, os.path.exists(path)) for name in names for path in (d.getVar(name) or "").split())

# The key URI of a purpose: POLICY, VERITY, MODULE, SECUREBOOT, UPDATE or ATTESTATION. In no task's hash: what a key is called does not change what it signs.
def ipe_key(d, purpose):
    if d.getVar("IPE_SIGNING") == "plan":
        return "plan:" + d.getVar("IPE_SIGNATURES")
    return d.getVar("IPE_%s_KEY" % purpose) or ""
ipe_key[vardepsexclude] = "IPE_SIGNING IPE_SIGNATURES"

python () {
    for name in ["IPE_%s_KEY" % purpose for purpose in ("POLICY", "VERITY", "MODULE", "SECUREBOOT", "UPDATE", "ATTESTATION")]:
        if "pin-value=" in (d.getVar(name) or ""):
            bb.fatal("%s holds a PIN (pin-value=), which would end up in logs: name a file with pin-source=" % name)
}
