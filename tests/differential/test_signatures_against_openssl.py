"""Our signatures are byte for byte those of `openssl smime`, `openssl cms` and the kernel's sign-file, and OpenSSL verifies them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.errors import ToolFailedError
from ipe_build.host import Host
from ipe_build.signing.certificates import KeyPair, KeySet
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload

POLICY = b"policy_name=ipe-policy policy_version=0.0.1\nDEFAULT action=DENY\nop=EXECUTE boot_verified=TRUE action=ALLOW\n"
PAYLOADS = {
    "ipe-policy": POLICY,
    "dm-verity-root-hash": root_hash_payload(bytes(range(32))),
    "fs-verity-builtin": b"FSVerity\x01\x00\x20\x00" + bytes(range(32)),
    "module": b"\x7fELF" + bytes(range(256)) * 20,
}
"""A payload for each profile whose envelope is CMS."""
_DIGESTS = ("sha256", "sha384", "sha512")


def _openssl_smime(host: Host, pair: KeyPair, payload: Path, out: Path, digest: str, *flags: str) -> bytes:
    signer = ["-signer", pair.certificate, "-inkey", pair.key, "-md", digest]
    host.run(
        ["openssl", "smime", "-sign", "-noattr", "-binary", "-nosmimecap", "-outform", "der", *signer, *flags, "-in", payload, "-out", out]
    )
    return out.read_bytes()


@pytest.mark.parametrize("digest", _DIGESTS)
@pytest.mark.parametrize(
    ("profile", "flags"),
    [("ipe-policy", ["-nodetach"]), ("dm-verity-root-hash", ["-nocerts"]), ("fs-verity-builtin", ["-nocerts"])],
)
def test_signature_is_byte_identical_to_openssl_smime(
    profile: str, flags: list[str], digest: str, test_keys: KeySet, host: Host, tmp_path: Path, need
) -> None:
    need("openssl")
    pair = test_keys.pair(PROFILES[profile].role)
    payload = tmp_path / "payload"
    payload.write_bytes(PAYLOADS[profile])
    theirs = _openssl_smime(host, pair, payload, tmp_path / "theirs", digest, *flags)
    assert sign_payload(PROFILES[profile], PAYLOADS[profile], pair.signer(host), digest) == theirs


@pytest.mark.parametrize("digest", _DIGESTS)
def test_module_signature_is_byte_identical_to_sign_file(
    digest: str, test_keys: KeySet, host: Host, tmp_path: Path, sign_file: Path
) -> None:
    pair = test_keys.pair("module")
    module = tmp_path / "m.ko"
    module.write_bytes(PAYLOADS["module"])
    host.run([sign_file, "-d", digest, pair.key, pair.certificate, module])
    ours = sign_payload(PROFILES["module"], PAYLOADS["module"], pair.signer(host), digest)
    assert ours == (tmp_path / "m.ko.p7s").read_bytes()


def test_fsverity_signature_is_byte_identical_to_fsverity_sign(test_keys: KeySet, host: Host, tmp_path: Path, need) -> None:
    need("fsverity")
    pair = test_keys.pair("verity")
    data = tmp_path / "data"
    data.write_bytes(b"some file\n" * 5000)
    printed = host.run(["fsverity", "sign", data, tmp_path / "theirs", f"--key={pair.key}", f"--cert={pair.certificate}"]).text
    digest = bytes.fromhex(printed.split("sha256:")[1].split()[0].rstrip(")"))
    ours = sign_payload(PROFILES["fs-verity-builtin"], b"FSVerity\x01\x00\x20\x00" + digest, pair.signer(host))
    assert ours == (tmp_path / "theirs").read_bytes()


def _smime_verify(host: Host, profile: str, signature: bytes, keys: KeySet, payload: bytes, folder: Path) -> bytes:
    (folder / "signature").write_bytes(signature)
    (folder / "payload").write_bytes(payload)
    flags = [] if profile == "ipe-policy" else ["-content", folder / "payload", "-certfile", keys.pair(PROFILES[profile].role).certificate]
    argv = ["openssl", "smime", "-verify", "-binary", "-inform", "der", "-in", folder / "signature", "-CAfile", keys.root.certificate]
    host.run([*argv, *flags, "-purpose", "any", "-out", folder / "content"])
    return (folder / "content").read_bytes()


@pytest.mark.parametrize("profile", ["ipe-policy", "dm-verity-root-hash", "fs-verity-builtin", "module"])
def test_openssl_smime_verifies_our_signature(profile: str, test_keys: KeySet, host: Host, tmp_path: Path, need) -> None:
    need("openssl")
    signature = sign_payload(PROFILES[profile], PAYLOADS[profile], test_keys.pair(PROFILES[profile].role).signer(host))
    assert _smime_verify(host, profile, signature, test_keys, PAYLOADS[profile], tmp_path) == PAYLOADS[profile]


@pytest.mark.parametrize("profile", ["ipe-policy", "dm-verity-root-hash"])
def test_openssl_smime_refuses_a_foreign_signature(
    profile: str, test_keys: KeySet, foreign_keys: KeySet, host: Host, tmp_path: Path, need
) -> None:
    need("openssl")
    signature = sign_payload(PROFILES[profile], PAYLOADS[profile], foreign_keys.pair(PROFILES[profile].role).signer(host))
    with pytest.raises(ToolFailedError):
        _smime_verify(host, profile, signature, test_keys, PAYLOADS[profile], tmp_path)
