"""A root filesystem as an image: EROFS, SquashFS or ext4, bit for bit the same from the same inputs, without being root.

The entries are laid out in a scratch folder as plain files; fakeroot tells the maker which owners, modes and devices they
stand for (its database is written by us, nothing but the maker runs under it).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from ipe_build.errors import InputError, ToolFailedError
from ipe_build.formats.filesystem import HEAD_BYTES, filesystem_kind
from ipe_build.image.ext4 import make_ext4
from ipe_build.image.rootfs import Entry, PathRule, Rootfs, add, apply_rules, read_folder, read_tar
from ipe_build.image.stage import Stage, stage

if TYPE_CHECKING:
    from ipe_build.host import Host

BLOCK_BYTES = 4096
"""An image's size is a multiple of this, the largest block size that dm-verity is used with here."""
_COPY_BYTES = 1 << 20
_MAX_EPOCH = 0xFFFFFFFF


Change = Callable[[Rootfs], Rootfs]


class FilesystemType(StrEnum):
    """A kind of read-only root filesystem, by the name the kernel mounts it with."""

    EROFS = "erofs"
    SQUASHFS = "squashfs"
    EXT4 = "ext4"


@dataclass(frozen=True, slots=True)
class FilesystemRequest:
    """What to make. `source` is a folder, a tar (plain, gzip, bzip2, xz, zstd) or a finished image, which is taken as it is.

    `keep_owners` None: a tar's owners are kept, a folder's become 0:0. Then `additions` are put in, then `rules` are applied, and at last
    `finish` may put attributes on files (signatures over what they are by then).
    `compression` "" is the filesystem's usual one (`Maker.compressions`). `size_bytes` (ext4 only) 0 is as small as fits.
    """

    source: Path
    uuid: UUID
    filesystem: FilesystemType = FilesystemType.EROFS
    compression: str = ""
    keep_owners: bool | None = None
    additions: tuple[Entry, ...] = ()
    rules: tuple[PathRule, ...] = ()
    size_bytes: int = 0
    xattrs: bool = True
    finish: Change | None = None


@dataclass(frozen=True, slots=True)
class FilesystemImage:
    """A finished image. `size_bytes` is a multiple of 4096; `entries` counts names in it (0 for an image taken as it was)."""

    path: Path
    filesystem: FilesystemType
    size_bytes: int
    entries: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    """All that a maker needs."""

    request: FilesystemRequest
    staged: Stage
    out: Path
    scratch: Path
    epoch: int
    compression: str


class Maker(NamedTuple):
    """A row: how a filesystem is made, its compressions (the first is the usual one)."""

    filesystem: FilesystemType
    compressions: tuple[str, ...]
    make: Callable[[_Job, Host], None]


def make_filesystem(request: FilesystemRequest, out: Path, host: Host, *, force: bool = False) -> FilesystemImage:
    """Returns the image made at `out`.

    Raises: InputError for a source that cannot be used, an unsafe tar, a rule that matches nothing; OutputError; ToolMissingError.
    """
    source = request.source
    with host.scratch() as scratch:
        if source.is_file() and (found := detect_filesystem(source)) is not None:
            return _take(request, found, out, host, force=force)
        rootfs = rootfs_of(source, scratch, host, keep_owners=request.keep_owners)
        return _make(request, rootfs, out, scratch, host, force=force)


def rootfs_of(source: Path, scratch: Path, host: Host, *, keep_owners: bool | None = None) -> Rootfs:
    """Returns the entries of a folder or a tar; a compressed tar is unpacked into `scratch`. For images see `image.contents`.

    Raises: InputError.
    """
    if not source.exists():
        raise InputError("does not exist", where=str(source), hint="name a folder, a tar archive or a filesystem image")
    if source.is_dir():
        return read_folder(source, keep_owners=bool(keep_owners))
    return read_tar(_plain_tar(source, scratch, host), keep_owners=keep_owners is not False)


def make_from_entries(request: FilesystemRequest, rootfs: Rootfs, out: Path, host: Host, *, force: bool = False) -> FilesystemImage:
    """Returns the image made at `out` of entries that were read already; the request's `source` is not looked at.

    Raises: as `make_filesystem`.
    """
    with host.scratch() as scratch:
        return _make(request, rootfs, out, scratch, host, force=force)


def detect_filesystem(image: Path) -> FilesystemType | None:
    """Returns what kind of filesystem a file holds, by its magic, or None."""
    try:
        with image.open("rb") as handle:
            kind = filesystem_kind(handle.read(HEAD_BYTES))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(image)) from error
    return next((row.filesystem for row in MAKERS if row.filesystem.value == kind), None)


