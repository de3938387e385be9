"""Checking an image against its hash tree and root hash: which blocks differ, all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError, VerificationError
from ipe_build.integrity import engine
from ipe_build.integrity.files import Input, open_input
from ipe_build.integrity.verity import VerityTree, amount_shown, level_jobs

if TYPE_CHECKING:
    from ipe_build.host import Host


@dataclass(frozen=True, slots=True)
class VerityCheck:
    """What a check found.

    `hash_blocks` are numbers of hash blocks in the hash area whose digest differs from the level above, `data_blocks` those of data
    blocks whose digest differs from level 0. Below a differing hash block nothing is vouched for.
    """

    tree: VerityTree
    root_matches: bool
    hash_blocks: tuple[int, ...]
    data_blocks: tuple[int, ...]

    @property
    def accepted(self) -> bool:
        """Returns whether every block is the one that the root hash vouches for."""
        return self.root_matches and not self.hash_blocks and not self.data_blocks

    def data_or_raise(self) -> tuple[int, ...]:
        """Returns the differing data blocks. Raises: VerificationError when the tree itself is not the root hash's."""
        if not self.root_matches:
            raise VerificationError(
                "the hash tree does not belong to the root hash", hint="is this the right root hash, salt and hash area for the image?"
            )
        if self.hash_blocks:
            raise VerificationError(f"the hash tree is damaged: hash block {', '.join(map(str, self.hash_blocks[:8]))} differs")
        return self.data_blocks


def check_image(data: Path, hash_area: Path, tree: VerityTree, host: Host, *, data_offset: int = 0) -> VerityCheck:
    """Returns which blocks of `data` (from `data_offset` on) and `hash_area` differ from what `tree.root_hash` vouches for.

    Raises: InputError when a file cannot be read or is too small, or the root hash has the wrong length.
    """
    wanted = tree.parameters.algorithm.digest_size
    if len(tree.root_hash) != wanted:
        raise InputError(f"a {tree.parameters.hash_name} root hash has {wanted} bytes, got {len(tree.root_hash)}")
    with open_input(data) as source, open_input(hash_area) as area:
        check_sizes(source, area, tree, data_offset)
        with host.progress.step(f"verity: check {data.name}"):
            found = _check(source, area, tree, host, data_offset)
        source.check_unchanged()
        area.check_unchanged()
    return found


def check_sizes(source: Input, area: Input, tree: VerityTree, data_offset: int = 0) -> None:
    """Raises: InputError when the data or the hash area is smaller than the tree says."""
    if source.size - data_offset < tree.data_size:
        raise InputError(
            f"has {source.size - data_offset} bytes, the tree is over {tree.data_blocks} blocks of {tree.parameters.data_block_size}",
            where=str(source.path),
        )
    if area.size < tree.end_offset:
        raise InputError(
            f"the hash area is too small: the tree ends at byte {tree.end_offset}, the file at {area.size}", where=str(area.path)
        )


def _check(source: Input, area: Input, tree: VerityTree, host: Host, data_offset: int) -> VerityCheck:
    """Returns what differs, from the root down."""
    parameters = tree.parameters
    kernel = engine.choose_kernel(parameters.algorithm, host)
    jobs = level_jobs(source, area.descriptor, tree, str(area.path), data_offset)
    if not jobs:
        block = source.read(data_offset, parameters.data_block_size)
        matches = engine.digest_block(parameters.hashing, block) == tree.root_hash
        return VerityCheck(tree, True, (), () if matches else (0,))
    root = os.pread(area.descriptor, parameters.hash_block_size, parameters.tree_offset)
    matches = engine.digest_block(parameters.hashing, root) == tree.root_hash
    hash_blocks: list[int] = [] if matches else [tree.hash_start_block]
    for job in reversed(jobs[1:]):
        first = job.source_offset // parameters.hash_block_size
        hash_blocks.extend(first + index for index in engine.compare_level(job, kernel, lambda _done: None))
    data_blocks = engine.compare_level(jobs[0], kernel, amount_shown(host, jobs[0].source_bytes))
    return VerityCheck(tree, matches, tuple(hash_blocks), data_blocks)
