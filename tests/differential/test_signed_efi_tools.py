"""Our signed EFI programs against sbverify, sbattach and osslsigncode; keys in a token and signed elsewhere give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.formats.pe import authenticode_digest, parse_pe
from ipe_build.formats.spc import decode_spc, signed_attributes
from ipe_build.host import Host
from ipe_build.signing.authenticode import attach_signatures, signatures_of, unsigned
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.efi_image import SignatureDatabase, sign_image, verify_image
from ipe_build.signing.signer import Signer
from tests.fixtures.efi import StockKernel, make_pe

SMALL = make_pe(((b".text", b"\x90" * 900), (b".data", b"data" * 99)), tail=b"odd")
_MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so")
PIN = "719344"


@pytest.fixture(scope="module")
def signer(uefi_keys: KeySet, host: Host) -> Signer:
    return uefi_keys.pair("secure-boot").signer(host)


def taken_by(program: Path, *words: object) -> bool:
    return subprocess.run([program, *map(str, words)], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["linuxx64.efi.stub", "systemd-bootx64.efi", "small"])
def test_sbverify_takes_what_we_sign_and_refuses_it_flipped_or_under_another_certificate(
    name: str,
    signer: Signer,
    uefi_keys: KeySet,
    foreign_uefi_keys: KeySet,
    efi_programs: dict[str, bytes],
    need: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    sbverify, out = need("sbverify"), tmp_path / "signed.efi"
    data = sign_image(efi_programs.get(name, SMALL), signer)
    out.write_bytes(data)
    certificate = uefi_keys.pair("secure-boot").certificate
    assert taken_by(sbverify, "--cert", certificate, out)
    assert not taken_by(sbverify, "--cert", foreign_uefi_keys.pair("secure-boot").certificate, out)
    section = parse_pe(data).sections[0]
    out.write_bytes(data[: section.raw_offset] + bytes([data[section.raw_offset] ^ 1]) + data[section.raw_offset + 1 :])
    assert not taken_by(sbverify, "--cert", certificate, out)


@pytest.mark.parametrize("digest_name", ["sha256", "sha384", "sha512"])
def test_osslsigncode_takes_what_we_sign(
    digest_name: str, signer: Signer, uefi_keys: KeySet, foreign_uefi_keys: KeySet, need: Callable[[str], Path], tmp_path: Path
) -> None:
    program, out = need("osslsigncode"), tmp_path / "signed.efi"
    out.write_bytes(sign_image(SMALL, signer, digest_name))
    assert taken_by(program, "verify", "-CAfile", uefi_keys.root.certificate, "-in", out)
    assert not taken_by(program, "verify", "-CAfile", foreign_uefi_keys.root.certificate, "-in", out)


def test_certificate_table_is_byte_for_byte_what_sbattach_makes(
    signer: Signer, efi_programs: dict[str, bytes], need: Callable[[str], Path], host: Host, tmp_path: Path
) -> None:
    sbattach = need("sbattach")
    plain = unsigned(efi_programs["systemd-bootx64.efi"])
    ours = sign_image(plain, signer)
    signature, theirs = tmp_path / "signature", tmp_path / "theirs.efi"
    signature.write_bytes(signatures_of(ours)[0])
    theirs.write_bytes(plain)
    host.run([sbattach, "--attach", signature, theirs])
    assert theirs.read_bytes() == ours


def test_what_sbsign_signed_is_taken_and_can_be_carried_over(
    signer: Signer, uefi_keys: KeySet, efi_programs: dict[str, bytes], need: Callable[[str], Path], host: Host, tmp_path: Path
) -> None:
    plain, signed = tmp_path / "plain.efi", tmp_path / "signed.efi"
    plain.write_bytes(efi_programs["linuxx64.efi.stub"])
    pair = uefi_keys.pair("secure-boot")
    host.run([need("sbsign"), "--key", pair.key, "--cert", pair.certificate, "--output", signed, plain])
    data = signed.read_bytes()
    assert verify_image(data, SignatureDatabase((signer.certificate,))) == signer.certificate
    assert attach_signatures(unsigned(data), signatures_of(data)) == data, "taken off and put on again: the same file"


def test_key_in_a_token_gives_the_same_image_as_the_key_file(
    signer: Signer, uefi_keys: KeySet, need: Callable[[str], Path], host: Host, tmp_path: Path
) -> None:
    need("softhsm2-util")
    (tmp_path / "tokens").mkdir()
    config, plain, out = tmp_path / "softhsm2.conf", tmp_path / "plain.efi", tmp_path / "signed.efi"
    config.write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    env, pair = {"SOFTHSM2_CONF": str(config)}, uefi_keys.pair("secure-boot")
    host.run(["softhsm2-util", "--init-token", "--free", "--label", "uefi", "--pin", PIN, "--so-pin", "9876"], env=env)
    host.run(["softhsm2-util", "--import", pair.key, "--token", "uefi", "--label", "key", "--id", "01", "--pin", PIN], env=env)
    plain.write_bytes(SMALL)
    module = next(path for path in _MODULES if Path(path).is_file())
    uri = f"pkcs11:token=uefi;id=%01?module-path={module}"
    argv = [sys.executable, "-m", "ipe_build", "sign", "uki", plain, "--key", uri, "--cert", pair.certificate, "-o", out]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **env, "IPE_BUILD_PIN": PIN}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == sign_image(SMALL, signer)


def test_image_signed_elsewhere_is_the_one_signed_here(
    signer: Signer, uefi_keys: KeySet, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo.efi").write_bytes(SMALL)
    pair = uefi_keys.pair("secure-boot")
    assert main(["sign", "plan", "--efi", "demo.efi", "--cert", f"secure-boot={pair.certificate}", "-o", "plan.json"]) == 0
    (row,) = json.loads(Path("plan.json").read_text())["requests"]
    assert (row["profile"], row["source"], row["output"], row["payload"]) == ("efi-image", "demo.efi", "demo.efi.signed", None)
    attach = ["sign", "attach", "plan.json", "--signatures", "answers", "--cert", str(pair.certificate)]
    Path("answers").mkdir()
    assert main(attach) == 1, "nothing came back yet"
    assert not Path("demo.efi.signed").exists()
    argv = ["openssl", "pkeyutl", "-sign", "-inkey", pair.key, "-pkeyopt", f"digest:{row['digest_name']}"]
    raw = host.run(argv, stdin=bytes.fromhex(row["digest"])).stdout
    Path("answers", f"{row['id']}.sig").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert main(attach) == 1, "a wrong signature is not placed"
    assert not Path("demo.efi.signed").exists()
    Path("answers", f"{row['id']}.sig").write_bytes(raw)
    assert main(attach) == 0
    assert Path("demo.efi.signed").read_bytes() == sign_image(SMALL, signer)
    capsys.readouterr()


def test_our_signed_content_is_the_one_in_debians_own_kernel_signature(stock_kernel: StockKernel) -> None:
    """pesign made Debian's signature: its SpcIndirectDataContent and ours are the same bytes, so are both digests."""
    data = stock_kernel.image.read_bytes()
    found = decode_spc(signatures_of(data)[0])
    digest = authenticode_digest(data)
    assert found.image_digest == digest
    assert hashlib.sha256(found.content).digest() in signed_attributes(digest, "sha256")
