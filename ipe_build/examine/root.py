"""The verity root of an image: where its parts lie, its files, and what a kernel answers to its modules."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.audit.facts import KernelView, ModuleView, Region, RootFiles, RootPartitions
from ipe_build.audit.file_tree import FileTree
from ipe_build.errors import InputError, IpeBuildError
from ipe_build.examine.filesystem import read_tree
from ipe_build.examine.inputs import Inputs
from ipe_build.formats.filesystem import HEAD_BYTES, filesystem_bytes
from ipe_build.formats.gpt import Partition
from ipe_build.formats.initramfs import Initramfs
from ipe_build.formats.verity import SUPERBLOCK_SIZE, Superblock, parse_superblock
from ipe_build.formats.verity_sig import parse_verity_signature
from ipe_build.image.disk import Disk
from ipe_build.kernel.module_compression import is_module
from ipe_build.kernel.modules import verify_module
from ipe_build.policy.classify import classify
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.survey import Entry, Kind, Survey

if TYPE_CHECKING:
    from ipe_build.host import Host

_MAX_SIGNATURE_BYTES = 1 << 20
_MAX_CLASSIFIED_BYTES = 64 << 20
"""Of a program as much is looked through for what it will not be able to do under IPE."""
_MAX_MODULE_BYTES = 256 << 20
_BLOCK_BYTES = 4096


def root_of_disk(disk: Disk, inputs: Inputs) -> RootPartitions:
    """Returns the verity root of a disk; parts that were given as files of their own take the place of missing partitions."""

    def region(partition: Partition | None) -> Region | None:
        return None if partition is None else Region(disk.path, partition.offset_bytes, partition.size_bytes)

    signature = region(disk.root_verity_sig)
    signed = _signature(signature) if signature is not None else inputs.signature
    data, area = _named_by(signed, disk)
    found = RootPartitions(
        data=data,
        hash=area,
        signature=disk.root_verity_sig,
        data_region=region(data) or inputs.root,
        hash_region=region(area) or inputs.hash_tree,
        signature_bytes=signed,
        named_hash=inputs.root_hash,
    )
    return _with_appended_tree(found)


def _named_by(signed: bytes | None, disk: Disk) -> tuple[Partition | None, Partition | None]:
    """Returns root and root-verity: of several of one type those whose UUIDs are from the signed root hash, else the first."""
    try:
        root_hash = parse_verity_signature(signed or b"").root_hash
    except IpeBuildError:
        return disk.root, disk.root_verity
    found = []
    for first, half in ((disk.root, root_hash[:16]), (disk.root_verity, root_hash[-16:])):
        twins = [one for one in disk.table.partitions if first is not None and one.type_uuid == first.type_uuid]
        found.append(next((one for one in twins if one.uuid.bytes == half), first))
    return found[0], found[1]


def root_of_files(inputs: Inputs) -> RootPartitions | None:
    """Returns the verity root that was given as files, None without any."""
    if inputs.root is None and inputs.hash_tree is None and inputs.signature is None:
        return None
    return _with_appended_tree(
        RootPartitions(None, None, None, inputs.root, inputs.hash_tree, inputs.signature, named_hash=inputs.root_hash)
    )


def _signature(region: Region) -> bytes:
    """Returns the content of the signature partition. Raises: InputError when it is larger than any."""
    if region.size_bytes > _MAX_SIGNATURE_BYTES and any(region.read(_MAX_SIGNATURE_BYTES, _BLOCK_BYTES)):
        raise InputError(f"the signature partition holds more than {_MAX_SIGNATURE_BYTES} bytes", where=str(region.path))
    return region.read(0, _MAX_SIGNATURE_BYTES)


def _with_appended_tree(root: RootPartitions) -> RootPartitions:
    """Returns the root with a tree that lies behind the filesystem in the same partition, where there is no other."""
    if root.data_region is None or root.hash_region is not None:
        return root
    size = filesystem_bytes(root.data_region.read(0, HEAD_BYTES)) or 0
    at = -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
    if not size or root.data_region.read(at, 8) != b"verity\0\0":
        return root
    return replace(root, hash_region=root.data_region, hash_offset=at)


def superblock_of(root: RootPartitions) -> Superblock | None:
    """Returns the superblock of the hash tree. Raises: FormatError."""
    if root.hash_region is None:
        return None
    return parse_superblock(root.hash_region.read(root.hash_offset, SUPERBLOCK_SIZE), where="root-verity", offset=root.hash_offset)


def read_files(root: RootPartitions, scratch: Path, host: Host) -> RootFiles | None:
    """Returns the files of the root filesystem, no modules judged yet. Raises: InputError, ToolMissingError."""
    if root.data_region is None:
        return None
    kind, tree = read_tree(root.data_region, scratch, host)
    return RootFiles(tree, str(kind), root.data_region.size_bytes, survey_of(tree, str(kind)), ())


def survey_of(tree: FileTree, filesystem: str | None) -> Survey:
    """Returns what of the files matters to a policy. What fs-verity says of a file is among its facts."""
    entries = []
    for one in tree:
        if not one.is_file:
            continue
        head = one.read(20)
        path = shown(one.path)
        whole = head[:4] == b"\x7fELF" and not path.endswith(".ko")
        found = classify(path, bool(one.mode & 0o111), one.read(_MAX_CLASSIFIED_BYTES) if whole else head)
        if found is not None:
            verity = one.verity
            known = (
                Facts(fsverity_digest=Digest(verity.hash_name.encode(), verity.digest)) if verity is not None and verity.digest else Facts()
            )
            entries.append(Entry(path, found[0], found[1], known))
    fstab = tree.find("etc/fstab")
    mounts = _fstab(fstab.read(_MAX_SIGNATURE_BYTES)) if fstab is not None and fstab.is_file else ()
    return Survey(filesystem, tuple(entries), mounts)


def shown(path: str) -> str:
    """Returns a path with bytes that are not UTF-8 as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _fstab(text: bytes) -> tuple[tuple[str, str], ...]:
    """Returns mount points and types of /etc/fstab."""
    rows = (line.split() for line in text.decode("utf-8", "replace").splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return tuple((row[1], row[2]) for row in rows if len(row) >= 3)


def judge_modules(files: RootFiles, kernel: KernelView, scratch: Path) -> tuple[ModuleView, ...]:
    """Returns what a kernel answers to each module of the root."""
    wanted = {entry.path for entry in files.survey.entries if entry.kind in (Kind.MODULE, Kind.COMPRESSED_MODULE)}
    return tuple(_module(one.path, one.read(_MAX_MODULE_BYTES), kernel, scratch) for one in files.tree if shown(one.path) in wanted)


def judge_initramfs(archive: Initramfs, kernel: KernelView, scratch: Path) -> tuple[ModuleView, ...]:
    """Returns what a kernel answers to each module in an initramfs."""
    there = (one for one in archive.entries if stat.S_ISREG(one.mode) and is_module(Path(one.path)))
    return tuple(_module(one.path, one.data, kernel, scratch) for one in there)


def _module(path: str, data: bytes, kernel: KernelView, scratch: Path) -> ModuleView:
    """Returns what the kernel answers to a module."""
    copy = scratch / f"module{Path(path).suffix}"
    copy.write_bytes(data)
    verdict = verify_module(copy, kernel.certificates, revoked=kernel.revoked, release=kernel.release)
    signer = verdict.certificate.subject.rfc4514_string() if verdict.certificate is not None else ""
    reason = verdict.reason.replace(str(copy), f"/{path}")
    return ModuleView(
        shown(path), signer, verdict.facts.compression if verdict.facts is not None else "", verdict.errno, reason, verdict.intact is None
    )
