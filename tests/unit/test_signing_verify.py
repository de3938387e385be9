"""`verify_signature` accepts what the kernel would and refuses all else, for every profile."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from ipe_build.errors import FormatError, InputError, IpeBuildError, SignatureError, VerificationError
from ipe_build.formats.cms import decode_signed_data
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.envelopes import CmsEnvelope
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload
from ipe_build.signing.verify import verify_signature
from tests.differential.test_signatures_against_openssl import PAYLOADS

ALL = sorted(PAYLOADS)


def _changed(profile: str) -> bytes:
    """Returns another valid payload of the same profile."""
    payload = PAYLOADS[profile]
    return payload[:-1] + (b"0" if payload[-1:] != b"0" else b"1")


def _sign(profile: str, keys: KeySet, host: Host) -> bytes:
    return sign_payload(PROFILES[profile], PAYLOADS[profile], keys.pair(PROFILES[profile].role).signer(host))


@pytest.fixture
def trusted(test_keys: KeySet) -> tuple[x509.Certificate, ...]:
    return load_certificates(test_keys.bundle)


def test_every_cms_profile_has_a_payload_here() -> None:
    assert set(PAYLOADS) == {name for name, row in PROFILES.items() if isinstance(row.envelope, CmsEnvelope)}


@pytest.mark.parametrize("profile", ALL)
def test_signature_verifies_and_names_its_signer(profile: str, test_keys: KeySet, host: Host, trusted) -> None:
    signer = verify_signature(PROFILES[profile], PAYLOADS[profile], _sign(profile, test_keys, host), trusted)
    assert signer == load_certificate(test_keys.pair(PROFILES[profile].role).certificate)


@pytest.mark.parametrize("profile", ALL)
def test_foreign_signature_is_rejected(profile: str, foreign_keys: KeySet, host: Host, trusted) -> None:
    with pytest.raises(VerificationError, match="ENOKEY"):
        verify_signature(PROFILES[profile], PAYLOADS[profile], _sign(profile, foreign_keys, host), trusted)


@pytest.mark.parametrize("profile", ALL)
def test_signature_over_another_payload_is_rejected(profile: str, test_keys: KeySet, host: Host, trusted) -> None:
    with pytest.raises(VerificationError, match=r"another content|EKEYREJECTED"):
        verify_signature(PROFILES[profile], _changed(profile), _sign(profile, test_keys, host), trusted)


@pytest.mark.parametrize("profile", ALL)
def test_flipped_bit_anywhere_in_the_signature_is_never_accepted_as_the_same(profile: str, test_keys: KeySet, host: Host, trusted) -> None:
    signature = _sign(profile, test_keys, host)
    honest = verify_signature(PROFILES[profile], PAYLOADS[profile], signature, trusted)
    original = decode_signed_data(signature)
    accepted = []
    for place in range(0, len(signature), 3):
        flipped = bytearray(signature)
        flipped[place] ^= 1 << (place % 8)
        try:
            signer = verify_signature(PROFILES[profile], PAYLOADS[profile], bytes(flipped), trusted)
        except IpeBuildError:
            continue
        accepted.append(place)
        # What is accepted differs only in what no signature covers (a version, the list of digests, the
        # text of a carried certificate whose key is trusted anyway), never in these.
        message = decode_signed_data(bytes(flipped))
        assert signer == honest
        assert message.signer_infos[0].signature == original.signer_infos[0].signature
        assert message.content == original.content
    assert accepted != list(range(0, len(signature), 3))


def test_policy_signature_needs_only_the_root_in_the_trusted_set(test_keys: KeySet, host: Host) -> None:
    root = load_certificate(test_keys.root.certificate)
    signature = _sign("ipe-policy", test_keys, host)
    assert verify_signature(PROFILES["ipe-policy"], PAYLOADS["ipe-policy"], signature, [root]) != root


def test_root_hash_signature_needs_its_signer_in_the_trusted_set(test_keys: KeySet, host: Host) -> None:
    root = load_certificate(test_keys.root.certificate)
    with pytest.raises(VerificationError, match="none of the 1 trusted"):
        verify_signature(
            PROFILES["dm-verity-root-hash"], PAYLOADS["dm-verity-root-hash"], _sign("dm-verity-root-hash", test_keys, host), [root]
        )


def test_detached_policy_signature_is_rejected(test_keys: KeySet, host: Host, trusted) -> None:
    detached = PROFILES["dm-verity-root-hash"].envelope.seal(PAYLOADS["ipe-policy"], test_keys.pair("policy").signer(host), "sha256")
    with pytest.raises(VerificationError, match="detached"):
        verify_signature(PROFILES["ipe-policy"], PAYLOADS["ipe-policy"], detached, trusted)


def test_attached_root_hash_signature_is_rejected(test_keys: KeySet, host: Host, trusted) -> None:
    payload = PAYLOADS["dm-verity-root-hash"]
    attached = PROFILES["ipe-policy"].envelope.seal(payload, test_keys.pair("verity").signer(host), "sha256")
    with pytest.raises(VerificationError, match="content of its own"):
        verify_signature(PROFILES["dm-verity-root-hash"], payload, attached, trusted)


@pytest.mark.parametrize("flags", [["-nodetach", "-nosmimecap"], ["-nodetach", "-nosmimecap", "-certfile", "ROOT"]])
def test_policy_with_signed_attributes_verifies_and_its_flipped_twin_does_not(
    flags: list[str], test_keys: KeySet, host: Host, tmp_path: Path, trusted, need
) -> None:
    need("openssl")
    (tmp_path / "policy").write_bytes(PAYLOADS["ipe-policy"])
    pair = test_keys.pair("policy")
    flags = [str(test_keys.root.certificate) if word == "ROOT" else word for word in flags]
    argv = ["openssl", "smime", "-sign", "-binary", "-outform", "der", "-signer", pair.certificate, "-inkey", pair.key, *flags]
    host.run([*argv, "-in", tmp_path / "policy", "-out", tmp_path / "signature"])
    signature = (tmp_path / "signature").read_bytes()
    assert verify_signature(PROFILES["ipe-policy"], PAYLOADS["ipe-policy"], signature, trusted[:1]) == load_certificate(pair.certificate)
    other = PAYLOADS["ipe-policy"].replace(b"ALLOW", b"ALLoW")
    with pytest.raises(VerificationError, match="messageDigest"):
        verify_signature(PROFILES["ipe-policy"], other, signature.replace(PAYLOADS["ipe-policy"], other), trusted)


def test_policy_with_smime_capabilities_is_rejected(test_keys: KeySet, host: Host, tmp_path: Path, trusted, need) -> None:
    need("openssl")
    (tmp_path / "policy").write_bytes(PAYLOADS["ipe-policy"])
    pair = test_keys.pair("policy")
    argv = ["openssl", "smime", "-sign", "-binary", "-nodetach", "-outform", "der", "-signer", pair.certificate, "-inkey", pair.key]
    host.run([*argv, "-in", tmp_path / "policy", "-out", tmp_path / "signature"])
    with pytest.raises(SignatureError, match="smimeCapabilities") as caught:
        verify_signature(PROFILES["ipe-policy"], PAYLOADS["ipe-policy"], (tmp_path / "signature").read_bytes(), trusted)
    assert caught.value.errno == "EKEYREJECTED"


def test_module_signature_with_signed_attributes_is_rejected_as_the_kernel_does(
    test_keys: KeySet, host: Host, tmp_path: Path, trusted, need
) -> None:
    need("openssl")
    (tmp_path / "module").write_bytes(PAYLOADS["module"])
    pair = test_keys.pair("module")
    argv = ["openssl", "smime", "-sign", "-binary", "-outform", "der", "-signer", pair.certificate, "-inkey", pair.key, "-nocerts"]
    host.run([*argv, "-in", tmp_path / "module", "-out", tmp_path / "signature"])
    with pytest.raises(VerificationError, match="EKEYREJECTED"):
        verify_signature(PROFILES["module"], PAYLOADS["module"], (tmp_path / "signature").read_bytes(), trusted)


@pytest.mark.parametrize(
    "garbage", [b"", b"\x30\x00", b"\x30\x80\x00\x00", b"-----BEGIN PKCS7-----\n", bytes(range(256)), b"\x30\x03\x02\x01\x01"]
)
def test_garbage_is_a_format_error(garbage: bytes, trusted) -> None:
    with pytest.raises(FormatError):
        verify_signature(PROFILES["ipe-policy"], PAYLOADS["ipe-policy"], garbage, trusted)


@pytest.mark.parametrize(
    ("profile", "payload"),
    [
        ("ipe-policy", b" \n"),
        ("dm-verity-root-hash", root_hash_payload(bytes(32)) + b"\n"),
        ("dm-verity-root-hash", b"AB" * 32),
        ("dm-verity-root-hash", b"ab" * 31),
        ("fs-verity-builtin", b"FSVerity\x01\x00\x20\x00" + bytes(31)),
        ("fs-verity-builtin", b"FSVerity\x02\x00\x20\x00" + bytes(32)),
        ("fs-verity-builtin", b"fsverity\x01\x00\x20\x00" + bytes(32)),
        ("module", b"\x1f\x8b\x08"),
    ],
)
def test_impossible_payload_is_not_signed(profile: str, payload: bytes, test_keys: KeySet, host: Host) -> None:
    with pytest.raises(InputError):
        sign_payload(PROFILES[profile], payload, test_keys.pair("policy").signer(host))


def test_signed_policy_is_not_signed_again(test_keys: KeySet, host: Host) -> None:
    with pytest.raises(InputError, match="already"):
        sign_payload(PROFILES["ipe-policy"], _sign("ipe-policy", test_keys, host), test_keys.pair("policy").signer(host))
