"""The root's data against its hash tree and root hash: hashed once, whoever asks, and which parts of the root cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ipe_build.audit.facts import ImageFacts, Region, RootPartitions
from ipe_build.audit.root_hash import root_hash_of
from ipe_build.errors import IpeBuildError

if TYPE_CHECKING:
    from ipe_build.host import Host


_LARGE_BYTES = 64 << 30
_HOLES = 16
"""A root of more than so many bytes is hashed only when at least one byte in so many is stored."""


@dataclass(frozen=True, slots=True)
class TreeCheck:
    """What came of it. `problem` says what is wrong with the tree itself, `data_blocks` are the data blocks that differ from it.

    `unreadable` are the ranges of the root (first byte, byte after the last) that dm-verity will not let be read; `opens` is false
    where the kernel would not even make the volume.
    """

    problem: str
    data_blocks: tuple[int, ...]
    unreadable: tuple[tuple[int, int], ...]
    opens: bool

    def can_read(self, offset: int, length: int) -> bool:
        """Returns whether all of these bytes of the root can be read."""
        return self.opens and not any(start < offset + length and offset < end for start, end in self.unreadable)


def check_tree(facts: ImageFacts, host: Host) -> TreeCheck | None:
    """Returns the result for this root hash, None where data, tree or root hash are missing."""
    named, root = root_hash_of(facts), facts.root
    if named is None or root is None or root.data_region is None or root.hash_region is None:
        return None
    key = ("tree", root.data_region, root.hash_region, root.hash_offset, named.value)
    if key not in facts.memo:
        facts.memo[key] = _check(root, root.data_region, root.hash_region, named.value, host)
    found = facts.memo[key]
    assert isinstance(found, TreeCheck)
    return found


def _too_sparse(data: Region) -> str:
    """Returns why a region is not hashed: terabytes of nothing in a small file would take hours."""
    status = data.path.stat()
    if data.size_bytes > _LARGE_BYTES and status.st_blocks * 512 * _HOLES < data.size_bytes:
        return f"it is not hashed: of its {data.size_bytes} bytes the file stores {status.st_blocks * 512}"
    return ""


def _check(root: RootPartitions, data: Region, area: Region, root_hash: bytes, host: Host) -> TreeCheck:
    """Hashes everything."""
    from ipe_build.integrity.check import check_image
    from ipe_build.integrity.verity import read_superblock

    try:
        at = area.offset_bytes + root.hash_offset
        tree = replace(read_superblock(area.path, at), root_hash=root_hash)
        parameters = tree.parameters
        if tree.data_size > data.size_bytes or tree.end_offset > area.offset_bytes + area.size_bytes:
            return TreeCheck("data or tree do not fit into their partitions", (), (), opens=False)
        if at % parameters.hash_block_size:
            return TreeCheck(f"the tree does not begin at a multiple of {parameters.hash_block_size} bytes", (), (), opens=False)
        if (problem := _too_sparse(data)) != "":
            return TreeCheck(problem, (), (), opens=True)
        found = check_image(data.path, area.path, tree, host, data_offset=data.offset_bytes)
    except IpeBuildError as error:
        return TreeCheck(error.message, (), (), opens=False)
    size = parameters.data_block_size
    blocks = [(number * size, (number + 1) * size) for number in found.data_blocks]
    if not found.root_matches:
        # dm-verity takes the table all the same, and fails the first read.
        return TreeCheck("the hash tree does not belong to the root hash", found.data_blocks, ((0, tree.data_size),), opens=True)
    if not found.hash_blocks:
        return TreeCheck("", found.data_blocks, tuple(blocks), opens=True)
    shown = ", ".join(map(str, found.hash_blocks[:8]))
    for index, level in enumerate(tree.levels):
        first = (parameters.tree_offset + level.offset) // parameters.hash_block_size
        covered = size * parameters.slots.per_block ** (index + 1)
        blocks += [
            ((number - first) * covered, (number - first + 1) * covered)
            for number in found.hash_blocks
            if first <= number < first + level.blocks
        ]
    return TreeCheck(f"the hash tree is damaged: hash block {shown} differs", found.data_blocks, tuple(sorted(blocks)), opens=True)
