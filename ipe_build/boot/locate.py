"""Where on a filesystem image a file's first block lies, asked of the filesystem's own tools. EROFS, SquashFS, ext4."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.filesystem import HEAD_BYTES, FilesystemKind, filesystem_kind

if TYPE_CHECKING:
    from ipe_build.host import Host

BLOCK_BYTES = 4096
_SQUASHFS_HEAD = 96
_INVERSE = bytes(range(255, -1, -1))
_EXTENT = re.compile(r"^\s*0:\s+0\.\.\s*\d+ \|\s*\d+ :\s*(\d+)\.\.", re.MULTILINE)


class SharedBlockError(InputError):
    """The file has no block that is its own: a flipped bit there would hurt other files too (SquashFS packs small files together)."""


class _Filesystem(NamedTuple):
    """A row: a filesystem, its name for people, and who finds a file's first byte in it."""

    kind: FilesystemKind
    name: str
    find: Callable[[Path, str, Host], int | None]


def stored_at(image: Path, path: str, host: Host) -> int:
    """Returns an offset in the filesystem image whose block of 4096 bytes is needed to read the beginning of file `path`.

    Where a filesystem stores files in pieces that do not end with a block, it is a block that no other piece reaches into.
    Raises: InputError for an unknown filesystem, SharedBlockError for a file that is not there or has no such block, ToolMissingError,
    ToolFailedError.
    """
    with image.open("rb") as handle:
        kind = filesystem_kind(handle.read(HEAD_BYTES))
    for row in FILESYSTEMS:
        if row.kind is kind:
            place = row.find(image, path, host)
            if place is None:
                raise SharedBlockError(f"its {row.name} filesystem has no file {path} with blocks of its own", where=str(image))
            return place
    raise InputError("no filesystem is recognised", where=str(image), hint=f"known are {', '.join(row.name for row in FILESYSTEMS)}")


def _find_erofs(image: Path, path: str, host: Host) -> int | None:
    """The tool dump.erofs lists extents: logical range, length, physical range. One that begins within a block lies among inodes."""
    match = _EXTENT.search(host.run(["dump.erofs", f"--path={path}", "-e", image]).text)
    return int(match[1]) if match and int(match[1]) % BLOCK_BYTES == 0 else None


def _find_ext4(image: Path, path: str, host: Host) -> int | None:
    """The tool debugfs says the physical block of logical block 0 (0 for a hole); the block size is in the superblock."""
    text = host.run(["debugfs", "-R", f'bmap "{path}" 0', image]).text.strip()
    with image.open("rb") as handle:
        handle.seek(1024 + 24)
        block_bytes = 1024 << int.from_bytes(handle.read(4), "little")
    return int(text) * block_bytes if text.isdigit() and int(text) else None


def _find_squashfs(image: Path, path: str, host: Host) -> int | None:
    """Finds a block that the file needs by trying, with no knowledge of the compressor.

    A copy is inverted from the start of the data up to a point; the file's first 4096 bytes read as before exactly while that point is at
    or before the stored block that holds them, so halving finds where it begins. That is in the middle of 4096 bytes; where the same
    stored block (the file's first `block_size` bytes: superblock, u32 at 12) reaches into the two blocks after these, the one in between
    is all its own. Data end where the inode table begins (u64 at 64).
    """
    whole = image.read_bytes()
    end = int.from_bytes(whole[64:72], "little")
    if not _SQUASHFS_HEAD < end <= len(whole):
        raise FormatError(f"the inode table at {end:#x} lies outside the image", where=f"{image}: offset 0x40")
    with host.scratch("ipe-build-squashfs-") as folder:
        trial = _Trial(whole, end, folder, host)
        wanted = trial.read(path, 0, 0)
        if not wanted:
            return None
        low, high = 0, -(-end // BLOCK_BYTES)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if trial.read(path, 0, middle) == wanted else (low, middle)
        size = int.from_bytes(whole[12:16], "little")
        undamaged = trial.read(path, 0, 0, size)
        inside = all(trial.read(path, block, block + 1, size) != undamaged for block in (low + 1, low + 2))
    return (low + 1) * BLOCK_BYTES if inside else None


class _Trial:
    """A copy of a SquashFS image that is damaged in turns."""

    def __init__(self, image: bytes, end: int, folder: Path, host: Host) -> None:
        self._image, self._end, self._folder, self._host = image, end, folder, host

    def read(self, path: str, first: int, last: int, size: int = BLOCK_BYTES) -> bytes:
        """Returns the first `size` bytes that unsquashfs reads of the file with the data from block `first` up to `last` inverted."""
        start = max(first * BLOCK_BYTES, _SQUASHFS_HEAD)
        stop = max(min(last * BLOCK_BYTES, self._end), start)
        damaged = self._image[:start] + self._image[start:stop].translate(_INVERSE) + self._image[stop:]
        (self._folder / "trial.img").write_bytes(damaged)
        got = self._host.run(["unsquashfs", "-cat", "trial.img", path.lstrip("/")], cwd=self._folder, ok=(0, 1, 2))
        return got.stdout[:size]


FILESYSTEMS: tuple[_Filesystem, ...] = (
    _Filesystem(FilesystemKind.EROFS, "EROFS", _find_erofs),
    _Filesystem(FilesystemKind.SQUASHFS, "SquashFS", _find_squashfs),
    _Filesystem(FilesystemKind.EXT4, "ext4", _find_ext4),
)
