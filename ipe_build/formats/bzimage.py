"""A bzImage with another compressed kernel of the same length in it: what depends on the payload's bytes follows, all else stays.

What the boot code knows of the payload are its start and its length (input_len, and payload_length in the header), and the size of
what comes out (output_len); they are constants of the code, so the new payload has the old length. The decompressors of the kernel
stop at the end of their stream; what follows is ignored. Source: arch/x86/boot/header.S (payload_offset, extra_bytes),
arch/x86/boot/compressed/mkpiggy.c and misc.c, lib/decompress_*.c, arch/x86/boot/tools/build.c (the checksum).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from dissect.cstruct import cstruct

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.c_kernel_image import C_KERNEL_IMAGE

_C = cstruct(endian="<")
_C.load(C_KERNEL_IMAGE)
_SETUP_AT = 0x1F1
_SIZE_BYTES = 4
_MOST_SLACK = 1 << 16
_WHERE = "bzImage"


@dataclass(frozen=True, slots=True)
class Payload:
    """Where the compressed kernel lies: `length` bytes, of which the last four say how large it is unpacked."""

    offset: int
    length: int


def is_bzimage(data: bytes) -> bool:
    """Returns whether bytes begin with the boot sector and setup header of a bzImage."""
    return data[0x202:0x206] == b"HdrS"


def find_payload(data: bytes) -> Payload:
    """Returns where the compressed kernel lies. Raises: FormatError when the header's numbers lead outside the file."""
    raw = data[_SETUP_AT : _SETUP_AT + len(_C.x86_setup_header)]
    if len(raw) < len(_C.x86_setup_header) or not is_bzimage(data):
        raise FormatError("wanted a setup header at 0x1f1", where=_WHERE)
    header: Any = _C.x86_setup_header(raw)
    offset = ((int(header.setup_sects) or 4) + 1) * 512 + int(header.payload_offset)
    length = int(header.payload_length)
    if length <= _SIZE_BYTES or offset + length > len(data):
        raise FormatError(f"payload of {length} bytes at {offset:#x}, the file has {len(data)}", where=_WHERE)
    return Payload(offset, length)


def most_slack(unpacked_bytes: int) -> int:
    """Returns by how many bytes a new payload may be shorter than the old one, for a kernel of this size unpacked.

    The boot code unpacks in place, from the end of a buffer into its beginning; what the writer is ahead of the reader in the worst
    case is `(unpacked >> 8) + 128 KiB`, made for all compressions together. A shorter payload is read earlier by what it is shorter,
    which takes from that. Of the seven, LZ4 leaves 64 KiB of it and zstd `unpacked >> 8`, less a few bytes: half of that is ours.
    """
    return min(_MOST_SLACK, unpacked_bytes >> 9)


def with_payload(data: bytes, packed: bytes, unpacked_bytes: int) -> bytes:
    """Returns the image with `packed` as its payload, padded with zeros; `unpacked_bytes` is its size unpacked, as before.

    The checksum at the end of the file follows where there was a right one. Raises: InputError when it does not fit, FormatError.
    """
    place = find_payload(data)
    size_field = unpacked_bytes.to_bytes(_SIZE_BYTES, "little")
    if data[place.offset + place.length - _SIZE_BYTES : place.offset + place.length] != size_field:
        raise FormatError(f"the payload does not end with its size unpacked, {unpacked_bytes}", where=_WHERE)
    content = packed if packed.endswith(size_field) else packed + size_field
    slack = place.length - len(content)
    if slack < 0:
        raise InputError(
            f"the compressed kernel would have {len(content)} bytes, {-slack} more than there is room for",
            where=_WHERE,
            hint="link it in a kernel tree instead (ipe-build kernel build), or reserve more at the kernel's build",
        )
    zeros = place.length - len(packed) - _SIZE_BYTES
    if slack > most_slack(unpacked_bytes) or (slack and zeros < 0):
        raise InputError(
            f"the compressed kernel would have {len(content)} bytes, {slack} fewer than before: that cannot be made up",
            where=_WHERE,
            hint="link it in a kernel tree instead (ipe-build kernel build)",
        )
    padded = packed + bytes(zeros) + size_field if slack else content
    sealed = data[: place.offset] + padded + data[place.offset + place.length :]
    return sealed[:-4] + _checksum(sealed) if data[-4:] == _checksum(data) else sealed


def _checksum(data: bytes) -> bytes:
    """Returns the CRC-32 of all but the last four bytes as the kernel's build appends it: not inverted at the end."""
    return (zlib.crc32(data[:-4]) ^ 0xFFFFFFFF).to_bytes(4, "little")
