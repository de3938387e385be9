"""GUID partition tables: bytes <-> values. Primary and backup tables, CRCs, protective MBR; counts in a table are never trusted.

Source: UEFI 2.10, chapter 5; Linux block/partitions/efi.c (what the kernel accepts).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from dissect.cstruct import cstruct

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.c_gpt import C_GPT

ALIGNMENT_BYTES = 1 << 20
"""Where partitions of ours begin: multiples of 1 MiB."""
ENTRIES = 128
ENTRY_BYTES = 128
NAME_UNITS = 36
"""A name has at most 36 UTF-16 code units."""
ATTRIBUTE_READ_ONLY = 1 << 60
ATTRIBUTE_NO_AUTO = 1 << 63
ATTRIBUTE_GROW_FILESYSTEM = 1 << 59
_SIGNATURE = b"EFI PART"
_REVISION = 0x00010000
_HEADER_BYTES = 92
_MAX_ENTRIES_BYTES = 4 << 20
_PROTECTIVE_TYPE = 0xEE
_UNUSED = UUID(int=0)

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)` returns that many bytes of a disk, fewer only at its end."""

_C = cstruct(endian="<")
_C.load(C_GPT)


@dataclass(frozen=True, slots=True)
class Partition:
    """One used entry. `number` counts from 1 like /dev/sda1; the place is in bytes."""

    number: int
    type_uuid: UUID
    uuid: UUID
    name: str
    offset_bytes: int
    size_bytes: int
    attributes: int = 0

    @property
    def end_bytes(self) -> int:
        """Returns the offset of the first byte after the partition."""
        return self.offset_bytes + self.size_bytes


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A whole table. `problems` (reading only) says in words what is wrong in a table that can still be used.

    `from_backup` says that it is the second one of the disk: the first cannot be used.
    """

    disk_uuid: UUID
    size_bytes: int
    partitions: tuple[Partition, ...]
    sector_bytes: int = 512
    problems: tuple[str, ...] = ()
    from_backup: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that belong at `offset` of a disk."""

    offset: int
    data: bytes


def lay_out(disk_uuid: UUID, wanted: Sequence[Partition], *, sector_bytes: int = 512) -> PartitionTable:
    """Returns a table with the wanted partitions placed one after the other, each at a multiple of 1 MiB.

    Offsets and numbers of `wanted` are ignored; sizes are rounded up to whole sectors. The disk ends at a multiple of 1 MiB.
    Raises: InputError for an empty or unnamed-able partition, a UUID used twice, too many partitions.
    """
    placed: list[Partition] = []
    offset = ALIGNMENT_BYTES
    for number, partition in enumerate(wanted, 1):
        size = _round_up(partition.size_bytes, sector_bytes)
        placed.append(replace(partition, number=number, offset_bytes=offset, size_bytes=size))
        offset = _round_up(offset + size, ALIGNMENT_BYTES)
    table = PartitionTable(disk_uuid, offset + ALIGNMENT_BYTES, tuple(placed), sector_bytes)
    _check_writable(table)
    return table


def write_gpt(table: PartitionTable) -> tuple[Piece, Piece]:
    """Returns the two pieces of a disk that hold its table: from byte 0 (protective MBR, header, entries), and up to its end.

    Raises: InputError when the partitions overlap, leave the usable area or repeat a UUID.
    """
    _check_writable(table)
    sector = table.sector_bytes
    entries = _entries(table)
    last_lba = table.size_bytes // sector - 1
    entry_sectors = len(entries) // sector
    primary = _header(table, entries, my_lba=1, other_lba=last_lba, entry_lba=2)
    backup = _header(table, entries, my_lba=last_lba, other_lba=1, entry_lba=last_lba - entry_sectors)
    head = _protective_mbr(table).ljust(sector, b"\0") + primary.ljust(sector, b"\0") + entries
    tail = entries + backup.ljust(sector, b"\0")
    return Piece(0, head), Piece(table.size_bytes - len(tail), tail)


def read_gpt(read_at: ReadAt, size_bytes: int, *, sector_bytes: int | None = None) -> PartitionTable:
    """Returns the table of a disk of `size_bytes`; `sector_bytes` is tried as 512, then 4096 unless given.

    The primary table is used where it is whole, else the backup; `problems` then says so. Partitions that overlap, are outside the
    usable area, or share a UUID are listed in `problems`, and are still returned where they lie inside the disk.
    Raises: FormatError when neither table can be used: it says the offset, what was wanted and what was found.
    """
    first: FormatError | None = None
    for sector in (sector_bytes,) if sector_bytes else (512, 4096):
        try:
            return _read_with_sector(read_at, size_bytes, sector)
        except FormatError as error:
            first = first or error
    assert first is not None
    raise first


