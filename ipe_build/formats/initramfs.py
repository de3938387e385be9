"""An initramfs, unpacked as the kernel does: archives one behind the other, plain or compressed; later members replace earlier ones.

What the kernel makes of a path is what counts: `./init`, `/init` and `a/../init` are one file, a member below a folder that is not there
is not made, and a symbolic link leads where it leads. When the kernel meets damage it keeps what it has unpacked by then and goes on
booting; so does this, and says it.
Source: Linux init/initramfs.c (unpack_to_rootfs, do_header, do_name, clean_path, maybe_link), usr/default_cpio_list.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from ipe_build.formats.boot_config import split_boot_config
from ipe_build.formats.cpio import HEADER_BYTES, MAGIC, MAGIC_CHECKED, PATH_MAX, TRAILER, CpioEntry, skip_zeros
from ipe_build.formats.kernel_compression import COMPRESSIONS, KernelCompression, unpack_stream

MAX_UNPACKED_BYTES = 512 << 20
MAX_MEMBERS = 1_000_000
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_MAX_LINKS = 40
_MAX_DEPTH = 256
_PLAIN = "cpio"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an initramfs: where it begins, `cpio` or the kernel's name of its compression, how many members it has."""

    offset: int
    kind: str
    members: int


@dataclass(frozen=True, slots=True)
class Initramfs:
    """What lies in the root after unpacking, sorted by path. `error` is what the kernel stops at ("" when it reads it to its end).

    `incomplete` are members whose content is cut short, `replaced` paths that came more than once, the last one counting. `boot_config`
    is the text behind the archives that the kernel cuts off first.
    """

    entries: tuple[CpioEntry, ...]
    parts: tuple[Part, ...]
    error: str
    incomplete: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    boot_config: bytes | None = None

    def find(self, path: str) -> CpioEntry | None:
        """Returns the member at a path without a slash in front."""
        return next((entry for entry in self.entries if entry.path == path), None)


def unpack_initramfs(data: bytes, *, max_bytes: int = MAX_UNPACKED_BYTES) -> Initramfs:
    """Returns what the kernel makes of an initramfs. Nothing is raised: whatever is wrong with it is in `error`.

    `max_bytes` bounds what all its streams unpack to.
    """
    root = _Root()
    parts: list[Part] = []
    end, boot_config = split_boot_config(data)
    try:
        for part in _parts(memoryview(data)[:end], root, max_bytes):
            parts.append(part)
        error = ""
    except _StopError as stop:
        error = str(stop)
        parts += stop.parts
    return Initramfs(root.entries(), tuple(parts), error, tuple(root.incomplete), tuple(dict.fromkeys(root.replaced)), boot_config)


class _StopError(Exception):
    """Where the kernel stops unpacking, with the part in which that is."""

    def __init__(self, message: str, *parts: Part) -> None:
        super().__init__(message)
        self.parts = parts


def _parts(view: memoryview, root: _Root, max_bytes: int) -> Iterator[Part]:
    """Yields the parts while their members are put into the root."""
    offset, left = 0, max_bytes
    while (offset := skip_zeros(view, offset)) < len(view):
        if view[offset] == 0x30 and offset % 4 == 0:
            start, before = offset, root.members
            try:
                offset = _archives(view, offset, root)
            except _StopError as stop:
                raise _StopError(str(stop), Part(start, _PLAIN, root.members - before)) from None
            yield Part(start, _PLAIN, root.members - before)
            continue
        row = compression_at(view, offset)
        if row is None:
            raise _StopError(
                f"offset {offset:#x}: neither an archive nor a compression that the kernel knows: {bytes(view[offset:][:4]).hex(' ')}"
            )
        unpacked = unpack_stream(view[offset:], row, left)
        left -= len(unpacked.data)
        before = root.members
        try:
            _compressed(memoryview(unpacked.data), root)
            if unpacked.error:
                raise _StopError(f"offset {offset:#x}: the {row.name} data is damaged: {unpacked.error}")
        except _StopError as stop:
            raise _StopError(str(stop), Part(offset, row.name, root.members - before)) from None
        yield Part(offset, row.name, root.members - before)
        offset += unpacked.consumed


