"""What kind of filesystem an image holds, and how large it says it is: one row a kind.

Sources: Linux fs/erofs/erofs_fs.h, fs/squashfs/squashfs_fs.h, fs/ext4/ext4.h, include/uapi/linux/btrfs_tree.h (super blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple


class FilesystemKind(StrEnum):
    """A filesystem, as the kernel names its driver."""

    EROFS = "erofs"
    SQUASHFS = "squashfs"
    EXT4 = "ext4"
    BTRFS = "btrfs"


class _Row(NamedTuple):
    kind: FilesystemKind
    offset: int
    magic: bytes
    size_bytes: Callable[[bytes], int]


def _number(head: bytes, offset: int, length: int) -> int:
    return int.from_bytes(head[offset : offset + length], "little")


_ROWS: tuple[_Row, ...] = (
    _Row(FilesystemKind.EROFS, 1024, b"\xe2\xe1\xf5\xe0", lambda head: _number(head, 1024 + 36, 4) << head[1024 + 12]),
    _Row(FilesystemKind.SQUASHFS, 0, b"hsqs", lambda head: _number(head, 40, 8)),
    _Row(FilesystemKind.EXT4, 1024 + 56, b"\x53\xef", lambda head: _number(head, 1024 + 4, 4) << (10 + _number(head, 1024 + 24, 4) % 7)),
    _Row(FilesystemKind.BTRFS, 0x10040, b"_BHRfS_M", lambda head: _number(head, 0x10000 + 112, 8)),
)
HEAD_BYTES = 0x10040 + 128
"""How much of an image's beginning tells."""


def filesystem_kind(head: bytes) -> FilesystemKind | None:
    """Returns the kind of the image that begins with `head` (`HEAD_BYTES`, fewer at its end), by its magic; None for no known one."""
    row = _row(head)
    return row.kind if row is not None else None


def filesystem_bytes(head: bytes) -> int | None:
    """Returns how many bytes the filesystem's own superblock says it has; None for no known one, or a superblock cut short."""
    row = _row(head)
    return row.size_bytes(head) if row is not None and len(head) >= min(2048, HEAD_BYTES) else None


def _row(head: bytes) -> _Row | None:
    return next((row for row in _ROWS if head[row.offset : row.offset + len(row.magic)] == row.magic), None)
