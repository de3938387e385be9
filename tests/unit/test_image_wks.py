"""`ipe-build image disk --wks`: what wic puts together from the lines are the partitions that `image disk` makes."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.image.disk import Disk, read_disk

ROOT_HASH = hashlib.sha256(b"a root hash").hexdigest()


@pytest.fixture
def inputs(tmp_path: Path, need: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of `image disk` up to -o, for files in a folder that stands for DEPLOY_DIR_IMAGE."""
    for tool in ("mkfs.vfat", "mcopy", "sfdisk"):
        need(tool)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    deploy = tmp_path / "deploy"
    deploy.mkdir()
    (deploy / "device.erofs").write_bytes(b"root".ljust(12288, b"r"))
    (deploy / "device.erofs.verity").write_bytes(b"verity\0\0".ljust(8192, b"v"))
    (deploy / "device.verity-sig").write_bytes(b"{}".ljust(4096, b"\0"))
    (deploy / "linux").write_bytes(b"a kernel")
    words = ["image", "disk", deploy / "device.erofs", "--root-hash", ROOT_HASH, "--verity-sig", deploy / "device.verity-sig"]
    return [str(word) for word in (*words, "--kernel", deploy / "linux", "--no-boot-loader", "--esp-mib", "8")]


def parts(folder: Path) -> list[argparse.Namespace]:
    """The `part` lines of esp.wks and root.wks, read as wic's ksparser.py reads them: shlex, then options."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for option in ("source", "sourceparams", "fstype", "part-name", "part-type", "uuid", "align", "fixed-size"):
        parser.add_argument(f"--{option}", default="")
    lines = [line for name in ("esp.wks", "root.wks") for line in (folder / name).read_text().splitlines() if not line.startswith("#")]
    assert all(line.startswith("part ") for line in lines)
    return [parser.parse_args(shlex.split(line)[1:]) for line in lines]


def contents(disk: Disk) -> dict[str, tuple[object, ...]]:
    data = disk.path.read_bytes()
    return {one.name: (one.type_uuid, one.uuid, data[one.offset_bytes : one.end_bytes]) for one in disk.table.partitions}


@pytest.mark.parametrize("slots", [[], ["--slots"]], ids=["one", "slots"])
def test_wic_makes_the_partitions_that_image_disk_makes(
    inputs: list[str], tmp_path: Path, wic_create: Callable[[str, Path], Path], slots: list[str]
) -> None:
    folder, disk = tmp_path / "deploy/device.wks.d", tmp_path / "device.raw"
    assert main([*inputs, *slots, "--wks", "-o", str(folder)]) == 0
    assert main([*inputs, *slots, "-o", str(disk)]) == 0
    made = read_disk(wic_create(f"bootloader --ptable gpt\ninclude {folder}/esp.wks\ninclude {folder}/root.wks\n", tmp_path / "deploy"))
    wanted = read_disk(disk)
    assert not made.table.problems
    assert contents(made) == contents(wanted) and len(made.table.partitions) == (8 if slots else 4)
    assert str(made.root.uuid if made.root else "").replace("-", "") == ROOT_HASH[:32]


def test_root_is_not_copied_and_another_builder_writes_the_same(inputs: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "deploy/device.wks.d"
    assert main([*inputs, "--wks", "-o", str(folder)]) == 0
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {"esp.img", "esp.wks", "root.wks", "root-x86-64-verity-sig.img"}
    assert str(tmp_path) not in first["root.wks"].decode() + first["esp.wks"].decode()
    assert main([*inputs, "--wks", "-o", str(folder)]) == 0, "an earlier output is replaced"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_folder_of_somebody_else_is_left_alone(inputs: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "deploy/device.wks.d"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    assert main([*inputs, "--wks", "-o", str(folder)]) != 0
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_disk_without_a_kernel_has_no_line_in_esp_wks(inputs: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "deploy/device.wks.d"
    assert main([*inputs[: inputs.index("--kernel")], "--wks", "-o", str(folder)]) == 0
    assert [part.part_name for part in parts(folder)] == ["root-x86-64", "root-x86-64-verity", "root-x86-64-verity-sig"]


@pytest.mark.parametrize("name", ["a,b.wks.d", "a b.wks.d", "a=b.wks.d", "${A}.wks.d"])
def test_name_that_wic_would_take_apart_is_refused(
    inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main([*inputs, "--wks", "-o", str(tmp_path / "deploy" / name)]) != 0
    assert "in a name that wic reads" in capsys.readouterr().err
