"""The files of a root filesystem, read where they lie; compressed EROFS, LZO and LZ4 are unpacked by the filesystem's own tools.

A stranger's image may say that a million files share one block, or unpack to more than there is room for: both are bounded.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.audit.facts import Region
from ipe_build.audit.file_tree import FileTree, Read, TreeFile, VerityOfFile
from ipe_build.errors import FormatError, InputError, ToolFailedError, ToolMissingError
from ipe_build.examine.verity_files import VerityFiles
from ipe_build.formats.erofs import CompressedError, Erofs, ErofsInode
from ipe_build.formats.ext4 import VERITY_FLAG, Ext4, Ext4Inode, UnsupportedError
from ipe_build.formats.filesystem import HEAD_BYTES, FilesystemKind, filesystem_kind
from ipe_build.formats.squashfs import Squashfs, SquashfsInode
from ipe_build.formats.squashfs import UnsupportedError as UnpackedElsewhereError

if TYPE_CHECKING:
    from ipe_build.host import Host

MAX_UNPACKED_BYTES = 64 << 30
"""What a tool may write to the scratch folder before it is stopped."""
_UNPACK_TIMEOUT_S = 1800
_SPARE_BYTES = 1 << 30
"""Bytes that stay free on the scratch folder's disk."""
_READ_AGAIN = 4
_READ_MORE_BYTES = 4 << 30
"""An image's files are read at most so often as a whole, and this much beyond: more says that they share their blocks."""


def read_tree(region: Region, scratch: Path, host: Host) -> tuple[FilesystemKind, FileTree]:
    """Returns the kind of a root filesystem and its files. `scratch` is an empty folder for what has to be unpacked.

    Raises: InputError for a filesystem that is not known or is damaged, ToolMissingError.
    """
    kind = filesystem_kind(region.read(0, HEAD_BYTES))
    if kind is None or kind not in _READERS:
        raise InputError(f"a {kind} image cannot be looked into" if kind else "is no filesystem of a kind we know", where=str(region.path))
    try:
        return kind, _READERS[kind](_Budget(region), scratch, host)
    except RecursionError:
        raise FormatError(f"the {kind} image is nested too deeply", where=str(region.path)) from None


class _Budget:
    """Reads an image, and stops when far more is read than it holds. One descriptor, open as long as somebody reads."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self._descriptor = os.open(region.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._left = _READ_AGAIN * region.size_bytes + _READ_MORE_BYTES

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Returns bytes of the image. Raises: FormatError when the budget is used up."""
        length = min(length, self.region.size_bytes - offset)
        if offset < 0 or length <= 0:
            return b""
        self.take(length)
        return os.pread(self._descriptor, length, self.region.offset_bytes + offset)

    @property
    def left(self) -> int:
        """Returns how many bytes may still be read."""
        return self._left

    def take(self, length: int) -> None:
        """Takes from the budget what is read without the image: zeros of a hole."""
        self._left -= length
        if self._left < 0:
            raise FormatError("far more was read than the image holds: its files share their blocks", where=str(self.region.path))


def _erofs(image: _Budget, scratch: Path, host: Host) -> FileTree:
    """Reads EROFS; compressed files are unpacked by fsck.erofs, names and attributes still come from the image."""
    size = image.region.size_bytes
    try:
        return FileTree.of(_placed(path, inode, image, None) for path, inode in Erofs(image.read, size).walk())
    except CompressedError:
        inodes = dict(Erofs(image.read, size, metadata_only=True).walk())
    folder = scratch / "root"
    _unpack(["fsck.erofs", f"--extract={folder}", "--no-preserve-owner", _as_file(image.region, scratch)], folder, host, image.region)
    tree = folder_tree(folder)
    return FileTree.of(_with_metadata(one, inodes.get(os.fsencode(one.path))) for one in tree)


def _with_metadata(one: TreeFile, inode: ErofsInode | None) -> TreeFile:
    """Returns an unpacked file with what the image says of it: unpacking loses owners, set-user-id bits and attributes."""
    if inode is None:
        return one
    return replace(one, mode=inode.mode, uid=inode.uid, gid=inode.gid, xattrs=inode.xattrs, identity=inode.number, mtime=inode.mtime)


def _placed(
    path: bytes, inode: ErofsInode | Ext4Inode, image: _Budget, target: bytes | None, verity: VerityOfFile | None = None
) -> TreeFile:
    """Returns a file whose content lies in pieces of the image; `target` is a symbolic link's where it lies in the inode."""
    read = _reader(inode.pieces, image)
    if stat.S_ISLNK(inode.mode) and target is None:
        target = read(0, min(inode.size_bytes, 4096))
    return TreeFile(
        os.fsdecode(path),
        inode.mode,
        inode.size_bytes,
        inode.uid,
        inode.gid,
        os.fsdecode(target) if target is not None and stat.S_ISLNK(inode.mode) else "",
        inode.xattrs,
        verity,
        read,
        inode.number,
        _start(inode.pieces),
        inode.mtime,
    )


def _ext4(image: _Budget, scratch: Path, host: Host) -> FileTree:
    """Reads ext4; what our reader does not know is copied out by debugfs."""
    size = image.region.size_bytes
    try:
        filesystem = Ext4(image.read, size)
        verity = VerityFiles(filesystem, image, scratch, host)
        return FileTree.of(_ext4_file(path, inode, verity, image) for path, inode in filesystem.walk())
    except UnsupportedError:
        folder = scratch / "root"
        folder.mkdir()
        _unpack(["debugfs", "-R", f"rdump / {folder}", _as_file(image.region, scratch)], folder, host, image.region)
        return folder_tree(folder)


