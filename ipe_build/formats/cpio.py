"""cpio archives of the "newc" kind, as the kernel unpacks them into the initramfs: bytes <-> values.

Source: Linux init/initramfs.c; Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dissect.cstruct import cstruct

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.c_cpio import C_CPIO

MAGIC = b"070701"
MAGIC_CHECKED = b"070702"
HEADER_BYTES = 110
TRAILER = "TRAILER!!!"
PATH_MAX = 4096
_MAX_FIELD = 0xFFFFFFFF

COMPRESSIONS: tuple[tuple[str, bytes], ...] = (
    ("gzip", b"\x1f\x8b"),
    ("gzip", b"\x1f\x9e"),
    ("bzip2", b"BZh"),
    ("lzma", b"\x5d\x00\x00"),
    ("xz", b"\xfd7zXZ\x00"),
    ("lzo", b"\x89LZO"),
    ("lz4", b"\x02\x21\x4c\x18"),
    ("zstd", b"\x28\xb5\x2f\xfd"),
)
"""What the kernel recognises at the start of a compressed archive (lib/decompress.c)."""

_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_C = cstruct(endian="<")
_C.load(C_CPIO)
_FIELDS = ("ino", "mode", "uid", "gid", "nlink", "mtime", "devmajor", "devminor", "rdevmajor", "rdevminor")


@dataclass(frozen=True, slots=True)
class CpioEntry:
    """One member. `path` has no leading slash; bytes that are not UTF-8 are surrogate escapes. `mode` holds type and permissions.

    `data` is a file's content or a symbolic link's target. `ino` 0 when writing: numbered in order from 1.
    """

    path: str
    mode: int
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    nlink: int = 1
    rdev: tuple[int, int] = (0, 0)
    ino: int = 0
    dev: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive within an initramfs: `end` is the offset after its trailer and padding; `trailer` is false when it was missing."""

    entries: tuple[CpioEntry, ...]
    end: int
    trailer: bool = True


def directory(path: str, *, mode: int = 0o755, mtime: int = 0) -> CpioEntry:
    """Returns an entry for a folder."""
    return CpioEntry(path, stat.S_IFDIR | mode, mtime=mtime, nlink=2)


def regular_file(path: str, data: bytes, *, mode: int = 0o644, mtime: int = 0) -> CpioEntry:
    """Returns an entry for a file."""
    return CpioEntry(path, stat.S_IFREG | mode, data, mtime=mtime)


def symbolic_link(path: str, target: str, *, mtime: int = 0) -> CpioEntry:
    """Returns an entry for a symbolic link."""
    return CpioEntry(path, stat.S_IFLNK | 0o777, target.encode("utf-8", "surrogateescape"), mtime=mtime)


def character_device(path: str, major: int, minor: int, *, mode: int = 0o600, mtime: int = 0) -> CpioEntry:
    """Returns an entry for a character device."""
    return CpioEntry(path, stat.S_IFCHR | mode, mtime=mtime, rdev=(major, minor))


