"""SquashFS 4.0 images, read where they lie: names, modes, owners, times, extended attributes, and contents block by block.

Nothing in it is trusted: every block unpacks to at most what it may, a folder is entered once, names and unpacked bytes are bounded.
Read are gzip, xz and zstd; LZO, LZ4 and LZMA are said to be unsupported.
Source: Linux Documentation/filesystems/squashfs.rst, fs/squashfs/squashfs_fs.h, inode.c, dir.c, xattr.c.
"""

from __future__ import annotations

import lzma
import stat
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from ipe_build.errors import FormatError
from ipe_build.formats.erofs import device_number
from ipe_build.formats.tree_walk import walk
from ipe_build.formats.zstd_library import zstd_errors, zstd_library

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)` returns that many bytes of the image, fewer only at its end."""

MAX_UNPACKED_BYTES = 64 << 30
"""So much is unpacked of one image in all."""
_SUPERBLOCK = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
_INODE = struct.Struct("<HHHHII")
_DIRECTORY_HEADER = struct.Struct("<III")
_DIRECTORY_ENTRY = struct.Struct("<HhHH")
_METADATA_BYTES = 8192
_NOTHING = 0xFFFFFFFF
_NO_TABLE = 0xFFFFFFFFFFFFFFFF
_KEPT_METADATA, _KEPT_BLOCKS = 4096, 32
_PREFIXES = {0: "user.", 1: "trusted.", 2: "security."}
_MAX_XATTRS_BYTES = 1 << 20
MAX_XATTRS_BYTES = 256 << 20
_TYPES = (0, stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK)
Place = tuple[int, int]
"""A place in a table of metadata: offset of a block in the image, offset in what it unpacks to."""


class UnsupportedError(FormatError):
    """The image uses something that is not read here."""


class Content(NamedTuple):
    """Where a file's content is: its first block in the image, its list of blocks' sizes, its fragment's number (-1: none) and offset."""

    start: int
    sizes: Place
    fragment: int
    offset: int


class SquashfsInode(NamedTuple):
    """A file of the image. `mtime` is in seconds since 1970, `rdev` a device's (major, minor), `content` a regular file's."""

    number: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size_bytes: int
    target: bytes
    xattrs: Mapping[str, bytes]
    rdev: tuple[int, int] = (0, 0)
    content: Content | None = None
    listing: Place = (0, 0)


class _Kept:
    """What was unpacked last, by where it lies; a fixed number of blocks."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._blocks: OrderedDict[int, tuple[bytes, int]] = OrderedDict()

    def get(self, at: int, make: Callable[[], tuple[bytes, int]]) -> tuple[bytes, int]:
        """Returns a block, made where it is not kept."""
        if at in self._blocks:
            self._blocks.move_to_end(at)
        else:
            self._blocks[at] = make()
            if len(self._blocks) > self._count:
                self._blocks.popitem(last=False)
        return self._blocks[at]


class Squashfs:
    """A SquashFS image. Raises: FormatError from all of it; UnsupportedError for what is not read here."""

    def __init__(self, read_at: ReadAt, size_bytes: int) -> None:
        self._read_at, self._size = read_at, size_bytes
        raw = read_at(0, _SUPERBLOCK.size)
        if len(raw) < _SUPERBLOCK.size or raw[:4] != b"hsqs":
            raise FormatError(f"wanted the magic 68 73 71 73, got {raw[:4].hex(' ')}", where="SquashFS: offset 0x0")
        fields = _SUPERBLOCK.unpack(raw)
        _, _, self.made_at, self._block, self._fragments, compression, log, _, self._ids, major, minor = fields[:11]
        root, _, self._id_at, self._xattr_at, self._inode_at, self._folder_at, self._fragment_at, _ = fields[11:]
        if (major, minor) != (4, 0) or not 12 <= log <= 20 or self._block != 1 << log:
            raise FormatError(
                f"version {major}.{minor} with blocks of {self._block} bytes (2^{log}) cannot be", where="SquashFS: offset 0xc"
            )
        if compression not in _UNPACK:
            raise UnsupportedError(f"its compression (number {compression}) is not read here", where="SquashFS: offset 0x14")
        self._unpacked, self._left = _UNPACK[compression], MAX_UNPACKED_BYTES
        self._metadata, self._blocks = _Kept(_KEPT_METADATA), _Kept(_KEPT_BLOCKS)
        self._root: Place = (self._inode_at + (root >> 16), root & 0xFFFF)
        self._xattrs_of: dict[int, Mapping[str, bytes]] = {}
        self._xattr_left = MAX_XATTRS_BYTES

    def walk(self) -> Iterator[tuple[bytes, SquashfsInode]]:
        """Yields path (without a slash in front) and inode of everything below the root, folders before what is in them."""
        return walk(self._root, self.inode, self._names, "SquashFS")

    def inode(self, place: Place) -> SquashfsInode:
        """Returns the inode at a place of the inode table."""
        raw, at = self._take(place, 16)
        kind, mode, uid, gid, mtime, number = _INODE.unpack(raw)
        extended, kind = kind > 7, kind - 7 if kind > 7 else kind
        if not 1 <= kind <= 7:
            raise FormatError(f"an inode of type {kind} cannot be", where=f"SquashFS: inode {number}")
        size, target, content, listing, rdev, xattr = 0, b"", None, (0, 0), (0, 0), _NOTHING
        if kind == 1:
            size, listing, xattr = self._folder(at, extended=extended)
        elif kind == 2:
            size, content, xattr = self._file(at, extended=extended)
        elif kind == 3:
            raw, at = self._take(at, 8)
            size = int.from_bytes(raw[4:8], "little")
            if size > 65536:
                raise FormatError(f"a symbolic link of {size} bytes cannot be", where=f"SquashFS: inode {number}")
            target, at = self._take(at, size)
            xattr = self._number(at) if extended else _NOTHING
        else:
            raw, at = self._take(at, 8 if kind in (4, 5) else 4)
            rdev = device_number(int.from_bytes(raw[4:8], "little")) if kind in (4, 5) else (0, 0)
            xattr = self._number(at) if extended else _NOTHING
        owner, group = self._id(uid), self._id(gid)
        attributes = self._xattrs(xattr)
        return SquashfsInode(number, _TYPES[kind] | mode & 0o7777, owner, group, mtime, size, target, attributes, rdev, content, listing)

    def read(self, inode: SquashfsInode, offset: int, length: int) -> bytes:
        """Returns bytes of a regular file, fewer only at its end."""
        content = inode.content
        length = min(length, inode.size_bytes - offset)
        if content is None or offset < 0 or length <= 0:
            return b""
        whole = inode.size_bytes // self._block if content.fragment >= 0 else -(-inode.size_bytes // self._block)
        first, last = offset // self._block, (offset + length - 1) // self._block
        place, cursor, out = content.start, content.sizes, []
        for index in range(min(last + 1, whole)):
            raw, cursor = self._take(cursor, 4)
            size = int.from_bytes(raw, "little")
            if index >= first:
                wanted = min(self._block, inode.size_bytes - index * self._block)
                out.append(self._data(place, size, wanted) if size & 0xFFFFFF else self._zeros(wanted))
            place += size & 0xFFFFFF
        if last >= whole:
            out.append(self._fragment(content, inode.size_bytes - whole * self._block))
        raw = b"".join(out)
        start = offset - first * self._block
        return raw[start : start + length]

    def _folder(self, at: Place, *, extended: bool) -> tuple[int, Place, int]:
        """Returns size and place of a folder's listing, and the number of its attributes."""
        if extended:
            raw, _ = self._take(at, 24)
            _, size, start, _, _, offset, xattr = struct.unpack("<IIIIHHI", raw)
        else:
            raw, _ = self._take(at, 16)
            start, _, size, offset, _ = struct.unpack("<IIHHI", raw)
            xattr = _NOTHING
        return size, (self._folder_at + start, offset), xattr

    def _file(self, at: Place, *, extended: bool) -> tuple[int, Content, int]:
        """Returns size and place of a file's content, and the number of its attributes."""
        if extended:
            raw, at = self._take(at, 40)
            start, size, _, _, fragment, offset, xattr = struct.unpack("<QQQIIII", raw)
        else:
            raw, at = self._take(at, 16)
            start, fragment, offset, size = struct.unpack("<IIII", raw)
            xattr = _NOTHING
        if size >> 48:
            raise FormatError(f"a file says {size} bytes", where="SquashFS")
        return size, Content(start, at, -1 if fragment == _NOTHING else fragment, offset), xattr

    def _names(self, inode: SquashfsInode) -> Iterator[tuple[bytes, Place]]:
        """Yields name and place of the inode of what is in a folder."""
        left, at = inode.size_bytes - 3, inode.listing
        while left > 0:
            raw, at = self._take(at, 12)
            count, start, _ = _DIRECTORY_HEADER.unpack(raw)
            left -= 12
            if count >= 256:
                raise FormatError(f"a run of {count + 1} names cannot be", where=f"SquashFS: folder, inode {inode.number}")
            for _ in range(count + 1):
                raw, at = self._take(at, 8)
                offset, _, _, length = _DIRECTORY_ENTRY.unpack(raw)
                name, at = self._take(at, length + 1)
                left -= 9 + length
                if left < 0 or length > 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
                    raise FormatError(f"no file can be named {name[:40]!r}", where=f"SquashFS: folder, inode {inode.number}")
                yield name, (self._inode_at + start, offset)

    def _fragment(self, content: Content, length: int) -> bytes:
        """Returns the end of a file: its part of a block that files share."""
        if content.fragment >= self._fragments:
            raise FormatError(f"there is no fragment {content.fragment}", where="SquashFS")
        start, size, _ = struct.unpack("<QII", self._entry(self._fragment_at, content.fragment, 16))
        block = self._data(start, size, 0)
        if content.offset + length > len(block):
            raise FormatError(f"fragment {content.fragment} has {len(block)} bytes, a file wants more", where="SquashFS")
        return block[content.offset : content.offset + length]

    def _data(self, at: int, size: int, wanted: int) -> bytes:
        """Returns a block of data of which `wanted` bytes are there (0: as many as it has)."""
        block = self._blocks.get(at, lambda: (self._open(at, size & 0xFFFFFF, self._block, packed=not size & 1 << 24), 0))[0]
        if wanted and len(block) != wanted:
            raise FormatError(f"wanted a block of {wanted} bytes, got {len(block)}", where=f"SquashFS: offset {at:#x}")
        return block

    def _zeros(self, length: int) -> bytes:
        self._count(length)
        return bytes(length)

    def _entry(self, table: int, index: int, size: int) -> bytes:
        """Returns an entry of a table that is found through a list of its blocks."""
        block, within = divmod(index * size, _METADATA_BYTES)
        place = int.from_bytes(self._bytes(table + 8 * block, 8), "little")
        return self._take((place, within), size)[0]

    def _id(self, index: int) -> int:
        if index >= self._ids:
            raise FormatError(f"there is no owner number {index}", where="SquashFS")
        return int.from_bytes(self._entry(self._id_at, index, 4), "little")

    def _xattrs(self, number: int) -> Mapping[str, bytes]:
        """Returns the attributes with a number."""
        if number == _NOTHING or self._xattr_at == _NO_TABLE:
            return {}
        if number not in self._xattrs_of:
            start, count = struct.unpack("<QI", self._bytes(self._xattr_at, 12))
            if number >= count:
                raise FormatError(f"there are no attributes number {number}", where="SquashFS")
            where, entries, size = struct.unpack("<QII", self._entry(self._xattr_at + 16, number, 16))
            self._xattr_left -= size
            if size > _MAX_XATTRS_BYTES or entries > size or self._xattr_left < 0:
                raise FormatError(f"attributes of {size} bytes cannot be", where="SquashFS")
            self._xattrs_of[number] = dict(self._attributes(start, (start + (where >> 16), where & 0xFFFF), entries))
        return self._xattrs_of[number]

    def _attributes(self, table: int, at: Place, entries: int) -> Iterator[tuple[str, bytes]]:
        for _ in range(entries):
            raw, at = self._take(at, 4)
            kind, length = struct.unpack("<HH", raw)
            name, at = self._take(at, length)
            raw, at = self._take(at, 4)
            value, at = self._take(at, _bounded(int.from_bytes(raw, "little")))
            if kind & 0x100:
                where = int.from_bytes(value[:8], "little")
                raw, there = self._take((table + (where >> 16), where & 0xFFFF), 4)
                value = self._take(there, _bounded(int.from_bytes(raw, "little")))[0]
            if kind & 0xFF in _PREFIXES:
                yield _PREFIXES[kind & 0xFF] + name.decode("utf-8", "surrogateescape"), value

    def _number(self, at: Place) -> int:
        return int.from_bytes(self._take(at, 4)[0], "little")

    def _take(self, place: Place, length: int) -> tuple[bytes, Place]:
        """Returns bytes of a table, which go on in the block behind, and the place after them."""
        at, offset = place
        block, after = self._metadata.get(at, partial(self._open_metadata, at))
        if offset + length <= len(block):
            return block[offset : offset + length], (at, offset + length)
        out = bytearray()
        while True:
            piece = block[offset : offset + length - len(out)]
            out += piece
            if len(out) == length:
                return bytes(out), (at, offset + len(piece))
            if len(block) < _METADATA_BYTES or offset > len(block):
                raise FormatError("a table ends too early", where=f"SquashFS: offset {at:#x}")
            offset, at = 0, after
            block, after = self._metadata.get(at, partial(self._open_metadata, at))

    def _open_metadata(self, at: int) -> tuple[bytes, int]:
        """Returns what a block of metadata unpacks to, and where the next one begins."""
        head = int.from_bytes(self._bytes(at, 2), "little")
        size = head & 0x7FFF or 0x8000
        return self._open(at + 2, size, _METADATA_BYTES, packed=not head & 0x8000), at + 2 + size

    def _open(self, at: int, size: int, most: int, *, packed: bool) -> bytes:
        """Returns a block, unpacked."""
        raw = self._bytes(at, size)
        if not packed:
            unpacked = raw
        else:
            try:
                unpacked = self._unpacked(raw, most + 1)
            except _damage() as error:
                raise FormatError(f"a block cannot be unpacked: {error}", where=f"SquashFS: offset {at:#x}") from error
        if len(unpacked) > most:
            raise FormatError(f"a block unpacks to more than {most} bytes", where=f"SquashFS: offset {at:#x}")
        self._count(len(unpacked))
        return unpacked

    def _count(self, length: int) -> None:
        self._left -= length
        if self._left < 0:
            raise FormatError(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes", where="SquashFS")

    def _bytes(self, offset: int, length: int) -> bytes:
        """Returns bytes of the image. Raises: FormatError where it has fewer."""
        raw = self._read_at(offset, length) if 0 <= offset < self._size else b""
        if len(raw) < length:
            raise FormatError(f"wanted {length} bytes, the image has {len(raw)}", where=f"SquashFS: offset {offset:#x}")
        return raw


def _damage() -> tuple[type[Exception], ...]:
    """Returns what the libraries raise for damaged data."""
    return (zlib.error, lzma.LZMAError, EOFError, ValueError, *zstd_errors())


def _bounded(length: int) -> int:
    if length > _MAX_XATTRS_BYTES:
        raise FormatError(f"an attribute of {length} bytes cannot be", where="SquashFS")
    return length


def _gzip(raw: bytes, most: int) -> bytes:
    return zlib.decompressobj().decompress(raw, most)


def _xz(raw: bytes, most: int) -> bytes:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=256 << 20).decompress(raw, most)


def _zstd(raw: bytes, most: int) -> bytes:
    unpacked: bytes = zstd_library().ZstdDecompressor().decompress(raw, most)
    return unpacked


_UNPACK: dict[int, Callable[[bytes, int], bytes]] = {1: _gzip, 4: _xz, 6: _zstd}
"""By the superblock's number. Source: fs/squashfs/squashfs_fs.h, ZLIB_COMPRESSION and its like."""
