"""The check of error correction (FEC) for the verity root: where its parity is, whether it fits the blocks, and whether anybody uses it.

dm-verity's superblock says nothing of it: whoever opens the volume names the parity's place and the number of roots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.audit.command_line import everybodys_words
from ipe_build.audit.facts import ImageFacts, Region
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.root_hash import root_hash_of
from ipe_build.errors import IpeBuildError
from ipe_build.integrity.reed_solomon import CODEWORD, parity
from ipe_build.integrity.verity import VerityTree, read_superblock

if TYPE_CHECKING:
    from ipe_build.host import Host

_ROOTS = range(2, 25)
"""DM_VERITY_FEC_MIN_ROOTS (2) to DM_VERITY_FEC_MAX_ROOTS … 24. Source: drivers/md/dm-verity-fec.h."""
_SAMPLE_BYTES = 64
_SAMPLED_ROUNDS = 32
_TRIED_BYTES = 4096
_WORDS = ("fec-device=", "use_fec_from_device", "fec_device=")


class _Area(NamedTuple):
    """Bytes that may be parity, and how many blocks they would then cover."""

    name: str
    region: Region
    offset: int
    covered: int


def error_correction(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether there is error correction (FEC) for the root, whether its parity fits, and whether anybody opens the root with it."""
    named = next((word.text for word in everybodys_words(facts) if any(one in word.text for one in _WORDS)), "")
    config = facts.kernel_config
    if named and config is not None and not config.enabled("DM_VERITY_FEC"):
        yield bad("command line", f"{named} wants error correction, and CONFIG_DM_VERITY_FEC is off: the kernel refuses such a volume")
    elif named and facts.initramfs_config() is not None:
        yield bad("command line", f"{named} has no effect: ipe-init opens the root without error correction")
    tree = _tree(facts)
    if tree is None:
        yield unknown("error correction", "the superblock or the hash tree could not be read")
        return
    areas = list(_areas(facts, tree))
    unlike = ""
    for area in areas:
        if not any(area.region.read(area.offset, _TRIED_BYTES)):
            continue
        roots, wrong = _fitting(facts, tree, area)
        used = "ipe-init does not use it" if facts.initramfs_config() is not None else "who opens the root must name it"
        if roots and wrong:
            yield bad(area.name, f"parity of {roots} roots, and that of {wrong} of the rounds looked at is not of these blocks")
        elif roots:
            yield good(area.name, f"parity of {roots} roots that fits data and tree; a damaged block is repaired, unsaid ({used})")
        elif area.region == (facts.root.hash_region if facts.root is not None else None):
            unlike = area.name
        if roots:
            return
    if unlike:
        yield bad(unlike, "is neither tree nor parity of these blocks")
    elif not named:
        yield good("error correction", "there is none: a damaged block is an error when it is read, never repaired")


def _tree(facts: ImageFacts) -> VerityTree | None:
    """Returns the layout of the hash tree; its digests are another check's business."""
    root = facts.root
    if root is None or root.hash_region is None or root.data_region is None or root_hash_of(facts) is None:
        return None
    try:
        tree = read_superblock(root.hash_region.path, root.hash_region.offset_bytes + root.hash_offset)
    except IpeBuildError:
        return None
    size = root.hash_region.offset_bytes + root.hash_region.size_bytes
    return tree if tree.end_offset <= size and tree.data_size <= root.data_region.size_bytes else None


def _areas(facts: ImageFacts, tree: VerityTree) -> Iterator[_Area]:
    """Yields where parity may lie: behind the tree in its own partition, and in partitions without a known filesystem."""
    assert facts.root is not None
    assert facts.root.hash_region is not None
    area = facts.root.hash_region
    block = tree.parameters.data_block_size
    start = (tree.parameters.tree_offset - area.offset_bytes) // block
    end = tree.end_offset - area.offset_bytes
    if end < area.size_bytes:
        yield _Area("what lies behind the tree", area, end, tree.data_blocks + end // block - start)
    for one in facts.partitions:
        if not one.filesystem:
            yield _Area(one.name, one.region, 0, tree.data_blocks + max(0, area.size_bytes // block - start))
            yield _Area(one.name, one.region, 0, tree.data_blocks + max(0, end // block - start))


def _fitting(facts: ImageFacts, tree: VerityTree, area: _Area) -> tuple[int, int]:
    """Returns with how many roots the area begins with parity of these blocks (0: with none), and how many sampled rounds do not fit."""
    for roots in _ROOTS:
        rounds = -(-area.covered // (CODEWORD - roots))
        size = rounds * roots * tree.parameters.data_block_size
        if size > area.region.size_bytes - area.offset:
            continue
        step = max(1, rounds // _SAMPLED_ROUNDS)
        if _fits(facts, tree, area, roots, 0):
            return roots, sum(not _fits(facts, tree, area, roots, number) for number in range(0, rounds, step))
        later = [number for number in range(step, rounds, step) if _fits(facts, tree, area, roots, number)]
        if len(later) > 1:
            return roots, len(range(0, rounds, step)) - len(later)
    return 0, 0


def _fits(facts: ImageFacts, tree: VerityTree, area: _Area, roots: int, number: int) -> bool:
    """Returns whether the first codewords of a round have this parity; zeros of zeros prove nothing and fit only after others did."""
    block, columns = tree.parameters.data_block_size, CODEWORD - roots
    rounds = -(-area.covered // columns)
    rows = [_sample(facts, tree, column * rounds + number, area.covered) for column in range(columns)]
    stored = area.region.read(area.offset + number * block * roots, _SAMPLE_BYTES * roots)
    right = bytearray(len(stored))
    for index, row in enumerate(parity(rows, roots)):
        right[index::roots] = row
    return stored == right and (number > 0 or any(stored))


def _sample(facts: ImageFacts, tree: VerityTree, index: int, covered: int) -> bytes:
    """Returns the first bytes of a covered block; zeros past the end."""
    assert facts.root is not None
    assert facts.root.data_region is not None
    assert facts.root.hash_region is not None
    block = tree.parameters.data_block_size
    if index >= covered:
        return bytes(_SAMPLE_BYTES)
    if index < tree.data_blocks:
        piece = facts.root.data_region.read(index * block, _SAMPLE_BYTES)
    else:
        area = facts.root.hash_region
        piece = area.read(tree.parameters.tree_offset - area.offset_bytes + (index - tree.data_blocks) * block, _SAMPLE_BYTES)
    return piece.ljust(_SAMPLE_BYTES, b"\0")
