"""Which bytes of a disk image have to reach the device, and which may stay what they were there.

A card that was written before is not zero. What dm-verity checks must be written even where it is zero, or the root fails to verify;
what nothing reads (free clusters of the EFI system partition, head-room of a slot, an empty slot) need not be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.fat import used_bytes
from ipe_build.formats.gpt import ENTRIES, ENTRY_BYTES, Partition, PartitionTable
from ipe_build.formats.partition_types import EFI_SYSTEM, PARTITION_TYPES
from ipe_build.formats.verity import MAGIC, SUPERBLOCK_SIZE, parse_superblock
from ipe_build.integrity.verity import VerityParameters, VerityTree

BLOCK_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_ZEROS, _ZERO_BLOCK = bytes(_CHUNK_BYTES), bytes(BLOCK_BYTES)

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)` returns that many bytes of the image, fewer only at its end."""


class Area(NamedTuple):
    """Bytes `begin` up to `end` (excluded)."""

    begin: int
    end: int


def used_areas(table: PartitionTable, read_at: ReadAt) -> tuple[Area, ...]:
    """Returns the areas that must be written, rising and apart, at multiples of 4096 bytes (the last may end with the image).

    The tables; of an EFI system partition what its FAT names; of a verity root the data and the tree that the superblock counts; of an
    empty slot its first block, so that nothing old is found there; other partitions whole; outside of partitions what is not zero.
    """
    areas = [*_tables(table), *_outside(table, read_at)]
    kinds = {EFI_SYSTEM: _fat_areas}
    roots = _verity_areas(table, read_at)
    for partition in table.partitions:
        if partition.number in roots:
            parts: Iterable[Area] = roots[partition.number]
        else:
            parts = kinds.get(partition.type_uuid, _whole)(partition, read_at)
        areas += (Area(partition.offset_bytes + part.begin, partition.offset_bytes + part.end) for part in parts)
    return _merged(areas, table.size_bytes)


def within(areas: Iterable[Area], partition: Partition) -> tuple[Area, ...]:
    """Returns the areas' parts inside a partition, counted from its start."""
    cut = (Area(max(one.begin, partition.offset_bytes), min(one.end, partition.end_bytes)) for one in areas)
    return tuple(Area(one.begin - partition.offset_bytes, one.end - partition.offset_bytes) for one in cut if one.begin < one.end)


def is_zero(data: bytes) -> bool:
    """Returns whether all bytes are zero."""
    known = {BLOCK_BYTES: _ZERO_BLOCK, _CHUNK_BYTES: _ZEROS}.get(len(data))
    return data == (known if known is not None else bytes(len(data)))


def _tables(table: PartitionTable) -> Iterator[Area]:
    """Yields both partition tables with the protective MBR: an unused entry must be zero on the device too."""
    entries = ENTRIES * ENTRY_BYTES
    yield Area(0, 2 * table.sector_bytes + entries)
    yield Area(table.size_bytes - table.sector_bytes - entries, table.size_bytes)


def _outside(table: PartitionTable, read_at: ReadAt) -> Iterator[Area]:
    """Yields the blocks between the partitions that are not zero: a boot loader may lie there."""
    position = 0
    for partition in (*sorted(table.partitions, key=lambda one: one.offset_bytes), None):
        end = partition.offset_bytes if partition else table.size_bytes
        for chunk in range(position, end, _CHUNK_BYTES):
            data = read_at(chunk, min(_CHUNK_BYTES, end - chunk))
            if is_zero(data):
                continue
            for at in range(0, len(data), BLOCK_BYTES):
                piece = data[at : at + BLOCK_BYTES]
                if not is_zero(piece):
                    yield Area(chunk + at, chunk + at + len(piece))
        position = max(position, partition.end_bytes) if partition else end


def _whole(partition: Partition, _read_at: ReadAt) -> tuple[Area, ...]:
    return (Area(0, partition.size_bytes),)


def _fat_areas(partition: Partition, read_at: ReadAt) -> tuple[Area, ...]:
    """Returns what the FAT filesystem in a partition uses; all of it when it is not understood."""
    found = used_bytes(lambda offset, length: read_at(partition.offset_bytes + offset, length), partition.size_bytes)
    if found is None:
        return _whole(partition, read_at)
    return tuple(Area(offset, offset + length) for offset, length in found)


def _verity_areas(table: PartitionTable, read_at: ReadAt) -> dict[int, tuple[Area, ...]]:
    """Returns what is used of root partitions and their hash partitions, by number; the n-th root belongs to the n-th hash partition."""
    found: dict[int, tuple[Area, ...]] = {}
    for row in PARTITION_TYPES.values():
        roots = [one for one in table.partitions if one.type_uuid == row.root]
        trees = [one for one in table.partitions if one.type_uuid == row.root_verity]
        for root, tree in zip(roots, trees, strict=False):
            sizes = _used_sizes(root, tree, read_at)
            if sizes is not None:
                found[root.number] = (Area(0, min(sizes[0], root.size_bytes)),)
                found[tree.number] = (Area(0, min(sizes[1], tree.size_bytes)),)
    return found


def _used_sizes(root: Partition, tree: Partition, read_at: ReadAt) -> tuple[int, int] | None:
    """Returns how many bytes of data and of tree are used: one block each for an empty slot, None when it cannot be told."""
    head = read_at(tree.offset_bytes, SUPERBLOCK_SIZE)
    if not head.startswith(MAGIC):
        is_empty = is_zero(read_at(tree.offset_bytes, BLOCK_BYTES)) and is_zero(read_at(root.offset_bytes, BLOCK_BYTES))
        return (BLOCK_BYTES, BLOCK_BYTES) if is_empty else None
    try:
        block = parse_superblock(head)
        parameters = VerityParameters(
            block.algorithm, block.salt, block.uuid, block.data_block_size, block.hash_block_size, block.hash_type, 0
        )
        found = VerityTree(parameters, block.data_blocks, b"", 0)
        return found.data_size, found.end_offset
    except (FormatError, InputError):
        return None


def _merged(areas: Iterable[Area], size_bytes: int) -> tuple[Area, ...]:
    """Returns the areas rounded outwards to blocks, in order, those that touch made one."""
    merged: list[Area] = []
    for begin, end in sorted(areas):
        begin = begin // BLOCK_BYTES * BLOCK_BYTES
        end = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, size_bytes)
        if merged and begin <= merged[-1].end:
            merged[-1] = Area(merged[-1].begin, max(merged[-1].end, end))
        else:
            merged.append(Area(begin, end))
    return tuple(merged)
