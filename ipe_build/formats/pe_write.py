"""A PE image with sections added at its end: headers rewritten, addresses and file offsets assigned in order, nothing else changed.

Source: "PE Format" of Microsoft. Where firmware is laxer than the format, the format is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ipe_build.errors import InputError
from ipe_build.formats.pe import PeImage, Section

READ_ONLY_DATA = 0x4000_0040
"""Initialized data, readable."""
CODE = 0x6000_0020
"""Code, executable and readable."""
MAX_IMAGE_BYTES = 1 << 31
"""Half of what the format can say: firmware computes with signed 32-bit numbers here and there."""
_PAGE = 4096
_ROW = struct.Struct("<8sIIIIIIHHI")
_DEBUG_DIRECTORY = 6
_WHERE = "PE image"


@dataclass(frozen=True, slots=True)
class NewSection:
    """A section to add: its memory is as large as its content."""

    name: str
    content: bytes
    characteristics: int = READ_ONLY_DATA


class _Placed(NamedTuple):
    """A section with its final place in memory and in the file."""

    section: Section
    content: bytes


def with_sections(
    image: PeImage, added: Sequence[NewSection], *, without: Sequence[str] = (), replaced: Mapping[str, bytes] | None = None
) -> bytes:
    """Returns the image with sections added, in order, at page boundaries behind its last one; unsigned, its checksum 0.

    Sections named in `without` are left out, those named in `replaced` get that content at the address that they have. Symbols and
    whatever else lies behind the sections are left out too, since nothing in a header would cover them. The same inputs give the same
    bytes.
    Raises: InputError for a name that is too long or there already, an empty section, an overlap, or an image that would be too large.
    """
    changed = dict(replaced or {})
    kept = [_resized(section, changed.get(section.name)) for section in image.sections if section.name not in without]
    missing = sorted(changed.keys() - {section.name for section in kept})
    if missing:
        raise InputError(f"has no section {missing[0]}", where=_WHERE)
    _check_names(kept, added)
    _check_overlaps(kept)
    headers = _align(image.section_table_offset + _ROW.size * (len(kept) + len(added)), image.file_alignment)
    headers = max(headers, image.size_of_headers)
    if kept and headers > min(section.virtual_address for section in kept):
        raise InputError(f"{len(added)} more sections do not fit before its first one", where=_WHERE, hint="add fewer sections")
    placed = _place(image, kept, changed, added, headers)
    moved = any(one.section.raw_offset != old.raw_offset for one, old in zip(placed, kept, strict=False) if old.raw_size)
    if moved and _has_debug_directory(image):
        raise InputError("its debug directory holds file offsets that would be wrong", where=_WHERE, hint="strip the stub first")
    body = b"".join(one.content for one in placed)
    return _headers(image, [one.section for one in placed], headers, added) + body


def _resized(section: Section, content: bytes | None) -> Section:
    """Returns the section with the size of its new content, if it gets one."""
    return section if content is None else replace(section, virtual_size=len(content))


def _place(
    image: PeImage, kept: Sequence[Section], changed: Mapping[str, bytes], added: Sequence[NewSection], headers: int
) -> list[_Placed]:
    """Returns all sections with their places: those that were there keep their addresses, new ones follow at page boundaries."""
    placed, offset = [], headers
    for section in kept:
        old = image.data[section.raw_offset : section.raw_offset + section.raw_size] if section.raw_size else b""
        content = changed.get(section.name, old)
        raw = content.ljust(_align(len(content), image.file_alignment), b"\0")
        row = Section(section.name, section.virtual_size, section.virtual_address, len(raw), offset if raw else 0, section.characteristics)
        placed.append(_Placed(row, raw))
        offset += len(raw)
    step = max(_PAGE, image.section_alignment)
    address = max([_align(section.virtual_address + section.virtual_size, step) for section in kept], default=_align(headers, step))
    for new in added:
        raw = new.content.ljust(_align(len(new.content), image.file_alignment), b"\0")
        placed.append(_Placed(Section(new.name, len(new.content), address, len(raw), offset, new.characteristics), raw))
        offset += len(raw)
        address = _align(address + len(new.content), step)
    if max(offset, address) > MAX_IMAGE_BYTES:
        raise InputError(f"would be {max(offset, address)} bytes, wanted at most {MAX_IMAGE_BYTES}", where=_WHERE)
    return placed


def _headers(image: PeImage, sections: Sequence[Section], size: int, added: Sequence[NewSection]) -> bytes:
    """Returns the headers up to the first section."""
    raw = bytearray(image.data[: image.section_table_offset])
    coff, optional = image.header_offset, image.header_offset + 24
    struct.pack_into("<H", raw, coff + 6, len(sections))
    struct.pack_into("<II", raw, coff + 12, 0, 0)  # the symbol table, which is left out
    for at, flag in ((optional + 4, 0x20), (optional + 8, 0x40)):  # SizeOfCode, SizeOfInitializedData
        grown = sum(_align(len(new.content), image.file_alignment) for new in added if new.characteristics & flag)
        struct.pack_into("<I", raw, at, (struct.unpack_from("<I", raw, at)[0] + grown) & 0xFFFFFFFF)
    end = max(section.virtual_address + section.virtual_size for section in sections)
    struct.pack_into("<II", raw, optional + 56, _align(end, image.section_alignment), size)
    struct.pack_into("<I", raw, image.checksum_offset, 0)
    if image.certificate_entry_offset:
        raw[image.certificate_entry_offset : image.certificate_entry_offset + 8] = bytes(8)
    for row in sections:
        name = row.name.encode("ascii")
        raw += _ROW.pack(name, row.virtual_size, row.virtual_address, row.raw_size, row.raw_offset, 0, 0, 0, 0, row.characteristics)
    return bytes(raw).ljust(size, b"\0")


def _check_names(kept: Sequence[Section], added: Sequence[NewSection]) -> None:
    """Refuses names that a section header cannot hold, and any name twice: who reads the image would take one of them."""
    seen = {section.name for section in kept}
    for new in added:
        if not 1 <= len(new.name) <= 8 or not new.name.isascii() or not new.name.isprintable():
            raise InputError(f"wanted a section name of 1 to 8 ASCII characters, got {new.name!r}", where=_WHERE)
        if new.name in seen:
            raise InputError(f"has a section {new.name} already", where=_WHERE, hint="each section may come once")
        if not new.content:
            raise InputError(f"section {new.name} would be empty", where=_WHERE, hint="leave it out")
        seen.add(new.name)


def _check_overlaps(kept: Sequence[Section]) -> None:
    """Refuses an image whose own sections overlap in memory."""
    end, last = 0, ""
    for section in sorted(kept, key=lambda row: row.virtual_address):
        if section.virtual_address < end:
            raise InputError(f"its sections {last} and {section.name} overlap in memory", where=_WHERE)
        end, last = section.virtual_address + section.virtual_size, section.name


def _has_debug_directory(image: PeImage) -> bool:
    """Returns whether the data directory of debug information is not empty."""
    if not image.certificate_entry_offset:
        return False
    at = image.certificate_entry_offset + 8 * (_DEBUG_DIRECTORY - 4)
    return at + 8 <= image.section_table_offset and any(image.data[at : at + 8])


def _align(number: int, step: int) -> int:
    return -(-number // step) * step if step > 1 else number
