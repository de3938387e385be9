"""The disk image: a GPT whose root, hash tree and signature are found by everyone who knows the discoverable partitions.

Source: UAPI group, "Discoverable Partitions Specification"; UEFI 2.10, chapter 5.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from uuid import UUID, uuid5

from ipe_build.errors import InputError
from ipe_build.formats.gpt import ATTRIBUTE_READ_ONLY, Partition, PartitionTable, lay_out, read_gpt, write_gpt
from ipe_build.formats.partition_types import EFI_SYSTEM, PARTITION_TYPES
from ipe_build.image.esp import BootEntry, EspFile, boot_loader_file, entry_files, make_esp
from ipe_build.image.slots import Content, SlotRoom, two_slots

if TYPE_CHECKING:
    from ipe_build.host import Host

_CHUNK_BYTES = 1 << 20
_MIB = 1 << 20
_SUPERBLOCK_MAGIC = b"verity\0\0"


@dataclass(frozen=True, slots=True)
class DiskRequest:
    """What goes onto the disk. `signature` is the whole content of the root-verity-sig partition; None leaves that partition out.

    `hash_area` is a file with the verity superblock at its start. `boot_loader` False leaves systemd-boot out;
    `boot_loader_path` names another one. `files` are put into the EFI system partition too (a UKI, say). With neither `entry` nor
    `files` there is no EFI system partition. `slots` lays the disk out for A/B updates; the image is then in slot a.
    """

    filesystem: Path
    hash_area: Path
    root_hash: bytes
    signature: bytes | None
    disk_uuid: UUID
    entry: BootEntry | None = None
    files: tuple[EspFile, ...] = ()
    architecture: str = "x86-64"
    esp_bytes: int = 64 * _MIB
    boot_loader: bool = True
    boot_loader_path: Path | None = None
    sector_bytes: int = 512
    slots: SlotRoom | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk image's facts. A partition that is not there is None; `architecture` is that of the root partition's type."""

    path: Path
    table: PartitionTable
    architecture: str | None
    esp: Partition | None
    root: Partition | None
    root_verity: Partition | None
    root_verity_sig: Partition | None


def partition_uuids(root_hash: bytes) -> tuple[UUID, UUID]:
    """Returns the UUIDs of the data and the hash partition: the first and the last 128 bits of the root hash."""
    if len(root_hash) < 32:
        raise InputError(
            f"wanted a root hash of at least 32 bytes, got {len(root_hash)}",
            where="root hash",
            hint="the partitions' UUIDs are its first and last 16 bytes; use sha256 or a longer hash",
        )
    return UUID(bytes=root_hash[:16]), UUID(bytes=root_hash[-16:])


def make_disk(request: DiskRequest, out: Path, host: Host, *, force: bool = False) -> Disk:
    """Returns the disk image made at `out`: EFI system partition, root, root-verity, root-verity-sig, in this order.

    Data is copied in chunks; zeros become holes. Raises: InputError, OutputError, ToolMissingError.
    """
    check_request(request)
    with host.scratch() as scratch, host.output(out, force=force) as temporary:
        contents = disk_contents(request, scratch, host)
        table = lay_out(request.disk_uuid, [one.partition for one in contents], sector_bytes=request.sector_bytes)
        started, done = time.monotonic(), 0
        total = sum(one.size_bytes for one in contents)
        with temporary.open("wb") as disk:
            disk.truncate(table.size_bytes)
            for piece in write_gpt(table):
                os.pwrite(disk.fileno(), piece.data, piece.offset)
            for partition, content in zip(table.partitions, contents, strict=True):
                for count in _copy(content.source, disk, partition.offset_bytes, content.size_bytes):
                    host.progress.amount(done + count, total, started)
                done += content.size_bytes
        host.progress.amount(total, total, started)
    return _facts(out, table)


