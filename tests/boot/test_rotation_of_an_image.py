"""`keys rotation` looks inside of images: all that the old keys signed is named, and nothing that they did not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet
from ipe_build.steps.keys import make_test_keys


@pytest.fixture
def demo_keys(host: Host) -> KeySet:
    """The keys that sign the demo."""
    return make_test_keys("ipe-build", host)


def _report(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, tuple[str, str]]]:
    status = main(["keys", "rotation", *map(str, words), "--json"])
    rows = json.loads(capsys.readouterr().out)
    return status, {row["path"]: (row["kind"], row["state"]) for row in rows}


@pytest.mark.parametrize("name", ["demo.raw", "demo.erofs"])
def test_everything_signed_in_an_image_is_found(name: str, demo_build: Path, demo_keys: KeySet, capsys: pytest.CaptureFixture[str]) -> None:
    image = demo_build / name
    status, found = _report(capsys, image, "--old", demo_keys.bundle)
    assert status == 1
    kinds = {path.removeprefix(f"{image}:"): row for path, row in found.items()}
    assert kinds["/etc/ipe/ipe-policy.p7b"] == ("CMS signature", "old")
    modules = {path: state for path, (kind, state) in kinds.items() if kind == "module"}
    assert sum(state == "old" for state in modules.values()) >= 2
    assert ("/etc/ipe/ipe-policy.p7b" in kinds) and (("root-verity-sig" in kinds) == (name == "demo.raw"))
    if name == "demo.raw":
        assert kinds["root-verity-sig"] == ("root-verity-sig", "old")
        assert kinds["ESP/EFI/BOOT/BOOTX64.EFI"][0] == "EFI program"


def test_an_image_does_not_depend_on_keys_that_signed_nothing_of_it(
    demo_build: Path, revoked_keys: KeySet, demo_keys: KeySet, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = _report(capsys, demo_build / "demo.raw", "--old", revoked_keys.bundle, "--new", demo_keys.bundle)
    assert status == 0
    states = [state for _, state in found.values()]
    assert "old" not in states
    assert states.count("new") >= 4


def test_one_certificate_concerns_only_what_it_signed(demo_build: Path, demo_keys: KeySet, capsys: pytest.CaptureFixture[str]) -> None:
    image = demo_build / "demo.raw"
    status, found = _report(capsys, image, "--old", demo_keys.pair("verity").certificate)
    assert status == 1
    assert [path for path, (_, state) in found.items() if state == "old"] == [f"{image}:root-verity-sig"]


def test_a_file_that_is_no_image_is_refused(tmp_path: Path, demo_keys: KeySet, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").write_text("nothing signed")
    assert main(["keys", "rotation", str(tmp_path / "notes"), "--old", str(demo_keys.bundle)]) == 2
    assert "nothing signed that we know" in capsys.readouterr().err
    assert main(["keys", "rotation", str(tmp_path / "missing"), "--old", str(demo_keys.bundle)]) == 2
    assert "does not exist" in capsys.readouterr().err
