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
from ipe_build.formats.zstd_library import zstd_errors, zstd_library

MAX_KERNEL_BYTES = 512 * 1024 * 1024
"""No kernel is larger unpacked; a stream that is counts as hostile."""
_XZ_MEMORY = 256 * 1024 * 1024
_ZSTD_WINDOW_LOG = 28
_STEP = 1 << 20
_LZ4_BLOCK = 8 << 20
"""Bytes at most in a block of the legacy LZ4 format."""
_LZO_BLOCK = 64 << 20
"""Bytes at most in a block of lzop (MAX_BLOCK_SIZE in its src/conf.h)."""
_LZOP_MAGIC = b"\x89LZO\0\r\n\x1a\n"
_LZOP_WITH_LEVEL = 0x940
_LZOP_FILTER = 0x800
_LZ4_MAGIC = b"\x02\x21\x4c\x18"


class _Stream(Protocol):
    """What the standard library's decompressors have in common (bz2 and lzma have it as it is)."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class KernelCompression(NamedTuple):
    """A row: the kernel's name, the bytes it begins with, and what unpacks it.

    That is a stream fed in steps, or (LZ4, LZO) a function that gives all its bytes and how many bytes of input it took.
    """

    name: str
    magic: bytes
    stream: Callable[[], _Stream] | None = None
    blocks: Callable[[bytes, int], tuple[bytes, int]] | None = None


def compression_of(data: bytes) -> KernelCompression | None:
    """Returns the row whose magic the data begins with; None where none does."""
    return next((row for row in COMPRESSIONS if data.startswith(row.magic)), None)


class Unpacked(NamedTuple):
    """What came of one stream: its bytes, how many bytes of input it took, and why it ended too early ("" when it did not)."""

    data: bytes
    consumed: int
    error: str


def unpack_stream(data: bytes | memoryview, row: KernelCompression, max_bytes: int = MAX_KERNEL_BYTES) -> Unpacked:
    """Returns one stream unpacked as far as it goes: what follows it is left alone, what came before damage is kept.

    Of LZ4 and LZO nothing is kept before damage. Nothing is raised: a stream that unpacks to more than `max_bytes` ends there.
    """
    if row.stream is None:
        assert row.blocks is not None
        try:
            return Unpacked(*row.blocks(bytes(data), max_bytes), "")
        except (EOFError, ValueError, IndexError, struct.error) as problem:
            return Unpacked(b"", len(data), str(problem))
    stream, view = row.stream(), memoryview(data)
    out: list[bytes] = []
    total, at, error = 0, 0, ""
    damage: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, *zstd_errors())
    try:
        while not stream.eof:
            fed = bytes(view[at : at + _STEP]) if stream.needs_input else b""
            if stream.needs_input and not fed:
                raise EOFError("it ends too early")
            at += len(fed)
            piece = stream.decompress(fed, _STEP)
            total = _count(total, piece, max_bytes)
            out.append(piece)
    except damage as problem:
        error = str(problem)
    return Unpacked(b"".join(out), at - len(stream.unused_data) if stream.eof else at, error)


def unpack(data: bytes, row: KernelCompression) -> bytes:
    """Returns the unpacked data. Raises: FormatError when it is damaged, cut short, or larger than MAX_KERNEL_BYTES."""
    unpacked = unpack_stream(data, row)
    if unpacked.error:
        raise FormatError(f"the {row.name} data is damaged: {unpacked.error}", where="kernel image")
    return unpacked.data


class _Gzip:
    """One gzip member, with the methods that bz2 and lzma have."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._more = False  # zlib may hold output back although it has taken all input

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self._more

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._more = len(piece) == max_length
        return piece


def _count(total: int, piece: bytes, max_bytes: int) -> int:
    if total + len(piece) > max_bytes:
        raise ValueError(f"it unpacks to more than {max_bytes} bytes")
    return total + len(piece)


def _zstd() -> _Stream:
    zstd = zstd_library()
    stream: _Stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
    return stream


def _lz4(data: bytes, max_bytes: int) -> tuple[bytes, int]:
    """Unpacks the legacy frame: the magic, then blocks, each after its size (u32, little-endian).

    Source: lz4's doc/lz4_Frame_format.md, "Legacy frame", and doc/lz4_Block_format.md.
    """
    out, at, total = [], len(_LZ4_MAGIC), 0
    while at + 4 < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        if not 0 < size <= len(data) - at - 4:
            break
        block = _lz4_block(data[at + 4 : at + 4 + size])
        total = _count(total, block, max_bytes)
        out.append(block)
        at += 4 + size
        if len(block) < _LZ4_BLOCK:
            break
    if not out:
        raise EOFError("it holds no block")
    return b"".join(out), at


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


