"""EROFS images, read where they lie: names, modes, extended attributes, and the content of files that are not compressed.

Nothing in it is trusted: every place is checked against the image, a folder is entered once, and the number of names is bounded.
Source: Linux fs/erofs/erofs_fs.h, inode.c, data.c, dir.c, xattr.c.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from uuid import UUID

from ipe_build.errors import FormatError
from ipe_build.formats.tree_walk import walk

MAGIC = b"\xe2\xe1\xf5\xe0"
SUPERBLOCK_AT = 1024
_SUPERBLOCK = struct.Struct("<4sIIBBHQQIIII16s16sIHHHBBIQ")
_COMPACT = struct.Struct("<HHHHIIIIHHI")
_EXTENDED = struct.Struct("<HHHHQIIIIQII")
_DIRENT = struct.Struct("<QHBB")
_PLAIN, _COMPRESSED_FULL, _INLINE, _COMPRESSED_COMPACT, _CHUNKS = range(5)
_HOLE = 0xFFFFFFFF
_CHUNK_INDEXES = 0x20
_PREFIXES = {1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)` returns that many bytes of the image, fewer only at its end."""


def device_number(raw: int) -> tuple[int, int]:
    """Returns major and minor of the kernel's 32-bit form of a device number. Source: include/linux/kdev_t.h (new_decode_dev)."""
    return (raw & 0xFFF00) >> 8, (raw & 0xFF) | ((raw >> 12) & 0xFFF00)


class CompressedError(FormatError):
    """The image has compressed files, or its data on other devices; those are not read here."""