def write_cpio(entries: Iterable[CpioEntry], *, block_bytes: int = 512) -> bytes:
    """Returns one archive with its trailer, padded with zeros to a multiple of `block_bytes` (a multiple of 4).

    Entries are written in the order given; the same entries give the same bytes.
    Raises: InputError for a path that the kernel would not unpack, or a number that does not fit.
    """
    pieces: list[bytes] = []
    for number, entry in enumerate(entries, 1):
        pieces.append(_member(entry, entry.ino or number))
    pieces.append(_member(CpioEntry(TRAILER, 0), 0))
    raw = b"".join(pieces)
    return raw.ljust(-(-len(raw) // block_bytes) * block_bytes, b"\0")


def read_archive(data: bytes | memoryview, offset: int = 0, *, max_entries: int = 1_000_000) -> Archive:
    """Returns the archive that begins at `offset`, as the kernel reads it: up to its trailer, zeros between members skipped.

    Raises: FormatError naming the offset for anything that the kernel would stop at, and for members that leave the archive.
    """
    view = memoryview(data)
    entries: list[CpioEntry] = []
    while offset < len(view):
        if view[offset] == 0:
            offset = skip_zeros(view, offset)
            continue
        if not _is_member(view, offset):
            if entries:
                return Archive(tuple(entries), offset, trailer=False)
            raise FormatError(f"wanted the magic 070701 or 070702, got {bytes(view[offset : offset + 6])!r}", where=_at(offset))
        if offset % 4:
            raise FormatError("a member must begin at a multiple of 4", where=_at(offset))
        entry, offset = _read_member(view, offset)
        if entry.path == TRAILER:
            return Archive(tuple(entries), skip_zeros(view, offset))
        entries.append(entry)
        if len(entries) > max_entries:
            raise FormatError(f"more than {max_entries} members", where=_at(offset))
    return Archive(tuple(entries), len(view), trailer=False)


def read_archives(data: bytes | memoryview) -> Iterator[Archive]:
    """Yields the plain archives at the start of an initramfs; stops before the first byte that begins no plain archive.

    What follows the last archive's `end` is a compressed archive (`compression_of` names how) or nothing.
    """
    view = memoryview(data)
    offset = skip_zeros(view, 0)
    while _is_member(view, offset):
        archive = read_archive(view, offset)
        yield archive
        offset = archive.end


def compression_of(data: bytes | memoryview, offset: int = 0) -> str | None:
    """Returns the kernel's name for the compression of what begins at `offset`, or None when it is none that the kernel knows."""
    head = bytes(data[offset : offset + 8])
    return next((name for name, magic in COMPRESSIONS if head.startswith(magic)), None)


def _member(entry: CpioEntry, ino: int) -> bytes:
    """Returns a member: header, name with NUL padded to 4, data padded to 4."""
    where = f"initramfs: {entry.path}"
    name = entry.path.encode("utf-8", "surrogateescape")
    parts = entry.path.split("/")
    if not name or b"\0" in name or len(name) + 1 > PATH_MAX or ".." in parts or entry.path.startswith("/") or "" in parts:
        raise InputError("wanted a relative path without '..' or empty parts, of at most 4095 bytes", where=where)
    if entry.data and not (stat.S_ISREG(entry.mode) or stat.S_ISLNK(entry.mode)):
        raise InputError("only files and symbolic links have content", where=where)
    if stat.S_ISLNK(entry.mode) and not 0 < len(entry.data) < PATH_MAX:
        raise InputError("wanted a link's target of 1 to 4095 bytes", where=where)
    numbers = (ino, entry.mode, entry.uid, entry.gid, entry.nlink, entry.mtime, *entry.dev, *entry.rdev)
    values = dict(zip(_FIELDS, numbers, strict=True)) | {"filesize": len(entry.data), "namesize": len(name) + 1, "check": 0}
    for field, value in values.items():
        if not 0 <= value <= _MAX_FIELD:
            raise InputError(f"{field} does not fit into 32 bits: {value}", where=where)
    header: Any = _C.cpio_header(magic=MAGIC, **{field: b"%08x" % value for field, value in values.items()})
    head = header.dumps() + name + b"\0"
    return bytes(_padded(head) + _padded(entry.data))


def _read_member(view: memoryview, offset: int) -> tuple[CpioEntry, int]:
    """Returns the member at `offset` and the offset of the next one."""
    if len(view) - offset < HEADER_BYTES:
        raise FormatError(f"wanted a header of {HEADER_BYTES} bytes, got {len(view) - offset}", where=_at(offset))
    header: Any = _C.cpio_header(bytes(view[offset : offset + HEADER_BYTES]))
    values = {field: _hex(getattr(header, field), field, offset) for field in (*_FIELDS, "filesize", "namesize", "check")}
    if not 0 < values["namesize"] <= PATH_MAX:
        raise FormatError(f"wanted a name of 1 to {PATH_MAX} bytes, got {values['namesize']}", where=_at(offset))
    name_at = offset + HEADER_BYTES
    data_at = _aligned(name_at + values["namesize"])
    end = data_at + values["filesize"]
    if end > len(view):
        raise FormatError(f"the member ends at {end:#x}, the archive at {len(view):#x}", where=_at(offset))
    name = bytes(view[name_at : name_at + values["namesize"]])
    if name[-1:] != b"\0":
        raise FormatError("the name does not end with NUL", where=_at(name_at))
    content = bytes(view[data_at:end])
    if header.magic == MAGIC_CHECKED and sum(content) & _MAX_FIELD != values["check"]:
        raise FormatError(f"content check: wanted {values['check']:#x}, got {sum(content) & _MAX_FIELD:#x}", where=_at(offset))
    entry = CpioEntry(
        path=name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"),
        mode=values["mode"],
        data=content,
        uid=values["uid"],
        gid=values["gid"],
        mtime=values["mtime"],
        nlink=values["nlink"],
        rdev=(values["rdevmajor"], values["rdevminor"]),
        ino=values["ino"],
        dev=(values["devmajor"], values["devminor"]),
    )
    return entry, min(_aligned(end), len(view))


def _is_member(view: memoryview, offset: int) -> bool:
    """Returns whether a member's magic is at `offset`."""
    return bytes(view[offset : offset + 6]) in (MAGIC, MAGIC_CHECKED)


def skip_zeros(view: memoryview, offset: int) -> int:
    """Returns the offset of the next byte that is not zero, or the end; an offset behind the end is returned as it is."""
    while offset < len(view):
        piece = bytes(view[offset : offset + 65536])
        rest = piece.lstrip(b"\0")
        if rest:
            return offset + len(piece) - len(rest)
        offset += len(piece)
    return max(offset, len(view))


def _hex(raw: bytes, field: str, offset: int) -> int:
    """Returns the number that eight hex digits say."""
    if not set(raw) <= _HEX_DIGITS:
        raise FormatError(f"{field}: wanted eight hex digits, got {raw!r}", where=_at(offset))
    return int(raw, 16)


def _aligned(offset: int) -> int:
    """Returns the next multiple of 4."""
    return (offset + 3) & ~3


def _padded(data: bytes) -> bytes:
    """Returns the data with zeros up to a multiple of 4."""
    return data.ljust(_aligned(len(data)), b"\0")


def _at(offset: int) -> str:
    """Returns where an error is."""
    return f"cpio: offset {offset:#x}"
