"""PE images: what is read of them, which bytes the Authenticode digest covers, and that damaged files give one clear error."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.errors import FormatError
from ipe_build.formats.pe import authenticode_digest, hashed_ranges, is_pe, parse_pe, uncovered_ranges
from tests.fixtures.efi import make_pe

SECTIONS = ((b".text", b"code" * 200), (b".linux", b"kernel" * 300), (b".cmdline", b"console=ttyS0"))
CHECKSUM = 64 + 24 + 64
CERTIFICATE_ENTRY = 64 + 24 + 112 + 8 * 4


def signed_like(data: bytes, *entries: bytes) -> bytes:
    """The image with a certificate table of these contents (nobody checks them here)."""
    data = data.ljust(-(-len(data) // 8) * 8, b"\0")
    table = b"".join(struct.pack("<IHH", 8 + len(one), 0x0200, 2) + one.ljust(-(-len(one) // 8) * 8, b"\0") for one in entries)
    entry = struct.pack("<II", len(data), len(table))
    return data[:CERTIFICATE_ENTRY] + entry + data[CERTIFICATE_ENTRY + 8 :] + table


def test_sections_and_headers_are_read() -> None:
    image = parse_pe(make_pe(SECTIONS))
    assert (image.architecture, image.is_64, image.file_alignment, image.section_alignment) == ("x86-64", True, 512, 0x1000)
    assert [section.name for section in image.sections] == [".text", ".linux", ".cmdline"]
    assert [section.name for section in image.uki_sections] == [".linux", ".cmdline"]
    assert image.is_uki
    assert image.content(image.sections[2]) == b"console=ttyS0"
    assert not image.is_signed


def test_section_that_is_larger_in_memory_ends_with_zeros() -> None:
    data = bytearray(make_pe(((b".data", b"abc"),)))
    at = parse_pe(bytes(data)).section_table_offset
    data[at + 8 : at + 12] = struct.pack("<I", 600)
    image = parse_pe(bytes(data))
    assert image.content(image.sections[0]) == b"abc".ljust(600, b"\0")


def test_section_of_4_gib_in_memory_is_not_made() -> None:
    data = bytearray(make_pe(((b".data", b"abc"),)))
    at = parse_pe(bytes(data)).section_table_offset
    data[at + 8 : at + 12] = b"\xff" * 4
    image = parse_pe(bytes(data))
    with pytest.raises(FormatError, match="4294967295 in memory"):
        image.content(image.sections[0])


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_digest_leaves_out_checksum_directory_entry_and_table_and_nothing_else(algorithm: str) -> None:
    data = make_pe(SECTIONS, tail=b"symbols!")
    by_hand = data[:CHECKSUM] + data[CHECKSUM + 4 : CERTIFICATE_ENTRY] + data[CERTIFICATE_ENTRY + 8 :]
    wanted = hashlib.new(algorithm, by_hand).digest()
    assert authenticode_digest(data, algorithm) == wanted
    assert authenticode_digest(signed_like(data, b"signature", b"another one"), algorithm) == wanted
    assert authenticode_digest(data[:CHECKSUM] + b"\1\2\3\4" + data[CHECKSUM + 4 :], algorithm) == wanted


def test_sections_are_hashed_in_the_order_of_the_file_not_of_the_table() -> None:
    data = make_pe(SECTIONS)
    at = parse_pe(data).section_table_offset
    swapped = data[:at] + data[at + 40 : at + 80] + data[at : at + 40] + data[at + 80 :]
    image = parse_pe(swapped)
    assert [section.name for section in image.sections] == [".linux", ".text", ".cmdline"]
    assert [start for start, _ in hashed_ranges(image)] == sorted(start for start, _ in hashed_ranges(image))
    assert uncovered_ranges(image) == ()


def test_gap_between_sections_is_found() -> None:
    data = bytearray(make_pe(((b".text", b"a" * 512), (b".gap", b"b" * 512), (b".data", b"c" * 512))))
    at = parse_pe(bytes(data)).section_table_offset
    data[at + 40 + 16 : at + 40 + 24] = bytes(8)
    # Firmware counts 512 bytes fewer, so it hashes the last section twice and the gap not at all.
    assert uncovered_ranges(parse_pe(bytes(data))) == ((1024, 1536),)


@settings(deadline=None, max_examples=150)
@given(position=st.integers(0, 3000), bit=st.integers(0, 7))
def test_every_other_flipped_bit_changes_the_digest_or_is_refused(position: int, bit: int) -> None:
    data = signed_like(make_pe(SECTIONS, tail=b"tail"), b"signature")
    image = parse_pe(data)
    position %= image.certificate_table_offset
    flipped = bytearray(data)
    flipped[position] ^= 1 << bit
    covered = any(start <= position < end for start, end in hashed_ranges(image))
    try:
        same = authenticode_digest(bytes(flipped)) == authenticode_digest(data)
    except FormatError:
        return
    assert same is not covered


def test_certificates_are_listed_with_type_and_content() -> None:
    image = parse_pe(signed_like(make_pe(SECTIONS), b"one", b"another"))
    assert [(entry.revision, entry.type, entry.content) for entry in image.certificates] == [(0x200, 2, b"one"), (0x200, 2, b"another")]


def test_pe32_has_its_checksum_and_directories_elsewhere() -> None:
    data = make_pe(SECTIONS, plus=False)
    image = parse_pe(data)
    entry = 64 + 24 + 96 + 8 * 4
    assert (image.is_64, image.checksum_offset, image.certificate_entry_offset) == (False, CHECKSUM, entry)
    assert authenticode_digest(data) == hashlib.sha256(data[:CHECKSUM] + data[CHECKSUM + 4 : entry] + data[entry + 8 :]).digest()


def broken(offset: int, value: bytes) -> bytes:
    data = signed_like(make_pe(SECTIONS), b"signature")
    return data[:offset] + value + data[offset + len(value) :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "wanted a PE image"),
        (b"MZ" + bytes(62), "wanted a PE image"),
        (b"\x7fELF" + bytes(100), "wanted a PE image"),
        (broken(60, b"\xff\xff\xff\x7f"), "wanted a PE image"),
        (broken(64 + 24, b"\0\0"), "magic 0x10b or 0x20b"),
        (broken(64 + 6, b"\xff\xff"), "at most 96 sections"),
        (broken(64 + 20, b"\x10\0"), "do not fit in an optional header"),
        (broken(64 + 24 + 108, b"\xff\xff\xff\xff"), "do not fit in an optional header"),
        (broken(64 + 24 + 60, b"\0\1\0\0"), "SizeOfHeaders is 256"),
        (broken(64 + 24 + 60, b"\xff\xff\xff\xff"), "SizeOfHeaders is"),
        (broken(64 + 24 + 240 + 16, b"\xff\xff\xff\xff"), r"section \.text has"),
        (broken(64 + 24 + 240 + 20, b"\xff\xff\xff\xff"), r"section \.text has"),
        (broken(CERTIFICATE_ENTRY, b"\x08"), "certificate table at the file's end"),
        (broken(CERTIFICATE_ENTRY + 4, b"\xff\xff\xff\xff"), "certificate table at the file's end"),
        (broken(len(make_pe(SECTIONS)), b"\xff\xff\xff\xff"), "WIN_CERTIFICATE says"),
        (broken(len(make_pe(SECTIONS)), b"\0\0\0\0"), "WIN_CERTIFICATE says"),
        (make_pe(SECTIONS)[:100], "wanted"),
    ],
)
def test_damage_gives_one_error_with_its_place(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parse_pe(data, "demo.efi")
    assert caught.value.where.startswith("demo.efi")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_hostile_bytes_never_give_another_error(data: st.DataObject) -> None:
    raw = bytearray(signed_like(make_pe(SECTIONS), b"signature"))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, 64 + 24 + 240 + 120))
        raw[position] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    is_pe(cut)
    try:
        image = parse_pe(cut)
        authenticode_digest(cut)
        uncovered_ranges(image)
        for section in image.sections:
            image.content(section)
    except FormatError:
        pass
