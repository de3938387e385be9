"""Wrong input and outputs that cannot be written: one error that names the place and what to do, nothing left behind, nothing believed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ipe_build.cli import VERBS, main
from ipe_build.signing.certificates import KeySet

ROOT = Path(__file__).parents[2]
POLICY = "policy_name=a policy_version=0.0.1\nDEFAULT action=DENY\n"
ROOT_HASH = "ab" * 32


def _error(capsys: pytest.CaptureFixture[str], *words: object, status: int = 2) -> str:
    """Returns what the verb says on stderr."""
    assert main([str(word) for word in words]) == status
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "Traceback" not in said
    return said


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_in(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = _error(capsys, "sign", "ima", "absent", "--key", "file:k", "--cert", "c", "-o", "out")
    assert said == f"error: absent: wanted a file, there is none of this name\n  hint: relative names count from {tmp_path}\n"


def test_a_folder_in_place_of_a_certificate_is_said_and_what_to_do(tmp_path: Path, capsys) -> None:
    assert _error(capsys, "keys", "show", tmp_path).endswith("Is a directory\n  hint: name a file in it\n")


@pytest.mark.parametrize("words", [("verity", "verify", "image"), ("image", "initramfs", "-o", "out", "--filesystem", "erofs")])
@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "ab" * 65, "\x00\xff", "md5:" + ROOT_HASH])
def test_what_is_no_root_hash_is_refused_wherever_one_is_given(words: tuple[str, ...], content: str, tmp_path: Path, capsys) -> None:
    place = tmp_path / "x.roothash"
    place.write_bytes(content.encode("latin-1"))
    Path(tmp_path / "image.verity").write_bytes(b"verity\0\0")
    if words[0] == "verity":
        (tmp_path / "image").write_bytes(bytes(8192))
        assert main(["verity", "format", str(tmp_path / "image"), "--force", "--quiet"]) == 0
    capsys.readouterr()
    said = _error(
        capsys, *(tmp_path / word if word in ("image", "out") and words[0] != word else word for word in words), "--root-hash", place
    )
    assert f"error: {place}: wanted a root hash" in said


def test_a_misspelled_file_of_a_root_hash_is_said_to_be_neither(tmp_path: Path, capsys) -> None:
    said = _error(capsys, "sign", "root-hash", "root.rothash", "--key", "file:k", "--cert", "c", "-o", tmp_path / "out")
    assert "got 'root.rothash'" in said and "there is no file of this name either" in said


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("attest", "verify", "ref", "--quote", "q", "--signature", "s", "--ak", "a", "--nonce", ""), "--nonce"),
        (("verity", "format", "data", "hash", "--salt="), "--salt"),
        (("verity", "table", "data", "hash", "--root-hash", ROOT_HASH, "--option", ""), "--option"),
        (("fsverity", "digest", "data", "--salt", ""), "--salt"),
        (("keys", "check", "cert", "--key", ""), "--key"),
        (("policy", "check", "a.pol", "--kernel-version", ""), "--kernel-version"),
        (("policy", "check", "a.pol", "--image", ""), "--image"),
        (("sign", "plan", "--policy", "", "--cert", "c", "-o", "out"), "--policy"),
        (("update", "device", "--compatible", "b", "--update-version", "1", "-o", ""), "-o"),
        (("image", "filesystem", "root", "-o", "out", "--compression", "", "--json"), "--compression"),
        (("verity", "dump", ""), "ipe-build verity"),
        (("", "dump"), "ipe-build "),
    ],
)
def test_an_empty_value_is_no_value(words: tuple[str, ...], place: str, capsys) -> None:
    """A variable that is not set must not turn off salt and nonce, or make `.` of a folder's name."""
    assert f"error: {place}: wanted a value, got an empty one" in _error(capsys, *words)


def test_a_nonce_of_nothing_is_none(capsys) -> None:
    words = ("attest", "verify", "ref", "--quote", "q", "--signature", "s", "--ak", "a", "--nonce", " ")
    assert "error: --nonce: wanted hex, got ' '" in _error(capsys, *words)


def test_an_empty_command_line_is_one_and_no_interpreter_may_be_said(tmp_path: Path, capsys) -> None:
    said = _error(capsys, "audit", tmp_path / "absent", "--command-line", "")
    assert "absent: wanted an image" in said
    said = _error(capsys, "boot", tmp_path / "absent", "--interpreter", "", "--application=")
    assert "absent: wanted a disk image" in said


def test_options_and_folders_of_no_name_are_no_traceback(tmp_path: Path, test_keys: KeySet, capsys, monkeypatch) -> None:
    (tmp_path / "a.pol").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    assert main(["policy", "check", "a.pol", "--image", ".", "--quiet"]) == 1
    assert "accepted" in capsys.readouterr().out
    assert "this is a folder" in _error(
        capsys, "sign", "plan", "--policy", ".", "--cert", test_keys.pair("policy").certificate, "-o", "out"
    )
    (tmp_path / "data").write_bytes(bytes(8192))
    assert main(["verity", "format", "data", "hash", "--quiet"]) == 0
    said = _error(capsys, "verity", "table", "data", "hash", "--root-hash", ROOT_HASH, "--option", " ")
    assert "--option: wanted a target option" in said