def _make(request: FilesystemRequest, rootfs: Rootfs, out: Path, scratch: Path, host: Host, *, force: bool) -> FilesystemImage:
    """Lays the entries out and runs the maker."""
    row = next(row for row in MAKERS if row.filesystem is request.filesystem)
    compression = request.compression or row.compressions[0]
    if compression not in row.compressions:
        raise InputError(
            f"{request.filesystem} has no compression {compression!r}",
            where="[filesystem] compression",
            hint=f"one of {', '.join(row.compressions)}",
        )
    if request.size_bytes and request.filesystem is not FilesystemType.EXT4:
        raise InputError(f"{request.filesystem} is as large as its content; only ext4 takes a size", where="[filesystem] size")
    epoch = host.source_date_epoch
    if epoch > _MAX_EPOCH:
        raise InputError(f"wanted a time below 2^32, got {epoch}", where="environment: SOURCE_DATE_EPOCH")
    rootfs = apply_rules(add(rootfs, request.additions), request.rules)
    if not request.xattrs:
        rootfs = rootfs.without_xattrs()
    if request.finish is not None:
        rootfs = request.finish(rootfs)
    with host.output(out, force=force) as temporary:
        staged = stage(rootfs, scratch, epoch)
        row.make(_Job(request, staged, temporary, scratch, epoch, compression), host)
        size = _pad(temporary)
    return FilesystemImage(out, request.filesystem, size, len(rootfs.entries))


def _make_erofs(job: _Job, host: Host) -> None:
    """Runs mkfs.erofs. It sorts names itself and numbers inodes by place, so the scratch folder's order does not show."""
    compress = () if job.compression == "none" else (f"-z{job.compression}",)
    xattrs = () if any(entry.xattrs for entry in job.staged.rootfs.entries) else ("-x-1",)
    options = ("--quiet", f"-T{job.epoch}", f"-U{job.request.uuid}", *compress, *xattrs)
    host.run([*job.staged.prefix, host.tool("mkfs.erofs"), *options, job.out, job.staged.folder])


def _make_squashfs(job: _Job, host: Host) -> None:
    """Runs mksquashfs. It takes the time from SOURCE_DATE_EPOCH and refuses to be given it twice."""
    xattrs = "-xattrs" if any(entry.xattrs for entry in job.staged.rootfs.entries) else "-no-xattrs"
    options = ("-noappend", "-no-progress", "-quiet", "-reproducible", xattrs, "-comp", job.compression, "-processors", str(host.jobs))
    maker = host.tool("mksquashfs")
    host.run([*job.staged.prefix, maker, job.staged.folder, job.out, *options], env={"SOURCE_DATE_EPOCH": str(job.epoch)})


def _make_ext4(job: _Job, host: Host) -> None:
    """Runs mke2fs and debugfs."""
    make_ext4(job.staged, job.out, job.scratch, job.request.uuid, job.epoch, job.request.size_bytes, host)


MAKERS: tuple[Maker, ...] = (
    Maker(FilesystemType.EROFS, ("none", "lz4", "lz4hc"), _make_erofs),
    Maker(FilesystemType.SQUASHFS, ("gzip", "xz", "zstd", "lz4"), _make_squashfs),
    Maker(FilesystemType.EXT4, ("none",), _make_ext4),
)


def _take(request: FilesystemRequest, found: FilesystemType, out: Path, host: Host, *, force: bool) -> FilesystemImage:
    """Copies a finished image; only zeros up to a multiple of 4096 are added."""
    if request.additions or request.rules or request.finish:
        raise InputError(
            "is a finished image, nothing can be added or changed in it",
            where=str(request.source),
            hint="name the folder or tar it was made from, or put the files in where the image is made",
        )
    with host.output(out, force=force) as temporary:
        shutil.copyfile(request.source, temporary)
        size = _pad(temporary)
    return FilesystemImage(out, found, size)


def _pad(image: Path) -> int:
    """Returns the size after zeros were added up to a multiple of 4096."""
    size = image.stat().st_size
    whole = -(-size // BLOCK_BYTES) * BLOCK_BYTES
    if whole != size:
        os.truncate(image, whole)
    return whole


_UNPACKERS: tuple[tuple[bytes, type[gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]], ...] = (
    (b"\x1f\x8b", gzip.GzipFile),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)
_ZSTD = b"\x28\xb5\x2f\xfd"


def _plain_tar(source: Path, scratch: Path, host: Host) -> Path:
    """Returns the path of the uncompressed archive: the source itself, or a decompressed copy in `scratch`."""
    with source.open("rb") as handle:
        head = handle.read(512)
    plain = scratch / "source.tar"
    if head.startswith(_ZSTD):
        try:
            host.run(["zstd", "-d", "-q", source, "-o", plain])
        except ToolFailedError as error:
            raise InputError(f"cannot be decompressed: {error.message}", where=str(source)) from error
        return plain
    unpacker = next((unpacker for magic, unpacker in _UNPACKERS if head.startswith(magic)), None)
    if unpacker is None:
        if head[257:262] != b"ustar":
            raise InputError("is neither a folder, a tar archive nor an EROFS, SquashFS or ext4 image", where=str(source))
        return source
    try:
        with unpacker(source) as packed, plain.open("wb") as sink:
            shutil.copyfileobj(packed, sink, _COPY_BYTES)
    except (OSError, EOFError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"cannot be decompressed: {error}", where=str(source)) from error
    return plain
