"""Kernels packed as the kernel's own build packs them: one row a compression. What comes out is unpacked again and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import InputError, ToolFailedError
from ipe_build.formats.kernel_compression import COMPRESSIONS, unpack

if TYPE_CHECKING:
    from ipe_build.host import Host


class Packer(NamedTuple):
    """A row: the compression's name and the program's words; it reads the kernel and writes what is packed."""

    name: str
    command: tuple[str, ...]


PACKERS: tuple[Packer, ...] = (
    Packer("gzip", ("gzip", "-n", "-9", "-c")),
    Packer("bzip2", ("bzip2", "-9", "-c")),
    Packer("lzma", ("lzma", "-9", "-c")),
    Packer("xz", ("xz", "--check=crc32", "--threads=1", "--x86", "--lzma2=dict=128MiB", "-c")),
    Packer("lzo", ("lzop", "-9", "-c")),
    Packer("lz4", ("lz4", "-l", "-9", "-c", "-", "-")),
    Packer("zstd", ("zstd", "-q", "-22", "--ultra", "-c")),
)
"""Source: scripts/Makefile.lib (cmd_gzip … cmd_zstd22_with_size), scripts/xz_wrap.sh, in Linux 6.12. xz's filter is x86's."""
_PACKER = {row.name: row for row in PACKERS}
_ROW = {row.name: row for row in COMPRESSIONS}


def repack(kernel: bytes, compression: str, host: Host) -> bytes:
    """Returns the kernel packed, without the size that the kernel's build appends to all but gzip.

    Raises: InputError for a compression without a row, ToolMissingError, ToolFailedError (also when it does not unpack to the same).
    """
    row = _PACKER.get(compression)
    if row is None:
        raise InputError(f"cannot be packed with {compression}", where="kernel image", hint=f"known: {', '.join(_PACKER)}")
    packed = host.run(list(row.command), stdin=kernel).stdout
    if unpack(packed, _ROW[compression]) != kernel:
        raise ToolFailedError(f"{row.command[0]} packed the kernel so that it does not unpack to the same", hint="report this")
    return packed