def compression_at(view: memoryview, offset: int) -> KernelCompression | None:
    """Returns the compression that the kernel takes what begins there for; it looks at two bytes. Source: lib/decompress.c."""
    head = bytes(view[offset : offset + 2])
    return next((row for row in COMPRESSIONS if len(head) == 2 and head == row.magic[:2]), None)


def _archives(view: memoryview, offset: int, root: _Root) -> int:
    """Returns the offset after the plain members that begin at `offset`."""
    while offset < len(view) and view[offset] == 0x30 and offset % 4 == 0:
        offset = skip_zeros(view, _member(view, offset, root))
        if offset < len(view) and offset % 4:
            raise _StopError(f"offset {offset:#x}: broken padding")
    return offset


def _compressed(view: memoryview, root: _Root) -> None:
    """Puts the members of a stream into the root."""
    offset = skip_zeros(view, 0)
    while offset < len(view):
        if view[offset] != 0x30:
            raise _StopError(f"offset {offset:#x} of the unpacked stream: junk within compressed archive")
        offset = skip_zeros(view, _member(view, offset, root))
        if offset < len(view) and offset % 4:
            raise _StopError(f"offset {offset:#x} of the unpacked stream: broken padding")


def _member(view: memoryview, offset: int, root: _Root) -> int:
    """Returns the offset after a member (padding included), which is then in the root as far as the kernel would put it there."""
    root.members += 1
    if root.members > MAX_MEMBERS:
        raise _StopError(f"offset {offset:#x}: more than {MAX_MEMBERS} members")
    head = bytes(view[offset : offset + HEADER_BYTES])
    if len(head) < HEADER_BYTES:
        return len(view)
    if head[:6] not in (MAGIC, MAGIC_CHECKED):
        raise _StopError(f"offset {offset:#x}: no cpio magic")
    if not _HEX_DIGITS.issuperset(head[6:]):
        raise _StopError(f"offset {offset:#x}: a field is no hexadecimal number")
    ino, mode, uid, gid, nlink, mtime, size, major, minor, rmajor, rminor, name_size, check = (
        int(head[at : at + 8], 16) for at in range(6, HEADER_BYTES, 8)
    )
    data_at = _aligned(offset + HEADER_BYTES + name_size)
    end = _aligned(data_at + size)
    if not 0 < name_size <= PATH_MAX or (stat.S_ISLNK(mode) and size > PATH_MAX):
        return end
    raw_name = bytes(view[offset + HEADER_BYTES : offset + HEADER_BYTES + name_size])
    if data_at > len(view) or (size and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))):
        return end
    if raw_name[-1:] != b"\0":
        raise _StopError(f"offset {offset:#x}: the name does not end with NUL")
    name = raw_name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    content = bytes(view[data_at : data_at + size])
    if name == TRAILER:
        root.forget_links()
        return end
    if stat.S_ISLNK(mode):
        content = content.split(b"\0", 1)[0]
        if data_at + size > len(view):
            return end
    if data_at + size > len(view):
        root.incomplete.append(name)
    root.put(CpioEntry(name, mode, content, uid, gid, mtime, nlink, (rmajor, rminor), ino, (major, minor)))
    if stat.S_ISREG(mode) and head[:6] == MAGIC_CHECKED and sum(content) & 0xFFFFFFFF != check:
        raise _StopError(f"offset {offset:#x}: bad data checksum of {name}")
    return end


def _aligned(offset: int) -> int:
    return (offset + 3) & ~3


@dataclass(slots=True)
class _Node:
    """A file of the root; hard links share one. `names` is a folder's content. `own` is false for what the kernel has there itself."""

    entry: CpioEntry
    names: dict[str, _Node] | None = None
    own: bool = True
    parent: _Node | None = field(default=None, repr=False)


