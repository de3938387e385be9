"""The compressions that kernel images come in, unpacked with a bound on the result; one row each.

What follows the compressed data (the kernel's build appends the unpacked size to some) is ignored.
Source: Linux lib/decompress.c (magic numbers), scripts/Makefile.lib (how they are made).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ipe_build.errors import FormatError

MAX_KERNEL_BYTES = 512 * 1024 * 1024
"""No kernel is larger unpacked; a stream that is counts as hostile."""
_XZ_MEMORY = 256 * 1024 * 1024
_ZSTD_WINDOW_LOG = 28
_STEP = 1 << 20
_LZ4_BLOCK = 8 << 20
"""Bytes at most in a block of the legacy LZ4 format."""
_LZ4_MAGIC = b"\x02\x21\x4c\x18"


class KernelCompression(NamedTuple):
    """A row: the kernel's name, the bytes it begins with, and what unpacks it."""

    name: str
    magic: bytes
    unpack: Callable[[bytes], bytes]


class _Stream(Protocol):
    """What the standard library's decompressors have in common."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def compression_of(data: bytes) -> KernelCompression | None:
    """Returns the row whose magic the data begins with; None where none does."""
    return next((row for row in COMPRESSIONS if data.startswith(row.magic)), None)


def unpack(data: bytes, row: KernelCompression) -> bytes:
    """Returns the unpacked data. Raises: FormatError when it is damaged, cut short, or larger than MAX_KERNEL_BYTES."""
    try:
        return row.unpack(data)
    except (OSError, EOFError, ValueError, IndexError, zlib.error, lzma.LZMAError, struct.error) as error:
        raise FormatError(f"the {row.name} data is damaged: {error}", where="kernel image") from None


def _gzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    out, pending = [], data
    total = 0
    while not stream.eof:
        piece = stream.decompress(pending, _STEP)
        pending = stream.unconsumed_tail
        total = _count(total, piece)
        out.append(piece)
        if not piece and not pending:
            raise EOFError("it ends too early")
    return b"".join(out)


def _pull(stream: _Stream, data: bytes) -> bytes:
    """Returns all that the stream gives for the data, in bounded steps."""
    out = [stream.decompress(data, _STEP)]
    total = _count(0, out[0])
    while not stream.eof:
        piece = stream.decompress(b"", _STEP)
        if not piece:
            raise EOFError("it ends too early")
        total = _count(total, piece)
        out.append(piece)
    return b"".join(out)


def _count(total: int, piece: bytes) -> int:
    if total + len(piece) > MAX_KERNEL_BYTES:
        raise ValueError(f"it unpacks to more than {MAX_KERNEL_BYTES} bytes")
    return total + len(piece)


def _xz(data: bytes) -> bytes:
    return _pull(lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), data)


def _lzma(data: bytes) -> bytes:
    return _pull(lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_XZ_MEMORY), data)


def _bzip2(data: bytes) -> bytes:
    return _pull(bz2.BZ2Decompressor(), data)


def _zstd(data: bytes) -> bytes:
    from backports import zstd

    try:
        return _pull(zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}), data)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None


def _lz4(data: bytes) -> bytes:
    """Unpacks the legacy frame: the magic, then blocks, each after its size (u32, little-endian).

    Source: lz4's doc/lz4_Frame_format.md, "Legacy frame", and doc/lz4_Block_format.md.
    """
    out, at, total = [], len(_LZ4_MAGIC), 0
    while at + 4 < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        if not 0 < size <= len(data) - at - 4:
            break
        block = _lz4_block(data[at + 4 : at + 4 + size])
        total = _count(total, block)
        out.append(block)
        at += 4 + size
        if len(block) < _LZ4_BLOCK:
            break
    if not out:
        raise EOFError("it holds no block")
    return b"".join(out)


def _lz4_block(data: bytes) -> bytes:
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        token = data[at]
        at += 1
        literals, at = _lz4_length(token >> 4, data, at)
        if literals > end - at:
            raise EOFError("literals go past the end of a block")
        out += data[at : at + literals]
        at += literals
        if at == end:
            break
        distance = data[at] | data[at + 1] << 8
        length, at = _lz4_length(token & 15, data, at + 2)
        _copy_back(out, distance, length + 4)
        if len(out) > _LZ4_BLOCK:
            raise ValueError("a block unpacks to more than 8 MiB")
    return bytes(out)


def _lz4_length(nibble: int, data: bytes, at: int) -> tuple[int, int]:
    length = nibble
    if nibble == 15:
        while True:
            byte = data[at]
            at += 1
            length += byte
            if byte != 255:
                break
        if length > _LZ4_BLOCK:
            raise ValueError("a length is more than 8 MiB")
    return length, at


def _copy_back(out: bytearray, distance: int, length: int) -> None:
    """Appends `length` bytes that begin `distance` before the end; they may overlap what is appended."""
    start = len(out) - distance
    if distance == 0 or start < 0:
        raise ValueError("a copy reaches before the beginning")
    if distance >= length:
        out += out[start : start + length]
    else:
        piece = out[start:]
        out += (piece * (length // distance + 1))[:length]


COMPRESSIONS: tuple[KernelCompression, ...] = (
    KernelCompression("gzip", b"\x1f\x8b", _gzip),
    KernelCompression("xz", b"\xfd7zXZ\0", _xz),
    KernelCompression("lzma", b"\x5d\0\0", _lzma),
    KernelCompression("bzip2", b"BZh", _bzip2),
    KernelCompression("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    KernelCompression("lz4", _LZ4_MAGIC, _lz4),
)
