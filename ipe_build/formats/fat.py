"""FAT filesystems (12, 16, 32 bits), read only: names and contents of an EFI system partition, without mounting it or running a tool.

Nothing in it is trusted: chains that come back to themselves, folders in each other and sizes beyond the partition are errors, and the
number of names is bounded.
Source: Microsoft FAT specification (2005), sections 3 (boot sector), 4 (FAT), 6 and 7 (directories, long names).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from ipe_build.errors import FormatError, InputError

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)` returns that many bytes of the partition, fewer only at its end."""

MAX_NAMES = 65_536
MAX_DEPTH = 32
_ENTRY = struct.Struct("<11sBBBHHHHHHHI")
_VOLUME_ID, _DIRECTORY, _LONG_NAME = 0x08, 0x10, 0x0F
_PAGE_BYTES = 1 << 16
_LOWER_BASE, _LOWER_EXTENSION = 0x08, 0x10


class FatFile(NamedTuple):
    """A file: its path (`/EFI/BOOT/BOOTX64.EFI`, as written on the disk), its size in bytes, its first cluster (0: it is empty).

    `modified` is its date and time of writing as (year, month, day, hour, minute, second), in local time of whoever wrote it.
    """

    path: str
    size_bytes: int
    cluster: int
    modified: tuple[int, int, int, int, int, int] = (1980, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things lie, in bytes; `clusters` counts data clusters, which are numbered from 2."""

    cluster_bytes: int
    fat_offset: int
    root_offset: int
    root_bytes: int
    root_cluster: int
    data_offset: int
    clusters: int
    bits: int


def is_fat(head: bytes) -> bool:
    """Returns whether the first 512 bytes are a FAT boot sector."""
    try:
        _layout(head, None)
    except FormatError:
        return False
    return True


class Fat:
    """A FAT filesystem. Raises: FormatError from all of it, with the offset of what is wrong."""

    def __init__(self, read_at: ReadAt, size_bytes: int) -> None:
        self._read_at = read_at
        self._layout = _layout(read_at(0, 512), size_bytes)
        self._pages: dict[int, bytes] = {}

    def files(self) -> tuple[FatFile, ...]:
        """Returns all files, sorted by path."""
        layout = self._layout
        root = self._chain(layout.root_cluster) if layout.bits == 32 else self._read_at(layout.root_offset, layout.root_bytes)
        found: list[FatFile] = []
        seen = {layout.root_cluster}
        folders = [("", root, 0)]
        names = 0
        while folders:
            folder, raw, depth = folders.pop()
            for name, attributes, cluster, size, modified in _entries(raw):
                names += 1
                if names > MAX_NAMES:
                    raise FormatError(f"more than {MAX_NAMES} names", where="FAT")
                path = f"{folder}/{name}"
                if not attributes & _DIRECTORY:
                    found.append(FatFile(path, size, cluster, modified))
                    continue
                if cluster in seen or depth >= MAX_DEPTH:
                    raise FormatError(f"the folder {path} lies in itself, or deeper than {MAX_DEPTH}", where=f"FAT: cluster {cluster}")
                seen.add(cluster)
                folders.append((path, self._chain(cluster), depth + 1))
        return tuple(sorted(found))

    def read(self, file: FatFile, max_bytes: int) -> bytes:
        """Returns a file's content. Raises: InputError when it is larger than `max_bytes`."""
        if file.size_bytes > max_bytes:
            raise InputError(f"has {file.size_bytes} bytes, at most {max_bytes} are read", where=f"FAT: {file.path}")
        if file.size_bytes == 0:
            return b""
        content = self._chain(file.cluster, file.size_bytes)
        if len(content) < file.size_bytes:
            raise FormatError(f"says {file.size_bytes} bytes, its clusters hold {len(content)}", where=f"FAT: {file.path}")
        return content

    def head(self, file: FatFile, length: int) -> bytes:
        """Returns the first bytes of a file's content, at most `length`."""
        length = min(length, file.size_bytes)
        return self._chain(file.cluster, length) if length > 0 else b""

    def _chain(self, first: int, wanted: int | None = None) -> bytes:
        """Returns the bytes of a chain of clusters: all of them, or the `wanted` first."""
        layout, pieces, seen, cluster, left = self._layout, [], set[int](), first, wanted
        while 2 <= cluster < layout.clusters + 2 and (left is None or left > 0):
            if cluster in seen:
                raise FormatError("a chain of clusters comes back to itself", where=f"FAT: cluster {cluster}")
            seen.add(cluster)
            if left is None and len(seen) * layout.cluster_bytes > MAX_NAMES * 32 * 21:
                raise FormatError("a folder is larger than it can be", where=f"FAT: cluster {first}")
            run, after = self._run(cluster, seen, left)
            length = run * layout.cluster_bytes if left is None else min(run * layout.cluster_bytes, left)
            pieces.append(self._read_at(layout.data_offset + (cluster - 2) * layout.cluster_bytes, length))
            left = None if left is None else left - length
            cluster = after
        return b"".join(pieces)

    def _run(self, cluster: int, seen: set[int], left: int | None) -> tuple[int, int]:
        """Returns how many clusters lie one behind the other from this one on, and the one that comes after them."""
        run, after = 1, self._next(cluster)
        while after == cluster + run and after < self._layout.clusters + 2 and after not in seen:
            if left is not None and run * self._layout.cluster_bytes >= left:
                break
            seen.add(after)
            run += 1
            after = self._next(after)
        return run, after

    def _next(self, cluster: int) -> int:
        """Returns the FAT's entry of a cluster: the next one, or a number that is no cluster."""
        bits = self._layout.bits
        at = cluster * bits // 8
        page, start = divmod(at, _PAGE_BYTES)
        raw = (self._page(page) + (self._page(page + 1)[:4] if start > _PAGE_BYTES - 4 else b""))[start : start + 4]
        number = int.from_bytes(raw, "little")
        if bits == 12:
            return (number >> 4 if cluster & 1 else number) & 0xFFF
        return number & (0xFFFF if bits == 16 else 0x0FFFFFFF)

    def _page(self, number: int) -> bytes:
        if number not in self._pages:
            self._pages[number] = self._read_at(self._layout.fat_offset + number * _PAGE_BYTES, _PAGE_BYTES).ljust(_PAGE_BYTES, b"\xff")
        return self._pages[number]


def used_bytes(read_at: ReadAt, size_bytes: int) -> tuple[tuple[int, int], ...] | None:
    """Returns (offset, length) of what a reader of the filesystem may look at: boot sectors, tables, root folder, allocated clusters.

    Rising and apart from each other. None for a FAT12 or a damaged one: then all of it counts.
    """
    try:
        layout = _layout(read_at(0, 512), size_bytes)
    except FormatError:
        return None
    width = layout.bits // 8
    raw = read_at(layout.fat_offset, (layout.clusters + 2) * width)
    if layout.bits == 12 or len(raw) != (layout.clusters + 2) * width:
        return None
    free = bytes(width)
    taken = (raw[at : at + width] != free for at in range(2 * width, len(raw), width))
    areas = [(0, layout.data_offset)]
    cluster = 0
    for is_taken, run in groupby(taken):
        count = sum(1 for _ in run)
        if is_taken:
            offset, length = layout.data_offset + cluster * layout.cluster_bytes, count * layout.cluster_bytes
            if offset == sum(areas[-1]):
                areas[-1] = (areas[-1][0], areas[-1][1] + length)
            else:
                areas.append((offset, length))
        cluster += count
    return tuple(areas)


def _layout(head: bytes, size_bytes: int | None) -> _Layout:
    """Returns the layout that a boot sector says, checked against the partition's size where that is known."""

    def number(at: int, length: int) -> int:
        return int.from_bytes(head[at : at + length], "little")

    if len(head) < 512 or head[0] not in (0xEB, 0xE9) or head[510:512] != b"\x55\xaa":
        raise FormatError(f"wanted a FAT boot sector, got bytes {head[:4].hex(' ')}", where="FAT: offset 0x0")
    sector, per_cluster, reserved, fats = number(11, 2), head[13], number(14, 2), head[16]
    root_entries, sectors, fat_sectors = number(17, 2), number(19, 2) or number(32, 4), number(22, 2) or number(36, 4)
    if sector not in (512, 1024, 2048, 4096) or per_cluster not in (1, 2, 4, 8, 16, 32, 64, 128) or not reserved or fats not in (1, 2):
        raise FormatError("sector, cluster or FAT counts that cannot be", where="FAT: offset 0xb")
    root_offset = (reserved + fats * fat_sectors) * sector
    root_bytes = -(-root_entries * 32 // sector) * sector
    clusters = (sectors * sector - root_offset - root_bytes) // (per_cluster * sector)
    if not fat_sectors or clusters < 1 or (size_bytes is not None and sectors * sector > size_bytes):
        raise FormatError(f"its {sectors} sectors of {sector} bytes do not fit", where="FAT: offset 0x13")
    bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
    if (bits == 32) != (root_entries == 0) or fat_sectors * sector * 8 < (clusters + 2) * bits:
        raise FormatError(f"wanted a FAT of {bits} bits for {clusters} clusters", where="FAT: offset 0x16")
    root_cluster = number(44, 4) if bits == 32 else 0
    return _Layout(per_cluster * sector, reserved * sector, root_offset, root_bytes, root_cluster, root_offset + root_bytes, clusters, bits)


def _entries(raw: bytes) -> Iterator[tuple[str, int, int, int, tuple[int, int, int, int, int, int]]]:
    """Yields name, attributes, first cluster, size and time of writing of each entry of a folder, but for `.`, `..` and the label."""
    long: dict[int, str] = {}
    for at in range(0, len(raw) - 31, 32):
        name, attributes, case, _, _, _, _, high, time, date, low, size = _ENTRY.unpack_from(raw, at)
        if name[0] == 0:
            return
        if name[0] == 0xE5:
            long = {}
        elif attributes & _LONG_NAME == _LONG_NAME:
            units = raw[at + 1 : at + 11] + raw[at + 14 : at + 26] + raw[at + 28 : at + 32]
            if name[0] & 0x40:
                long = {}
            long[name[0] & 0x1F] = units.decode("utf-16-le", "replace").split("\0", 1)[0].rstrip("\uffff")
        else:
            shown = "".join(long[number] for number in sorted(long)) or _short(name, case)
            long = {}
            if not attributes & _VOLUME_ID and shown not in (".", "..") and "/" not in shown:
                yield shown, attributes, high << 16 | low, size, _time(date, time)


def _time(date: int, time: int) -> tuple[int, int, int, int, int, int]:
    """Returns year, month, day, hour, minute and second of a FAT date and time."""
    return 1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, 2 * (time & 31)


def _short(name: bytes, case: int) -> str:
    """Returns an 8.3 name; Linux and Windows keep in `case` which of its halves is in lower case."""
    base = (b"\xe5" + name[1:8] if name[0] == 0x05 else name[:8]).decode("cp437").rstrip()
    extension = name[8:11].decode("cp437").rstrip()
    base = base.lower() if case & _LOWER_BASE else base
    extension = extension.lower() if case & _LOWER_EXTENSION else extension
    return f"{base}.{extension}" if extension else base
