"""The verbs `keys` and `sign`: exit statuses, JSON, outputs left alone, no secret printed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate

POLICY = "policy_name=ipe-policy policy_version=0.0.1\nDEFAULT action=DENY\n"
ROOT_HASH = "ab" * 32


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def _sign(keys: KeySet, role: str) -> list[object]:
    return ["--key", keys.pair(role).uri, "--cert", keys.pair(role).certificate]


def test_created_keys_are_listed_and_check_clean(tmp_path: Path, capsys) -> None:
    status, out, _ = _run(capsys, "keys", "create", tmp_path / "keys", "--key-type", "p256", "--json")
    made = json.loads(out)
    assert status == 0
    assert [row["role"] for row in made["keys"]] == ["root", "module", "policy", "verity"]
    assert stat.S_IMODE((tmp_path / "keys" / "policy.key.pem").stat().st_mode) == 0o600
    bundle = tmp_path / "keys" / "trusted-keys.pem"
    status, out, _ = _run(capsys, "keys", "check", bundle, "--bundle", bundle, "--json")
    assert (status, json.loads(out)["findings"]) == (0, [])


def test_test_key_fails_the_production_check(test_keys: KeySet, capsys) -> None:
    status, out, _ = _run(capsys, "keys", "check", test_keys.pair("policy").certificate, "--profile", "production", "--json")
    assert status == 1
    assert [row["rule"] for row in json.loads(out)["findings"]] == ["test-key-in-production"]


def test_key_of_another_certificate_fails_the_check(test_keys: KeySet, capsys) -> None:
    argv = ["keys", "check", test_keys.pair("policy").certificate, "--key", test_keys.pair("verity").uri]
    status, out, _ = _run(capsys, *argv)
    assert status == 1
    assert "key-mismatch" in out


def test_expired_certificate_is_judged_by_the_time_given(test_keys: KeySet, capsys) -> None:
    end = load_certificate(test_keys.pair("policy").certificate).not_valid_after_utc
    status, out, _ = _run(capsys, "keys", "check", test_keys.pair("policy").certificate, "--at", end.replace(year=end.year + 1).isoformat())
    assert status == 1
    assert "expired" in out


def test_production_keys_in_files_want_a_passphrase(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPE_BUILD_KEY_PASSPHRASE", raising=False)
    status, _, err = _run(capsys, "keys", "create", tmp_path / "keys", "--production", "--organisation", "Acme")
    assert status == 2
    assert "want a passphrase" in err
    (tmp_path / "secret").write_text("open sesame\n")
    argv = [
        "keys",
        "create",
        tmp_path / "keys",
        "--production",
        "--key-type",
        "p256",
        "--passphrase-file",
        tmp_path / "secret",
        "--verbose",
    ]
    status, out, err = _run(capsys, *argv)
    assert status == 0
    assert "open sesame" not in out + err
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in (tmp_path / "keys" / "policy.key.pem").read_bytes()


@pytest.mark.parametrize(
    ("verb", "text", "profile", "role"),
    [("policy", POLICY, "ipe-policy", "policy"), ("root-hash", ROOT_HASH + "\n", "dm-verity-root-hash", "verity")],
)
def test_signed_file_verifies_and_a_foreign_one_does_not(
    verb: str, text: str, profile: str, role: str, test_keys: KeySet, foreign_keys: KeySet, tmp_path: Path, capsys
) -> None:
    (tmp_path / "input").write_text(text)
    (tmp_path / "payload").write_text(text if verb == "policy" else text.strip())
    for keys, wanted in ((test_keys, 0), (foreign_keys, 1)):
        out = tmp_path / f"signature{wanted}"
        assert _run(capsys, "sign", verb, tmp_path / "input", *_sign(keys, role), "-o", out)[0] == 0
        status, _, err = _run(capsys, "sign", "verify", profile, tmp_path / "payload", out, "--trusted", test_keys.bundle)
        assert status == wanted
        assert ("ENOKEY" in err) == bool(wanted)


def test_root_hash_as_a_word_and_in_a_file_give_the_same_signature(test_keys: KeySet, tmp_path: Path, capsys) -> None:
    (tmp_path / "image.roothash").write_text(ROOT_HASH.upper() + "\n")
    assert _run(capsys, "sign", "root-hash", ROOT_HASH, *_sign(test_keys, "verity"), "-o", tmp_path / "a")[0] == 0
    assert _run(capsys, "sign", "root-hash", tmp_path / "image.roothash", *_sign(test_keys, "verity"), "-o", tmp_path / "b")[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("text", ["xyz", "ab", "ab" * 32 + "a", "/nonexistent"])
def test_what_is_no_root_hash_is_not_signed(text: str, test_keys: KeySet, tmp_path: Path, capsys) -> None:
    status, _, err = _run(capsys, "sign", "root-hash", text, *_sign(test_keys, "verity"), "-o", tmp_path / "out")
    assert status == 2
    assert err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_policy_that_the_kernel_refuses_is_not_signed(test_keys: KeySet, tmp_path: Path, capsys) -> None:
    (tmp_path / "bad.pol").write_text("policy_name=x policy_version=0.0\nDEFAULT action=DENY\n")
    status, _, err = _run(capsys, "sign", "policy", tmp_path / "bad.pol", *_sign(test_keys, "policy"), "-o", tmp_path / "out")
    assert status == 2
    assert "bad.pol:1" in err
    assert not (tmp_path / "out").exists()


def test_existing_output_is_left_alone_unless_forced(test_keys: KeySet, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").write_text("precious")
    argv = ["sign", "root-hash", ROOT_HASH, *_sign(test_keys, "verity"), "-o", tmp_path / "out"]
    assert _run(capsys, *argv)[0] == 2
    assert (tmp_path / "out").read_text() == "precious"
    assert _run(capsys, *argv, "--force")[0] == 0
    assert (tmp_path / "out").read_bytes()[:1] == b"\x30"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([], []), (["--hash", "sha512", "--block-size", "1024", "--salt", "abcd"], ["--hash-alg=sha512", "--block-size=1024", "--salt=abcd"])],
)
def test_fsverity_signature_is_that_of_fsverity_sign(
    ours: list[str], theirs: list[str], test_keys: KeySet, host: Host, tmp_path: Path, capsys, need
) -> None:
    need("fsverity")
    pair = test_keys.pair("verity")
    (tmp_path / "application").write_bytes(b"\x7fELF" + bytes(300_000))
    argv = ["fsverity", "sign", tmp_path / "application", tmp_path / "theirs", f"--key={pair.key}", f"--cert={pair.certificate}", *theirs]
    host.run(argv)
    # fsverity signs with the file's own hash algorithm; for us the signature's digest is chosen apart from it.
    ours = [*ours, "--digest", "sha512"] if "sha512" in ours else ours
    argv = ["sign", "fsverity", tmp_path / "application", *_sign(test_keys, "verity"), *ours, "-o", tmp_path / "ours"]
    assert _run(capsys, *argv)[0] == 0
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
