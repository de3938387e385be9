"""What a filesystem's superblock wants of the kernel that mounts it read-only: drivers of compressors, block size, a clean journal.

Sources: Linux fs/erofs/super.c (erofs_read_superblock), fs/erofs/decompressor.c (z_erofs_parse_cfgs), fs/squashfs/decompressor.c,
fs/ext4/super.c (ext4_fill_super, ext4_load_journal).
"""

from __future__ import annotations

from typing import NamedTuple

from ipe_build.formats.filesystem import FilesystemKind, filesystem_kind

_SQUASHFS = {1: "SQUASHFS_ZLIB", 3: "SQUASHFS_LZO", 4: "SQUASHFS_XZ", 5: "SQUASHFS_LZ4", 6: "SQUASHFS_ZSTD"}
_EROFS = ("EROFS_FS_ZIP", "EROFS_FS_ZIP_LZMA", "EROFS_FS_ZIP_DEFLATE", "EROFS_FS_ZIP_ZSTD")
_EROFS_COMPR_CFGS = 0x2
_EXT4_KNOWN = 0x3E7D6
"""EXT4_FEATURE_INCOMPAT_SUPP of Linux 6.12, encryption included."""
_EXT4_RECOVER = 0x4


class MountNeeds(NamedTuple):
    """What the kernel needs: Kconfig symbols; a block device whose blocks are no larger than `block_bytes`; `problem` what no kernel takes.

    `dirty` says that a journal has to be replayed first, which a read-only volume does not let happen.
    """

    symbols: tuple[str, ...] = ()
    block_bytes: int = 1 << 30
    problem: str = ""
    dirty: bool = False


def mount_needs(head: bytes) -> MountNeeds:
    """Returns what the filesystem needs whose first 2048 bytes are given; nothing for one that is not known."""
    kind = filesystem_kind(head)
    if len(head) < 2048 or kind is None:
        return MountNeeds()
    if kind is FilesystemKind.EROFS:
        return _erofs(head[1024:1152])
    if kind is FilesystemKind.SQUASHFS:
        number = _u16(head, 20)
        symbol = _SQUASHFS.get(number)
        return MountNeeds((symbol,)) if symbol else MountNeeds(problem=f"no kernel has its compression (number {number})")
    return _ext4(head[1024:2048]) if kind is FilesystemKind.EXT4 else MountNeeds()


def _erofs(sb: bytes) -> MountNeeds:
    algorithms, has_table = _u16(sb, 84), bool(_u32(sb, 80) & _EROFS_COMPR_CFGS)
    if not has_table:
        symbols: tuple[str, ...] = _EROFS[:1] if algorithms else ()
    elif algorithms >> len(_EROFS):
        return MountNeeds(problem=f"its compressors {algorithms:#x} are not known")
    else:
        symbols = tuple(symbol for bit, symbol in enumerate(_EROFS) if algorithms >> bit & 1)
    return MountNeeds(symbols, 1 << min(sb[12], 30))


def _ext4(sb: bytes) -> MountNeeds:
    features = _u32(sb, 96)
    strange = features & ~_EXT4_KNOWN
    problem = f"it has features that no kernel knows ({strange:#x})" if strange else ""
    return MountNeeds((), 1024 << min(_u32(sb, 24), 20), problem, bool(features & _EXT4_RECOVER))


def _u16(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 2], "little")


def _u32(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")
