"""Where each level of a hash tree lies: the arithmetic that dm-verity and fs-verity share."""

from __future__ import annotations

from typing import NamedTuple

from ipe_build.errors import InputError
from ipe_build.integrity.hashes import HashAlgorithm

_MAX_LEVELS = 63


class Level(NamedTuple):
    """One level of hash blocks: the byte offset of its first block from the tree's start, and how many blocks it has."""

    offset: int
    blocks: int


class Slots(NamedTuple):
    """How digests lie in a hash block: `per_block` of them, each in `slot_size` bytes, the block's rest zero."""

    block_size: int
    per_block: int
    slot_size: int
    digest_size: int

    @classmethod
    def of(cls, algorithm: HashAlgorithm, hash_block_size: int, hash_type: int) -> Slots:
        """Returns the layout: type 1 pads each digest to a power of two, type 0 packs them; both hold a power of two of digests.

        Raises: InputError when fewer than two digests fit, so that no tree could ever narrow.
        Source: cryptsetup lib/verity/verity_hash.c (hash_levels, create_or_verify); kernel drivers/md/dm-verity-target.c (verity_ctr).
        """
        fit = hash_block_size // algorithm.digest_size
        if fit < 2:
            raise InputError(f"a hash block of {hash_block_size} bytes holds fewer than two {algorithm.name} digests")
        slot_size = 1 << (algorithm.digest_size - 1).bit_length() if hash_type else algorithm.digest_size
        return cls(hash_block_size, 1 << (fit.bit_length() - 1), slot_size, algorithm.digest_size)

    def offset(self, index: int) -> int:
        """Returns the byte offset of digest `index` from its level's start."""
        return index // self.per_block * self.block_size + index % self.per_block * self.slot_size


def tree_levels(data_blocks: int, slots: Slots) -> tuple[Level, ...]:
    """Returns the levels, the one that holds the data's digests first, the root block last; none for a single data block.

    The root block lies first in the tree. Raises: InputError for no data at all or more levels than dm-verity has.
    """
    if data_blocks < 1:
        raise InputError("there is no data to hash: wanted at least one block")
    counts = []
    width = data_blocks
    while width > 1:
        width = -(-width // slots.per_block)
        counts.append(width)
    if len(counts) > _MAX_LEVELS:
        raise InputError(f"a tree over {data_blocks} blocks would have {len(counts)} levels, at most {_MAX_LEVELS} are possible")
    offsets = []
    position = 0
    for count in reversed(counts):
        offsets.append(position)
        position += count * slots.block_size
    return tuple(Level(offset, count) for offset, count in zip(reversed(offsets), counts, strict=True))


def tree_size(levels: tuple[Level, ...], slots: Slots) -> int:
    """Returns how many bytes all levels take."""
    return sum(level.blocks for level in levels) * slots.block_size