def _ext4_file(path: bytes, inode: Ext4Inode, files: VerityFiles, image: _Budget) -> TreeFile:
    verity = files.of(inode) if inode.flags & VERITY_FLAG and stat.S_ISREG(inode.mode) else None
    return _placed(path, inode, image, inode.target, verity)


def _start(pieces: tuple[tuple[int, int], ...]) -> int | None:
    """Returns where a file's first byte lies; None for one that is empty or begins with a hole."""
    return pieces[0][0] if pieces and pieces[0][0] >= 0 else None


def _reader(pieces: tuple[tuple[int, int], ...], image: _Budget) -> Read:
    """Returns a function that reads a file whose content lies in pieces of the image (offset -1: zeros)."""

    def read(offset: int, length: int) -> bytes:
        out = []
        for place, size in pieces:
            if length <= 0:
                break
            if offset >= size:
                offset -= size
                continue
            count = min(size - offset, length)
            if place >= 0:
                out.append(image.read(place + offset, count))
            else:
                image.take(count)
                out.append(bytes(count))
            offset, length = 0, length - count
        return out[0] if len(out) == 1 else b"".join(out)

    return read


def _squashfs(image: _Budget, scratch: Path, host: Host) -> FileTree:
    """Reads SquashFS; what our reader does not unpack (LZO, LZ4) is unpacked by unsquashfs, from where it lies in a disk."""
    folder, region = scratch / "root", image.region
    try:
        filesystem = Squashfs(image.read, region.size_bytes)
        return FileTree.of(_squashfs_file(path, inode, filesystem) for path, inode in filesystem.walk())
    except (UnpackedElsewhereError, ToolMissingError):
        pass
    words: list[str | Path] = ["unsquashfs", "-no-progress", "-no-xattrs", "-ignore-errors", "-d", folder]
    _unpack([*words, "-o", str(region.offset_bytes), region.path], folder, host, region)
    return folder_tree(folder)


def _squashfs_file(path: bytes, inode: SquashfsInode, filesystem: Squashfs) -> TreeFile:
    name, target = os.fsdecode(path), os.fsdecode(inode.target)
    size = inode.size_bytes if stat.S_ISREG(inode.mode) else 0
    return TreeFile(
        name,
        inode.mode,
        size,
        inode.uid,
        inode.gid,
        target,
        inode.xattrs,
        None,
        lambda offset, length: filesystem.read(inode, offset, length),
        inode.number,
        mtime=inode.mtime,
    )


def _as_file(region: Region, scratch: Path) -> Path:
    """Returns a file that holds just the region, for tools that know no offsets."""
    if region.offset_bytes == 0 and region.size_bytes == region.path.stat().st_size:
        return region.path
    copy = scratch / "image"
    with region.path.open("rb") as source, copy.open("wb") as out:
        left, at = region.size_bytes, region.offset_bytes
        while left:
            try:
                count = os.copy_file_range(source.fileno(), out.fileno(), min(left, 1 << 30), at)
            except OSError:
                count = os.sendfile(out.fileno(), source.fileno(), at, min(left, 1 << 30))
            if count == 0:
                break
            left, at = left - count, at + count
        out.truncate(region.size_bytes)
    return copy


def _unpack(words: list[str | Path], folder: Path, host: Host, region: Region) -> None:
    """Runs a program that fills a folder. Raises: InputError when it fails, takes too long, or writes more than there is room for."""
    free = shutil.disk_usage(folder.parent).free
    limit = min(MAX_UNPACKED_BYTES, free - _SPARE_BYTES)
    stopped = False

    def too_much() -> bool:
        nonlocal stopped
        stopped = free - shutil.disk_usage(folder.parent).free > limit
        return stopped

    try:
        host.run(words, stop_when=too_much, timeout_s=_UNPACK_TIMEOUT_S)
    except ToolFailedError as error:
        raise InputError(f"the image cannot be unpacked: {error.message.splitlines()[0]}", where=str(region.path)) from error
    if stopped:
        raise InputError("it unpacks to more than there is room for", where=str(region.path))


def folder_tree(folder: Path) -> FileTree:
    """Returns the tree of files in a folder. Raises: InputError for one that cannot be listed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot be listed: {error.strerror}", where=str(error.filename)) from error

    def found() -> Iterator[TreeFile]:
        for parent, folders, names in os.walk(folder, onerror=refuse):
            for name in (*folders, *names):
                path = Path(parent, name)
                status = path.lstat()
                regular, link = stat.S_ISREG(status.st_mode), stat.S_ISLNK(status.st_mode)
                yield TreeFile(
                    path.relative_to(folder).as_posix(),
                    status.st_mode,
                    status.st_size if regular else 0,
                    status.st_uid,
                    status.st_gid,
                    str(path.readlink()) if link else "",
                    read_at=_file_reader(path) if regular else lambda _offset, _length: b"",
                    identity=status.st_ino,
                )

    return FileTree.of(found())


def _file_reader(path: Path) -> Read:
    def read(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return read


_READERS: dict[FilesystemKind, Callable[[_Budget, Path, Host], FileTree]] = {
    FilesystemKind.EROFS: _erofs,
    FilesystemKind.SQUASHFS: _squashfs,
    FilesystemKind.EXT4: _ext4,
}
