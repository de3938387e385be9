"""ext4 images, read where they lie: names, modes, extended attributes, contents, and what fs-verity keeps behind a file's end.

Nothing in it is trusted: every place is checked against the image, a folder is entered once, extent trees are at most five deep, and the
numbers of names and extents are bounded. What it does not read (block maps of ext2, inline data, encryption, meta_bg) it says.
Source: Linux Documentation/filesystems/ext4/, fs/ext4/ext4.h, ext4_extents.h, xattr.h, verity.c.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ipe_build.errors import FormatError
from ipe_build.formats.erofs import device_number
from ipe_build.formats.tree_walk import walk

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)` returns that many bytes of the image, fewer only at its end."""

MAX_EXTENTS = 1_000_000
VERITY_FLAG = 0x100000
_MAGIC = b"\x53\xef"
_ROOT = 2
_EXTENTS_FLAG, _INLINE_FLAG, _ENCRYPT_FLAG, _EA_INODE_FLAG = 0x80000, 0x10000000, 0x800, 0x200000
_META_BG, _64BIT = 0x10, 0x80
_EXTENT_MAGIC, _XATTR_MAGIC = 0xF30A, 0xEA020000
_EXTENT_HEADER = struct.Struct("<HHHHI")
_XATTR_ENTRY = struct.Struct("<BBHIII")
_PREFIXES = {1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.", 7: "system."}
_VERITY_ALIGNMENT = 65536


class UnsupportedError(FormatError):
    """The image uses something that is not read here."""


class Ext4Inode(NamedTuple):
    """A file of the image. `pieces`: (offset in the image, -1 for zeros; length in bytes) in order, up to `size_bytes`.

    `behind` are the pieces past the end (place in the file, offset, length): where fs-verity keeps its tree and descriptor.
    `target` is a symbolic link's when it is stored in the inode itself, else None. `rdev` is a device's (major, minor),
    `mtime` in seconds since 1970.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    flags: int
    pieces: tuple[tuple[int, int], ...]
    behind: tuple[tuple[int, int, int], ...]
    target: bytes | None
    xattrs: Mapping[str, bytes]
    rdev: tuple[int, int] = (0, 0)
    mtime: int = 0


class Ext4:
    """An ext4 image. Raises: FormatError from all of it; UnsupportedError for what is not read here."""

    def __init__(self, read_at: ReadAt, size_bytes: int) -> None:
        self._read_at, self._size = read_at, size_bytes
        raw = read_at(1024, 1024)
        if len(raw) < 1024 or raw[56:58] != _MAGIC:
            raise FormatError(f"wanted the magic 53 ef, got {raw[56:58].hex(' ')}", where="ext4: offset 0x438")

        def number(at: int, length: int) -> int:
            return int.from_bytes(raw[at : at + length], "little")

        if number(24, 4) > 6:
            raise FormatError(f"wanted blocks of at most 65536 bytes, got 2^{10 + number(24, 4)}", where="ext4: offset 0x418")
        self._block = 1024 << number(24, 4)
        self._inodes, self._per_group, self._inode_bytes = number(0, 4), number(40, 4), number(88, 2) if number(76, 4) else 128
        incompatible = number(96, 4)
        self._descriptor = max(number(254, 2), 32) if incompatible & _64BIT else 32
        if incompatible & _META_BG:
            raise UnsupportedError("its group descriptors are spread (meta_bg)", where="ext4: offset 0x460")
        if not self._per_group or not 128 <= self._inode_bytes <= self._block or self._descriptor > 1024:
            raise FormatError("inode or descriptor sizes that cannot be", where="ext4: offset 0x458")
        self._descriptors_at = (number(20, 4) + 1) * self._block
        self._tables: dict[int, int] = {}
        self._extents = 0
        self.blocks = number(4, 4) | (number(0x150, 4) << 32 if incompatible & _64BIT else 0)
        self.free_blocks = number(12, 4) | (number(0x158, 4) << 32 if incompatible & _64BIT else 0)
        self.needs_recovery = bool(incompatible & 0x4)

    @property
    def block_bytes(self) -> int:
        """Returns the size of a block."""
        return self._block

    def walk(self) -> Iterator[tuple[bytes, Ext4Inode]]:
        """Yields path (without a slash in front) and inode of everything below the root, folders before what is in them."""
        return walk(_ROOT, self.inode, self._names, "ext4")

    def inode(self, number: int) -> Ext4Inode:
        """Returns an inode."""
        raw = self._raw_inode(number)

        def field(at: int, length: int) -> int:
            return int.from_bytes(raw[at : at + length], "little")

        mode, flags, size = field(0, 2), field(32, 4), field(4, 4) | field(108, 4) << 32
        if size >> 48:
            raise FormatError(f"inode {number} says {size} bytes", where="ext4")
        pieces: tuple[tuple[int, int], ...] = ()
        behind: tuple[tuple[int, int, int], ...] = ()
        target = None
        if stat.S_ISLNK(mode) and size < 60 and not flags & _EXTENTS_FLAG:
            target = raw[40 : 40 + size]
        elif stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            if flags & (_INLINE_FLAG | _ENCRYPT_FLAG | _EA_INODE_FLAG) or (size and not flags & _EXTENTS_FLAG):
                raise UnsupportedError(f"inode {number} has a block map, inline or encrypted data (flags {flags:#x})", where="ext4")
            runs = sorted(self._runs(raw[40:100], number)) if flags & _EXTENTS_FLAG else []
            pieces, behind = self._pieces(runs, size, number)
        else:
            size = 0
        uid, gid = field(2, 2) | field(120, 2) << 16, field(24, 2) | field(122, 2) << 16
        old, new = (field(40, 4), field(44, 4)) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else (0, 0)
        rdev = ((old >> 8) & 0xFF, old & 0xFF) if old else device_number(new)
        return Ext4Inode(number, mode, uid, gid, size, flags, pieces, behind, target, self._xattrs(raw, number), rdev, field(16, 4))

    def verity_descriptor(self, inode: Ext4Inode) -> bytes:
        """Returns the descriptor of a verity file and the signature behind it. Source: fs/ext4/verity.c (ext4_get_verity_descriptor_…)."""
        if not inode.behind:
            raise FormatError("a verity file has nothing behind its end", where=f"ext4: inode {inode.number}")
        last_at, last_offset, last_length = inode.behind[-1]
        end = last_at + last_length
        size = int.from_bytes(self._bytes(last_offset + last_length - 4, 4), "little")
        start = (end - 4 - size) // self._block * self._block
        first = -(-inode.size_bytes // _VERITY_ALIGNMENT) * _VERITY_ALIGNMENT
        if not 256 <= size <= 16384 or start < first:
            raise FormatError(f"a verity descriptor of {size} bytes cannot be", where=f"ext4: inode {inode.number}")
        raw = bytearray(size)
        for at, offset, length in inode.behind:
            low, high = max(at, start), min(at + length, start + size)
            if low < high:
                raw[low - start : high - start] = self._bytes(offset + low - at, high - low)
        return bytes(raw)

    def _raw_inode(self, number: int) -> bytes:
        if not 0 < number <= self._inodes:
            raise FormatError(f"there is no inode {number}", where="ext4")
        group, index = divmod(number - 1, self._per_group)
        if group not in self._tables:
            raw = self._bytes(self._descriptors_at + group * self._descriptor, self._descriptor)
            high = int.from_bytes(raw[0x28:0x2C], "little") if self._descriptor >= 64 else 0
            self._tables[group] = (int.from_bytes(raw[8:12], "little") | high << 32) * self._block
        return self._bytes(self._tables[group] + index * self._inode_bytes, self._inode_bytes)

    def _runs(self, node: bytes, number: int, depth: int | None = None) -> Iterator[tuple[int, int, int]]:
        """Yields (first block in the file, first block in the image or -1 for zeros, number of blocks) of an extent tree."""
        magic, entries, _, level, _ = _EXTENT_HEADER.unpack_from(node)
        if magic != _EXTENT_MAGIC or level > 5 or (depth is not None and level != depth) or 12 * (entries + 1) > len(node):
            raise FormatError(f"inode {number} has a damaged extent tree", where="ext4")
        for at in range(12, 12 * (entries + 1), 12):
            self._extents += 1
            if self._extents > MAX_EXTENTS:
                raise FormatError(f"more than {MAX_EXTENTS} extents", where="ext4")
            if level:
                block, low, high, _ = struct.unpack_from("<IIHH", node, at)
                yield from self._runs(self._bytes((high << 32 | low) * self._block, self._block), number, level - 1)
            else:
                block, length, high, low = struct.unpack_from("<IHHI", node, at)
                unwritten = length > 32768
                yield block, -1 if unwritten else high << 32 | low, length - 32768 if unwritten else length

    def _pieces(
        self, runs: list[tuple[int, int, int]], size: int, number: int
    ) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int, int], ...]]:
        """Returns the pieces of the content with holes between them, and those past its end."""
        pieces: list[tuple[int, int]] = []
        behind: list[tuple[int, int, int]] = []
        reached = 0
        for block, place, count in runs:
            start, length = block * self._block, count * self._block
            if start < reached or (place >= 0 and (place + count) * self._block > self._size):
                raise FormatError(f"the extents of inode {number} overlap, or leave the image", where="ext4")
            if start > reached and reached < size:
                pieces.append((-1, min(start, size) - reached))
            inside = max(0, min(length, size - start))
            if inside:
                pieces.append((place * self._block if place >= 0 else -1, inside))
            past = -(-inside // self._block) * self._block
            if past < length and place >= 0:
                behind.append((start + past, place * self._block + past, length - past))
            reached = start + length
        if reached < size:
            pieces.append((-1, size - reached))
        return tuple(pieces), tuple(behind)

    def _names(self, inode: Ext4Inode) -> Iterator[tuple[bytes, int]]:
        """Yields name and inode number of what is in a folder; the index blocks of large ones look like unused entries."""
        if inode.size_bytes > self._size:
            raise FormatError("a folder is larger than the image", where=f"ext4: inode {inode.number}")
        raw = b"".join(self._bytes(offset, length) if offset >= 0 else bytes(length) for offset, length in inode.pieces)
        for start in range(0, len(raw), self._block):
            at, end = start, min(start + self._block, len(raw))
            while at + 8 <= end:
                number, length, name_length = struct.unpack_from("<IHB", raw, at)
                if length < 8 or length % 4 or at + length > end or name_length > length - 8:
                    raise FormatError("an entry does not fit into its block", where=f"ext4: folder, inode {inode.number}")
                name = raw[at + 8 : at + 8 + name_length]
                at += length
                if not number or not name_length or name in (b".", b".."):
                    continue
                if b"/" in name or b"\0" in name:
                    raise FormatError(f"no file can be named {name[:40]!r}", where=f"ext4: folder, inode {inode.number}")
                yield name, number

    def _xattrs(self, raw: bytes, number: int) -> dict[str, bytes]:
        """Returns the extended attributes of an inode: those behind its fields, and those in a block of their own."""
        found: dict[str, bytes] = {}
        if len(raw) > 132:
            at = 128 + int.from_bytes(raw[128:130], "little")
            if int.from_bytes(raw[at : at + 4], "little") == _XATTR_MAGIC:
                self._attributes(raw, at + 4, at + 4, found, number)
        block = int.from_bytes(raw[104:108], "little") | int.from_bytes(raw[118:120], "little") << 32
        if block:
            area = self._bytes(block * self._block, self._block)
            if int.from_bytes(area[:4], "little") == _XATTR_MAGIC:
                self._attributes(area, 32, 0, found, number)
        return found

    @staticmethod
    def _attributes(area: bytes, at: int, base: int, found: dict[str, bytes], number: int) -> None:
        while at + 16 <= len(area) and area[at : at + 4] != bytes(4):
            name_length, index, offset, inode, size, _ = _XATTR_ENTRY.unpack_from(area, at)
            name = area[at + 16 : at + 16 + name_length]
            if base + offset + size > len(area) or at + 16 + name_length > len(area):
                raise FormatError("an extended attribute goes past its area", where=f"ext4: inode {number}")
            if index in _PREFIXES and not inode:
                found[_PREFIXES[index] + name.decode("utf-8", "surrogateescape")] = area[base + offset : base + offset + size]
            at += 16 + -(-name_length // 4) * 4

    def _bytes(self, offset: int, length: int) -> bytes:
        """Returns bytes of the image. Raises: FormatError where it has fewer."""
        raw = self._read_at(offset, length) if 0 <= offset < self._size else b""
        if len(raw) < length:
            raise FormatError(f"wanted {length} bytes, the image has {len(raw)}", where=f"ext4: offset {offset:#x}")
        return raw