def read_disk(path: Path, *, sector_bytes: int | None = None) -> Disk:
    """Returns the facts of a disk image (or a block device). `table.problems` says what is wrong with a table that can be used.

    Raises: InputError when it cannot be read, FormatError when it has no usable GPT.
    """
    try:
        with path.open("rb") as handle:
            descriptor = handle.fileno()
            size = os.lseek(descriptor, 0, os.SEEK_END)
            return _facts(path, read_gpt(lambda offset, length: os.pread(descriptor, length, offset), size, sector_bytes=sector_bytes))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def check_request(request: DiskRequest) -> None:
    """Raises InputError for an unknown architecture, and for files that cannot be what they should be."""
    if request.architecture not in PARTITION_TYPES:
        raise InputError(
            f"unknown architecture {request.architecture!r}", where="[build] architecture", hint=f"one of {', '.join(PARTITION_TYPES)}"
        )
    partition_uuids(request.root_hash)
    for what, path in (("filesystem image", request.filesystem), ("hash area", request.hash_area)):
        if not path.is_file():
            raise InputError(f"wanted the {what}, there is no such file", where=str(path))
        if path.stat().st_size == 0 or path.stat().st_size % 512:
            raise InputError(f"wanted a {what} of whole sectors, got {path.stat().st_size} bytes", where=str(path))
    with request.hash_area.open("rb") as handle:
        if handle.read(len(_SUPERBLOCK_MAGIC)) != _SUPERBLOCK_MAGIC:
            raise InputError(
                "has no verity superblock", where=str(request.hash_area), hint="ipe-build verity format, without --no-superblock"
            )
    if request.signature is not None and not request.signature:
        raise InputError("is empty", where="root hash signature")


def disk_contents(request: DiskRequest, scratch: Path, host: Host) -> list[Content]:
    """Returns each partition (without its place) with its content, in order. An EFI system partition's is a file in `scratch`.

    The request is one that `check_request` has passed.
    """
    row = PARTITION_TYPES[request.architecture]
    data_uuid, tree_uuid = partition_uuids(request.root_hash)
    arch = request.architecture
    contents: list[Content] = []
    files = [*(entry_files(request.entry) if request.entry is not None else ()), *request.files]
    if files:
        if request.boot_loader:
            files.insert(0, boot_loader_file(arch, request.boot_loader_path))
        esp, esp_uuid = scratch / "esp", uuid5(request.disk_uuid, "esp")
        size = make_esp(files, esp, request.esp_bytes, esp_uuid, host)
        contents.append(Content(Partition(0, EFI_SYSTEM, esp_uuid, "esp", 0, size), esp, size))
    for name, type_uuid, uuid, path in (
        (f"root-{arch}", row.root, data_uuid, request.filesystem),
        (f"root-{arch}-verity", row.root_verity, tree_uuid, request.hash_area),
    ):
        size = path.stat().st_size
        contents.append(Content(Partition(0, type_uuid, uuid, name, 0, size, ATTRIBUTE_READ_ONLY), path, size))
    if request.signature is not None:
        uuid = uuid5(data_uuid, request.root_hash.hex())
        size = len(request.signature)
        name = f"root-{arch}-verity-sig"
        contents.append(Content(Partition(0, row.root_verity_sig, uuid, name, 0, size, ATTRIBUTE_READ_ONLY), request.signature, size))
    return contents if request.slots is None else two_slots(contents, request.disk_uuid, request.slots)


def _copy(content: Path | bytes, disk: BinaryIO, offset: int, size_bytes: int) -> Iterator[int]:
    """Copies a partition's content to `offset`, zeros left as holes; yields how many bytes are done."""
    if isinstance(content, bytes):
        _write_all(disk.fileno(), content, offset)
        return
    zeros = bytes(_CHUNK_BYTES)
    done = 0
    with content.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            if done + len(chunk) > size_bytes:
                break
            if chunk != (zeros if len(chunk) == _CHUNK_BYTES else bytes(len(chunk))):
                _write_all(disk.fileno(), chunk, offset + done)
            done += len(chunk)
            yield done
    if done != size_bytes or chunk:
        raise InputError(f"wanted {size_bytes} bytes, its size changed while it was read", where=str(content))


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Writes all of `data` at `offset`; pwrite alone may write less (at a file size limit, say) without an error."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _facts(path: Path, table: PartitionTable) -> Disk:
    """Returns what the partitions are, by their types; of several of one type the first counts."""

    def first(type_uuid: UUID) -> Partition | None:
        return next((partition for partition in table.partitions if partition.type_uuid == type_uuid), None)

    esp = first(EFI_SYSTEM)
    for architecture, row in PARTITION_TYPES.items():
        root = first(row.root)
        if root is not None:
            return Disk(path, table, architecture, esp, root, first(row.root_verity), first(row.root_verity_sig))
    return Disk(path, table, None, esp, None, None, None)
