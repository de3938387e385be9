"""`ipe-build boot`: wrong words and inputs give one clear error before anything is booted."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.policy.ima_policy import appraises_mapped_code, load_ima_policy


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and message of a run that must not boot anything."""
    status = main(["boot", "--quiet", *words])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error:") == 1
    return status, captured.err


def test_policy_without_its_key_is_a_usage_error(small_disk: Path, capsys: pytest.CaptureFixture[str]):
    status, message = failed(capsys, str(small_disk), "--policy", "x.pol")
    assert (status, "go together" in message) == (2, True)


@pytest.mark.parametrize(("option", "value"), [("--memory", "0"), ("--timeout", "0"), ("--timeout", "-1")])
def test_machine_of_nothing_is_a_usage_error(small_disk: Path, capsys: pytest.CaptureFixture[str], option: str, value: str):
    status, message = failed(capsys, str(small_disk), option, value)
    assert (status, "above zero" in message) == (2, True)


def test_existing_evidence_is_left_as_it_is(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "evidence.json"
    out.write_text("last good")
    status, message = failed(capsys, str(small_disk), "--evidence", str(out))
    assert (status, "exists already" in message) == (2, True)
    assert out.read_text() == "last good"


def test_missing_image_kernel_and_policy_are_named(small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status, message = failed(capsys, str(tmp_path / "none.raw"))
    assert (status, "none.raw" in message) == (2, True)
    status, message = failed(capsys, str(small_disk), "--kernel", str(tmp_path / "no-kernel"))
    assert (status, "no-kernel" in message) == (2, True)


def test_unknown_ima_policy_is_named_before_anything_is_booted(small_disk: Path, capsys: pytest.CaptureFixture[str]):
    status, message = failed(capsys, str(small_disk), "--ima-policy", "kode")
    assert (status, "there is no IMA policy 'kode'" in message) == (2, True)


@pytest.mark.parametrize(("name", "appraises"), [("code", True), ("code-and-data", True), ("kernel", False), ("measure", False)])
def test_policy_that_appraises_mapped_code_is_told(name: str, appraises: bool):
    assert appraises_mapped_code(load_ima_policy(name)) == appraises


def test_file_that_is_no_disk_is_an_error(small_disk: Path, capsys: pytest.CaptureFixture[str]):
    status, message = failed(capsys, str(small_disk))
    assert (status, "GPT" in message) == (2, True)


def test_missing_emulator_names_the_package(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "kernel").write_bytes(b"x")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("IPE_BUILD_ONLY_PATH", "1")
    words = ["--kernel", str(tmp_path / "kernel"), "--command-line", "console=ttyS0", "--no-destructive"]
    status, message = failed(capsys, str(small_disk), *words)
    assert (status, "apt-get install qemu-system-x86" in message) == (3, True)
