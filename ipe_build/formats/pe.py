"""PE/COFF images as UEFI takes them: headers, sections, certificate table, and the Authenticode digest that firmware computes.

Nothing in the file is trusted: every offset and length is checked against it.
Source: "PE Format" and "Windows Authenticode Portable Executable Signature Format" of Microsoft; UEFI specification 2.10, section 32.2;
EDK II, DxeImageVerificationLib (HashPeImage), whose rules decide where the documents leave something open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dissect.cstruct import cstruct

from ipe_build.errors import FormatError
from ipe_build.formats.c_pe import C_PE

MAX_IMAGE_BYTES = (1 << 32) - 1
"""Offsets and sizes are 32 bits wide."""
CERTIFICATE_ALIGNMENT = 8
PKCS7_SIGNED_DATA = 2
REVISION_2 = 0x0200
MACHINES = {0x14C: "i386", 0x8664: "x86-64", 0x1C0: "arm", 0x1C2: "arm", 0xAA64: "arm64", 0x5064: "riscv64", 0x6264: "loongarch64"}
"""What `PeImage.architecture` says for the machine number of the COFF header."""
UKI_SECTIONS = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".ucode",
    ".splash",
    ".dtb",
    ".uname",
    ".sbat",
    ".pcrsig",
    ".pcrpkey",
)
"""The sections of a unified kernel image, in the order in which the stub measures them (all but .pcrsig)."""
_MAX_SECTIONS = 96
_MAX_ZERO_FILL = 16 << 20
_PE32, _PE32_PLUS = 0x10B, 0x20B
_CERTIFICATE_DIRECTORY = 4
_CHECKSUM_AT = 64
_WHERE = "PE image"

_C = cstruct(endian="<")
_C.load(C_PE)


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the section table. `virtual_size` bytes count; `raw_size` is that rounded up to the file's alignment."""

    name: str
    virtual_size: int
    virtual_address: int
    raw_size: int
    raw_offset: int
    characteristics: int


@dataclass(frozen=True, slots=True)
class CertificateEntry:
    """A WIN_CERTIFICATE: `type` is 2 for a PKCS#7 signature (Authenticode); `content` may end with zeros of the alignment."""

    offset: int
    revision: int
    type: int
    content: bytes