def _lzop(data: bytes, max_bytes: int) -> tuple[bytes, int]:
    """Unpacks what lzop writes: a header, then blocks, each after its sizes and checksums (32 bits, big-endian).

    The checksums are not compared. Source: Linux lib/decompress_unlzo.c (parse_header, unlzo); lzop's src/conf.h (the flags).
    """
    (version,) = struct.unpack_from(">H", data, len(_LZOP_MAGIC))
    if version < _LZOP_WITH_LEVEL:
        raise ValueError(f"lzop wrote it in format {version:#x}, wanted 0x940 or newer")
    (flags,) = struct.unpack_from(">I", data, 17)
    at = 21 + (4 if flags & _LZOP_FILTER else 0) + 12
    at += 1 + data[at] + 4
    plain_sums = bool(flags & 0x1) + bool(flags & 0x100)
    packed_sums = bool(flags & 0x2) + bool(flags & 0x200)
    out: list[bytes] = []
    total = 0
    while True:
        (size,) = struct.unpack_from(">I", data, at)
        if size == 0:
            return b"".join(out), at + 4
        (packed,) = struct.unpack_from(">I", data, at + 4)
        at += 8 + 4 * plain_sums + (4 * packed_sums if packed < size else 0)
        if size > _LZO_BLOCK or packed > min(size, len(data) - at):
            raise ValueError("a block is larger than it can be")
        raw = data[at : at + packed]
        block = raw if packed == size else _lzo1x(raw, size)
        total = _count(total, block, max_bytes)
        out.append(block)
        at += packed


def _lzo1x(data: bytes, size: int) -> bytes:
    """Returns the `size` bytes of one LZO1X block. Source: Linux Documentation/staging/lzo.rst."""
    out = bytearray()
    at = state = 0
    if data[0] > 17:
        state = data[0] - 17
        out += data[1 : 1 + state]
        at = 1 + state
        state = min(state, 4)
    while True:
        code = data[at]
        at += 1
        if code < 16 and state == 0:
            length, at = _lzo_length(code, 15, data, at)
            out += data[at : at + length + 3]
            at += length + 3
            state = 4
        else:
            distance, length, state, at = _lzo_match(code, state, data, at)
            if distance == 0:
                break
            _copy_back(out, distance, length)
            out += data[at : at + state]
            at += state
        if len(out) > size:
            raise ValueError("a block is larger than it says")
    if len(out) != size:
        raise ValueError(f"a block has {len(out)} bytes, it says {size}")
    return bytes(out)


def _lzo_match(code: int, state: int, data: bytes, at: int) -> tuple[int, int, int, int]:
    """Returns distance (0: the end of the block), length, the number of literals that follow, and the next place."""
    if code >= 64:
        return 1 + (code >> 2 & 7) + (data[at] << 3), (code >> 5) + 1, code & 3, at + 1
    if code < 16:
        near = (code >> 2) + (data[at] << 2) + 1
        return (near + 0x800, 3, code & 3, at + 1) if state == 4 else (near, 2, code & 3, at + 1)
    if code >= 32:
        length, at = _lzo_length(code & 31, 31, data, at)
        base = 1
    else:
        length, at = _lzo_length(code & 7, 7, data, at)
        base = (code & 8) << 11
    word = data[at] | data[at + 1] << 8
    distance = base + (word >> 2)
    if code < 32:
        distance = distance + 0x4000 if distance else 0
    return distance, length + 2, word & 3, at + 2


def _lzo_length(value: int, most: int, data: bytes, at: int) -> tuple[int, int]:
    """Returns a length whose bits in the code are all zero when it goes on: 255 for each zero byte, then the last byte."""
    if value:
        return value, at
    value = most
    while data[at] == 0:
        value += 255
        at += 1
        if value > _LZO_BLOCK:
            raise ValueError("a length is larger than a block")
    return value + data[at], at + 1


COMPRESSIONS: tuple[KernelCompression, ...] = (
    KernelCompression("gzip", b"\x1f\x8b", _Gzip),
    KernelCompression("xz", b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)),
    KernelCompression("lzma", b"\x5d\0\0", lambda: lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_XZ_MEMORY)),
    KernelCompression("bzip2", b"BZh", bz2.BZ2Decompressor),
    KernelCompression("zstd", b"\x28\xb5\x2f\xfd", _zstd),
    KernelCompression("lz4", _LZ4_MAGIC, blocks=_lz4),
    KernelCompression("lzo", _LZOP_MAGIC, blocks=_lzop),
)
