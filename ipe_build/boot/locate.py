"""Where on a filesystem image a file's first block lies, asked of the filesystem's own tools. EROFS, SquashFS, ext4."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import FormatError, InputError

if TYPE_CHECKING:
    from ipe_build.host import Host

BLOCK_BYTES = 4096
_EXTENT = re.compile(r"^\s*0:\s+0\.\.\s*\d+ \|\s*\d+ :\s*(\d+)\.\.", re.MULTILINE)


class _Filesystem(NamedTuple):
    """A row: how a filesystem is recognised (offset and bytes), and who finds a file's first byte in it."""

    name: str
    offset: int
    magic: bytes
    find: Callable[[Path, str, Host], int | None]


def first_byte(image: Path, path: str, host: Host) -> int:
    """Returns the offset in the filesystem image of the stored (perhaps compressed) bytes that file `path` begins with.

    Raises: InputError for an unknown filesystem or a file that is not there, ToolMissingError, ToolFailedError.
    """
    with image.open("rb") as handle:
        head = handle.read(2048)
    for row in FILESYSTEMS:
        if head[row.offset : row.offset + len(row.magic)] == row.magic:
            place = row.find(image, path, host)
            if place is None:
                raise InputError(f"its {row.name} filesystem has no file {path} with blocks of its own", where=str(image))
            return place
    raise InputError("no filesystem is recognised", where=str(image), hint=f"known are {', '.join(row.name for row in FILESYSTEMS)}")


def _find_erofs(image: Path, path: str, host: Host) -> int | None:
    """The tool dump.erofs lists extents: logical range, length, physical range."""
    match = _EXTENT.search(host.run(["dump.erofs", f"--path={path}", "-e", image]).text)
    return int(match[1]) if match else None


def _find_ext4(image: Path, path: str, host: Host) -> int | None:
    """The tool debugfs says the physical block of logical block 0 (0 for a hole); the block size is in the superblock."""
    text = host.run(["debugfs", "-R", f'bmap "{path}" 0', image]).text.strip()
    with image.open("rb") as handle:
        handle.seek(1024 + 24)
        block_bytes = 1024 << int.from_bytes(handle.read(4), "little")
    return int(text) * block_bytes if text.isdigit() and int(text) else None


def _find_squashfs(image: Path, path: str, host: Host) -> int | None:
    """Finds the first block of data that the file needs by trying, with no knowledge of the compressor.

    A copy is inverted from the start of the data up to a point; the file's first 4096 bytes read as before exactly while that point is at
    or before the block that holds them, so halving finds it. Data end where the inode table begins (superblock, u64 at 64).
    """
    with image.open("rb") as handle:
        whole = bytearray(handle.read())
    end = int.from_bytes(whole[64:72], "little")
    if not 96 < end <= len(whole):
        raise FormatError(f"the inode table at {end:#x} lies outside the image", where=f"{image}: offset 0x40")
    read = ["unsquashfs", "-cat", "trial.img", path.lstrip("/")]
    with host.scratch("ipe-build-squashfs-") as folder:
        trial = folder / "trial.img"
        trial.write_bytes(whole)
        wanted = host.run(read, cwd=folder, ok=(0, 1, 2))
        if wanted.status or not wanted.stdout:
            return None
        inverse = bytes.maketrans(bytes(range(256)), bytes(range(255, -1, -1)))
        low, high = 0, -(-end // BLOCK_BYTES)
        while high - low > 1:
            middle = (low + high) // 2
            stop = min(middle * BLOCK_BYTES, end)
            trial.write_bytes(whole[:96] + whole[96:stop].translate(inverse) + whole[stop:])
            got = host.run(read, cwd=folder, ok=(0, 1, 2))
            same = got.stdout[:BLOCK_BYTES] == wanted.stdout[:BLOCK_BYTES]
            low, high = (middle, high) if same else (low, middle)
    return max(low * BLOCK_BYTES, 96)


FILESYSTEMS: tuple[_Filesystem, ...] = (
    _Filesystem("EROFS", 1024, bytes.fromhex("e2e1f5e0"), _find_erofs),
    _Filesystem("SquashFS", 0, b"hsqs", _find_squashfs),
    _Filesystem("ext4", 1080, bytes.fromhex("53ef"), _find_ext4),
)
