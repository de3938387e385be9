"""security.ima and portable security.evm values are byte for byte evmctl's, and evmctl verifies ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.errors import FormatError, InputError, SignatureError, SigningKeyError, ToolFailedError, VerificationError
from ipe_build.formats.ima_signature import parse_ima_signature
from ipe_build.host import Host
from ipe_build.signing.certificates import IMA_ROLE, ROLES, KeySet, create_keys
from ipe_build.signing.ima import EVM_XATTRS, evm_payload
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.verify import verify_signature
from tests.fixtures.keys import NOT_BEFORE

CONTENT = b"#!/bin/sh\necho hello\n" * 500
IMA = PROFILES["ima-file"]
EVM = PROFILES["evm-portable"]
CAPS = "0100000200100000000000000000000000000000"


@pytest.fixture(scope="module")
def ima_keys(tmp_path_factory: pytest.TempPathFactory, host: Host) -> dict[str, KeySet]:
    folder = tmp_path_factory.mktemp("ima")
    roles = (*ROLES, IMA_ROLE)
    return {
        kind: create_keys(folder / kind, host, not_before=NOT_BEFORE, lifetime_days=36500, key_type=kind, roles=roles)
        for kind in ("rsa3072", "p256", "mldsa65")
    }


@pytest.fixture
def application(tmp_path: Path) -> Path:
    path = tmp_path / "application"
    path.write_bytes(CONTENT)
    path.chmod(0o750)
    return path


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_ima_signature_is_byte_identical_to_evmctl(digest: str, application: Path, ima_keys: dict[str, KeySet], host: Host, need) -> None:
    need("evmctl")
    pair = ima_keys["rsa3072"].pair("ima")
    host.run(["evmctl", "ima_sign", "--sigfile", "-a", digest, "--keyid-from-cert", pair.certificate, "--key", pair.key, application])
    theirs = application.with_name("application.sig").read_bytes()
    assert sign_payload(IMA, CONTENT, pair.signer(host), digest) == theirs


@pytest.mark.parametrize("kind", ["rsa3072", "p256"])
def test_evmctl_verifies_our_ima_signature_and_refuses_it_for_a_changed_file(
    kind: str, application: Path, ima_keys: dict[str, KeySet], host: Host, need
) -> None:
    need("evmctl")
    pair = ima_keys[kind].pair("ima")
    der = application.with_name("certificate.der")
    host.run(["openssl", "x509", "-in", pair.certificate, "-outform", "der", "-out", der])
    application.with_name("application.sig").write_bytes(sign_payload(IMA, CONTENT, pair.signer(host)))
    verify = ["evmctl", "ima_verify", "--sigfile", "--key", der, application]
    host.run(verify)
    application.write_bytes(CONTENT + b"x")
    with pytest.raises(ToolFailedError):
        host.run(verify)


# evmctl reads --mode as a decimal number.
EVM_CASES: dict[str, tuple[list[str], dict[str, object]]] = {
    "plain": (["--uid=0", "--gid=0", f"--mode={0o100755}"], {"uid": 0, "gid": 0, "mode": 0o100755}),
    "owned": (["--uid=1000", "--gid=65534", f"--mode={0o104711}"], {"uid": 1000, "gid": 65534, "mode": 0o104711}),
    "32 bit": (["--uid=0", "--gid=0", f"--mode={0o100644}", "--m32"], {"uid": 0, "gid": 0, "mode": 0o100644, "word_bits": 32}),
    "label": (["--uid=0", "--gid=0", f"--mode={0o100755}", "--selinux=system_u:object_r:bin_t:s0"], {"uid": 0, "gid": 0, "mode": 0o100755}),
    "capability": (["--uid=0", "--gid=0", f"--mode={0o100755}", f"--caps={CAPS}"], {"uid": 0, "gid": 0, "mode": 0o100755}),
}


@pytest.mark.parametrize("case", sorted(EVM_CASES))
def test_portable_evm_signature_is_byte_identical_to_evmctl(
    case: str, application: Path, ima_keys: dict[str, KeySet], host: Host, need
) -> None:
    need("evmctl")
    pair = ima_keys["rsa3072"].pair("ima")
    options, given = EVM_CASES[case]
    ima = sign_payload(IMA, CONTENT, pair.signer(host))
    xattrs = {"security.ima": ima}
    if case == "label":
        xattrs["security.selinux"] = b"system_u:object_r:bin_t:s0\0"
    if case == "capability":
        xattrs["security.capability"] = CAPS.encode()  # evmctl takes the option's characters themselves
    argv = ["evmctl", "sign", "--portable", "-n", "-a", "sha256", "--keyid-from-cert", pair.certificate, "--key", pair.key]
    caps = [] if case == "capability" else ["--caps="]
    printed = host.run([*argv, *options, *caps, f"--ima={ima.hex()}", application]).text
    theirs = bytes.fromhex(printed.split()[-1])
    payload = evm_payload(xattrs, **given)  # type: ignore[arg-type]
    assert sign_payload(EVM, payload, pair.signer(host), "sha256") == theirs
    assert verify_signature(EVM, payload, theirs, [load_certificate(pair.certificate)])


@pytest.mark.parametrize("kind", ["rsa3072", "p256"])
def test_ima_verdicts_tell_good_foreign_and_changed_apart(kind: str, ima_keys: dict[str, KeySet], host: Host) -> None:
    pair, foreign = ima_keys[kind].pair("ima"), ima_keys["p256" if kind == "rsa3072" else "rsa3072"].pair("ima")
    certificate = load_certificate(pair.certificate)
    signature = sign_payload(IMA, CONTENT, pair.signer(host))
    assert verify_signature(IMA, CONTENT, signature, [load_certificate(foreign.certificate), certificate]) == certificate
    with pytest.raises(SignatureError, match="EKEYREJECTED"):
        verify_signature(IMA, CONTENT + b"x", signature, [certificate])
    with pytest.raises(SignatureError, match="ENOKEY"):
        verify_signature(IMA, CONTENT, signature, [load_certificate(foreign.certificate)])
    with pytest.raises(VerificationError, match="attribute type"):
        verify_signature(EVM, b"x" * 40, signature, [certificate])


def test_ima_takes_no_mldsa(ima_keys: dict[str, KeySet], host: Host) -> None:
    with pytest.raises(SigningKeyError, match="take no ml-dsa-65"):
        sign_payload(IMA, CONTENT, ima_keys["mldsa65"].pair("ima").signer(host))


@pytest.mark.parametrize("place", range(9))
def test_every_damaged_byte_of_the_header_is_noticed(place: int, ima_keys: dict[str, KeySet], host: Host) -> None:
    pair = ima_keys["rsa3072"].pair("ima")
    damaged = bytearray(sign_payload(IMA, CONTENT, pair.signer(host)))
    damaged[place] ^= 0x10
    with pytest.raises((FormatError, VerificationError)):
        verify_signature(IMA, CONTENT, bytes(damaged), [load_certificate(pair.certificate)])


@pytest.mark.parametrize("size", [0, 5, 9])
def test_short_value_is_a_format_error(size: int) -> None:
    with pytest.raises(FormatError):
        parse_ima_signature(b"\x03\x02\x04" + bytes(size)[:6])


@pytest.mark.parametrize(
    ("xattrs", "given", "message"),
    [
        ({}, {"uid": 0, "gid": 0, "mode": 0o100644}, "wants security.ima"),
        ({"security.ima": b"x", "user.a": b"x"}, {"uid": 0, "gid": 0, "mode": 0o100644}, "does not protect"),
        ({"security.ima": b"x"}, {"uid": 0, "gid": 0, "mode": 0o644}, "lacks the file's type"),
        ({"security.ima": b"x"}, {"uid": -1, "gid": 0, "mode": 0o100644}, "out of range"),
    ],
)
def test_impossible_evm_input_is_refused(xattrs: dict[str, bytes], given: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evm_payload(xattrs, **given)
    assert len(EVM_XATTRS) == 8


def test_verbs_sign_ima_and_evm(application: Path, ima_keys: dict[str, KeySet], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pair = ima_keys["rsa3072"].pair("ima")
    key = ["--key", pair.uri, "--cert", str(pair.certificate)]
    assert main(["sign", "ima", "application", *key, "-o", "ima.sig"]) == 0
    assert main(["sign", "evm", "--ima", "ima.sig", "--mode", "0100750", *key, "-o", "evm.sig"]) == 0
    assert Path("evm.sig").read_bytes()[:3] == b"\x05\x02\x04"
    trusted = ["--trusted", str(pair.certificate)]
    assert main(["sign", "verify", "ima-file", "application", "ima.sig", *trusted]) == 0
    Path("application").write_bytes(b"other")
    assert main(["sign", "verify", "ima-file", "application", "ima.sig", *trusted]) == 1
    assert main(["sign", "evm", "--ima", "application", "--mode", "0100750", *key, "-o", "more.sig"]) == 2
    assert not Path("more.sig").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("role", "keyring", "rules"),
    [
        ("ima", ".ima", []),
        ("ima", ".secondary_trusted_keys", []),
        ("root", ".ima", ["kept-out-of-keyring"]),
        ("root", ".secondary_trusted_keys", []),
    ],
)
def test_certificate_for_a_keyring_is_judged_as_the_kernel_does(
    role: str, keyring: str, rules: list[str], ima_keys: dict[str, KeySet], capsys
) -> None:
    import json

    keys = ima_keys["rsa3072"]
    certificate = keys.root.certificate if role == "root" else keys.pair(role).certificate
    status = main(["keys", "check", str(certificate), "--bundle", str(keys.bundle), "--keyring", keyring, "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [row["rule"] for row in findings] == rules
    assert status == (1 if rules else 0)


def test_foreign_certificate_is_kept_out_of_the_keyring(ima_keys: dict[str, KeySet], capsys) -> None:
    argv = ["keys", "check", str(ima_keys["p256"].pair("ima").certificate), "--bundle", str(ima_keys["rsa3072"].bundle)]
    assert main([*argv, "--keyring", ".ima"]) == 1
    assert "kept-out-of-keyring" in capsys.readouterr().out


def test_ima_certificate_is_not_in_the_bundle(ima_keys: dict[str, KeySet]) -> None:
    keys = ima_keys["rsa3072"]
    assert load_certificate(keys.pair("ima").certificate) not in load_certificates(keys.bundle)
    assert os.stat(keys.pair("ima").key).st_mode & 0o077 == 0