class ErofsInode(NamedTuple):
    """A file of the image. `pieces` say where its content lies: (offset in the image, -1 for zeros; length in bytes), in order.

    `rdev` is a device's (major, minor), `mtime` in seconds since 1970. Read with `metadata_only`, a compressed file has no pieces.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    pieces: tuple[tuple[int, int], ...]
    xattrs: Mapping[str, bytes]
    rdev: tuple[int, int] = (0, 0)
    mtime: int = 0


class Erofs:
    """An EROFS image. Raises: FormatError from all of it; CompressedError where something would have to be unpacked.

    With `metadata_only` compressed files are no error: names, modes, owners and attributes are there, contents are not.
    """

    def __init__(self, read_at: ReadAt, size_bytes: int, *, metadata_only: bool = False) -> None:
        self._read_at, self._size, self._metadata_only = read_at, size_bytes, metadata_only
        raw = read_at(SUPERBLOCK_AT, _SUPERBLOCK.size)
        if len(raw) < _SUPERBLOCK.size or raw[:4] != MAGIC:
            raise FormatError(f"wanted the magic e2 e1 f5 e0, got {raw[:4].hex(' ')}", where="EROFS: offset 0x400")
        fields = _SUPERBLOCK.unpack(raw)
        self._bits, self._root = fields[3], fields[5]
        self._meta, self._xattr = fields[10], fields[11]
        self._dir_bits = fields[18]
        if not 9 <= self._bits <= 16 or self._dir_bits > 4:
            raise FormatError(f"wanted blocks of 512 to 65536 bytes, got 2^{self._bits}", where="EROFS: offset 0x40c")
        self._block = 1 << self._bits
        self.uuid, self.build_time, self.incompatible = UUID(bytes=fields[12]), fields[7], fields[14]

    @property
    def is_compressed(self) -> bool:
        """Returns whether files may be compressed (LZ4 with zeros in front, or a table of compressors)."""
        return bool(self.incompatible & 0x3)

    @property
    def root(self) -> ErofsInode:
        """Returns the inode of the root folder, which `walk` leaves out."""
        return self.inode(self._root)

    def walk(self) -> Iterator[tuple[bytes, ErofsInode]]:
        """Yields path (without a slash in front) and inode of everything below the root, folders before what is in them."""
        return walk(self._root, self.inode, self._names, "EROFS")

    def inode(self, number: int) -> ErofsInode:
        """Returns the inode of a number ("nid")."""
        at = (self._meta << self._bits) + number * 32
        raw = self._bytes(at, 64, short=True)
        if len(raw) < 32:
            raise FormatError(f"inode {number} lies outside the image", where=f"EROFS: offset {at:#x}")
        extended = raw[0] & 1
        if extended:
            if len(raw) < 64:
                raise FormatError(f"inode {number} lies outside the image", where=f"EROFS: offset {at:#x}")
            form, icount, mode, _, size, union, _, uid, gid, mtime, *_ = _EXTENDED.unpack(raw[: _EXTENDED.size])
        else:
            form, icount, mode, _, size, _, union, _, uid, gid, _ = _COMPACT.unpack(raw[:32])
            mtime = self.build_time
        xattr_bytes = 12 + 4 * (icount - 1) if icount else 0
        behind = at + (64 if extended else 32) + xattr_bytes
        pieces: tuple[tuple[int, int], ...] = ()
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            pieces = self._pieces(form >> 1 & 7, number, size, union, behind)
        else:
            size = 0
        xattrs = self._xattrs(behind - xattr_bytes, xattr_bytes) if xattr_bytes else {}
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return ErofsInode(number, mode, uid, gid, size, pieces, xattrs, device_number(union) if is_device else (0, 0), mtime)

    def _pieces(self, layout: int, number: int, size: int, union: int, behind: int) -> tuple[tuple[int, int], ...]:
        """Returns where a file's content lies."""
        if layout in (_COMPRESSED_FULL, _COMPRESSED_COMPACT):
            if self._metadata_only:
                return ()
            raise CompressedError(f"inode {number} is compressed", where="EROFS")
        if layout == _CHUNKS:
            return self._chunks(number, size, union, behind)
        if layout not in (_PLAIN, _INLINE):
            raise FormatError(f"inode {number} has the unknown data layout {layout}", where="EROFS")
        inline = 0
        if layout == _INLINE and size:
            inline = (size - 1) % self._block + 1
            if behind % self._block + inline > self._block:
                raise FormatError(f"the inline data of inode {number} crosses a block", where=f"EROFS: offset {behind:#x}")
        pieces = []
        if size > inline:
            pieces.append(self._place(union << self._bits, size - inline, number))
        if inline:
            pieces.append(self._place(behind, inline, number))
        return tuple(pieces)

    def _chunks(self, number: int, size: int, union: int, behind: int) -> tuple[tuple[int, int], ...]:
        """Returns where a chunk-based file's content lies. Its table stands behind the inode."""
        chunk = self._block << (union & 0x1F)
        width = 8 if union & _CHUNK_INDEXES else 4
        count = -(-size // chunk)
        table_at = -(-behind // width) * width
        if count * width > self._size:
            raise FormatError(f"inode {number} has {count} chunks, more than the image has room for", where=f"EROFS: offset {table_at:#x}")
        table = self._bytes(table_at, count * width)
        pieces: list[tuple[int, int]] = []
        for index in range(count):
            entry = table[index * width : (index + 1) * width]
            block = int.from_bytes(entry[4:8] if width == 8 else entry, "little")
            if width == 8 and block != _HOLE and int.from_bytes(entry[2:4], "little"):
                raise CompressedError(f"inode {number} has data on another device", where="EROFS")
            length = min(chunk, size - index * chunk)
            place = (-1, length) if block == _HOLE else self._place(block << self._bits, length, number)
            if pieces and place[0] >= 0 and sum(pieces[-1]) == place[0]:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + length)
            else:
                pieces.append(place)
        return tuple(pieces)

    def _place(self, offset: int, length: int, number: int) -> tuple[int, int]:
        if offset + length > self._size:
            raise FormatError(f"inode {number} has {length} bytes at {offset:#x}, the image {self._size}", where="EROFS")
        return offset, length

    def _names(self, inode: ErofsInode) -> Iterator[tuple[bytes, int]]:
        """Yields name and inode number of what is in a folder."""
        if inode.size_bytes > self._size:
            raise FormatError("a folder is larger than the image", where=f"EROFS: inode {inode.number}")
        raw = b"".join(self._bytes(offset, length) if offset >= 0 else bytes(length) for offset, length in inode.pieces)
        step = self._block << self._dir_bits
        for start in range(0, len(raw), step):
            block = raw[start : start + step]
            first = int.from_bytes(block[8:10], "little")
            if not _DIRENT.size <= first <= len(block) or first % _DIRENT.size:
                raise FormatError(f"wanted an offset of the first name, got {first}", where=f"EROFS: folder, inode {inode.number}")
            rows = [_DIRENT.unpack_from(block, at) for at in range(0, first, _DIRENT.size)]
            for row, after in zip(rows, [*(row[1] for row in rows[1:]), len(block)], strict=True):
                if not first <= row[1] <= after <= len(block):
                    raise FormatError("a name lies outside its block", where=f"EROFS: folder, inode {inode.number}")
                name = block[row[1] : after].split(b"\0", 1)[0]
                if name in (b".", b".."):
                    continue
                if not name or b"/" in name or len(name) > 255:
                    raise FormatError(f"no file can be named {name[:40]!r}", where=f"EROFS: folder, inode {inode.number}")
                yield name, row[0]

    def _xattrs(self, at: int, length: int) -> dict[str, bytes]:
        """Returns the extended attributes of an inode: its own, and those that it shares with others."""
        body = self._bytes(at, length)
        shared = body[4]
        found: dict[str, bytes] = {}
        if 12 + 4 * shared > length:
            raise FormatError("shared attributes go past the inode's", where=f"EROFS: offset {at:#x}")
        position = 12 + 4 * shared
        while position + 4 <= length and body[position : position + 4] != bytes(4):
            position += self._attribute(body, position, found, at)
        for index in range(shared):
            place = (self._xattr << self._bits) + 4 * int.from_bytes(body[12 + 4 * index : 16 + 4 * index], "little")
            head = self._bytes(place, 4)
            raw = self._bytes(place, 4 + head[0] + int.from_bytes(head[2:4], "little"))
            self._attribute(raw, 0, found, place)
        return found

    @staticmethod
    def _attribute(body: bytes, at: int, found: dict[str, bytes], where: int) -> int:
        """Adds one attribute to those found; returns how many bytes it takes."""
        name_length, index, size = body[at], body[at + 1], int.from_bytes(body[at + 2 : at + 4], "little")
        end = at + 4 + name_length + size
        if end > len(body):
            raise FormatError("an extended attribute goes past its area", where=f"EROFS: offset {where:#x}")
        prefix = _PREFIXES.get(index)
        if prefix is not None:
            name = body[at + 4 : at + 4 + name_length].decode("utf-8", "surrogateescape")
            found[prefix + name] = body[at + 4 + name_length : end]
        return -(-(end - at) // 4) * 4

    def _bytes(self, offset: int, length: int, *, short: bool = False) -> bytes:
        """Returns bytes of the image. Raises: FormatError where it has fewer, unless `short`."""
        raw = self._read_at(offset, length) if 0 <= offset < self._size else b""
        if len(raw) < length and not short:
            raise FormatError(f"wanted {length} bytes, the image has {len(raw)}", where=f"EROFS: offset {offset:#x}")
        return raw