class _Root:
    """The root file system while members are put into it."""

    def __init__(self) -> None:
        self.members = 0
        self.incomplete: list[str] = []
        self.replaced: list[str] = []
        self._top = _Node(CpioEntry("", stat.S_IFDIR | 0o755), {}, own=False)
        self._links: dict[tuple[int, int, int, int], _Node] = {}
        for path, mode in (("dev", stat.S_IFDIR | 0o755), ("dev/console", stat.S_IFCHR | 0o600), ("root", stat.S_IFDIR | 0o700)):
            self.put(CpioEntry(path, mode, rdev=(5, 1) if stat.S_ISCHR(mode) else (0, 0)))
            node = self._find(path)
            assert node is not None
            node.own = False

    def forget_links(self) -> None:
        """After a trailer hard links begin anew."""
        self._links = {}

    def put(self, entry: CpioEntry) -> None:
        """Makes a file as do_name() does; where the kernel would fail, nothing happens."""
        place = self._parent(entry.path)
        if place is None:
            return
        folder, name = place
        names = folder.names
        assert names is not None
        there = names.get(name)
        kind = stat.S_IFMT(entry.mode)
        if there is not None and there.own and not stat.S_ISDIR(entry.mode):
            self.replaced.append(entry.path)
        if there is not None and (stat.S_ISLNK(entry.mode) or stat.S_IFMT(there.entry.mode) != kind):
            if there.names:
                return
            del names[name]
            there = None
        if stat.S_ISDIR(entry.mode):
            if there is None:
                names[name] = _Node(entry, {}, parent=folder)
            else:
                there.entry, there.own = entry, True
            return
        linked = self._linked(entry)
        if linked is not None:
            names[name] = linked
            if stat.S_ISREG(entry.mode) and entry.data:
                linked.entry = entry
            return
        if there is not None:
            there.entry, there.own = entry if stat.S_ISREG(entry.mode) else there.entry, True
        else:
            names[name] = there = _Node(entry, parent=folder)
        if entry.nlink >= 2 and not stat.S_ISLNK(entry.mode):
            self._links[(*entry.dev, entry.ino, kind)] = there

    def _linked(self, entry: CpioEntry) -> _Node | None:
        """Returns the file that a member is another name of (find_link)."""
        if entry.nlink < 2 or stat.S_ISLNK(entry.mode):
            return None
        return self._links.get((*entry.dev, entry.ino, stat.S_IFMT(entry.mode)))

    def _parent(self, path: str) -> tuple[_Node, str] | None:
        """Returns the folder that a path's last part is made in, and that part; None where the kernel finds no such folder."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or parts[-1] == ".." or len(parts) > _MAX_DEPTH:
            return None
        folder = self._walk(parts[:-1])
        return None if folder is None or folder.names is None else (folder, parts[-1])

    def _find(self, path: str) -> _Node | None:
        return self._walk([part for part in path.split("/") if part not in ("", ".")])

    def _walk(self, parts: list[str]) -> _Node | None:
        """Returns what a path leads to, symbolic links followed."""
        node, todo, links = self._top, list(reversed(parts)), 0
        top = self._top
        while todo:
            part = todo.pop()
            names = node.names
            if names is None:
                return None
            if part == "..":
                node = node.parent or node
                continue
            child = names.get(part)
            if child is None:
                return None
            if stat.S_ISLNK(child.entry.mode):
                links += 1
                target = child.entry.data.decode("utf-8", "surrogateescape")
                if links > _MAX_LINKS or not target:
                    return None
                node = top if target.startswith("/") else node
                todo += reversed([step for step in target.split("/") if step not in ("", ".")])
                continue
            node = child
        return node

    def entries(self) -> tuple[CpioEntry, ...]:
        """Returns what the archives made, each under the path that it has, sorted."""
        found: list[CpioEntry] = []
        folders: list[tuple[str, _Node]] = [("", self._top)]
        while folders:
            prefix, folder = folders.pop()
            for name, node in (folder.names or {}).items():
                path = f"{prefix}{name}"
                if node.own:
                    one = node.entry
                    found.append(CpioEntry(path, one.mode, one.data, one.uid, one.gid, one.mtime, one.nlink, one.rdev, one.ino, one.dev))
                if node.names is not None:
                    folders.append((f"{path}/", node))
        return tuple(sorted(found, key=lambda entry: entry.path.encode("utf-8", "surrogateescape").split(b"/")))
