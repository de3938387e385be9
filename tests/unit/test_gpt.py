"""GUID partition tables: what we write, and what a reader makes of damaged ones."""

from __future__ import annotations

import zlib
from uuid import UUID

import pytest

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.gpt import ALIGNMENT_BYTES, Partition, PartitionTable, lay_out, read_gpt, write_gpt

TYPE = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
WANTED = (
    Partition(0, TYPE, UUID(int=1), "root-x86-64", 0, 4096),
    Partition(0, TYPE, UUID(int=2), "größe", 0, 3 << 20, 1 << 60),
)


def disk_of(table: PartitionTable) -> bytearray:
    disk = bytearray(table.size_bytes)
    for piece in write_gpt(table):
        disk[piece.offset : piece.offset + len(piece.data)] = piece.data
    return disk


def read(disk: bytes | bytearray) -> PartitionTable:
    return read_gpt(lambda offset, length: bytes(disk[offset : offset + length]), len(disk))


def made(sector_bytes: int = 512) -> tuple[PartitionTable, bytearray]:
    table = lay_out(UUID(int=99), WANTED, sector_bytes=sector_bytes)
    return table, disk_of(table)


def sealed(disk: bytearray, header_at: int = 512, entries_at: int = 1024) -> None:
    """Puts both CRCs of a table right."""
    disk[header_at + 88 : header_at + 92] = zlib.crc32(disk[entries_at : entries_at + 16384]).to_bytes(4, "little")
    disk[header_at + 16 : header_at + 20] = bytes(4)
    disk[header_at + 16 : header_at + 20] = zlib.crc32(disk[header_at : header_at + 92]).to_bytes(4, "little")


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_what_is_written_reads_back(sector_bytes: int) -> None:
    table, disk = made(sector_bytes)
    assert read(disk) == table


def test_partitions_begin_at_multiples_of_one_mebibyte() -> None:
    table, _ = made()
    assert [partition.offset_bytes for partition in table.partitions] == [ALIGNMENT_BYTES, 2 * ALIGNMENT_BYTES]
    assert table.size_bytes % ALIGNMENT_BYTES == 0


def test_damaged_primary_table_is_read_from_the_backup() -> None:
    table, disk = made()
    disk[512] ^= 1
    found = read(disk)
    assert found.partitions == table.partitions
    assert "the primary table cannot be used, the backup is" in found.problems[0]


def test_damaged_backup_table_is_a_problem() -> None:
    table, disk = made()
    disk[-1] ^= 0
    disk[-512] ^= 1
    found = read(disk)
    assert found.partitions == table.partitions
    assert "the backup table cannot be used" in found.problems[0]


def test_differing_backup_table_is_a_problem() -> None:
    _, disk = made()
    disk[1024 + 56] ^= 1
    sealed(disk)
    assert "the backup table differs from the primary one" in read(disk).problems


def test_both_tables_damaged_is_an_error_that_says_where() -> None:
    _, disk = made()
    disk[512] ^= 1
    disk[-512] ^= 1
    with pytest.raises(FormatError, match="offset 0x200: wanted the signature 'EFI PART'"):
        read(disk)


@pytest.mark.parametrize("offset", [*range(512, 512 + 92, 3), 1024, 1024 + 127, 1024 + 16383])
def test_flipped_bit_of_the_primary_table_is_noticed(offset: int) -> None:
    table, disk = made()
    disk[offset] ^= 0x10
    found = read(disk)
    assert found.problems
    assert found.partitions == table.partitions


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (80, 0xFFFFFFFF, "at most 32768 entries"),
        (80, 0, "at most 32768 entries"),
        (84, 1 << 31, "entries of 128 bytes"),
        (72, 1 << 31, "the entries lie outside the disk"),
        (48, 1 << 31, "a last usable sector inside the disk"),
        (12, 1 << 20, "wanted a header of 92 to 512 bytes"),
        (8, 2, "revision 1.0"),
        (24, 7, "its own sector"),
    ],
)
def test_counts_of_a_sealed_table_are_not_trusted(field: int, value: int, message: str) -> None:
    _, disk = made()
    disk[512 + field : 512 + field + 4] = value.to_bytes(4, "little")
    disk[512 + 16 : 512 + 20] = bytes(4)
    disk[512 + 16 : 512 + 20] = zlib.crc32(disk[512 : 512 + 92]).to_bytes(4, "little")
    disk[-512] ^= 1
    with pytest.raises(FormatError, match=message):
        read(disk)


def test_overlap_and_repeated_uuid_are_problems() -> None:
    table, disk = made()
    disk[1024 + 128 : 1024 + 256] = disk[1024 : 1024 + 128]
    sealed(disk)
    problems = read(disk).problems
    assert "partitions 1 and 2 overlap" in problems
    assert f"partitions 1 and 2 have the same UUID {table.partitions[0].uuid}" in problems


def test_partition_beyond_the_disk_is_left_out() -> None:
    _, disk = made()
    disk[1024 + 40 : 1024 + 48] = (1 << 40).to_bytes(8, "little")
    sealed(disk)
    found = read(disk)
    assert [partition.number for partition in found.partitions] == [2]
    assert any("partition 1" in problem and "does not lie inside the disk" in problem for problem in found.problems)


def test_missing_protective_mbr_is_a_problem() -> None:
    _, disk = made()
    disk[446 + 4] = 0x83
    assert any("no record has the type 0xee" in problem for problem in read(disk).problems)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1024, 1536])
def test_no_disk_is_an_error(size: int) -> None:
    with pytest.raises(FormatError):
        read(bytes(size))


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (Partition(0, TYPE, UUID(int=0), "x", 0, 512), "wanted a type and a UUID"),
        (Partition(0, TYPE, UUID(int=1), "x" * 37, 0, 512), "at most 36 characters"),
        (Partition(0, TYPE, UUID(int=1), "x", 0, 0), "whole sectors"),
    ],
)
def test_partition_that_cannot_be_written_is_refused(partition: Partition, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lay_out(UUID(int=9), [partition])


def test_same_uuid_twice_is_not_written() -> None:
    with pytest.raises(InputError, match="have the same UUID"):
        lay_out(UUID(int=9), [WANTED[0], WANTED[0]])


def test_more_than_128_partitions_are_refused() -> None:
    with pytest.raises(InputError, match="at most 128 partitions"):
        lay_out(UUID(int=9), [Partition(0, TYPE, UUID(int=n), "", 0, 512) for n in range(1, 130)])