@dataclass(frozen=True, slots=True)
class PeImage:
    """A parsed image. `architecture` is empty for a machine that is not in `MACHINES`.

    `checksum_offset`, `certificate_entry_offset` (0 when there is no such directory entry) and `certificate_table_offset` are file
    offsets; those bytes are what the Authenticode digest leaves out.
    """

    data: bytes
    machine: int
    architecture: str
    is_64: bool
    header_offset: int
    section_table_offset: int
    timestamp: int
    image_base: int
    section_alignment: int
    file_alignment: int
    size_of_image: int
    size_of_headers: int
    subsystem: int
    dll_characteristics: int
    checksum_offset: int
    certificate_entry_offset: int
    certificate_table_offset: int
    certificate_table_size: int
    sections: tuple[Section, ...]
    certificates: tuple[CertificateEntry, ...]

    def section(self, name: str) -> Section | None:
        """Returns the first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def content(self, section: Section) -> bytes:
        """Returns a section as it is in memory: `virtual_size` bytes, with zeros where the file has fewer.

        Raises: FormatError when it would be far larger than what the file holds.
        """
        raw = self.data[section.raw_offset : section.raw_offset + min(section.raw_size, section.virtual_size)]
        missing = section.virtual_size - len(raw)
        if missing > _MAX_ZERO_FILL:
            raise FormatError(f"section {section.name} has {len(raw)} bytes in the file and {section.virtual_size} in memory", where=_WHERE)
        return raw + bytes(missing)

    @property
    def is_signed(self) -> bool:
        """Returns whether there is a certificate table with something in it."""
        return bool(self.certificates)

    @property
    def uki_sections(self) -> tuple[Section, ...]:
        """Returns the sections of a unified kernel image that are there, in the order of `UKI_SECTIONS`; each name once."""
        found = (self.section(name) for name in UKI_SECTIONS)
        return tuple(section for section in found if section is not None)

    @property
    def doubtful_sections(self) -> tuple[str, ...]:
        """Returns sections of which a stub may take another than the first: names that come twice, or that begin like a UKI's.

        systemd's stub 252 compares as many characters as its own name has and takes the last; later ones compare whole names.
        """
        names = [one.name for one in self.sections]
        twice = {name for name in UKI_SECTIONS if names.count(name) > 1}
        longer = {name for name in names for known in UKI_SECTIONS if name.startswith(known) and name not in (*UKI_SECTIONS, ".dtbauto")}
        return tuple(sorted(twice | longer))

    @property
    def is_uki(self) -> bool:
        """Returns whether it has a section .linux."""
        return self.section(".linux") is not None


def is_pe(data: bytes) -> bool:
    """Returns whether bytes begin as a PE image does: `MZ`, and `PE` with two zero bytes where offset 0x3c says."""
    return data[:2] == b"MZ" and data[_new_header(data) :][:4] == b"PE\0\0"


def parse_pe(data: bytes, where: str = _WHERE) -> PeImage:
    """Returns the parsed image; `where` names it in errors.

    Raises: FormatError (an InputError) with the offset of what is wrong: no PE image, cut short, a table or section outside the file.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise FormatError(f"wanted at most {MAX_IMAGE_BYTES} bytes, got {len(data)}", where=where)
    if not is_pe(data):
        raise FormatError(f"offset 0x0: wanted a PE image (MZ … PE), got bytes {data[:8].hex(' ')}", where=where)
    at = _new_header(data)
    coff = _read(_C.coff_header, data, at, where)
    optional_at = at + len(_C.coff_header)
    magic = int.from_bytes(data[optional_at : optional_at + 2], "little")
    if magic not in (_PE32, _PE32_PLUS):
        raise FormatError(f"offset {optional_at:#x}: wanted magic 0x10b or 0x20b, got {magic:#x}", where=where)
    kind = _C.optional_header_64 if magic == _PE32_PLUS else _C.optional_header_32
    header = _read(kind, data, optional_at, where)
    directories_at = optional_at + len(kind)
    table_at = optional_at + int(coff.optional_header_size)
    if directories_at + 8 * int(header.number_of_directories) > table_at:
        raise FormatError(
            f"offset {optional_at:#x}: {header.number_of_directories} data directories do not fit in an optional header of "
            f"{coff.optional_header_size} bytes",
            where=where,
        )
    sections = tuple(_sections(data, table_at, int(coff.number_of_sections), where))
    headers_end = table_at + len(_C.section_header) * len(sections)
    if not headers_end <= int(header.size_of_headers) <= len(data):
        message = f"SizeOfHeaders is {header.size_of_headers}, the headers end at {headers_end}, the file at {len(data)}"
        raise FormatError(message, where=f"{where}: offset {optional_at + 60:#x}")
    entry_at = directories_at + 8 * _CERTIFICATE_DIRECTORY if int(header.number_of_directories) > _CERTIFICATE_DIRECTORY else 0
    certificates_at, certificates_size = _certificate_table(data, entry_at, int(header.size_of_headers), where)
    return PeImage(
        data=data,
        machine=int(coff.machine),
        architecture=MACHINES.get(int(coff.machine), ""),
        is_64=magic == _PE32_PLUS,
        header_offset=at,
        section_table_offset=table_at,
        timestamp=int(coff.timestamp),
        image_base=int(header.image_base),
        section_alignment=int(header.section_alignment),
        file_alignment=int(header.file_alignment),
        size_of_image=int(header.size_of_image),
        size_of_headers=int(header.size_of_headers),
        subsystem=int(header.subsystem),
        dll_characteristics=int(header.dll_characteristics),
        checksum_offset=optional_at + _CHECKSUM_AT,
        certificate_entry_offset=entry_at,
        certificate_table_offset=certificates_at,
        certificate_table_size=certificates_size,
        sections=sections,
        certificates=tuple(_certificates(data, certificates_at, certificates_size, where)),
    )


def authenticode_digest(data: bytes, algorithm: str = "sha256") -> bytes:
    """Returns the digest that firmware computes of an image's bytes as they are, signed or not; signing does not change it.

    Hashed, in this order: the headers up to SizeOfHeaders without the 4 bytes of the checksum and the 8 bytes of the certificate
    table's directory entry; each section's bytes of the file, by file offset; what follows (file offset = number of bytes counted so
    far, those left out included) up to as many bytes before the end as the certificate table has. An unsigned file whose length is
    no multiple of 8 is hashed without padding: who signs it first adds the zeros to the file (`signing.authenticode`).
    `algorithm` is a name of hashlib: sha256, sha384, sha512 (and sha1, for what a TPM's old bank holds).
    Raises: FormatError. Source: EDK II, DxeImageVerificationLib (HashPeImage).
    """
    image = parse_pe(data)
    digest = hashlib.new(algorithm)
    with memoryview(data) as view:
        for start, end in hashed_ranges(image):
            digest.update(view[start:end])
    return digest.digest()


