"""Flash files against the tools that read them: bmaptool, zstd, simg2img and img2simg, on a card that was not empty."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from uuid import UUID

import pytest

from ipe_build.formats.bmap import BLOCK_BYTES, parse_bmap
from ipe_build.host import Host
from ipe_build.image.disk import Disk, DiskRequest, make_disk, read_disk
from ipe_build.image.esp import BootEntry
from ipe_build.image.flash import FlashRequest, make_flash_files
from ipe_build.image.used import used_areas
from ipe_build.integrity.verity import VerityParameters, format_image, verify_image
from tests.fixtures.fastboot import FastbootDevice

ZEROS_IN_THE_MIDDLE = Random(1).randbytes(4096 * 40) + bytes(4096 * 300) + Random(2).randbytes(4096 * 7) + bytes(4096 * 20)


def call(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(word) for word in words], capture_output=True)


@pytest.fixture(scope="module")
def disk(host: Host, need: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """A disk whose root has zeros that dm-verity checks, and an EFI system partition with a kernel that has zeros too."""
    for tool in ("mkfs.vfat", "mcopy"):
        need(tool)
    folder = tmp_path_factory.mktemp("flash")
    (folder / "root.img").write_bytes(ZEROS_IN_THE_MIDDLE)
    tree = format_image(folder / "root.img", folder / "root.verity", VerityParameters(salt=b"flash"), host)
    (folder / "kernel").write_bytes(b"kernel" * 4096 + bytes(64 * 4096) + b"end")
    entry = BootEntry("test", "TEST", folder / "kernel", None, "")
    request = DiskRequest(
        folder / "root.img", folder / "root.verity", tree.root_hash, b"{}".ljust(4096, b"\0"), UUID(int=9), entry, boot_loader=False
    )
    (folder / "root_hash").write_bytes(tree.root_hash)
    return make_disk(request, folder / "disk.raw", host)


def dirty_card(folder: Path, image: Path, bmap: Path) -> Path:
    """A card with something else on it, after the map's blocks of the image were written: what bmaptool does to a block device.

    (A file as its target is truncated first, so that would not show.)
    """
    card, raw = folder / "card", image.read_bytes()
    content = bytearray(b"\xa5" * len(raw))
    for one in parse_bmap(bmap.read_bytes()).ranges:
        begin, end = one.first * BLOCK_BYTES, (one.last + 1) * BLOCK_BYTES
        content[begin:end] = raw[begin:end]
    card.write_bytes(content)
    return card


def verity_is_whole(image: Path, original: Disk, host: Host, scratch: Path) -> bool:
    """Whether the root of a flashed disk verifies against the root hash."""
    assert original.root and original.root_verity
    raw = image.read_bytes()
    for partition, name in ((original.root, "data"), (original.root_verity, "tree")):
        (scratch / name).write_bytes(raw[partition.offset_bytes : partition.end_bytes])
    root_hash = (original.path.parent / "root_hash").read_bytes()
    return verify_image(scratch / "data", scratch / "tree", root_hash, host) == ()


def test_bmaptool_copies_the_image_by_our_map(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    bmap, compressed = make_flash_files(disk, tmp_path, FlashRequest(), host)
    for number, image in enumerate((disk.path, compressed)):
        card = tmp_path / f"card{number}"
        done = call(need("bmaptool"), "copy", "--bmap", bmap, image, card)
        assert done.returncode == 0, done.stderr
        assert card.read_bytes() == disk.path.read_bytes()


def test_on_a_dirty_card_the_root_verifies_and_the_kernel_is_whole(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    (bmap,) = make_flash_files(disk, tmp_path, FlashRequest(zstd=False), host)
    card = dirty_card(tmp_path, disk.path, bmap)
    assert card.read_bytes() != disk.path.read_bytes(), "it still holds old bytes where nobody reads"
    assert read_disk(card).table == read_disk(disk.path).table
    assert verity_is_whole(card, disk, host, tmp_path)
    assert disk.esp
    (tmp_path / "esp").write_bytes(card.read_bytes()[disk.esp.offset_bytes : disk.esp.end_bytes])
    assert call(need("fsck.fat"), "-n", tmp_path / "esp").returncode == 0
    kernel = call("mcopy", "-i", tmp_path / "esp", "::/ipe-build/linux", "-").stdout
    assert kernel == (disk.path.parent / "kernel").read_bytes()


def test_a_map_of_holes_alone_would_break_the_root_on_a_dirty_card(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    """Why the writer is ours: bmaptool's own map leaves zeros out that dm-verity checks."""
    sparse = tmp_path / "sparse.raw"
    assert call("cp", "--sparse=always", disk.path, sparse).returncode == 0
    assert call(need("bmaptool"), "create", sparse, "-o", tmp_path / "holes.bmap").returncode == 0
    card = dirty_card(tmp_path, sparse, tmp_path / "holes.bmap")
    assert not verity_is_whole(card, disk, host, tmp_path)


