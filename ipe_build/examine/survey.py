"""Surveys a root filesystem for a policy: a folder, an image (EROFS, SquashFS, ext4), an initramfs, or a disk that holds one of them.

The audit's readers read it, so a policy is judged by the files, and the facts, that an audit of the image would find.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.audit.facts import Region, file_of_member
from ipe_build.audit.file_tree import FileTree
from ipe_build.errors import InputError
from ipe_build.examine.filesystem import folder_tree, read_tree
from ipe_build.examine.inputs import MAX_BOOT_FILE_BYTES, Inputs, Kind, kind_of
from ipe_build.examine.root import root_of_disk, superblock_of, survey_of
from ipe_build.formats.filesystem import HEAD_BYTES, filesystem_kind
from ipe_build.formats.initramfs import unpack_initramfs
from ipe_build.formats.verity_sig import parse_verity_signature
from ipe_build.image.disk import Disk, read_disk
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.survey import Survey

if TYPE_CHECKING:
    from ipe_build.host import Host


def survey(image: Path, host: Host, facts: Facts | None = None) -> Survey:
    """Returns what is in a root filesystem. The kernel is taken to know `facts` of every file, and of each what fs-verity says of it.

    With None the image says them itself: an initramfs is boot_verified, a disk names its root hash, a `.roothash` (and `.roothash.p7s`)
    lies beside a filesystem; a signature counts, whoever made it.
    Raises: InputError for something that is no root filesystem, ToolMissingError.
    """
    if not image.is_dir() and not image.is_file():
        raise InputError("is neither a folder nor an image file" if image.exists() else "does not exist", where=str(image))
    with host.scratch() as scratch:
        try:
            tree, filesystem, said = _tree(image, scratch, host)
            found = survey_of(tree, filesystem)
        except OSError as error:
            raise InputError(error.strerror or str(error), where=str(error.filename or image)) from error
    known = said if facts is None else facts
    of_files = (replace(known, fsverity_digest=known.fsverity_digest or one.facts.fsverity_digest) for one in found.entries)
    return replace(found, entries=tuple(replace(one, facts=its) for one, its in zip(found.entries, of_files, strict=True)))


def _tree(image: Path, scratch: Path, host: Host) -> tuple[FileTree, str | None, Facts]:
    """Returns the files, the filesystem's kind (None for a folder), and what the image says of all of them."""
    if image.is_dir():
        return folder_tree(image), None, _beside(image)
    kind = kind_of(image)
    if kind is Kind.INITRAMFS:
        return _initramfs(image), "initramfs", Facts(boot_verified=True)
    if kind is Kind.DISK and image.stat().st_size:
        disk = read_disk(image)
        region, facts = _root(disk, host)
        return *_read(region, scratch, host), facts
    if kind is not Kind.ROOT:
        raise InputError(
            "is no root filesystem",
            where=str(image),
            hint="give the root filesystem as a folder, or as EROFS, SquashFS, ext4, an initramfs or a GPT disk",
        )
    return *_read(Region(image, 0, image.stat().st_size), scratch, host), _beside(image)


def _read(region: Region, scratch: Path, host: Host) -> tuple[FileTree, str]:
    kind, tree = read_tree(region, scratch, host)
    return tree, str(kind)


def _initramfs(image: Path) -> FileTree:
    """Returns the files of an initramfs: all its archives, compressed ones included. Raises: InputError for a damaged one."""
    if image.stat().st_size > MAX_BOOT_FILE_BYTES:
        raise InputError("is too large for an initramfs", where=str(image))
    unpacked = unpack_initramfs(image.read_bytes())
    if unpacked.error:
        raise InputError(f"the initramfs cannot be unpacked: {unpacked.error}", where=str(image))
    return FileTree.of(map(file_of_member, unpacked.entries))


def _root(disk: Disk, host: Host) -> tuple[Region, Facts]:
    """Returns the root filesystem of a disk, and its root hash: the signature partition's, else the one that its UUIDs are from."""
    root = root_of_disk(disk, Inputs(disk.path))
    region = root.data_region or _first_filesystem(disk)
    block = superblock_of(root)
    value = None
    if root.signature_bytes is not None:
        value = parse_verity_signature(root.signature_bytes, where=f"{disk.path}: root-verity-sig").root_hash
    elif root.data is not None and root.hash is not None and block is not None and block.algorithm == "sha256":
        value = root.data.uuid.bytes + root.hash.uuid.bytes
    if value is None:
        host.progress.warn(f"{disk.path}: nothing on it names a root hash, so no dm-verity is assumed; --root-hash and --signed say it")
        return region, Facts()
    return region, _facts(value, block.algorithm if block is not None else None, signed=root.signature_bytes is not None)


def _first_filesystem(disk: Disk) -> Region:
    """Returns the first partition that holds a root filesystem, where none is of a root partition's type. Raises: InputError."""
    for one in disk.table.partitions:
        region = Region(disk.path, one.offset_bytes, one.size_bytes)
        if filesystem_kind(region.read(0, HEAD_BYTES)) is not None:
            return region
    raise InputError("no partition holds a root filesystem", where=str(disk.path))


def _facts(root_hash: bytes, algorithm: str | None, *, signed: bool) -> Facts:
    """Returns the facts of files on a verity volume; where nothing names its hash algorithm, the length tells it."""
    name = algorithm or {20: "sha1", 48: "sha384", 64: "sha512"}.get(len(root_hash), "sha256")
    return Facts(root_hash=Digest(name.encode(), root_hash), root_hash_signed=signed)


def _beside(image: Path) -> Facts:
    """Returns what the files beside a filesystem say of it. Raises: InputError for one that is no root hash."""
    found = sidecar_root_hash(image)
    return _facts(found[0], None, signed=found[1]) if found is not None else Facts()


def sidecar_root_hash(image: Path) -> tuple[bytes, bool] | None:
    """Returns the root hash that lies beside an image, and whether its signature does; None without `.roothash`."""
    for base in (image, image.with_suffix("")) if image.name else ():  # ".": the folder that we are in
        path = base.with_name(base.name + ".roothash")
        if path.is_file():
            text = path.read_bytes().strip()
            try:
                return bytes.fromhex(text.decode("ascii").rpartition(":")[2]), path.with_name(path.name + ".p7s").is_file()
            except ValueError:
                raise InputError("is no root hash", where=str(path)) from None
    return None