def hashed_ranges(image: PeImage) -> tuple[tuple[int, int], ...]:
    """Returns the parts of the file (start, end) that the Authenticode digest covers, in the order in which they are hashed.

    Raises: FormatError where firmware would give up (sections and certificate table claim more than the file has), and for sections
    that overlap so much that hashing them is hostile.
    """
    size = len(image.data)
    ranges = [(0, image.checksum_offset)]
    after = image.checksum_offset + 4
    if image.certificate_entry_offset:
        ranges.append((after, image.certificate_entry_offset))
        after = image.certificate_entry_offset + 8
    ranges.append((after, image.size_of_headers))
    counted = image.size_of_headers
    for section in sorted(image.sections, key=lambda row: row.raw_offset):
        if section.raw_size:
            ranges.append((section.raw_offset, section.raw_offset + section.raw_size))
            counted += section.raw_size
    if counted > 2 * size:
        raise FormatError(f"its sections overlap: together they have {counted} bytes, the file {size}", where=_WHERE)
    rest = size - image.certificate_table_size
    if counted < size and counted > rest:
        raise FormatError(f"the certificate table's {image.certificate_table_size} bytes reach into the sections", where=_WHERE)
    if counted < rest:
        ranges.append((counted, rest))
    return tuple(ranges)


def uncovered_ranges(image: PeImage) -> tuple[tuple[int, int], ...]:
    """Returns the parts of the file that can be changed without changing the digest, besides checksum, entry and certificate table.

    Such gaps exist when sections do not lie one behind the other; nothing that we sign may have one.
    """
    left_out = [(image.checksum_offset, image.checksum_offset + 4)]
    if image.certificate_entry_offset:
        left_out.append((image.certificate_entry_offset, image.certificate_entry_offset + 8))
    if image.certificate_table_size:
        left_out.append((image.certificate_table_offset, image.certificate_table_offset + image.certificate_table_size))
    gaps, reached = [], 0
    for start, end in sorted([*hashed_ranges(image), *left_out]):
        if start > reached:
            gaps.append((reached, start))
        reached = max(reached, end)
    if reached < len(image.data):
        gaps.append((reached, len(image.data)))
    return tuple(gaps)


def _new_header(data: bytes) -> int:
    """Returns where the PE header begins (e_lfanew)."""
    return int.from_bytes(data[60:64], "little") if len(data) >= 64 else len(data)


def _read(kind: Any, data: bytes, at: int, where: str) -> Any:
    """Returns the structure at an offset. Raises: FormatError when the file ends before it does."""
    raw = data[at : at + len(kind)]
    if len(raw) < len(kind):
        raise FormatError(f"offset {at:#x}: wanted {len(kind)} bytes of {kind.__name__}, got {len(raw)}", where=where)
    return kind(raw)


def _sections(data: bytes, table_at: int, count: int, where: str) -> Iterator[Section]:
    """Yields the rows of the section table. Raises: FormatError for a section outside the file."""
    if count > _MAX_SECTIONS:
        raise FormatError(f"wanted at most {_MAX_SECTIONS} sections, got {count}", where=where)
    for number in range(count):
        at = table_at + number * len(_C.section_header)
        row = _read(_C.section_header, data, at, where)
        name = bytes(row.name).split(b"\0", 1)[0].decode("ascii", "backslashreplace")
        if int(row.raw_size) and int(row.raw_offset) + int(row.raw_size) > len(data):
            message = f"section {name} has {row.raw_size} bytes at {row.raw_offset:#x}, the file has {len(data)}"
            raise FormatError(message, where=f"{where}: offset {at:#x}")
        yield Section(
            name, int(row.virtual_size), int(row.virtual_address), int(row.raw_size), int(row.raw_offset), int(row.characteristics)
        )


def _certificate_table(data: bytes, entry_at: int, headers: int, where: str) -> tuple[int, int]:
    """Returns offset and size of the certificate table, zeros when there is none. Raises: FormatError."""
    if not entry_at:
        return 0, 0
    entry = _read(_C.data_directory, data, entry_at, where)
    offset, size = int(entry.address), int(entry.size)
    if size == 0:
        return 0, 0
    if offset < headers or offset % CERTIFICATE_ALIGNMENT or offset + size != len(data):
        raise FormatError(
            f"wanted the certificate table at the file's end ({len(data):#x}) and at a multiple of 8, got {size} bytes at {offset:#x}",
            where=f"{where}: offset {entry_at:#x}",
        )
    return offset, size


def _certificates(data: bytes, at: int, size: int, where: str) -> Iterator[CertificateEntry]:
    """Yields the entries of the certificate table. Raises: FormatError."""
    end = at + size
    while at < end:
        header = _read(_C.win_certificate, data, at, where)
        length = int(header.length)
        if length <= len(_C.win_certificate) or at + length > end:
            raise FormatError(f"offset {at:#x}: WIN_CERTIFICATE says {length} bytes, the table has {end - at} left", where=where)
        yield CertificateEntry(at, int(header.revision), int(header.type), data[at + len(_C.win_certificate) : at + length])
        at += -(-length // CERTIFICATE_ALIGNMENT) * CERTIFICATE_ALIGNMENT