def test_bmaptool_makes_the_same_map_of_a_file_with_exactly_these_blocks(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    """A file in which exactly the used areas are allocated: ranges and checksums are the same."""
    (ours,) = make_flash_files(disk, tmp_path, FlashRequest(zstd=False), host)
    raw = disk.path.read_bytes()
    laid = tmp_path / "laid.raw"
    with laid.open("wb") as handle:
        handle.truncate(len(raw))
        for begin, end in used_areas(disk.table, lambda offset, length: raw[offset : offset + length]):
            handle.seek(begin)
            handle.write(raw[begin:end])
    assert call(need("bmaptool"), "create", laid, "-o", tmp_path / "theirs.bmap").returncode == 0
    assert parse_bmap((tmp_path / "theirs.bmap").read_bytes()) == parse_bmap(ours.read_bytes())


def test_bmaptool_refuses_a_changed_image_and_a_changed_map(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    (bmap,) = make_flash_files(disk, tmp_path, FlashRequest(zstd=False), host)
    assert disk.root
    changed = tmp_path / "changed.raw"
    raw = bytearray(disk.path.read_bytes())
    raw[disk.root.offset_bytes + 5] ^= 1
    changed.write_bytes(raw)
    assert call(need("bmaptool"), "copy", "--bmap", bmap, changed, tmp_path / "card").returncode != 0
    text = bmap.read_text()
    bmap.write_text(text.replace("<ImageSize> ", "<ImageSize> 1", 1))
    assert call(need("bmaptool"), "copy", "--bmap", bmap, disk.path, tmp_path / "card").returncode != 0


def test_zstd_gives_the_image_back_and_is_the_same_twice(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    (one,) = make_flash_files(disk, tmp_path, FlashRequest(bmap=False), host)
    first = one.read_bytes()
    make_flash_files(disk, tmp_path, FlashRequest(bmap=False), host, force=True)
    assert one.read_bytes() == first
    assert call(need("zstd"), "-t", one).returncode == 0
    assert call(need("zstd"), "-dc", one).stdout == disk.path.read_bytes()


def test_the_files_do_not_depend_on_the_holes_of_this_machine(disk: Disk, host: Host, tmp_path: Path) -> None:
    made = []
    for name, words in (("a", "--sparse=always"), ("b", "--sparse=never")):
        folder = tmp_path / name
        folder.mkdir()
        subprocess.run(["cp", words, disk.path, folder / "disk.raw"], check=True)
        files = make_flash_files(read_disk(folder / "disk.raw"), folder, FlashRequest(partitions=True), host)
        made.append({file.relative_to(folder): file.read_bytes() for file in files})
    assert made[0] == made[1]
    assert len(made[0]) == 2 + 1 + 4 + 1


def test_partition_files_are_the_partitions(disk: Disk, host: Host, tmp_path: Path) -> None:
    files = make_flash_files(disk, tmp_path, FlashRequest(False, False, partitions=True), host)
    raw = disk.path.read_bytes()
    by_name = {file.name: file.read_bytes() for file in files}
    for partition in disk.table.partitions:
        content = raw[partition.offset_bytes : partition.end_bytes]
        file = by_name.pop(f"{partition.name}.img")
        assert content.startswith(file) and file
        if partition.name.startswith("root"):
            assert file == content
    assert by_name.pop("gpt.img") == raw[: 34 * 512]
    assert set(by_name) == {"flash.sh"}


def test_simg2img_gives_the_used_bytes_back(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    files = make_flash_files(disk, tmp_path, FlashRequest(False, False, sparse=True), host)
    raw = disk.path.read_bytes()
    for partition in disk.table.partitions:
        file = next(one for one in files if one.name == f"{partition.name}.simg")
        out = tmp_path / "plain"
        out.unlink(missing_ok=True)
        done = call(need("simg2img"), file, out)
        assert done.returncode == 0, done.stderr
        content = raw[partition.offset_bytes : partition.end_bytes]
        got = out.read_bytes()
        assert got == content[: len(got)] and not any(content[len(got) :])


def test_img2simg_round_trip_agrees_with_ours(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    """Android's own writer on the root's bytes, read back, is what its reader makes of ours."""
    files = make_flash_files(disk, tmp_path, FlashRequest(False, False, sparse=True), host)
    assert disk.root
    content = disk.path.read_bytes()[disk.root.offset_bytes : disk.root.end_bytes]
    (tmp_path / "root").write_bytes(content)
    assert call(need("img2simg"), tmp_path / "root", tmp_path / "theirs.simg").returncode == 0
    ours = next(one for one in files if one.name == f"{disk.root.name}.simg")
    for number, file in enumerate((ours, tmp_path / "theirs.simg")):
        assert call(need("simg2img"), file, tmp_path / f"back{number}").returncode == 0
    assert (tmp_path / "back0").read_bytes() == (tmp_path / "back1").read_bytes() == content
    assert ours.stat().st_size < len(content), "zeros are not stored"


def test_the_flash_script_writes_each_partition_by_its_name(disk: Disk, host: Host, need, tmp_path: Path) -> None:
    files = make_flash_files(disk, tmp_path, FlashRequest(zstd=False, partitions=True), host)
    script = files[-1]
    assert call(need("shellcheck"), script).returncode == 0
    recorder = tmp_path / "fastboot"
    recorder.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\ncmp -s "$3" "$3"\n')
    recorder.chmod(0o755)
    done = subprocess.run([script, "fastboot", "--gpt"], env={"FASTBOOT": str(recorder), "PATH": "/usr/bin:/bin"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    assert [words[1] for words in said] == ["gpt", *(partition.name for partition in disk.table.partitions)]
    assert all(Path(words[2]).is_file() for words in said)
    assert call(script).returncode == 2
    shutil.copy(disk.path, tmp_path / "disk.raw")
    written = subprocess.run([script, "card", tmp_path / "card"], capture_output=True)
    assert written.returncode == 0, written.stderr
    assert (tmp_path / "card").read_bytes() == disk.path.read_bytes()


@pytest.mark.parametrize("sparse", [False, True])
def test_fastboot_flashes_every_partition(
    disk: Disk, host: Host, need, tmp_path: Path, fastboot_device: FastbootDevice, sparse: bool
) -> None:
    """The real program, with a device that takes 128 KiB at a time: it cuts larger files up itself."""
    program = need("fastboot")
    files = make_flash_files(disk, tmp_path, FlashRequest(False, False, partitions=True, sparse=sparse), host)
    environment = {"FASTBOOT": str(program), "ANDROID_SERIAL": fastboot_device.serial, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([files[-1], "fastboot", "--gpt"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pieces: dict[str, list[bytes]] = {}
    for name, data in fastboot_device.flashed:
        pieces.setdefault(name, []).append(data)
    raw = disk.path.read_bytes()
    assert pieces.pop("gpt") == [raw[: 34 * 512]]
    assert set(pieces) == {partition.name for partition in disk.table.partitions}
    assert len(pieces["root-x86-64"]) > 1, "larger than the device takes at once"
    for partition in disk.table.partitions:
        content = raw[partition.offset_bytes : partition.end_bytes]
        got = written(pieces[partition.name], tmp_path, need)
        assert got == content[: len(got)] and not any(content[len(got) :]) and got


def written(pieces: list[bytes], folder: Path, need) -> bytes:
    """What a device holds after these pieces: sparse files are unpacked by simg2img, others are taken as they are."""
    if not pieces[0].startswith(b"\x3a\xff\x26\xed"):
        assert len(pieces) == 1
        return pieces[0]
    files = []
    for number, piece in enumerate(pieces):
        files.append(folder / f"piece{number}")
        files[-1].write_bytes(piece)
    assert call(need("simg2img"), *files, folder / "written").returncode == 0
    data = (folder / "written").read_bytes()
    (folder / "written").unlink()
    return data