def _read_with_sector(read_at: ReadAt, size_bytes: int, sector: int) -> PartitionTable:
    """Returns the table, for one sector size."""
    last_lba = size_bytes // sector - 1
    if last_lba < 2:
        raise FormatError(f"wanted a disk of at least three sectors, got {size_bytes} bytes", where="GPT: offset 0x0")
    problems: list[str] = []
    primary = _try_header(read_at, size_bytes, sector, 1)
    if isinstance(primary, _Table):
        backup_lba = primary.alternate_lba
        if backup_lba != last_lba:
            problems.append(f"the backup table is said to be at sector {backup_lba}, the disk's last sector is {last_lba}")
        backup = _try_header(read_at, size_bytes, sector, backup_lba)
        if isinstance(backup, FormatError):
            problems.append(f"the backup table cannot be used: {backup}")
        elif (backup.disk_uuid, backup.entries) != (primary.disk_uuid, primary.entries):
            problems.append("the backup table differs from the primary one")
        chosen = primary
    else:
        spare = _try_header(read_at, size_bytes, sector, last_lba)
        if isinstance(spare, FormatError):
            raise primary
        problems.append(f"the primary table cannot be used, the backup is: {primary}")
        chosen = spare
    problems += _mbr_problems(read_at(0, 512), size_bytes // sector)
    partitions = _partitions(chosen, sector, size_bytes, problems)
    return PartitionTable(chosen.disk_uuid, size_bytes, partitions, sector, tuple(problems), not isinstance(primary, _Table))


@dataclass(frozen=True, slots=True)
class _Table:
    """One checked header with its array of entries."""

    disk_uuid: UUID
    first_usable_lba: int
    last_usable_lba: int
    alternate_lba: int
    entries: bytes


def _try_header(read_at: ReadAt, size_bytes: int, sector: int, lba: int) -> _Table | FormatError:
    """Returns the table whose header is in sector `lba`, or the error that says why it cannot be used."""
    try:
        return _read_header(read_at, size_bytes, sector, lba)
    except FormatError as error:
        return error


def _read_header(read_at: ReadAt, size_bytes: int, sector: int, lba: int) -> _Table:
    """Returns the table whose header is in sector `lba`, every field checked before it is used."""
    offset = lba * sector
    if not 0 < offset <= size_bytes - sector:
        raise FormatError(f"sector {lba} lies outside the disk", where=f"GPT: offset {offset:#x}")
    raw = read_at(offset, sector)
    if len(raw) < sector:
        raise FormatError(f"wanted {sector} bytes, got {len(raw)}", where=f"GPT: offset {offset:#x}")
    if raw[:8] != _SIGNATURE:
        raise FormatError(f"wanted the signature 'EFI PART', got {raw[:8]!r}", where=f"GPT: offset {offset:#x}")
    header: Any = _C.gpt_header(raw)
    if not _HEADER_BYTES <= header.header_size <= sector:
        raise FormatError(f"wanted a header of 92 to {sector} bytes, got {header.header_size}", where=f"GPT: offset {offset + 12:#x}")
    found = zlib.crc32(raw[:16] + bytes(4) + raw[20 : header.header_size])
    if found != header.header_crc32:
        raise FormatError(f"header CRC: wanted {header.header_crc32:#010x}, got {found:#010x}", where=f"GPT: offset {offset + 16:#x}")
    wanted: tuple[tuple[str, int, int, bool], ...] = (
        ("revision 1.0", 8, header.revision, header.revision == _REVISION),
        (f"its own sector {lba}", 24, header.my_lba, header.my_lba == lba),
        ("entries of 128 bytes", 84, header.size_of_entry, header.size_of_entry == ENTRY_BYTES),
        ("at most 32768 entries", 80, header.number_of_entries, 0 < header.number_of_entries * ENTRY_BYTES <= _MAX_ENTRIES_BYTES),
        ("a last usable sector inside the disk", 48, header.last_usable_lba, header.last_usable_lba < size_bytes // sector),
        ("a first usable sector before the last", 40, header.first_usable_lba, header.first_usable_lba <= header.last_usable_lba),
    )
    for what, field, got, fine in wanted:
        if not fine:
            raise FormatError(f"wanted {what}, got {got}", where=f"GPT: offset {offset + field:#x}")
    place, length = header.partition_entry_lba * sector, header.number_of_entries * ENTRY_BYTES
    if not 0 < place <= size_bytes - length:
        raise FormatError("the entries lie outside the disk", where=f"GPT: offset {offset + 72:#x}")
    entries = read_at(place, length)
    found = zlib.crc32(entries)
    if len(entries) != length or found != header.entries_crc32:
        raise FormatError(f"entries CRC: wanted {header.entries_crc32:#010x}, got {found:#010x}", where=f"GPT: offset {place:#x}")
    uuid = UUID(bytes_le=bytes(header.disk_guid))
    return _Table(uuid, int(header.first_usable_lba), int(header.last_usable_lba), int(header.alternate_lba), entries)


def _partitions(table: _Table, sector: int, size_bytes: int, problems: list[str]) -> tuple[Partition, ...]:
    """Returns the used entries that lie inside the disk, and adds to `problems` what is wrong with them."""
    found: list[Partition] = []
    for index in range(len(table.entries) // ENTRY_BYTES):
        raw = table.entries[index * ENTRY_BYTES : (index + 1) * ENTRY_BYTES]
        if raw[:16] == bytes(16):
            continue
        entry: Any = _C.gpt_entry(raw)
        if entry.last_lba < entry.first_lba or (entry.last_lba + 1) * sector > size_bytes:
            problems.append(f"partition {index + 1} (sectors {entry.first_lba} to {entry.last_lba}) does not lie inside the disk")
            continue
        if entry.first_lba < table.first_usable_lba or entry.last_lba > table.last_usable_lba:
            problems.append(f"partition {index + 1} leaves the usable area")
        name = bytes(entry.name).decode("utf-16-le", "replace").split("\0", 1)[0]
        place, size = int(entry.first_lba) * sector, (int(entry.last_lba) - int(entry.first_lba) + 1) * sector
        type_uuid, uuid = UUID(bytes_le=bytes(entry.type_guid)), UUID(bytes_le=bytes(entry.unique_guid))
        found.append(Partition(index + 1, type_uuid, uuid, name, place, size, int(entry.attributes)))
    problems += _conflicts(found)
    return tuple(found)


def _conflicts(partitions: Sequence[Partition]) -> list[str]:
    """Returns what is wrong between partitions: overlaps, UUIDs used twice."""
    problems: list[str] = []
    ordered = sorted(partitions, key=lambda partition: (partition.offset_bytes, partition.number))
    reach: Partition | None = None
    for partition in ordered:
        if reach is not None and partition.offset_bytes < reach.end_bytes:
            problems.append(f"partitions {reach.number} and {partition.number} overlap")
        if reach is None or partition.end_bytes > reach.end_bytes:
            reach = partition
    owners: dict[UUID, int] = {}
    for partition in partitions:
        if partition.uuid in owners:
            problems.append(f"partitions {owners[partition.uuid]} and {partition.number} have the same UUID {partition.uuid}")
        owners.setdefault(partition.uuid, partition.number)
    return problems


def _mbr_problems(raw: bytes, sectors: int) -> list[str]:
    """Returns what is wrong with the protective MBR (the kernel ignores a GPT without one)."""
    if len(raw) < 512:
        return ["the first sector is not whole"]
    mbr: Any = _C.mbr(raw)
    if mbr.signature != 0xAA55:
        return [f"protective MBR: wanted the signature 0xaa55, got {mbr.signature:#06x}"]
    protective = [record for record in mbr.records if record.os_type == _PROTECTIVE_TYPE]
    if not protective:
        return ["protective MBR: no record has the type 0xee, so the kernel does not look for a GPT"]
    problems = [] if protective[0].start_lba == 1 else [f"protective MBR: wanted start sector 1, got {protective[0].start_lba}"]
    if protective[0].size_lba not in (min(sectors - 1, 0xFFFFFFFF), 0xFFFFFFFF):
        problems.append(f"protective MBR: wanted {min(sectors - 1, 0xFFFFFFFF)} sectors, got {protective[0].size_lba}")
    return problems


def _check_writable(table: PartitionTable) -> None:
    """Raises InputError for a table that we would not write."""
    sector = table.sector_bytes
    if sector not in (512, 4096):
        raise InputError(f"wanted a sector size of 512 or 4096 bytes, got {sector}", where="partition table")
    first, last = _usable(table)
    if len(table.partitions) > ENTRIES:
        raise InputError(f"wanted at most {ENTRIES} partitions, got {len(table.partitions)}", where="partition table")
    for partition in table.partitions:
        where = f"partition {partition.number} ({partition.name})"
        if partition.type_uuid == _UNUSED or partition.uuid == _UNUSED:
            raise InputError("wanted a type and a UUID, got zero", where=where)
        if partition.size_bytes <= 0 or partition.size_bytes % sector or partition.offset_bytes % sector:
            raise InputError(f"wanted whole sectors of {sector} bytes, got {partition.size_bytes} bytes", where=where)
        if partition.offset_bytes < first * sector or partition.end_bytes > (last + 1) * sector:
            raise InputError("lies outside the usable area of the disk", where=where)
        if len(partition.name.encode("utf-16-le")) > 2 * NAME_UNITS or "\0" in partition.name:
            raise InputError(f"wanted a name of at most {NAME_UNITS} characters, got {partition.name!r}", where=where)
    numbers = [partition.number for partition in table.partitions]
    if len(set(numbers)) != len(numbers) or not all(1 <= number <= ENTRIES for number in numbers):
        raise InputError(f"wanted different partition numbers from 1 to {ENTRIES}, got {numbers}", where="partition table")
    for problem in _conflicts(table.partitions):
        raise InputError(problem, where="partition table", hint="a root hash given twice makes the same UUIDs twice")


def _usable(table: PartitionTable) -> tuple[int, int]:
    """Returns the first and the last usable sector."""
    entry_sectors = ENTRIES * ENTRY_BYTES // table.sector_bytes
    return 2 + entry_sectors, table.size_bytes // table.sector_bytes - 2 - entry_sectors


def _entries(table: PartitionTable) -> bytes:
    """Returns the array of 128 entries, 16384 bytes."""
    array = bytearray(ENTRIES * ENTRY_BYTES)
    for partition in table.partitions:
        entry: Any = _C.gpt_entry(
            type_guid=partition.type_uuid.bytes_le,
            unique_guid=partition.uuid.bytes_le,
            first_lba=partition.offset_bytes // table.sector_bytes,
            last_lba=partition.end_bytes // table.sector_bytes - 1,
            attributes=partition.attributes,
            name=partition.name.encode("utf-16-le").ljust(2 * NAME_UNITS, b"\0"),
        )
        place = (partition.number - 1) * ENTRY_BYTES
        array[place : place + ENTRY_BYTES] = entry.dumps()
    return bytes(array)


def _header(table: PartitionTable, entries: bytes, *, my_lba: int, other_lba: int, entry_lba: int) -> bytes:
    """Returns a header of 92 bytes with both CRCs."""
    first, last = _usable(table)
    header: Any = _C.gpt_header(
        signature=_SIGNATURE,
        revision=_REVISION,
        header_size=_HEADER_BYTES,
        my_lba=my_lba,
        alternate_lba=other_lba,
        first_usable_lba=first,
        last_usable_lba=last,
        disk_guid=table.disk_uuid.bytes_le,
        partition_entry_lba=entry_lba,
        number_of_entries=ENTRIES,
        size_of_entry=ENTRY_BYTES,
        entries_crc32=zlib.crc32(entries),
    )
    header.header_crc32 = zlib.crc32(header.dumps())
    raw: bytes = header.dumps()
    return raw


def _protective_mbr(table: PartitionTable) -> bytes:
    """Returns 512 bytes: one record of type 0xee over the whole disk, so that old tools see it as used."""
    sectors = min(table.size_bytes // table.sector_bytes - 1, 0xFFFFFFFF)
    record: Any = _C.mbr_record(start_chs=[0, 2, 0], os_type=_PROTECTIVE_TYPE, end_chs=[255, 255, 255], start_lba=1, size_lba=sectors)
    empty: Any = _C.mbr_record()
    mbr: Any = _C.mbr(records=[record, empty, empty, empty], signature=0xAA55)
    raw: bytes = mbr.dumps()
    return raw


def _round_up(value: int, multiple: int) -> int:
    """Returns the next multiple."""
    return -(-value // multiple) * multiple
