"""Repairing an image and its hash area from their error correction, into new files.

The hash tree says which blocks are wrong, so each round can lose as many blocks as there are roots (without a tree it is half as many).
Blocks are put right from the root down: what a right hash block vouches for can be judged, what lies below a wrong one cannot yet.
Source: kernel drivers/md/dm-verity-fec.c, which finds erasures the same way.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError, VerificationError
from ipe_build.integrity import engine
from ipe_build.integrity.check import check_sizes
from ipe_build.integrity.fec import Cover, encode
from ipe_build.integrity.files import Input, copy_file, is_same_file, open_input
from ipe_build.integrity.geometry import Level
from ipe_build.integrity.reed_solomon import fill_erasures

if TYPE_CHECKING:
    from ipe_build.host import Host
    from ipe_build.integrity.verity import VerityTree

_MOST_GUESSES = 256


@dataclass(frozen=True, slots=True)
class Repair:
    """What was put right: numbers of data blocks, and of hash blocks in the hash area."""

    data_blocks: tuple[int, ...]
    hash_blocks: tuple[int, ...]


def repair_image(
    data: Path, hash_area: Path, fec_area: Path, tree: VerityTree, out_data: Path, out_hash: Path | None, host: Host, *, force: bool = False
) -> Repair:
    """Returns what was repaired, after writing whole new files: `out_data`, and `out_hash` unless the hash area is inside the data's file.

    Every block of the new files was checked against `tree.root_hash`. Raises: VerificationError when more is wrong than can be
    repaired (no file is written then), InputError when a file cannot be read.
    """
    inside = is_same_file(data, hash_area)
    if (out_hash is None) != inside:
        raise InputError("a repair needs a new file for the data and, when that is a file of its own, for the hash area")
    with ExitStack() as stack:
        source = stack.enter_context(open_input(data))
        area = stack.enter_context(open_input(hash_area))
        correction = stack.enter_context(open_input(fec_area))
        check_sizes(source, area, tree)
        data_copy = _copy(stack, source, out_data, host, force=force)
        hash_copy = data_copy if out_hash is None else _copy(stack, area, out_hash, host, force=force)
        tree = replace(tree, fec_blocks=covered_blocks(tree, area.size, with_hash=is_same_file(hash_area, fec_area)))
        with host.progress.step(f"verity: repair {data.name}"):
            return _Work(data_copy, hash_copy, correction, tree, host).run()


def covered_blocks(tree: VerityTree, hash_file_size: int, *, with_hash: bool) -> int:
    """Returns how many blocks the error correction of an existing hash area covers: up to the FEC area when that is in the same file.

    Source: cryptsetup lib/verity/verity_fec.c (VERITY_FEC_blocks).
    """
    parameters = tree.parameters
    end = parameters.fec.offset if with_hash and parameters.fec is not None else hash_file_size
    return tree.data_blocks + max(0, end // parameters.data_block_size - tree.hash_start_block)


def check_parity(data: Path, hash_area: Path, fec_area: Path, tree: VerityTree, host: Host) -> tuple[int, ...]:
    """Returns the numbers of the rounds whose stored parity is not that of the blocks as they are; () when all agree."""
    with ExitStack() as stack:
        source, area, correction = (stack.enter_context(open_input(path)) for path in (data, hash_area, fec_area))
        check_sizes(source, area, tree)
        covered = covered_blocks(tree, area.size, with_hash=is_same_file(hash_area, fec_area))
        cover = Cover.of(source.descriptor, area.descriptor, tree, covered)
        offset = _fec_offset(tree)
        _check_fec_size(correction, cover, offset)
        right = os.open(stack.enter_context(host.scratch()) / "parity", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, right)
        encode(source, area.descriptor, tree, covered, right, host)
        size = cover.block_size * cover.roots
        places = ((number, offset + number * size) for number in range(cover.rounds))
        return tuple(number for number, at in places if correction.read(at, size) != os.pread(right, size, at))


def _fec_offset(tree: VerityTree) -> int:
    """Returns where the parity begins in the FEC area."""
    return tree.parameters.fec.offset if tree.parameters.fec is not None else 0


def _check_fec_size(correction: Input, cover: Cover, offset: int) -> None:
    """Raises: InputError when the FEC area is too small for the parity of all rounds."""
    wanted = offset + cover.parity_size
    if correction.size < wanted:
        raise InputError(
            f"the FEC area is too small: it would end at byte {wanted}, the file at {correction.size}", where=str(correction.path)
        )


def _copy(stack: ExitStack, source: Input, target: Path, host: Host, *, force: bool) -> int:
    """Returns a descriptor of a new output with the same bytes; holes stay holes."""
    temporary = stack.enter_context(host.output(target, force=force))
    copy_file(source, temporary)
    source.check_unchanged()
    descriptor = os.open(temporary, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


class _Work:
    """One repair: the copies that are being put right."""

    def __init__(self, data: int, hash_area: int, correction: Input, tree: VerityTree, host: Host) -> None:
        self._data, self._hash, self._correction, self._tree, self._host = data, hash_area, correction, tree, host
        self._cover = Cover.of(data, hash_area, tree, tree.fec_blocks)
        self._kernel = engine.choose_kernel(tree.parameters.algorithm, host)
        _check_fec_size(correction, self._cover, _fec_offset(tree))

    def run(self) -> Repair:
        """Returns what was repaired, level by level. Raises: VerificationError."""
        done: set[int] = set()
        for stage in range(len(self._tree.levels) + 1):
            while wrong := self._wrong(stage):
                fixed = self._fix(wrong, self._suspects())
                if not fixed:
                    kind = "hash" if wrong[0] >= self._tree.data_blocks else "data"
                    numbers = ", ".join(str(self._number(index)) for index in wrong[:8])
                    raise VerificationError(
                        f"{len(wrong)} {kind} blocks cannot be repaired: {numbers}",
                        hint=f"each round of {self._cover.columns} blocks can lose {self._cover.roots}; is this the right root hash?",
                    )
                done.update(fixed)
        count = self._tree.data_blocks
        return Repair(
            tuple(sorted(index for index in done if index < count)),
            tuple(sorted(self._number(index) for index in done if index >= count)),
        )

    def _number(self, index: int) -> int:
        """Returns the block number in its own file of covered block `index`."""
        count = self._tree.data_blocks
        return index if index < count else index - count + self._tree.hash_start_block

    def _wrong(self, stage: int) -> tuple[int, ...]:
        """Returns the covered blocks of a stage whose digest is wrong: stage 0 is the root block, the last one the data."""
        levels = self._tree.levels
        parameters = self._tree.parameters
        if stage == 0:
            first = self._tree.data_blocks if levels else 0
            return () if engine.digest_block(parameters.hashing, self._cover.block(first)) == self._tree.root_hash else (first,)
        below = len(levels) - stage
        offset, size, first = 0, self._tree.data_size, 0
        source = self._data
        if below:
            level: Level = levels[below - 1]
            offset, size = parameters.tree_offset + level.offset, level.blocks * parameters.hash_block_size
            source, first = self._hash, self._tree.data_blocks + level.offset // parameters.hash_block_size
        target = parameters.tree_offset + levels[below].offset
        job = engine.LevelJob(
            *(parameters.hashing, source, offset, size, parameters.data_block_size),
            *(self._hash, target, parameters.slots, "the copy", "the copy"),
        )
        return tuple(first + index for index in engine.compare_level(job, self._kernel, lambda _done: None))

    def _suspects(self) -> dict[int, set[int]]:
        """Returns, by round, the covered blocks whose digest is not the one stored above them, right or wrong as that may be."""
        found: dict[int, set[int]] = defaultdict(set)
        for stage in range(len(self._tree.levels) + 1):
            for index in self._wrong(stage):
                found[index % self._cover.rounds].add(index)
        return found

    def _fix(self, wrong: tuple[int, ...], suspects: dict[int, set[int]]) -> set[int]:
        """Returns the blocks that were changed since they made blocks of `wrong` right; none when no round could be solved."""
        fixed: set[int] = set()
        rounds = defaultdict(set)
        for index in wrong:
            rounds[index % self._cover.rounds].add(index)
        for number, lost in rounds.items():
            for erased in self._candidates(lost, suspects[number] | lost):
                changed = self._solve(number, erased, lost)
                if changed:
                    fixed |= changed
                    break
        return fixed

    def _candidates(self, lost: set[int], suspects: set[int]) -> Iterator[set[int]]:
        """Yields what may be erased in a round: all that looks wrong or, when that is too much, what is wrong and some of the others.

        Blocks may only seem wrong, since their digest lies in a hash block that is.
        """
        roots = self._cover.roots
        if len(suspects) <= roots:
            yield suspects
        elif len(lost) <= roots:
            for others in islice(combinations(sorted(suspects - lost), roots - len(lost)), _MOST_GUESSES):
                yield lost.union(others)

    def _solve(self, number: int, erased: set[int], lost: set[int]) -> set[int]:
        """Returns the blocks that changed, after writing what a round's erased blocks must have been; none if `lost` is not right then."""
        cover = self._cover
        size = cover.block_size * cover.roots
        mixed = self._correction.read(_fec_offset(self._tree) + number * size, size)
        rows = cover.rows(number) + [mixed[root :: cover.roots] for root in range(cover.roots)]
        solved = fill_erasures(rows, sorted(index // cover.rounds for index in erased))
        if solved is None:
            return set()
        self._put(number, solved)
        if not all(self._is_right(index) for index in lost):
            self._put(number, {column: rows[column] for column in solved})
            return set()
        return {column * cover.rounds + number for column, block in solved.items() if block != rows[column]}

    def _is_right(self, index: int) -> bool:
        """Returns whether a covered block has the digest that is stored above it."""
        parameters, levels, slots = self._tree.parameters, self._tree.levels, self._tree.parameters.slots
        digest = engine.digest_block(parameters.hashing, self._cover.block(index))
        above, place = 0, index
        if index >= self._tree.data_blocks:
            place = (index - self._tree.data_blocks) * parameters.hash_block_size
            above = 1 + next(at for at, level in enumerate(levels) if level.offset <= place)
            place = (place - levels[above - 1].offset) // parameters.hash_block_size
        if above == len(levels):
            return digest == self._tree.root_hash
        return digest == os.pread(self._hash, slots.digest_size, parameters.tree_offset + levels[above].offset + slots.offset(place))

    def _put(self, number: int, rows: dict[int, bytes]) -> None:
        """Writes blocks of a round, by column."""
        for column, block in rows.items():
            index = column * self._cover.rounds + number
            if index < self._tree.data_blocks:
                os.pwrite(self._data, block, index * self._cover.block_size)
            elif index < self._cover.blocks:
                os.pwrite(self._hash, block, self._cover.hash_offset + (index - self._tree.data_blocks) * self._cover.block_size)
