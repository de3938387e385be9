"""Each algorithm: deterministic where it should be, in the CMS form that the kernel parses, only for a kernel that takes it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ipe_build.errors import InputError, SignatureError, SigningKeyError
from ipe_build.formats.cms import decode_signed_data
from ipe_build.host import Host
from ipe_build.signing.algorithms import ALGORITHMS, KEY_MAKERS, algorithm_of
from ipe_build.signing.certificates import KeySet, create_keys
from ipe_build.signing.loading import load_certificates, public_key_of
from ipe_build.signing.profiles import PROFILES, digest_signer, sign_payload
from ipe_build.signing.signer import DigestSigner
from ipe_build.signing.target import KernelTarget, parse_version, read_target, why_refused
from ipe_build.signing.verify import verify_signature
from tests.fixtures.keys import NOT_BEFORE

POLICY = b"policy_name=a policy_version=0.0.1\nDEFAULT action=DENY\n"
KINDS = ["p256", "p384", "mldsa44", "mldsa65", "mldsa87"]
CMS = {
    "p256": ("sha256", "1.2.840.10045.4.3.2"),
    "p384": ("sha384", "1.2.840.10045.4.3.3"),
    "mldsa44": ("sha512", "2.16.840.1.101.3.4.3.17"),
    "mldsa65": ("sha512", "2.16.840.1.101.3.4.3.18"),
    "mldsa87": ("sha512", "2.16.840.1.101.3.4.3.19"),
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, host: Host) -> dict[str, KeySet]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: create_keys(folder / kind, host, not_before=NOT_BEFORE, key_type=kind) for kind in KINDS}


@pytest.mark.parametrize("profile", ["ipe-policy", "module"])
@pytest.mark.parametrize("kind", KINDS)
def test_signature_verifies_in_the_form_the_kernel_parses(kind: str, profile: str, keys: dict[str, KeySet], host: Host) -> None:
    payload = POLICY if profile == "ipe-policy" else b"\x7fELF module"
    signer = keys[kind].pair(PROFILES[profile].role).signer(host)
    signature = sign_payload(PROFILES[profile], payload, signer)
    trusted = load_certificates(keys[kind].bundle)
    assert verify_signature(PROFILES[profile], payload, signature, trusted) == signer.certificate
    info = decode_signed_data(signature).signer_infos[0]
    assert (info.digest_name, info.algorithm.oid) == CMS[kind]
    assert info.algorithm.null_parameters is False
    assert info.signed_attributes == b""


@pytest.mark.parametrize("kind", KINDS)
def test_changed_signature_is_rejected(kind: str, keys: dict[str, KeySet], host: Host) -> None:
    signer = keys[kind].pair("policy").signer(host)
    signature = bytearray(sign_payload(PROFILES["ipe-policy"], POLICY, signer))
    signature[-1] ^= 1
    with pytest.raises(SignatureError, match="EKEYREJECTED"):
        verify_signature(PROFILES["ipe-policy"], POLICY, bytes(signature), load_certificates(keys[kind].bundle))


@pytest.mark.parametrize("kind", KINDS)
def test_same_inputs_give_the_same_bytes_where_the_algorithm_is_deterministic(kind: str, keys: dict[str, KeySet], host: Host) -> None:
    signer = keys[kind].pair("policy").signer(host)
    first, second = (sign_payload(PROFILES["ipe-policy"], POLICY, signer) for _ in range(2))
    assert (first == second) == algorithm_of(public_key_of(signer.certificate)).deterministic


@pytest.mark.parametrize("kind", ["p256", "p384"])
@pytest.mark.parametrize("tool", ["openssl", "sign-file"])
def test_their_elliptic_signature_differs_from_ours_only_in_the_signature_value(
    kind: str, tool: str, keys: dict[str, KeySet], host: Host, tmp_path: Path, sign_file: Path, need
) -> None:
    pair = keys[kind].pair("module")
    profile, digest = (PROFILES["dm-verity-root-hash"], "sha256") if tool == "openssl" else (PROFILES["module"], "sha384")
    payload = b"ab" * 32 if tool == "openssl" else b"\x7fELF module"
    (tmp_path / "m").write_bytes(payload)
    if tool == "openssl":
        need("openssl")
        words = ["-nocerts", "-noattr", "-binary", "-outform", "der", "-md", digest, "-in", tmp_path / "m", "-out", tmp_path / "m.p7s"]
        host.run(["openssl", "smime", "-sign", "-signer", pair.certificate, "-inkey", pair.key, *words])
    else:
        host.run([sign_file, "-d", digest, pair.key, pair.certificate, tmp_path / "m"])
    theirs = (tmp_path / "m.p7s").read_bytes()
    raw = decode_signed_data(theirs).signer_infos[0].signature

    class Replay:
        """A signer that gives their raw signature."""

        certificate = pair.signer(host).certificate
        survives_fork = True

        def sign(self, message: bytes, digest_name: str) -> bytes:
            return raw

    assert profile.envelope.seal(payload, Replay(), digest) == theirs
    assert verify_signature(profile, payload, theirs, [Replay.certificate]) == Replay.certificate


def test_known_answer_of_rfc_6979() -> None:
    """RFC 6979, A.2.5: P-256, SHA-256, message "sample"."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    key = ec.derive_private_key(0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721, ec.SECP256R1())
    row = algorithm_of(key.public_key())
    r, s = decode_dss_signature(row.sign(key, b"sample", "sha256"))
    assert r == 0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716
    assert s == 0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8


