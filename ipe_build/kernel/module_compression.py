"""How modules are compressed so that the kernel can load them itself: one row a kind.

In-kernel decompression (CONFIG_MODULE_DECOMPRESS) takes one stream of the kind that the kernel was configured for; other kinds are
unpacked by user space and then loaded from memory, which IPE judges as a module without a file.
Source: scripts/Makefile.modinst, kernel/module/decompress.c.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipe_build.errors import FormatError, InputError
from ipe_build.formats import kernel_compression
from ipe_build.formats.zstd_library import zstd_errors, zstd_library

MAX_MODULE_BYTES = 256 << 20
"""No module is larger unpacked; a file that says so is a stranger's."""
_ELF = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class Compression:
    """A row: the lower-case name of CONFIG_MODULE_COMPRESS_*, the suffix after `.ko`, the first bytes of a file, both directions."""

    name: str
    suffix: str
    magic: bytes
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]


def _gzip(data: bytes) -> bytes:
    """Returns one gzip member as `gzip -n` frames it: no name, time 0."""
    packer = zlib.compressobj(6, zlib.DEFLATED, wbits=31)
    return packer.compress(data) + packer.flush()


def _one_stream(name: str) -> Callable[[bytes], bytes]:
    """Returns what unpacks a single stream that unpacks to a module and nothing larger, with nothing behind it."""
    row = next(one for one in kernel_compression.COMPRESSIONS if one.name == name)

    def unpacked(data: bytes) -> bytes:
        found = kernel_compression.unpack_stream(data, row, MAX_MODULE_BYTES)
        if found.error:
            raise EOFError(found.error.replace("it ends too early", "compressed data ended too early"))
        if found.consumed < len(data):
            raise EOFError(f"{len(data) - found.consumed} bytes follow the compressed data")
        return found.data

    return unpacked


def _xz(data: bytes) -> bytes:
    """Returns one xz stream as `xz --check=crc32 --lzma2=dict=1MiB` makes it: the kernel's decoder knows no CRC64."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


def _zstd(data: bytes) -> bytes:
    """Returns one zstd frame with content size and checksum, level 3, as `zstd -q` makes it."""
    zstd = zstd_library()
    packed: bytes = zstd.compress(
        data, options={zstd.CompressionParameter.compression_level: 3, zstd.CompressionParameter.checksum_flag: 1}
    )
    return packed


def _as_it_is(data: bytes) -> bytes:
    return data


COMPRESSIONS: tuple[Compression, ...] = (
    Compression("none", "", _ELF, _as_it_is, _as_it_is),
    Compression("gzip", ".gz", b"\x1f\x8b\x08", _gzip, _one_stream("gzip")),
    Compression("xz", ".xz", b"\xfd7zXZ\x00", _xz, _one_stream("xz")),
    Compression("zstd", ".zst", b"\x28\xb5\x2f\xfd", _zstd, _one_stream("zstd")),
)


MODULE_SUFFIXES = tuple(f".ko{row.suffix}" for row in COMPRESSIONS)
"""How the name of a kernel module's file ends: `.ko` and one of the suffixes."""


def is_module(path: Path) -> bool:
    """Returns whether a file's name is a kernel module's."""
    return path.name.endswith(MODULE_SUFFIXES)


def find_compression(name: str) -> Compression:
    """Returns the row of a name. Raises: InputError."""
    for row in COMPRESSIONS:
        if row.name == name:
            return row
    raise InputError(f"unknown compression {name!r}", where="modules", hint=f"known are {', '.join(row.name for row in COMPRESSIONS)}")


def unpack(data: bytes, where: str) -> tuple[bytes, Compression]:
    """Returns a module's ELF file (with its signature) and how it was compressed, told by its first bytes, not by its name.

    Raises: FormatError when it is neither ELF nor compressed, damaged, or not ELF inside.
    """
    if data.startswith(_ELF):
        return data, COMPRESSIONS[0]
    for row in COMPRESSIONS[1:]:
        if data.startswith(row.magic):
            break
    else:
        kinds = ", ".join(row.name for row in COMPRESSIONS[1:])
        raise FormatError(
            f"wanted a kernel module (ELF, plain or {kinds}), got bytes {data[:6].hex() or 'none'}", where=f"{where}: offset 0x0"
        )
    damage: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, EOFError, MemoryError, *zstd_errors())
    try:
        unpacked = row.decompress(data)
    except damage as error:
        raise FormatError(f"cannot be decompressed as {row.name}: {error}", where=where) from error
    if not unpacked.startswith(_ELF):
        raise FormatError(f"wanted an ELF file inside, got bytes {unpacked[:6].hex() or 'none'}", where=where)
    return unpacked, row
