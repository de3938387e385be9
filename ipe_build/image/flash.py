"""What flashing tools take: a block map for bmaptool, a compressed image, a file for each partition, Android sparse files for fastboot.

All are functions of the image's bytes: holes of the file on this machine do not show.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ipe_build.errors import InputError, OutputError, ToolMissingError
from ipe_build.formats import android_sparse
from ipe_build.formats.android_sparse import ChunkType
from ipe_build.formats.bmap import BLOCK_BYTES, BlockMap, BlockRange
from ipe_build.formats.gpt import Partition
from ipe_build.formats.zstd_library import zstd_library
from ipe_build.image.disk import Disk
from ipe_build.image.templates import render_file
from ipe_build.image.used import Area, ReadAt, is_zero, used_areas, within

if TYPE_CHECKING:
    from ipe_build.host import Host

_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_BLOCKS = (1 << 30) // BLOCK_BYTES
"""A chunk of data stays below 1 GiB: its length with the header is a u32."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@dataclass(frozen=True, slots=True)
class FlashRequest:
    """Which files are wanted beside NAME: `NAME.bmap`, `NAME.zst`, `NAME.partitions/`; `sparse` makes the latter Android sparse files."""

    bmap: bool = True
    zstd: bool = True
    partitions: bool = False
    sparse: bool = False
    level: int = 3


def make_flash_files(disk: Disk, folder: Path, request: FlashRequest, host: Host, *, force: bool = False) -> tuple[Path, ...]:
    """Returns the files made in `folder` for a disk image, in the order of FlashRequest's fields.

    Raises: InputError, OutputError.
    """
    place = folder / f"{disk.path.name}.partitions"
    parts = request.partitions or request.sparse
    if parts and place.is_dir() and not force and any(place.iterdir()):
        raise OutputError("exists already and is left as it is", where=str(place), hint="remove it, or say --force")
    suffixes = [suffix for suffix, wanted in ((".bmap", request.bmap), (".zst", request.zstd)) if wanted]
    made = [folder / f"{disk.path.name}{suffix}" for suffix in suffixes]
    with open_image(disk.path) as read_at, host.outputs(*made, force=force) as temporaries:
        areas = used_areas(disk.table, read_at)
        for suffix, temporary in zip(suffixes, temporaries, strict=True):
            if suffix == ".bmap":
                temporary.write_bytes(block_map(areas, disk.table.size_bytes, read_at).build())
            else:
                _compress(disk, read_at, temporary, request.level, host)
        if parts:
            with host.output_directory(place, marker="flash.sh") as temporary:
                names = _write_partitions(disk, areas, read_at, temporary, sparse=request.sparse)
            made += [place / one for one in names]
    return tuple(made)


def block_map(areas: tuple[Area, ...], size_bytes: int, read_at: ReadAt) -> BlockMap:
    """Returns the block map of areas that begin at whole blocks, each range with SHA-256 of its bytes."""
    ranges = []
    for begin, end in areas:
        digest = hashlib.sha256()
        for piece in _pieces(read_at, begin, end):
            digest.update(piece)
        ranges.append(BlockRange(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES) - 1, digest.digest()))
    return BlockMap(size_bytes, tuple(ranges))


def partition_file_names(partitions: tuple[Partition, ...]) -> dict[int, str]:
    """Returns a file name (without suffix) for each partition, by its number: its name where that is plain and used once."""
    names: dict[int, str] = {}
    for one in partitions:
        plain = "".join(c if c in _PLAIN else "_" for c in one.name).lstrip(".-")
        names[one.number] = plain if plain and plain not in names.values() else f"{plain or 'partition'}-{one.number}"
    return names


