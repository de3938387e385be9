"""A finished filesystem image as a root filesystem: its entries with owners, modes, devices and extended attributes, without root.

Owners, modes and attributes are read from the image itself (`formats.erofs`, `formats.ext4`); what tools extract is contents only,
because as an ordinary user they can set neither owners nor attributes. A SquashFS image is unpacked and put into a tar inside one
fakeroot session.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ipe_build.errors import InputError, ToolFailedError
from ipe_build.formats.erofs import Erofs
from ipe_build.formats.ext4 import Ext4
from ipe_build.formats.filesystem import HEAD_BYTES, FilesystemKind, filesystem_kind
from ipe_build.image.rootfs import Entry, Rootfs, read_tar, sorted_rootfs

if TYPE_CHECKING:
    from ipe_build.host import Host


class _Inode(Protocol):
    """What the readers' inodes have in common."""

    @property
    def number(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def xattrs(self) -> Mapping[str, bytes]: ...
    @property
    def rdev(self) -> tuple[int, int]: ...


class ImageFile(NamedTuple):
    """A name in an image with its inode; `number` is the same for all hard links to one file. The root is ""."""

    path: str
    number: int
    mode: int
    uid: int
    gid: int
    rdev: tuple[int, int]
    xattrs: tuple[tuple[str, bytes], ...]


def kind_of_image(image: Path) -> FilesystemKind | None:
    """Returns which filesystem a file holds, None for none that we know. Raises: InputError when it cannot be read."""
    try:
        with image.open("rb") as handle:
            return filesystem_kind(handle.read(HEAD_BYTES))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(image)) from error


def list_image(image: Path, host: Host) -> tuple[ImageFile, ...]:
    """Returns every name in an EROFS, ext4 or SquashFS image with its inode and extended attributes, each folder before what is in it.

    Raises: InputError for another kind of file, FormatError for a damaged image, ToolMissingError.
    """
    kind = kind_of_image(image)
    if kind is FilesystemKind.SQUASHFS:
        with host.scratch() as folder:
            rootfs = _read_squashfs(image, folder, host)
        numbers = {path: number for number, path in enumerate(dict.fromkeys(entry.inode_path for entry in rootfs.entries))}
        by_path = rootfs.by_path()
        return tuple(
            ImageFile(one.path, numbers[one.inode_path], one.mode, one.uid, one.gid, one.rdev, by_path[one.inode_path].xattrs)
            for one in rootfs.entries
        )
    if kind is None or kind not in _LISTERS:
        raise InputError("is no EROFS, ext4 or SquashFS image", where=str(image))
    with _opened(image) as (read_at, size):
        rows = tuple(_LISTERS[kind](read_at, size))
    return tuple(sorted(rows, key=lambda row: row.path.split("/") if row.path else []))


def read_image(image: Path, folder: Path, host: Host) -> Rootfs:
    """Returns the root filesystem in an EROFS, ext4 or SquashFS image; its contents lie in the new folder `folder`.

    Raises: InputError, FormatError, ToolMissingError.
    """
    kind = kind_of_image(image)
    folder.mkdir(exist_ok=True)
    if kind is FilesystemKind.SQUASHFS:
        return _read_squashfs(image, folder, host)
    files = list_image(image, host)
    place = folder / "contents"
    assert kind is not None
    try:
        _EXTRACTORS[kind](image, place, host)
    except ToolFailedError as error:
        raise InputError(f"cannot be extracted: {error.message.splitlines()[0]}", where=str(image)) from error
    first_names: dict[int, str] = {}
    return sorted_rootfs(_entry(row, place, first_names, image) for row in files)


def _entry(row: ImageFile, place: Path, first_names: dict[int, str], image: Path) -> Entry:
    """Returns the entry for a name; a further name of the same ordinary file becomes a hard link."""
    content = place / row.path
    if stat.S_ISREG(row.mode):
        first = first_names.setdefault(row.number, row.path)
        if first != row.path:
            return Entry(row.path, row.mode, b"", row.uid, row.gid, hardlink=first)
        if not content.is_file() or content.is_symlink():
            raise InputError("could not be extracted", where=f"{image}: /{row.path}")
        return Entry(row.path, row.mode, content, row.uid, row.gid, xattrs=row.xattrs)
    target = os.readlink(content) if stat.S_ISLNK(row.mode) else ""  # noqa: PTH115 - Path would change "./x" and "x/"
    return Entry(row.path, row.mode, b"", row.uid, row.gid, target=target, rdev=row.rdev, xattrs=row.xattrs)


@contextmanager
def _opened(image: Path) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    """Yields how to read the image, and its size in bytes."""
    with image.open("rb") as handle:
        yield lambda offset, length: os.pread(handle.fileno(), length, offset), image.stat().st_size


def _row(path: bytes, inode: _Inode) -> ImageFile:
    xattrs = tuple(sorted(inode.xattrs.items()))
    return ImageFile(path.decode("utf-8", "surrogateescape"), inode.number, inode.mode, inode.uid, inode.gid, inode.rdev, xattrs)


def _list_erofs(read_at: Callable[[int, int], bytes], size: int) -> Iterator[ImageFile]:
    image = Erofs(read_at, size, metadata_only=True)
    yield _row(b"", image.root)
    yield from (_row(path, inode) for path, inode in image.walk())


def _list_ext4(read_at: Callable[[int, int], bytes], size: int) -> Iterator[ImageFile]:
    image = Ext4(read_at, size)
    if image.needs_recovery:
        raise InputError("was not unmounted: its journal must be replayed first", where="ext4 image", hint="run e2fsck -p on it")
    yield _row(b"", image.inode(2))
    yield from (_row(path, inode) for path, inode in image.walk())


_LISTERS: dict[FilesystemKind, Callable[[Callable[[int, int], bytes], int], Iterator[ImageFile]]] = {
    FilesystemKind.EROFS: _list_erofs,
    FilesystemKind.EXT4: _list_ext4,
}


def _extract_erofs(image: Path, place: Path, host: Host) -> None:
    # Under fakeroot, because it makes device nodes too and gives up where it may not.
    host.run(["fakeroot", "--", host.tool("fsck.erofs"), f"--extract={place}", "--no-preserve", image])


def _extract_ext4(image: Path, place: Path, host: Host) -> None:
    place.mkdir()
    host.run(["debugfs", "-R", f'rdump / "{place}"', image])


_EXTRACTORS: dict[FilesystemKind, Callable[[Path, Path, Host], None]] = {
    FilesystemKind.EROFS: _extract_erofs,
    FilesystemKind.EXT4: _extract_ext4,
}


def _read_squashfs(image: Path, folder: Path, host: Host) -> Rootfs:
    """Returns the entries of a SquashFS image, through a tar that lies in `folder`."""
    place, archive, table = folder / "contents", folder / "contents.tar", folder / "commands.json"
    unpack = [host.tool("unsquashfs"), "-no-progress", "-xattrs", "-d", place, image]
    pack = [
        host.tool("tar"),
        "--format=pax",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--sort=name",
        "-C",
        place,
        "-cf",
        archive,
        ".",
    ]
    table.write_text(json.dumps([[str(word) for word in words] for words in (unpack, pack)]), encoding="utf-8", errors="surrogateescape")
    runner = Path(__file__).with_name("run_in_turn.py")
    try:
        host.run(["fakeroot", "--", sys.executable, "-I", "-S", runner, table])
    except ToolFailedError as error:
        raise InputError(f"cannot be extracted: {error.message.splitlines()[0]}", where=str(image)) from error
    return read_tar(archive, keep_owners=True)
