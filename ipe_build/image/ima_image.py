"""A root filesystem in, its image with IMA signatures out: from a folder, a tar or a finished image, without root.

An ext4 image is signed where it lies (a copy of it): only attributes are added, and the filesystem grows if they need room. EROFS and
SquashFS have no room for more; they are made again from what is in them, with the same UUID, owners, modes and devices.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError, ToolFailedError
from ipe_build.formats.erofs import Erofs
from ipe_build.formats.ext4 import Ext4
from ipe_build.formats.filesystem import FilesystemKind
from ipe_build.image.contents import kind_of_image, list_image, read_image
from ipe_build.image.filesystem import FilesystemRequest, FilesystemType, make_filesystem, make_from_entries
from ipe_build.image.ima import ImaRequest, sign_rootfs
from ipe_build.image.rootfs import Entry, Rootfs

if TYPE_CHECKING:
    from ipe_build.host import Host

_SPARE_BLOCKS = 64
_GROWN_BY_PERCENT = 4
_SQUASHFS_COMPRESSIONS = {1: "gzip", 4: "xz", 5: "lz4", 6: "zstd"}


@dataclass(frozen=True, slots=True)
class SignedImage:
    """A finished image; `signed` counts the files (inodes) that have security.ima now."""

    path: Path
    filesystem: FilesystemType
    signed: int


def sign_image(request: ImaRequest, filesystem: FilesystemRequest, out: Path, host: Host, *, force: bool = False) -> SignedImage:
    """Returns the image made at `out` from `filesystem.source`, with signatures on its files.

    For a folder or a tar, `filesystem` says what image to make. For a finished image its kind, UUID and compression are kept.
    Raises: InputError, FormatError, OutputError, SigningKeyError, ToolMissingError, ToolFailedError.
    """
    source = filesystem.source
    kind = kind_of_image(source) if source.is_file() else None
    signed: list[int] = []

    def finish(rootfs: Rootfs) -> Rootfs:
        finished = sign_rootfs(rootfs, request, host)
        signed.append(len(signed_entries(finished)))
        return finished

    if kind is None:
        made = make_filesystem(replace(filesystem, finish=finish), out, host, force=force)
        return SignedImage(made.path, made.filesystem, signed[0])
    if kind is FilesystemKind.EXT4:
        return _sign_ext4(source, request, out, host, force=force)
    if kind not in (FilesystemKind.EROFS, FilesystemKind.SQUASHFS):
        raise InputError(
            f"a {kind} image cannot be signed", where=str(source), hint="give a folder, a tar, or an EROFS, SquashFS or ext4 image"
        )
    with host.scratch() as folder:
        rootfs = read_image(source, folder / "image", host)
        again = replace(_same_form(filesystem, kind), finish=finish)
        made = make_from_entries(again, rootfs, out, host, force=force)
    return SignedImage(made.path, made.filesystem, signed[0])


def signed_entries(rootfs: Rootfs) -> tuple[Entry, ...]:
    """Returns the entries that carry security.ima."""
    return tuple(entry for entry in rootfs.entries if any(name == "security.ima" for name, _ in entry.xattrs))


def _same_form(request: FilesystemRequest, kind: FilesystemKind) -> FilesystemRequest:
    """Returns the request for an image of the source's kind, UUID and compression, unless the request names a compression."""
    source = request.source
    if kind is FilesystemKind.SQUASHFS:
        with source.open("rb") as handle:
            number = int.from_bytes(handle.read(96)[20:22], "little")
        compression = request.compression or _SQUASHFS_COMPRESSIONS.get(number, "")
        return replace(request, filesystem=FilesystemType.SQUASHFS, compression=compression)
    with source.open("rb") as handle:
        image = Erofs(lambda offset, length: os.pread(handle.fileno(), length, offset), source.stat().st_size, metadata_only=True)
    compression = request.compression or ("lz4hc" if image.is_compressed else "none")
    return replace(request, filesystem=FilesystemType.EROFS, compression=compression, uuid=image.uuid)


def _sign_ext4(source: Path, request: ImaRequest, out: Path, host: Host, *, force: bool) -> SignedImage:
    """Returns a copy of the image with the attributes put into it by debugfs, and read back."""
    with host.scratch() as folder:
        before = read_image(source, folder / "image", host)
        after = sign_rootfs(before, request, host)
        numbers = {row.path: row.number for row in list_image(source, host)}
        changed = [entry for entry, old in zip(after.entries, before.entries, strict=True) if entry.xattrs != old.xattrs]
        with host.output(out, force=force) as temporary:
            shutil.copyfile(source, temporary)
            _make_room(temporary, len(changed), host)
            _set_attributes(temporary, changed, numbers, folder, host)
            _check_attributes(temporary, after, host)
    return SignedImage(out, FilesystemType.EXT4, len(signed_entries(after)))


def _make_room(image: Path, files: int, host: Host) -> None:
    """Lets the filesystem grow where its free blocks do not hold one attribute block for each file."""
    with image.open("rb") as handle:
        superblock = Ext4(lambda offset, length: os.pread(handle.fileno(), length, offset), image.stat().st_size)
    missing = files + _SPARE_BLOCKS - superblock.free_blocks
    if missing <= 0:
        return
    blocks = superblock.blocks + missing + missing * _GROWN_BY_PERCENT // 100 + _SPARE_BLOCKS
    host.progress.note(f"{image.name}: grows by {(blocks - superblock.blocks) * superblock.block_bytes >> 10} KiB for the signatures")
    time = {"E2FSPROGS_FAKE_TIME": str(host.source_date_epoch or 1)}
    host.run(["e2fsck", "-f", "-p", image], env=time, ok=(0, 1))
    os.truncate(image, blocks * superblock.block_bytes)
    host.run(["resize2fs", image], env=time)


def _set_attributes(image: Path, changed: Sequence[Entry], numbers: dict[str, int], folder: Path, host: Host) -> None:
    """Runs debugfs on inode numbers, so that no name has to be quoted; values lie in files beside its script."""
    lines: list[str] = []
    (folder / "values").mkdir()
    for entry in changed:
        for name, value in entry.xattrs:
            if name in ("security.ima", "security.evm"):
                place = f"values/{len(lines)}"
                (folder / place).write_bytes(value)
                lines.append(f"ea_set -f {place} <{numbers[entry.path]}> {name}\n")
    (folder / "script").write_text("".join(lines))
    host.run(
        ["debugfs", "-w", "-f", "script", image.absolute()],
        cwd=folder,
        env={"E2FSPROGS_FAKE_TIME": str(host.source_date_epoch or 1), "DEBUGFS_PAGER": "cat"},
    )


def _check_attributes(image: Path, wanted: Rootfs, host: Host) -> None:
    """Reads the attributes back: debugfs ends well whatever its commands did. Raises: ToolFailedError naming the first that differs."""
    found = {row.path: row.xattrs for row in list_image(image, host)}
    for entry in wanted.entries:
        if not entry.hardlink and tuple(sorted(entry.xattrs)) != found.get(entry.path):
            raise ToolFailedError(
                f"debugfs did not put the attributes on /{entry.path}", hint="is the image full? make it larger (resize2fs)"
            )
