"""`ipe-build image`: the verb's options, its one JSON value, its errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.cli import main


@pytest.fixture
def root(tmp_path: Path, need: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    for tool in ("mkfs.erofs", "fakeroot", "gcc", "mkfs.vfat", "mcopy"):
        need(tool)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "shadow").write_text("x")
    return tmp_path / "root"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_parts_of_an_image_are_made_one_after_the_other(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, initrd, disk = tmp_path / "root.img", tmp_path / "initrd", tmp_path / "disk.raw"
    words = ("--owner", "/etc/shadow=0:42:0640", "--add", f"etc/ipe/p.p7b={root / 'etc/shadow'}:0400")
    status, out, _ = run(capsys, "image", "filesystem", root, "-o", image, *words, "--json")
    assert status == 0 and json.loads(out) == {"path": str(image), "filesystem": "erofs", "size_bytes": image.stat().st_size, "entries": 5}
    assert run(capsys, "verity", "format", image, "--root-hash-file", tmp_path / "roothash")[0] == 0
    root_hash = (tmp_path / "roothash").read_text().strip()
    status, out, _ = run(
        capsys,
        "image",
        "initramfs",
        "-o",
        initrd,
        "--root-hash",
        tmp_path / "roothash",
        "--filesystem",
        "erofs",
        "--signature",
        "none",
        "--json",
    )
    assert status == 0 and json.loads(out)["entries"] == 8
    words2 = ("--root-hash", root_hash, "--kernel", initrd, "--initramfs", initrd, "--no-boot-loader", "--esp-mib", 8)
    status, out, _ = run(capsys, "image", "disk", image, *words2, "-o", disk, "--json")
    value = json.loads(out)
    assert status == 0 and [part["name"] for part in value["partitions"]] == ["esp", "root-x86-64", "root-x86-64-verity"]
    assert value["partitions"][1]["uuid"].replace("-", "") == root_hash[:32]
    assert value["partitions"][2]["uuid"].replace("-", "") == root_hash[-32:]
    status, out, _ = run(capsys, "image", "disk", image, *words2, "-o", tmp_path / "again.raw")
    assert status == 0 and "root-x86-64-verity" in out
    assert (tmp_path / "again.raw").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("image",), "ACTION"),
        (("image", "filesystem", "ROOT"), "-o"),
        (("image", "filesystem", "ROOT", "-o", "x", "--uuid", "zz"), "wanted a UUID"),
        (("image", "filesystem", "ROOT", "-o", "x", "--owner", "a=b"), "wanted PATTERN=UID:GID[:MODE]"),
        (("image", "filesystem", "ROOT", "-o", "x", "--add", "a"), "wanted PATH=FILE[:MODE]"),
        (("image", "filesystem", "/nonexistent", "-o", "x"), "does not exist"),
        (("image", "filesystem", "ROOT", "-o", "x", "--filesystem", "btrfs"), "invalid choice"),
        (("image", "initramfs", "-o", "x", "--root-hash", "zz", "--filesystem", "erofs"), "wanted a root hash"),
        (("image", "initramfs", "-o", "x", "--root-hash", "00" * 20, "--filesystem", "erofs"), "wanted 32 to 64 bytes"),
        (("image", "initramfs", "-o", "x", "--root-hash", "cmdline", "--filesystem", "erofs", "--signature", "none"), "needs a signature"),
        (("image", "disk", "ROOT/etc/shadow", "-o", "x", "--root-hash", "00" * 20), "at least 32 bytes"),
        (("image", "disk", "ROOT/etc/shadow", "-o", "x", "--root-hash", "00", "--initramfs", "i"), "needs a kernel"),
    ],
)
def test_wrong_words_are_one_clear_error(
    root: Path, words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *(word.replace("ROOT", str(root)) for word in words))
    assert status == 2 and out == "" and err.startswith("error: ") and message in err and "Traceback" not in err
    assert not (tmp_path / "x").exists()
