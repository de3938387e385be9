"""A `plan:` key: a run asks for signatures and stops; when they are there, the next run goes on and gives the very same bytes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.errors import KeyMismatchError, SignaturePendingError, SigningKeyError
from ipe_build.host import Host
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.kernel.modules import find_modules
from ipe_build.signing.backends import open_signer
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.signer import Signer

POLICY = b"policy_name=a policy_version=0.0.1\nDEFAULT action=DENY\n"


def _planned(folder: Path, role: str, keys: KeySet, host: Host) -> Signer:
    return open_signer(f"plan:{folder}", keys.pair(role).certificate, host)


def _answer(folder: Path, role: str, keys: KeySet, host: Host) -> int:
    """Signs every digest that has no answer with OpenSSL; returns how many."""
    count = 0
    for request in sorted(folder.glob("*.json")):
        value = json.loads(request.read_text())
        if not (folder / value["answer"]).exists():
            argv = ["openssl", "pkeyutl", "-sign", "-inkey", keys.pair(role).key, "-pkeyopt", f"digest:{value['digest_name']}"]
            host.run([*argv, "-in", request.with_suffix(".digest"), "-out", folder / value["answer"]])
            count += 1
    return count


def test_policy_waits_for_its_signature_and_then_has_the_same_bytes(test_keys: KeySet, host: Host, tmp_path: Path, need) -> None:
    need("openssl")
    signer = _planned(tmp_path / "to-sign", "policy", test_keys, host)
    with pytest.raises(SignaturePendingError, match="is wanted"):
        sign_payload(PROFILES["ipe-policy"], POLICY, signer)
    (request,) = (tmp_path / "to-sign").glob("*.json")
    assert base64.b64decode(json.loads(request.read_text())["message"]) == POLICY
    assert _answer(tmp_path / "to-sign", "policy", test_keys, host) == 1
    again = _planned(tmp_path / "to-sign", "policy", test_keys, host)
    assert sign_payload(PROFILES["ipe-policy"], POLICY, again) == sign_payload(
        PROFILES["ipe-policy"], POLICY, test_keys.pair("policy").signer(host)
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_all_modules_are_asked_for_in_one_run_and_signed_in_the_next(
    jobs: int, unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, need
) -> None:
    need("openssl")
    folder = tmp_path / "modules"
    folder.mkdir()
    for number in range(20):
        (folder / f"m{number}.ko").write_bytes(unsigned_module + bytes([number]))
    before = {path: path.read_bytes() for path in find_modules([folder])}
    signer = _planned(tmp_path / "to-sign", "module", test_keys, host)
    with pytest.raises(SignaturePendingError, match="20 of 20 modules"):
        sign_modules(find_modules([folder]), signer, host, jobs=jobs)
    assert {path: path.read_bytes() for path in find_modules([folder])} == before
    assert _answer(tmp_path / "to-sign", "module", test_keys, host) == 20
    sign_modules(find_modules([folder]), signer, host, out=tmp_path / "out", root=folder, jobs=jobs)
    sign_modules(find_modules([folder]), test_keys.pair("module").signer(host), host, jobs=jobs)
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in before)


def test_some_answers_sign_some_modules_and_leave_the_rest_whole(
    unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, need
) -> None:
    need("openssl")
    for number in range(4):
        (tmp_path / f"m{number}.ko").write_bytes(unsigned_module + bytes([number]))
    signer = _planned(tmp_path / "to-sign", "module", test_keys, host)
    with pytest.raises(SignaturePendingError):
        sign_modules(find_modules([tmp_path])[:2], signer, host)
    _answer(tmp_path / "to-sign", "module", test_keys, host)
    with pytest.raises(SignaturePendingError, match="2 of 4 modules"):
        sign_modules(find_modules([tmp_path]), signer, host)
    assert (tmp_path / "m3.ko").read_bytes() == unsigned_module + b"\x03"


def test_wrong_answer_is_refused(test_keys: KeySet, foreign_keys: KeySet, host: Host, tmp_path: Path, need) -> None:
    need("openssl")
    signer = _planned(tmp_path / "to-sign", "policy", test_keys, host)
    with pytest.raises(SignaturePendingError):
        sign_payload(PROFILES["ipe-policy"], POLICY, signer)
    _answer(tmp_path / "to-sign", "policy", foreign_keys, host)
    with pytest.raises(KeyMismatchError, match="not a signature by"):
        sign_payload(PROFILES["ipe-policy"], POLICY, signer)


def test_verb_ends_with_status_1_and_no_output_until_the_answer_is_there(
    test_keys: KeySet, host: Host, tmp_path: Path, capsys, need
) -> None:
    need("openssl")
    pair = test_keys.pair("verity")
    argv = [
        "sign",
        "root-hash",
        "ab" * 32,
        "--key",
        f"plan:{tmp_path}/to-sign",
        "--cert",
        str(pair.certificate),
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(argv) == 1
    assert "is wanted" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    _answer(tmp_path / "to-sign", "verity", test_keys, host)
    assert main(argv) == 0
    assert (tmp_path / "out").exists()


@pytest.mark.parametrize("uri", ["plan:", "plan:/dev/null/x", "plan:x?key=1"])
def test_bad_plan_uri_is_refused(uri: str, test_keys: KeySet, host: Host, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SigningKeyError):
        open_signer(uri, test_keys.pair("policy").certificate, host)
    assert list(tmp_path.iterdir()) == []
