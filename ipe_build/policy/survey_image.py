"""Surveys a root filesystem: a folder, an image (EROFS, SquashFS, ext4), an initramfs, or a disk that holds one of them."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import FormatError, InputError, ToolFailedError
from ipe_build.formats.cpio import CpioEntry, read_archives
from ipe_build.formats.filesystem import HEAD_BYTES, filesystem_kind
from ipe_build.formats.gpt import read_gpt
from ipe_build.formats.kernel_compression import compression_of, unpack
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.policy.classify import Content, classify
from ipe_build.policy.facts import Facts
from ipe_build.policy.survey import Entry, Survey

if TYPE_CHECKING:
    from ipe_build.host import Host

_ROOT_TYPES = frozenset(row.root for row in PARTITION_TYPES.values())
_INITRAMFS_MAX = 2 << 30
_Files = Iterator[tuple[str, bool, Content]]


def survey(image: Path, host: Host, facts: Facts) -> Survey:
    """Returns what is in a root filesystem; the kernel is taken to know `facts` of every file.

    Raises: InputError for something that is no root filesystem, ToolMissingError, ToolFailedError.
    """
    if image.is_dir():
        return _survey(None, _walk(image), facts)
    kind = filesystem_of(image)
    if kind == "disk":
        with _partition(image, host) as inner:
            return survey(inner, host, facts)
    if kind == "cpio":
        return _survey("initramfs", _cpio(image), facts)
    with host.scratch() as folder:
        return _survey(extract_filesystem(image, folder / "root", host), _walk(folder / "root"), facts)


def filesystem_of(image: Path) -> str | None:
    """Returns the kind of an image by its magic: erofs, squashfs, ext4, btrfs, cpio (an initramfs), disk (GPT), or None."""
    try:
        if not image.is_file():
            raise InputError("is neither a folder nor an image file" if image.exists() else "does not exist", where=str(image))
        with image.open("rb") as handle:
            head = handle.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(image)) from error
    kind = filesystem_kind(head)
    if kind is not None:
        return str(kind)
    if b"EFI PART" in (head[512:520], head[4096:4104]):
        return "disk"
    return "cpio" if head.startswith(b"07070") or compression_of(head) else None


def extract_filesystem(image: Path, folder: Path, host: Host) -> str:
    """Returns the kind of a filesystem image (EROFS, SquashFS, ext4), all of whose files are then in the new folder, owned by us.

    Raises: InputError for another kind or a damaged image, ToolMissingError.
    """
    kind = filesystem_of(image)
    if kind not in _EXTRACT:
        raise InputError(
            f"a {kind} image cannot be looked into" if kind else "is no image of a kind we know",
            where=str(image),
            hint="give the root filesystem as a folder, or as EROFS, SquashFS, ext4, an initramfs or a GPT disk",
        )
    try:
        _EXTRACT[kind](image, folder, host)
    except ToolFailedError as error:
        raise InputError(f"the {kind} image cannot be extracted: {error.message.splitlines()[0]}", where=str(image)) from error
    return kind


def _extract_erofs(image: Path, folder: Path, host: Host) -> None:
    host.run(["fsck.erofs", f"--extract={folder}", "--no-preserve-owner", image])


def _extract_squashfs(image: Path, folder: Path, host: Host) -> None:
    host.run(["unsquashfs", "-no-progress", "-no-xattrs", "-ignore-errors", "-d", folder, image])


def _extract_ext4(image: Path, folder: Path, host: Host) -> None:
    folder.mkdir()
    host.run(["debugfs", "-R", f"rdump / {folder}", image])


_EXTRACT: dict[str, Callable[[Path, Path, Host], None]] = {
    "erofs": _extract_erofs,
    "squashfs": _extract_squashfs,
    "ext4": _extract_ext4,
}


@contextmanager
def _partition(image: Path, host: Host) -> Iterator[Path]:
    """Yields a file with the first partition of a disk that is a root filesystem; those of a root partition's type come first."""
    with image.open("rb") as disk, host.scratch() as folder:
        size = image.stat().st_size
        table = read_gpt(lambda offset, length: os.pread(disk.fileno(), length, offset), size)
        for partition in sorted(table.partitions, key=lambda partition: partition.type_uuid not in _ROOT_TYPES):
            out = folder / "partition"
            with out.open("wb") as handle:
                _copy(disk.fileno(), partition.offset_bytes, min(partition.size_bytes, size - partition.offset_bytes), handle.fileno())
            if filesystem_of(out) in (*_EXTRACT, "btrfs"):
                yield out
                return
    raise InputError("no partition holds a root filesystem", where=str(image))


