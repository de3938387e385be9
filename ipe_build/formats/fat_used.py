"""FAT16 and FAT32: which bytes of such a filesystem matter, read off its allocation table. FAT12 and damaged ones are left alone.

Source: Microsoft, "FAT: General Overview of On-Disk Format" 1.03; UEFI 2.10, chapter 13.3.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

BOOT_SECTOR_BYTES = 512
_FAT12_CLUSTERS = 4085
_FAT16_CLUSTERS = 65525
_FIRST_CLUSTER = 2


class _Geometry(NamedTuple):
    """Where things lie, in bytes from the filesystem's start. `entry_bytes` is 2 (FAT16) or 4 (FAT32)."""

    table_at: int
    data_at: int
    cluster_bytes: int
    clusters: int
    entry_bytes: int
    size_bytes: int


def used_bytes(read_at: Callable[[int, int], bytes], size_bytes: int) -> tuple[tuple[int, int], ...] | None:
    """Returns (offset, length) of what a reader of the filesystem may look at: boot sectors, tables, root folder, allocated clusters.

    Rising and apart from each other. None for a filesystem that is not understood: then all of it counts.
    """
    geometry = _geometry(read_at(0, BOOT_SECTOR_BYTES), size_bytes)
    if geometry is None:
        return None
    width = geometry.entry_bytes
    raw = read_at(geometry.table_at, (geometry.clusters + _FIRST_CLUSTER) * width)
    if len(raw) != (geometry.clusters + _FIRST_CLUSTER) * width:
        return None
    free = bytes(width)
    taken = (raw[at : at + width] != free for at in range(_FIRST_CLUSTER * width, len(raw), width))
    areas = [(0, geometry.data_at)]
    cluster = 0
    for is_taken, run in groupby(taken):
        count = sum(1 for _ in run)
        if is_taken:
            offset, length = geometry.data_at + cluster * geometry.cluster_bytes, count * geometry.cluster_bytes
            if offset == sum(areas[-1]):
                areas[-1] = (areas[-1][0], areas[-1][1] + length)
            else:
                areas.append((offset, length))
        cluster += count
    return tuple(areas)


def _geometry(boot: bytes, size_bytes: int) -> _Geometry | None:
    """Returns where things lie, None when the boot sector does not describe a FAT16 or FAT32 that fits into `size_bytes`."""
    if len(boot) < BOOT_SECTOR_BYTES or boot[510:512] != b"\x55\xaa":
        return None

    def number(at: int, width: int) -> int:
        return int.from_bytes(boot[at : at + width], "little")

    sector, per_cluster, reserved, tables = number(11, 2), boot[13], number(14, 2), boot[16]
    root_entries, small_table = number(17, 2), number(22, 2)
    table_sectors = small_table or number(36, 4)
    sectors = number(19, 2) or number(32, 4)
    if sector not in (512, 1024, 2048, 4096) or per_cluster & (per_cluster - 1) or not (per_cluster and reserved and tables):
        return None
    data = reserved + tables * table_sectors + -(-root_entries * 32 // sector)
    clusters = (sectors - data) // per_cluster
    if clusters < 1 or sectors * sector > size_bytes or (small_table and not _FAT12_CLUSTERS <= clusters < _FAT16_CLUSTERS):
        return None
    width = 2 if small_table else 4
    if (clusters + _FIRST_CLUSTER) * width > table_sectors * sector:
        return None
    return _Geometry(reserved * sector, data * sector, per_cluster * sector, clusters, width, sectors * sector)