def sha256_of(path: Path) -> str:
    """Returns a file's SHA-256 in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def open_image(path: Path) -> Iterator[ReadAt]:
    """Yields `read_at(offset, length)` of a file. Raises: InputError when it cannot be read."""
    try:
        with path.open("rb") as handle:
            descriptor = handle.fileno()
            yield lambda offset, length: os.pread(descriptor, length, offset)
    except FileNotFoundError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _pieces(read_at: ReadAt, begin: int, end: int) -> Iterator[bytes]:
    """Yields the bytes from `begin` to `end` in pieces of at most 1 MiB. Raises: InputError when the image is shorter."""
    while begin < end:
        piece = read_at(begin, min(_CHUNK_BYTES, end - begin))
        if not piece:
            raise InputError(f"wanted {end - begin} bytes more at offset {begin:#x}, the image ends", where="image")
        begin += len(piece)
        yield piece


def _compress(disk: Disk, read_at: ReadAt, out: Path, level: int, host: Host) -> None:
    """Writes one zstd frame with content size and checksum, made by one thread: the same bytes each time on one kind of machine.

    A Python that was built without zstd (Buildroot's for the host) has the program do it.
    """
    try:
        zstd = zstd_library()
    except ToolMissingError:
        host.run(["zstd", "-q", f"-{level}", "--single-thread", "-f", "-o", out, disk.path])
        return
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: level, zstd.CompressionParameter.checksum_flag: 1}
    packer = zstd.ZstdCompressor(options=options)
    packer.set_pledged_input_size(disk.table.size_bytes)
    with out.open("wb") as handle:
        for piece in _pieces(read_at, 0, disk.table.size_bytes):
            handle.write(packer.compress(piece))
        handle.write(packer.flush())


def _write_partitions(disk: Disk, areas: tuple[Area, ...], read_at: ReadAt, folder: Path, *, sparse: bool) -> tuple[str, ...]:
    """Writes `gpt.img` (the primary table), a file for each partition up to its last used byte, and `flash.sh`; returns their names."""
    suffix = "simg" if sparse else "img"
    names = partition_file_names(disk.table.partitions)
    head = areas[0].end if not disk.table.partitions else min(one.offset_bytes for one in disk.table.partitions)
    (folder / "gpt.img").write_bytes(read_at(0, min(head, 2 * disk.table.sector_bytes + 128 * 128)))
    rows = []
    for partition in disk.table.partitions:
        used = within(areas, partition)
        name = f"{names[partition.number]}.{suffix}"
        rows.append((partition.name, name))
        with (folder / name).open("wb") as handle:
            if sparse:
                _write_sparse(handle, partition, used, read_at)
            else:
                write_partition(handle, partition, used, read_at)
    script = render_file("flash.sh.j2", image=disk.path.name, partitions=rows)
    (folder / "flash.sh").write_text(script, encoding="utf-8")
    (folder / "flash.sh").chmod(0o755)
    return ("gpt.img", *(name for _, name in rows), "flash.sh")


def write_partition(out: BinaryIO, partition: Partition, used: tuple[Area, ...], read_at: ReadAt) -> None:
    """Writes a partition's bytes up to the last used one; zeros become holes."""
    end = used[-1].end if used else 0
    for piece in _pieces(read_at, partition.offset_bytes, partition.offset_bytes + end):
        if is_zero(piece):
            out.seek(len(piece), os.SEEK_CUR)
        else:
            out.write(piece)
    out.truncate(end)


def _write_sparse(out: BinaryIO, partition: Partition, used: tuple[Area, ...], read_at: ReadAt) -> None:
    """Writes a partition as an Android sparse file: used zeros are filled, what is not used is left alone."""
    out.write(android_sparse.header(0, 0))
    blocks = chunks = 0
    for kind, first, last in _runs(used, partition.offset_bytes, read_at):
        chunks, blocks = chunks + 1, last
        out.write(android_sparse.chunk_header(kind, last - first))
        if kind is ChunkType.FILL:
            out.write(bytes(4))
        elif kind is ChunkType.RAW:
            begin = partition.offset_bytes + first * BLOCK_BYTES
            end = min(partition.offset_bytes + last * BLOCK_BYTES, partition.end_bytes)
            for piece in _pieces(read_at, begin, end):
                out.write(piece)
            out.write(bytes((last - first) * BLOCK_BYTES - (end - begin)))
    out.seek(0)
    out.write(android_sparse.header(blocks, chunks))


def _runs(used: tuple[Area, ...], base: int, read_at: ReadAt) -> Iterator[tuple[ChunkType, int, int]]:
    """Yields runs of blocks (kind, first, last excluded) from a partition's first block to its last used one."""
    kind, first, position = ChunkType.DONT_CARE, 0, 0
    for block, block_kind in _kinds(used, base, read_at):
        if block > position and kind is not ChunkType.DONT_CARE:
            yield kind, first, position
            kind, first = ChunkType.DONT_CARE, position
        if block_kind is not kind or block - first >= _MAX_CHUNK_BLOCKS:
            if block > first:
                yield kind, first, block
            kind, first = block_kind, block
        position = block + 1
    if position > first:
        yield kind, first, position


def _kinds(used: tuple[Area, ...], base: int, read_at: ReadAt) -> Iterator[tuple[int, ChunkType]]:
    """Yields each used block's number with what it is, data or zeros."""
    for begin, end in used:
        offset = begin
        for piece in _pieces(read_at, base + begin, base + end):
            for at in range(0, len(piece), BLOCK_BYTES):
                yield (offset + at) // BLOCK_BYTES, ChunkType.FILL if is_zero(piece[at : at + BLOCK_BYTES]) else ChunkType.RAW
            offset += len(piece)