def _copy(source: int, offset: int, length: int, target: int) -> None:
    """Copies a range into an empty file."""
    while length > 0:
        piece = os.pread(source, min(length, 1 << 20), offset)
        if not piece:
            return
        os.write(target, piece)
        offset, length = offset + len(piece), length - len(piece)


def _walk(root: Path) -> _Files:
    """Yields path, whether it is executable, and content of every regular file, sorted by path. Raises: InputError."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot be listed: {error.strerror}", where=str(error.filename)) from error

    for parent, folders, names in os.walk(root, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            try:
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode):
                    continue
                with path.open("rb") as handle:
                    empty = status.st_size == 0
                    content: Content = b"" if empty else mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
            except OSError as error:
                raise InputError(error.strerror or str(error), where=str(path)) from error
            try:
                yield os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace"), bool(status.st_mode & 0o111), content
            finally:
                if isinstance(content, mmap.mmap):
                    content.close()


def _cpio(image: Path) -> _Files:
    """Yields the files of an initramfs: all its archives, the compressed one included."""
    if image.stat().st_size > _INITRAMFS_MAX:
        raise InputError("is too large for an initramfs", where=str(image))
    data = image.read_bytes()
    end = 0
    for archive in read_archives(data):
        yield from _regular(archive.entries)
        end = archive.end
    rest = data[end:].lstrip(b"\0")
    if rest:
        for archive in read_archives(_unpack(rest, image)):
            yield from _regular(archive.entries)


def _regular(entries: tuple[CpioEntry, ...]) -> _Files:
    """Yields the regular files among an archive's entries."""
    for entry in entries:
        if stat.S_ISREG(entry.mode):
            yield entry.path.lstrip("./"), bool(entry.mode & 0o111), entry.data


def _unpack(data: bytes, image: Path) -> bytes:
    """Returns the archive that is compressed in an initramfs. Raises: FormatError, InputError."""
    row = compression_of(data)
    if row is None:
        raise InputError("holds neither an archive nor a compressed one where the kernel looks for it", where=str(image))
    try:
        return unpack(data, row)
    except FormatError as error:
        raise FormatError(error.message, where=str(image)) from error


def _survey(filesystem: str | None, files: _Files, facts: Facts) -> Survey:
    """Returns the survey of the files."""
    entries = []
    mounts: tuple[tuple[str, str], ...] = ()
    for path, executable, content in files:
        if path == "etc/fstab":
            mounts = _fstab(bytes(content))
        found = classify(path, executable, content)
        if found is not None:
            entries.append(Entry(path, found[0], found[1], facts))
    return Survey(filesystem, tuple(entries), mounts)


def _fstab(text: bytes) -> tuple[tuple[str, str], ...]:
    """Returns mount points and types of /etc/fstab."""
    rows = (line.split() for line in text.decode("utf-8", "replace").splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return tuple((row[1], row[2]) for row in rows if len(row) >= 3)


def sidecar_root_hash(image: Path) -> tuple[bytes, bool] | None:
    """Returns the root hash that lies beside an image, and whether its signature does; None without `.roothash`."""
    for base in (image, image.with_suffix("")):
        path = base.with_name(base.name + ".roothash")
        if path.is_file():
            text = path.read_bytes().strip()
            try:
                return bytes.fromhex(text.decode("ascii").rpartition(":")[2]), path.with_name(path.name + ".p7s").is_file()
            except ValueError:
                raise InputError("is no root hash", where=str(path)) from None
    return None