@pytest.mark.parametrize("words", [("check", "--ledger"), ("learn", "--root")])
def test_a_misspelled_ledger_or_root_is_no_empty_one(words: tuple[str, str], tmp_path: Path, capsys) -> None:
    (tmp_path / "a.pol").write_text(POLICY)
    said = _error(capsys, "policy", words[0], tmp_path / "a.pol", words[1], tmp_path / "misspelled")
    assert "misspelled" in said and "wanted" in said


def test_a_link_to_the_folder_of_the_root_is_followed_but_none_in_it(tmp_path: Path, need, capsys) -> None:
    need("mkfs.erofs")
    need("fakeroot")
    (tmp_path / "root/bin").mkdir(parents=True)
    (tmp_path / "root/bin/tool").write_text("tool")
    (tmp_path / "root/link").symlink_to("bin")
    (tmp_path / "by-link").symlink_to("root")
    for name in ("root", "by-link"):
        assert main(["image", "filesystem", str(tmp_path / name), "-o", str(tmp_path / f"{name}.erofs"), "--quiet"]) == 0
    assert (tmp_path / "root.erofs").read_bytes() == (tmp_path / "by-link.erofs").read_bytes()
    assert "4 entries" in capsys.readouterr().out


@pytest.mark.parametrize("second", ["absent/x.sig", "folder", "there.sig", "x.p7s"])
def test_when_one_of_two_outputs_cannot_be_written_neither_is(second: str, tmp_path: Path, test_keys: KeySet, capsys) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.sig").write_text("old")
    pair = test_keys.pair("verity")
    before = sorted(path.name for path in tmp_path.iterdir())
    key = ("--key", pair.uri, "--cert", pair.certificate)
    _error(capsys, "sign", "root-hash", ROOT_HASH, *key, "-o", tmp_path / "x.p7s", "--verity-sig", tmp_path / second)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "there.sig").read_text() == "old"


def test_root_replaces_its_sidecars_together_or_not_at_all(tmp_path: Path, test_keys: KeySet, foreign_keys: KeySet, capsys) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(8192))
    pair = test_keys.pair("verity")
    signed = ("--key", pair.uri, "--cert", pair.certificate)
    assert main(["root", str(image), *map(str, signed), "--quiet"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != image}
    image.write_bytes(b"1" * 8192)
    capsys.readouterr()
    _error(capsys, "root", image, "--key", pair.uri, "--cert", foreign_keys.pair("verity").certificate, "--force", "--quiet")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != image} == before
    said = _error(capsys, "root", image, *signed, "--quiet")
    assert f"{image}.verity: exists already" in said and ".tmp" not in said


def test_a_program_that_met_a_full_disk_is_a_full_disk(tmp_path: Path, need) -> None:
    for tool in ("unshare", "mkfs.erofs", "fakeroot"):
        need(tool)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/large").write_bytes(os.urandom(200_000))
    (tmp_path / "disk").mkdir()
    make = f"{sys.executable} -m ipe_build image filesystem root -o disk/out --quiet"
    script = f"mount -t tmpfs -o size=128k tmpfs disk && {make}; status=$?; ls -A disk"
    words = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run([*words, "sh", "-c", f"{script}; exit $status"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "", done.stdout
    assert done.stderr == "error: disk/out: no space left to write it; what was there before is unchanged\n  hint: free space on disk\n"


def test_a_folder_without_permission_is_refused_before_any_work(tmp_path: Path, need) -> None:
    """For a user, and for root without the capability that ignores permissions."""
    need("setpriv")
    (tmp_path / "closed").mkdir(mode=0o555)
    words = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    render = ["policy", "render", "signed-verity", "--name", "a", "--policy-version", "1.0.0", "-o", "closed/x"]
    done = subprocess.run([*words, sys.executable, "-m", "ipe_build", *render], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "closed/x: cannot be written: Permission denied\n  hint: name a folder" in done.stderr


def test_folders_that_may_not_be_listed_are_refused_not_passed_over(tmp_path: Path, test_keys: KeySet, need) -> None:
    need("setpriv")
    (tmp_path / "in/closed").mkdir(parents=True)
    (tmp_path / "a.pol").write_text(POLICY)
    shutil.copy(test_keys.bundle, tmp_path / "bundle.pem")
    (tmp_path / "in/closed").chmod(0)
    words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    for line in (["keys", "rotation", "in", "--old", "bundle.pem"], ["policy", "evaluate", "a.pol", "--image", "in"]):
        done = subprocess.run([*words, sys.executable, "-m", "ipe_build", *line], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2 and "in/closed: cannot be listed: Permission denied" in done.stderr, done.stderr
    (tmp_path / "in/closed").chmod(0o755)


def test_every_sub_verb_says_in_its_help_what_it_does() -> None:
    for words in (("keys", "show"), ("sign", "policy"), ("modules", "verify"), ("update", "rauc"), ("attest", "manifest")):
        assert words[0] in {verb.name for verb in VERBS}
        done = subprocess.run([sys.executable, "-m", "ipe_build", *words, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.split("\n\n")[1].endswith(".")
