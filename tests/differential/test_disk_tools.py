"""Disk images: sfdisk, systemd-dissect, blkid and mtools agree with what we wrote, and the bytes come from the inputs alone."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.errors import FormatError, InputError, OutputError, ToolMissingError
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.formats.verity_sig import VeritySignature
from ipe_build.host import Host
from ipe_build.image.disk import DiskRequest, make_disk, partition_uuids, read_disk
from ipe_build.image.esp import BootEntry, EspFile, read_esp_file
from ipe_build.image.filesystem import FilesystemRequest, make_filesystem
from ipe_build.integrity.verity import VerityParameters, format_image

DISK_UUID = UUID("00000000-0000-4000-8000-000000000001")


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory, host: Host, need: Callable[[str], Path]) -> DiskRequest:
    """A disk request over a small real root, its tree, and a signature of the right shape (nobody checks it here)."""
    for tool in ("mkfs.erofs", "fakeroot", "mkfs.vfat", "mcopy", "mmd"):
        need(tool)
    folder = tmp_path_factory.mktemp("disk")
    (folder / "root" / "usr").mkdir(parents=True)
    (folder / "root" / "etc").mkdir()
    (folder / "root" / "etc" / "os-release").write_text("ID=test\n")
    (folder / "root" / "usr" / "data").write_bytes(bytes(3 << 20) + b"end")
    image = make_filesystem(FilesystemRequest(folder / "root", UUID(int=3)), folder / "root.img", host)
    tree = format_image(image.path, folder / "root.verity", VerityParameters(salt=bytes(32)), host)
    (folder / "linux").write_bytes(b"MZ" + os.urandom(3 << 20))
    (folder / "initrd").write_bytes(b"initrd")
    signature = VeritySignature(tree.root_hash, bytes(32), b"signature").build()
    entry = BootEntry("demo", "Demo image", folder / "linux", folder / "initrd", "console=ttyS0 quiet")
    return DiskRequest(image.path, folder / "root.verity", tree.root_hash, signature, DISK_UUID, entry)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_sfdisk_reads_the_same_table(request_: DiskRequest, host: Host, need: Callable[[str], Path], tmp_path: Path) -> None:
    disk = make_disk(request_, tmp_path / "disk.raw", host)
    sfdisk = need("sfdisk")
    table = json.loads(host.run([sfdisk, "--json", disk.path]).text)["partitiontable"]
    row = PARTITION_TYPES["x86-64"]
    data, tree = partition_uuids(request_.root_hash)
    assert table["label"] == "gpt" and table["id"] == str(DISK_UUID).upper()
    assert [(part["type"].lower(), part["name"]) for part in table["partitions"]] == [
        ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "esp"),
        (str(row.root), "root-x86-64"),
        (str(row.root_verity), "root-x86-64-verity"),
        (str(row.root_verity_sig), "root-x86-64-verity-sig"),
    ]
    assert [part["uuid"].lower() for part in table["partitions"][1:3]] == [str(data), str(tree)]
    assert data.bytes == request_.root_hash[:16] and tree.bytes == request_.root_hash[-16:]
    assert [(part["start"] * 512, part["size"] * 512) for part in table["partitions"]] == [
        (part.offset_bytes, part.size_bytes) for part in disk.table.partitions
    ]
    assert all(part["start"] % 2048 == 0 for part in table["partitions"])
    assert "No errors detected" in host.run([sfdisk, "--verify", disk.path]).text


def test_contents_are_in_their_partitions(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    disk = make_disk(request_, tmp_path / "disk.raw", host)
    raw = disk.path.read_bytes()
    assert disk.root and disk.root_verity and disk.root_verity_sig
    for partition, wanted in (
        (disk.root, request_.filesystem.read_bytes()),
        (disk.root_verity, request_.hash_area.read_bytes()),
        (disk.root_verity_sig, request_.signature),
    ):
        assert raw[partition.offset_bytes : partition.end_bytes] == wanted
    assert read_disk(disk.path) == disk
    assert not disk.table.problems


@pytest.mark.skipif(os.geteuid() != 0, reason="systemd-dissect needs root for a loop device")
def test_systemd_dissect_sees_a_root_with_verity(request_: DiskRequest, host: Host, need: Callable[[str], Path], tmp_path: Path) -> None:
    disk = make_disk(request_, tmp_path / "disk.raw", host)
    done = subprocess.run([need("systemd-dissect"), "--json=short", disk.path], capture_output=True, text=True)
    if "loop" in done.stderr:
        pytest.skip(done.stderr)
    rows = {row["designator"]: row for row in json.loads(done.stdout)["mounts"]}
    assert rows["root"]["verity"] == "signed" and rows["root"]["fstype"] == "erofs" and rows["root"]["rw"] == "ro"
    assert rows["esp"]["fstype"] == "vfat" and rows["root-verity"]["fstype"] == "DM_verity_hash"
    assert rows["root-verity-sig"]["fstype"] == "verity_hash_signature"


def test_blkid_sees_the_root_at_its_place(request_: DiskRequest, host: Host, need: Callable[[str], Path], tmp_path: Path) -> None:
    disk = make_disk(request_, tmp_path / "disk.raw", host)
    assert disk.root and disk.esp
    blkid = need("blkid")
    assert "TYPE=erofs" in host.run([blkid, "-p", "-o", "export", "-O", str(disk.root.offset_bytes), disk.path]).text
    assert "TYPE=vfat" in host.run([blkid, "-p", "-o", "export", "-O", str(disk.esp.offset_bytes), disk.path]).text


def test_boot_files_are_in_the_esp(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    disk = make_disk(request_, tmp_path / "disk.raw", host)
    assert disk.esp and request_.entry
    offset = disk.esp.offset_bytes
    assert read_esp_file(disk.path, offset, "/ipe-build/linux", host) == request_.entry.kernel.read_bytes()
    assert read_esp_file(disk.path, offset, "/ipe-build/initrd", host) == b"initrd"
    assert read_esp_file(disk.path, offset, "loader/entries/demo.conf", host).decode().splitlines() == [
        "title Demo image",
        "linux /ipe-build/linux",
        "initrd /ipe-build/initrd",
        "options console=ttyS0 quiet",
    ]
    assert "editor no" in read_esp_file(disk.path, offset, "loader/loader.conf", host).decode()
    assert read_esp_file(disk.path, offset, "EFI/BOOT/BOOTX64.EFI", host)[:2] == b"MZ"
    with pytest.raises(InputError, match="has no readable missing"):
        read_esp_file(disk.path, offset, "missing", host)


@pytest.mark.parametrize("esp_mib", [1, 10, 20, 33, 34, 64, 300])
def test_fat_has_no_errors(request_: DiskRequest, esp_mib: int, host: Host, tmp_path: Path) -> None:
    disk = make_disk(replace(request_, esp_bytes=esp_mib << 20), tmp_path / "disk.raw", host)
    assert disk.esp
    (tmp_path / "esp").write_bytes(disk.path.read_bytes()[disk.esp.offset_bytes : disk.esp.end_bytes])
    host.run(["fsck.fat", "-n", tmp_path / "esp"])


def test_two_builds_at_different_times_give_the_same_bytes(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    first = make_disk(request_, tmp_path / "one.raw", host)
    assert request_.entry
    (tmp_path / "linux").write_bytes(request_.entry.kernel.read_bytes())
    os.utime(tmp_path / "linux", (5, 5))
    time.sleep(2.1)  # FAT counts in steps of two seconds
    east = Host(env={**host.env, "TZ": "Asia/Tokyo"}, progress=host.progress)
    moved = replace(request_, entry=replace(request_.entry, kernel=tmp_path / "linux"))
    assert digest(make_disk(moved, tmp_path / "two.raw", east).path) == digest(first.path)


def test_zeros_take_no_space(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    status = make_disk(request_, tmp_path / "disk.raw", host).path.stat()
    assert status.st_size > 60 << 20
    assert status.st_blocks * 512 < 16 << 20


def test_esp_grows_with_its_files(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"\1" * (9 << 20))
    small = replace(request_, esp_bytes=1 << 20, files=(EspFile("EFI/Linux/big.efi", tmp_path / "big"),))
    disk = make_disk(small, tmp_path / "disk.raw", host)
    assert disk.esp and disk.esp.size_bytes > 9 << 20
    assert read_esp_file(disk.path, disk.esp.offset_bytes, "EFI/Linux/big.efi", host) == b"\1" * (9 << 20)


def test_disk_without_kernel_or_signature_has_two_partitions(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    disk = make_disk(replace(request_, entry=None, signature=None), tmp_path / "disk.raw", host)
    assert [partition.name for partition in disk.table.partitions] == ["root-x86-64", "root-x86-64-verity"]
    assert disk.esp is None and disk.root_verity_sig is None and disk.architecture == "x86-64"


@pytest.mark.parametrize("architecture", list(PARTITION_TYPES))
def test_types_are_those_of_the_architecture(
    request_: DiskRequest, architecture: str, host: Host, need: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = make_disk(replace(request_, entry=None, architecture=architecture), tmp_path / "disk.raw", host)
    assert read_disk(disk.path).architecture == architecture
    listing = host.run([need("sfdisk"), "--list", "-o", "Type", disk.path]).text
    word = {"x86-64": "x86-64", "arm64": "ARM-64", "arm": "ARM", "riscv64": "RISC-V-64"}[architecture]
    assert f"Linux root ({word})" in listing and f"Linux root verity ({word})" in listing


def test_sectors_of_4096_bytes(request_: DiskRequest, host: Host, need: Callable[[str], Path], tmp_path: Path) -> None:
    disk = make_disk(replace(request_, entry=None, sector_bytes=4096), tmp_path / "disk.raw", host)
    table = json.loads(host.run([need("sfdisk"), "--sector-size", "4096", "--json", disk.path], ok=(0, 1)).text or "{}")
    assert read_disk(disk.path).table.sector_bytes == 4096
    if table:
        assert table["partitiontable"]["sectorsize"] == 4096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root_hash": bytes(20)}, "at least 32 bytes"),
        ({"root_hash": bytes(32)}, "wanted a type and a UUID, got zero"),
        ({"filesystem": Path("/nonexistent")}, "there is no such file"),
        ({"architecture": "vax"}, "unknown architecture"),
        ({"signature": b""}, "is empty"),
        ({"root_hash": bytes([7] * 32)}, "have the same UUID"),
    ],
)
def test_bad_request_is_one_clear_error(
    request_: DiskRequest, changes: dict[str, object], message: str, host: Host, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        make_disk(replace(request_, entry=None, **changes), tmp_path / "disk.raw", host)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_hash_area_without_superblock_is_refused(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    (tmp_path / "tree").write_bytes(bytes(4096))
    with pytest.raises(InputError, match="has no verity superblock"):
        make_disk(replace(request_, hash_area=tmp_path / "tree"), tmp_path / "disk.raw", host)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "a/b"}, "wanted letters, digits"),
        ({"command_line": "a\nlinux /evil"}, "wanted one line"),
        ({"title": "a\nb"}, "wanted one line"),
        ({"kernel": Path("/nonexistent")}, "wanted a file for the EFI system partition"),
    ],
)
def test_bad_boot_entry_is_refused(request_: DiskRequest, entry: dict[str, object], message: str, host: Host, tmp_path: Path) -> None:
    assert request_.entry
    with pytest.raises(InputError, match=message):
        make_disk(replace(request_, entry=replace(request_.entry, **entry)), tmp_path / "disk.raw", host)  # type: ignore[arg-type]


def test_existing_disk_is_left_as_it_is(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        make_disk(request_, tmp_path / "disk.raw", host)
    assert (tmp_path / "disk.raw").read_text() == "mine"


def test_missing_tool_and_boot_loader_are_named(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    bare = Host(env={**host.env, "PATH": str(tmp_path), "IPE_BUILD_ONLY_PATH": "1"}, progress=host.progress)
    with pytest.raises(ToolMissingError, match="dosfstools"):
        make_disk(request_, tmp_path / "disk.raw", bare)
    with pytest.raises(ToolMissingError, match="systemd-boot-efi"):
        make_disk(replace(request_, boot_loader_path=tmp_path / "missing.efi"), tmp_path / "disk.raw", host)
    assert not list(tmp_path.iterdir())


def test_file_size_limit_is_one_clear_error(request_: DiskRequest, tmp_path: Path) -> None:
    """In a process of its own: the limit stands in for a full disk, which needs no privilege."""
    code = (
        "import resource, signal, sys\n"
        "from ipe_build.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["image", "disk", str(request_.filesystem), str(request_.hash_area), "--root-hash", request_.root_hash.hex()]
    done = subprocess.run([sys.executable, "-c", code, *words, "-o", str(tmp_path / "disk.raw")], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "no space left to write it" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(1 << 20)])
def test_file_that_is_no_disk_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(content)
    with pytest.raises(FormatError, match="GPT: offset"):
        read_disk(tmp_path / "disk.raw")


def test_missing_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_disk(tmp_path / "missing")
