"""GPT: every table reads back; no bytes make the reader do anything but answer or raise FormatError."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.errors import FormatError
from ipe_build.formats.gpt import Partition, lay_out, read_gpt, write_gpt

TYPE = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")
names = st.text(st.characters(min_codepoint=32, max_codepoint=0xD7FF), max_size=36)
wanted = st.lists(
    st.builds(Partition, st.just(0), st.uuids(), st.uuids(), names, st.just(0), st.integers(1, 3 << 20), st.integers(0, 2**64 - 1)),
    max_size=20,
    unique_by=lambda partition: partition.uuid,
).filter(lambda rows: all(row.uuid.int and row.type_uuid.int for row in rows))


@settings(deadline=None, max_examples=60)
@given(wanted, st.uuids(), st.sampled_from([512, 4096]))
def test_every_table_reads_back(rows: list[Partition], disk_uuid: UUID, sector_bytes: int) -> None:
    table = lay_out(disk_uuid, rows, sector_bytes=sector_bytes)
    head, tail = write_gpt(table)

    def read_at(offset: int, length: int) -> bytes:
        if offset < len(head.data):
            return head.data[offset : offset + length]
        return tail.data[offset - tail.offset : offset - tail.offset + length] if offset >= tail.offset else bytes(length)

    assert read_gpt(read_at, table.size_bytes, sector_bytes=sector_bytes) == table


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 34 * 512 - 1), st.binary(min_size=1, max_size=16)), max_size=6), st.integers(0, 1 << 21))
def test_damaged_bytes_never_raise_anything_else(changes: list[tuple[int, bytes]], size: int) -> None:
    head, _ = write_gpt(lay_out(UUID(int=3), [Partition(0, TYPE, UUID(int=1), "x", 0, 4096)]))
    disk = bytearray(head.data)
    for offset, data in changes:
        disk[offset : offset + len(data)] = data
    del disk[size:]
    try:
        table = read_gpt(lambda offset, length: bytes(disk[offset : offset + length]), size)
    except FormatError as error:
        assert "GPT: offset" in error.where
    else:
        assert all(0 <= row.offset_bytes < row.end_bytes <= size for row in table.partitions)
