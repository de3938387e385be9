"""cpio archives as the kernel unpacks them."""

from __future__ import annotations

import gzip
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.cpio import (
    CpioEntry,
    character_device,
    compression_of,
    directory,
    read_archive,
    read_archives,
    regular_file,
    symbolic_link,
    write_cpio,
)

ENTRIES = (
    directory("dev"),
    character_device("dev/console", 5, 1),
    regular_file("init", b"hello", mode=0o755, mtime=7),
    symbolic_link("l", "x"),
)


def test_what_is_written_reads_back() -> None:
    raw = write_cpio(ENTRIES)
    archive = read_archive(raw)
    assert [(entry.path, entry.mode, entry.data, entry.rdev, entry.mtime) for entry in archive.entries] == [
        (entry.path, entry.mode, entry.data, entry.rdev, entry.mtime) for entry in ENTRIES
    ]
    assert [entry.ino for entry in archive.entries] == [1, 2, 3, 4]
    assert archive.trailer and archive.end == len(raw) and len(raw) % 512 == 0


def test_header_is_the_documented_one() -> None:
    raw = write_cpio([CpioEntry("a", stat.S_IFREG | 0o644, b"xyz", 1, 2, 3, 4, (5, 6), 7, (8, 9))], block_bytes=4)
    fields = (7, 0o100644, 1, 2, 4, 3, 3, 8, 9, 5, 6, 2, 0)
    assert raw[:116] == b"070701" + b"".join(b"%08x" % field for field in fields) + b"a\0" + b"xyz\0"


def test_concatenated_archives_and_a_compressed_one_are_found() -> None:
    raw = write_cpio(ENTRIES[:1]) + bytes(4) + write_cpio(ENTRIES[1:], block_bytes=4) + gzip.compress(b"x", mtime=0)
    archives = list(read_archives(raw))
    assert [[entry.path for entry in archive.entries] for archive in archives] == [["dev"], ["dev/console", "init", "l"]]
    assert compression_of(raw, archives[-1].end) == "gzip"


def test_archive_without_trailer_ends_where_no_member_begins() -> None:
    raw = write_cpio(ENTRIES, block_bytes=4)
    cut = raw[: raw.index(b"070701", raw.index(b"l\0"))]
    archive = read_archive(cut)
    assert len(archive.entries) == 4 and not archive.trailer


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, b"070707", "wanted the magic"),
        (14, b"zzzzzzzz", "mode: wanted eight hex digits"),
        (14, b"0x00ffff", "mode: wanted eight hex digits"),
        (94, b"00000000", "wanted a name of 1 to 4096"),
        (94, b"ffffffff", "wanted a name of 1 to 4096"),
        (54, b"ffffffff", "the member ends at"),
        (94, b"00000003", "the name does not end with NUL"),
    ],
)
def test_damaged_header_is_an_error(position: int, value: bytes, message: str) -> None:
    raw = bytearray(write_cpio([regular_file("a", b"x" * 300)]))
    raw[110:114] = b"a\0bc"
    raw[position : position + len(value)] = value
    with pytest.raises(FormatError, match=message):
        read_archive(bytes(raw))


def test_wrong_checksum_is_an_error() -> None:
    raw = bytearray(write_cpio([regular_file("a", b"xy")]))
    raw[0:6] = b"070702"
    raw[102:110] = b"%08x" % (ord("x") + ord("y"))
    assert read_archive(bytes(raw)).entries[0].data == b"xy"
    raw[112] ^= 1
    with pytest.raises(FormatError, match="content check"):
        read_archive(bytes(raw))


@pytest.mark.parametrize("path", ["/init", "a/../b", "", "a//b", "x\0y", "n" * 4096])
def test_path_that_the_kernel_would_misplace_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="wanted a relative path"):
        write_cpio([regular_file(path, b"")])


def test_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="mtime does not fit"):
        write_cpio([regular_file("a", b"", mtime=1 << 32)])


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda name: name not in ("..", "TRAILER!!!")
)
entries = st.lists(
    st.builds(regular_file, names, st.binary(max_size=600), mode=st.integers(0, 0o7777), mtime=st.integers(0, 2**32 - 1)), max_size=8
)


@settings(deadline=None, max_examples=100)
@given(entries)
def test_any_archive_reads_back(wanted: list[CpioEntry]) -> None:
    found = read_archive(write_cpio(wanted)).entries
    assert [(entry.path, entry.mode, entry.data, entry.mtime) for entry in found] == [
        (entry.path, entry.mode, entry.data, entry.mtime) for entry in wanted
    ]


@settings(deadline=None, max_examples=400)
@given(st.integers(0, 1023), st.binary(min_size=1, max_size=9), st.integers(0, 1100))
def test_damaged_archive_never_raises_anything_else(position: int, data: bytes, size: int) -> None:
    raw = bytearray(write_cpio(ENTRIES))
    raw[position : position + len(data)] = data
    try:
        list(read_archives(bytes(raw[:size])))
    except FormatError as error:
        assert "cpio: offset" in error.where