@pytest.mark.parametrize(
    ("kind", "version", "says"),
    [
        ("mldsa65", "6.12", "Linux 7.0 is the first"),
        ("p384", "5.10", "Linux 5.13 is the first"),
        ("mldsa65", "7.0", None),
        ("p384", "6.12.117", None),
    ],
)
def test_kernel_version_decides_and_the_error_says_since_when(
    kind: str, version: str, says: str | None, keys: dict[str, KeySet], host: Host
) -> None:
    signer = keys[kind].pair("policy").signer(host)
    target = read_target(version, None)
    if says is None:
        assert sign_payload(PROFILES["ipe-policy"], POLICY, signer, None, target)
        return
    with pytest.raises(SigningKeyError, match=says):
        sign_payload(PROFILES["ipe-policy"], POLICY, signer, None, target)


CONFIG = """# Automatically generated file; DO NOT EDIT.
# Linux/x86 6.12.117 Kernel Configuration
CONFIG_ASYMMETRIC_KEY_TYPE=y
CONFIG_ASYMMETRIC_PUBLIC_KEY_SUBTYPE=y
CONFIG_X509_CERTIFICATE_PARSER=y
CONFIG_PKCS7_MESSAGE_PARSER=y
CONFIG_CRYPTO_RSA=y
CONFIG_CRYPTO_SHA256=y
# CONFIG_CRYPTO_SHA512 is not set
CONFIG_CRYPTO_ECDSA=m
"""


@pytest.mark.parametrize(
    ("name", "digest", "missing"),
    [("rsa", "sha256", None), ("rsa", "sha512", "CONFIG_CRYPTO_SHA512=y"), ("ecdsa-p256", "sha256", "CONFIG_CRYPTO_ECDSA=y")],
)
def test_kernel_configuration_decides(name: str, digest: str, missing: str | None, tmp_path: Path) -> None:
    (tmp_path / ".config").write_text(CONFIG)
    target = read_target(None, tmp_path / ".config")
    assert target.version == (6, 12)
    reason = why_refused(next(row for row in ALGORITHMS if row.name == name), digest, target)
    assert (reason is None) == (missing is None)
    assert missing is None or missing in str(reason)


def test_version_that_contradicts_the_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".config").write_text(CONFIG)
    with pytest.raises(InputError, match=r"is of Linux 6\.12, not of 7\.0"):
        read_target("7.0", tmp_path / ".config")


@pytest.mark.parametrize("text", ["", "six", "6", "6.x", "-6.12"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_version(text)


def test_ed25519_is_refused_because_no_kernel_takes_it(host: Host, tmp_path: Path) -> None:
    from datetime import timedelta

    from cryptography import x509

    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "TEST")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    certificate = builder.not_valid_before(NOT_BEFORE).not_valid_after(NOT_BEFORE + timedelta(days=1)).sign(key, None)
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    from ipe_build.signing.backends import open_signer

    signer = open_signer(f"file:{tmp_path}/key.pem", tmp_path / "cert.pem", host)
    with pytest.raises(SigningKeyError, match="no mainline kernel takes ed25519"):
        sign_payload(PROFILES["ipe-policy"], POLICY, signer)
    assert "ed25519" not in KEY_MAKERS


def test_digest_that_does_not_go_with_a_key_is_refused(keys: dict[str, KeySet], host: Host) -> None:
    with pytest.raises(SigningKeyError, match="does not go with a ml-dsa-65 key"):
        sign_payload(PROFILES["ipe-policy"], POLICY, keys["mldsa65"].pair("policy").signer(host), "sha256")


@pytest.mark.parametrize("digest_name", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("kind", ["rsa2048", "p256", "p384"])
def test_module_signed_by_its_digest_has_the_bytes_of_one_signed_whole(
    kind: str, digest_name: str, keys: dict[str, KeySet], test_keys: KeySet, host: Host
) -> None:
    signer = (keys.get(kind) or test_keys).pair("module").signer(host)
    payload = b"\x7fELF module"
    by_digest = digest_signer(PROFILES["module"], signer, digest_name)
    assert by_digest is not None
    assert by_digest(hashlib.new(digest_name, payload).digest()) == sign_payload(PROFILES["module"], payload, signer, digest_name)


def test_keys_that_sign_messages_and_envelopes_that_hold_them_are_not_asked_to_sign_digests(keys: dict[str, KeySet], host: Host) -> None:
    mldsa = keys["mldsa44"].pair("module").signer(host)
    assert digest_signer(PROFILES["module"], mldsa) is None
    assert isinstance(mldsa, DigestSigner)
    with pytest.raises(SigningKeyError, match="messages, not their digests"):
        mldsa.sign_digest(bytes(64), "sha512")
    assert digest_signer(PROFILES["ipe-policy"], keys["p384"].pair("policy").signer(host)) is None


def test_kernel_that_cannot_check_a_signature_refuses_it_by_digest_too(keys: dict[str, KeySet], host: Host) -> None:
    with pytest.raises(SigningKeyError, match=r"5\.13"):
        digest_signer(PROFILES["module"], keys["p384"].pair("module").signer(host), target=KernelTarget(version=(5, 10)))
