"""The partitions of a disk that no hash tree covers, and the files on them: whoever can write the disk changes them."""

from __future__ import annotations

import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.audit.facts import OtherPartition, Region, RootPartitions
from ipe_build.audit.file_tree import FileTree, TreeFile
from ipe_build.errors import IpeBuildError
from ipe_build.examine.filesystem import read_tree
from ipe_build.formats.fat import Fat, is_fat
from ipe_build.formats.filesystem import HEAD_BYTES, filesystem_kind
from ipe_build.image.disk import Disk

if TYPE_CHECKING:
    from ipe_build.host import Host

MAX_PARTITIONS = 32
"""Of so many partitions the files are looked at."""


def other_partitions(disk: Disk, root: RootPartitions | None, scratch: Path, host: Host) -> tuple[OtherPartition, ...]:
    """Returns the partitions besides verity roots (of each slot) and the first EFI system partition, with their files where they can be."""
    known = [one for one in (root.data, root.hash, root.signature) if one is not None] if root is not None else []
    types = {one.type_uuid for one in known}
    found = [one for one in disk.table.partitions if one.type_uuid not in types and one != disk.esp]
    regions = [(f"partition {one.number} {one.name}".strip(), Region(disk.path, one.offset_bytes, one.size_bytes)) for one in found]
    looked = (_partition(name, region, number, scratch, host) for number, (name, region) in enumerate(regions))
    return tuple(replace(one, partition=partition) for one, partition in zip(looked, found, strict=True))


def _partition(name: str, region: Region, number: int, scratch: Path, host: Host) -> OtherPartition:
    """Returns a partition; what is wrong with it is no fault of the image's, so it is said and not raised."""
    if number >= MAX_PARTITIONS:
        return OtherPartition(name, region, "", None, f"it is not looked into: there are more than {MAX_PARTITIONS}")
    filesystem = ""
    try:
        head = region.read(0, HEAD_BYTES)
        kind = filesystem_kind(head)
        filesystem = str(kind) if kind is not None else "vfat" if is_fat(head[:512]) else ""
        if kind is not None:
            folder = scratch / f"partition{number}"
            folder.mkdir()
            return OtherPartition(name, region, filesystem, read_tree(region, folder, host)[1])
        if filesystem:
            return OtherPartition(name, region, filesystem, _fat_tree(region))
    except IpeBuildError as error:
        return OtherPartition(name, region, filesystem, None, error.message)
    except OSError as error:
        return OtherPartition(name, region, filesystem, None, f"cannot be read: {error.strerror}")
    return OtherPartition(name, region, "", None)


def _fat_tree(region: Region) -> FileTree:
    """Returns the files of a FAT filesystem, all of them executable: so they are where it is mounted without fmask= or noexec."""
    fat = Fat(region.read, region.size_bytes)

    def read(one: object, offset: int, length: int) -> bytes:
        return fat.head(by_path[str(one)], offset + length)[offset:]

    by_path = {one.path: one for one in fat.files()}
    return FileTree.of(
        TreeFile(path.lstrip("/"), stat.S_IFREG | 0o755, one.size_bytes, read_at=partial(read, path)) for path, one in by_path.items()
    )
