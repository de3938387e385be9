"""Rotation: one bundle with old and new certificates, and a report that says what still depends on the old."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.host import Host
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.signing.certificates import KeySet, create_keys
from ipe_build.signing.efi_image import sign_image
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload

POLICY = b"policy_name=a policy_version=0.0.1\nDEFAULT action=DENY\n"


def _artefacts(folder: Path, keys: KeySet, module: bytes, host: Host) -> Path:
    """Writes one signed thing of each kind."""
    folder.mkdir()
    verity = keys.pair("verity").signer(host)
    root_hash = sign_payload(PROFILES["dm-verity-root-hash"], root_hash_payload(bytes(32)), verity)
    (folder / "root.roothash.p7s").write_bytes(root_hash)
    certificate = load_certificate(keys.pair("verity").certificate)
    value = {"rootHash": "00" * 32, "certificateFingerprint": hashlib.sha256(certificate.tbs_certificate_bytes).hexdigest()}
    text = json.dumps({**value, "signature": base64.b64encode(root_hash).decode()})
    (folder / "root.verity-sig").write_bytes(text.encode().ljust(4096, b"\0"))
    (folder / "a.p7b").write_bytes(sign_payload(PROFILES["ipe-policy"], POLICY, keys.pair("policy").signer(host)))
    (folder / "application.sig").write_bytes(sign_payload(PROFILES["ima-file"], b"content", keys.pair("policy").signer(host)))
    (folder / "demo.ko").write_bytes(module)
    sign_modules([folder / "demo.ko"], keys.pair("module").signer(host), host, compression="xz")
    (folder / "notes.txt").write_text("nothing signed")
    return folder


def test_signed_efi_program_is_told_from_an_unsigned_one(
    tmp_path: Path, efi_programs: dict[str, bytes], uefi_keys: KeySet, foreign_uefi_keys: KeySet, host: Host, capsys
) -> None:
    program = efi_programs["linuxx64.efi.stub"]
    signed = sign_image(program, uefi_keys.pair("secure-boot").signer(host))
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/signed.efi").write_bytes(signed)
    (tmp_path / "programs/plain.efi").write_bytes(program)
    old = ["--old", uefi_keys.pair("secure-boot").certificate, "--new", foreign_uefi_keys.pair("secure-boot").certificate]
    assert _report(capsys, tmp_path / "programs", *old) == (1, {"signed.efi": "old", "plain.efi": "unsigned"})
    assert _report(capsys, tmp_path / "programs", "--old", foreign_uefi_keys.bundle)[0] == 0


def _report(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, str]]:
    status = main(["keys", "rotation", *map(str, words), "--json"])
    return status, {Path(row["path"]).name: row["state"] for row in json.loads(capsys.readouterr().out)}


@pytest.fixture
def both(tmp_path: Path, test_keys: KeySet, foreign_keys: KeySet, unsigned_module: bytes, host: Host) -> tuple[Path, Path]:
    old = _artefacts(tmp_path / "old", test_keys, unsigned_module, host)
    return old, _artefacts(tmp_path / "new", foreign_keys, unsigned_module, host)


NAMES = {"root.roothash.p7s", "root.verity-sig", "a.p7b", "application.sig", "demo.ko.xz"}


def test_report_tells_old_from_new(both: tuple[Path, Path], test_keys: KeySet, foreign_keys: KeySet, capsys) -> None:
    certificates = ["--old", test_keys.bundle, "--new", foreign_keys.bundle]
    assert _report(capsys, both[0], *certificates) == (1, dict.fromkeys(NAMES, "old"))
    assert _report(capsys, both[1], *certificates) == (0, dict.fromkeys(NAMES, "new"))
    assert _report(capsys, both[1], "--old", test_keys.bundle) == (0, dict.fromkeys(NAMES, "other"))


def test_one_replaced_certificate_concerns_only_what_it_signed(both: tuple[Path, Path], test_keys: KeySet, capsys) -> None:
    status, states = _report(capsys, both[0], "--old", test_keys.pair("verity").certificate)
    assert status == 1
    assert {name for name, state in states.items() if state == "old"} == {"root.roothash.p7s", "root.verity-sig"}


def test_replaced_root_concerns_everything_that_names_it_as_issuer(both: tuple[Path, Path], test_keys: KeySet, capsys) -> None:
    status, states = _report(capsys, both[0], "--old", test_keys.root.certificate)
    assert status == 1
    assert {name for name, state in states.items() if state == "old"} == NAMES - {"application.sig"}


def test_unsigned_module_is_listed_and_other_files_are_refused_when_named(
    tmp_path: Path, unsigned_module: bytes, test_keys: KeySet, capsys
) -> None:
    (tmp_path / "demo.ko").write_bytes(unsigned_module)
    (tmp_path / "notes.txt").write_text("nothing signed")
    assert _report(capsys, tmp_path, "--old", test_keys.bundle) == (0, {"demo.ko": "unsigned"})
    assert main(["keys", "rotation", str(tmp_path / "notes.txt"), "--old", str(test_keys.bundle)]) == 2
    assert "nothing signed that we know" in capsys.readouterr().err


def test_bundle_holds_old_and_new_once_each(tmp_path: Path, test_keys: KeySet, foreign_keys: KeySet, capsys) -> None:
    words = [test_keys.bundle, foreign_keys.bundle, test_keys.root.certificate]
    assert main(["keys", "bundle", *map(str, words), "-o", str(tmp_path / "both.pem")]) == 0
    assert load_certificates(tmp_path / "both.pem") == load_certificates(test_keys.bundle) + load_certificates(foreign_keys.bundle)
    assert main(["keys", "check", str(tmp_path / "both.pem"), "--bundle", str(tmp_path / "both.pem")]) == 0
    capsys.readouterr()


def test_bundle_with_one_key_in_two_certificates_is_refused(tmp_path: Path, test_keys: KeySet, host: Host, capsys, need) -> None:
    need("openssl")
    pair = test_keys.pair("policy")
    words = ["-subj", "/CN=TEST renewed", "-days", "10", "-out", tmp_path / "renewed.pem"]
    host.run(["openssl", "req", "-x509", "-new", "-key", pair.key, *words])
    renewed = load_certificate(tmp_path / "renewed.pem")
    assert renewed.public_key() == load_certificate(pair.certificate).public_key()
    assert main(["keys", "bundle", str(test_keys.bundle), str(tmp_path / "renewed.pem"), "-o", str(tmp_path / "out.pem")]) == 2
    assert "two certificates have the subject key identifier" in capsys.readouterr().err
    assert not (tmp_path / "out.pem").exists()


def test_two_roots_of_one_name_are_told_apart_by_the_signers(tmp_path: Path, unsigned_module: bytes, host: Host, capsys) -> None:
    """`keys create` twice, as docs/signing.md says: the names are the same, and the new root must not claim what the old keys signed."""
    old, new = (create_keys(tmp_path / name, host, not_before=datetime(2026, 1, 1, tzinfo=UTC), key_type="p256") for name in ("o", "n"))
    assert load_certificate(old.root.certificate).subject == load_certificate(new.root.certificate).subject
    by_old = _artefacts(tmp_path / "by-old", old, unsigned_module, host)
    by_new = _artefacts(tmp_path / "by-new", new, unsigned_module, host)
    certificates = ["--old", old.bundle, "--new", new.bundle]
    assert _report(capsys, by_old, *certificates) == (1, dict.fromkeys(NAMES, "old"))
    assert _report(capsys, by_new, *certificates) == (0, dict.fromkeys(NAMES, "new"))
    roots_alone = ["--old", old.root.certificate, "--new", new.root.certificate]
    assert _report(capsys, by_new, *roots_alone)[0] == 1, "what cannot be told apart counts as old"
