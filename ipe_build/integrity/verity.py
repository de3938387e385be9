"""dm-verity: the superblock and hash tree of an image, like veritysetup's to the byte.

Source: cryptsetup lib/verity/verity.c and verity_hash.c; kernel Documentation/admin-guide/device-mapper/verity.rst.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError
from ipe_build.formats.verity import MAX_BLOCK_SIZE, MAX_SALT, MIN_BLOCK_SIZE, SUPERBLOCK_SIZE, Superblock, is_block_size, parse_superblock
from ipe_build.integrity import engine
from ipe_build.integrity.files import Input, is_same_file, open_input
from ipe_build.integrity.geometry import Level, Slots, tree_levels, tree_size
from ipe_build.integrity.hashes import HashAlgorithm, find_hash

if TYPE_CHECKING:
    from uuid import UUID

    from ipe_build.host import Host


@dataclass(frozen=True, slots=True)
class FecParameters:
    """Forward error correction: `roots` parity bytes for each 255 - roots bytes, written from byte `offset` of the FEC area."""

    roots: int = 2
    offset: int = 0


@dataclass(frozen=True, slots=True)
class VerityParameters:
    """How a tree is made.

    `uuid` None: derived from the root hash. `hash_offset` is the byte offset of the superblock or, without one, of the tree.

    Raises: InputError for values that veritysetup or the kernel would not take.
    """

    hash_name: str = "sha256"
    salt: bytes = b""
    uuid: UUID | None = None
    data_block_size: int = 4096
    hash_block_size: int = 4096
    hash_type: int = 1
    hash_offset: int = 0
    superblock: bool = True
    fec: FecParameters | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash_name", find_hash(self.hash_name).name)
        for name, size in (("data block size", self.data_block_size), ("hash block size", self.hash_block_size)):
            if not is_block_size(size):
                raise InputError(f"the {name} must be a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}, got {size}")
        if len(self.salt) > MAX_SALT:
            raise InputError(f"a salt has at most {MAX_SALT} bytes, got {len(self.salt)}")
        if self.hash_type not in (0, 1):
            raise InputError(f"the format type is 1 (normal) or 0 (Chrome OS), got {self.hash_type}")
        step = SUPERBLOCK_SIZE if self.superblock else self.hash_block_size
        if self.hash_offset < 0 or self.hash_offset % step:
            kind = "with a superblock" if self.superblock else "without a superblock the hash block size"
            raise InputError(f"the hash offset must be a multiple of {step} ({kind}), got {self.hash_offset}")
        self._check_fec()

    def _check_fec(self) -> None:
        """Raises: InputError for error correction that veritysetup would not make."""
        if self.fec is None:
            return
        if self.data_block_size != self.hash_block_size:
            raise InputError("error correction needs data and hash blocks of one size", hint="leave both at 4096")
        if not 2 <= self.fec.roots <= 24:
            raise InputError(f"error correction has 2 to 24 roots, got {self.fec.roots}")
        if self.fec.offset < 0 or self.fec.offset % SUPERBLOCK_SIZE:
            raise InputError(f"the FEC offset must be a multiple of {SUPERBLOCK_SIZE}, got {self.fec.offset}")

    @property
    def algorithm(self) -> HashAlgorithm:
        """Returns the row of the hash algorithm."""
        return find_hash(self.hash_name)

    @property
    def hashing(self) -> engine.BlockHash:
        """Returns what is hashed for each block."""
        return engine.BlockHash.salted(self.algorithm, self.salt, self.hash_type)

    @property
    def slots(self) -> Slots:
        """Returns how digests lie in a hash block."""
        return Slots.of(self.algorithm, self.hash_block_size, self.hash_type)

    @property
    def tree_offset(self) -> int:
        """Returns the byte offset of the tree's first block in the hash area: the first whole hash block after the superblock."""
        if not self.superblock:
            return self.hash_offset
        return -(-(self.hash_offset + SUPERBLOCK_SIZE) // self.hash_block_size) * self.hash_block_size


@dataclass(frozen=True, slots=True)
class VerityTree:
    """A tree that was made or found: what the kernel needs to check `data_blocks` blocks.

    `root_hash` is b"" when only the superblock was read (the root hash is not in it). `fec_blocks` is how many data and hash blocks
    the error correction covers (0: none).
    """

    parameters: VerityParameters
    data_blocks: int
    root_hash: bytes
    hash_offset: int
    fec_blocks: int = 0

    @property
    def data_size(self) -> int:
        """Returns how many bytes of data are protected."""
        return self.data_blocks * self.parameters.data_block_size

    @property
    def levels(self) -> tuple[Level, ...]:
        """Returns the tree's levels, the one with the data's digests first; offsets count from `parameters.tree_offset`."""
        return tree_levels(self.data_blocks, self.parameters.slots)

    @property
    def hash_start_block(self) -> int:
        """Returns the number of the tree's first block in the hash area, in hash blocks: the dm table's hash_start_block."""
        return self.parameters.tree_offset // self.parameters.hash_block_size

    @property
    def hash_blocks(self) -> int:
        """Returns how many hash blocks the tree has."""
        return sum(level.blocks for level in self.levels)

    @property
    def end_offset(self) -> int:
        """Returns the byte offset in the hash area where the tree ends; where the superblock does, or 0, when there is no tree."""
        if not self.levels:
            return self.hash_offset + SUPERBLOCK_SIZE if self.parameters.superblock else 0
        return self.parameters.tree_offset + tree_size(self.levels, self.parameters.slots)

    @property
    def superblock(self) -> Superblock:
        """Returns the superblock. Raises: InputError when the UUID is not known."""
        parameters = self.parameters
        if parameters.uuid is None:
            raise InputError("the superblock's UUID is not known")
        return Superblock(
            parameters.uuid,
            parameters.hash_type,
            parameters.hash_name,
            parameters.data_block_size,
            parameters.hash_block_size,
            self.data_blocks,
            parameters.salt,
        )


def uuid_of_root_hash(root_hash: bytes) -> UUID:
    """Returns a UUID (version 8) for a superblock that was given none.

    The first 128 bits of SHA-256("ipe-build verity uuid" NUL root hash): each content has its own, the same content the same.
    Source: RFC 9562, section 5.8.
    """
    from uuid import UUID

    raw = bytearray(engine.digest_message(find_hash("sha256"), b"ipe-build verity uuid\0" + root_hash)[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return UUID(bytes=bytes(raw))


def format_image(
    data: Path,
    hash_area: Path,
    parameters: VerityParameters,
    host: Host,
    *,
    fec_area: Path | None = None,
    data_blocks: int | None = None,
    pad: bool = False,
    force: bool = False,
) -> VerityTree:
    """Returns the tree over `data`, after writing superblock and tree into `hash_area` (and error correction into `fec_area`).

    `hash_area` and `fec_area` are new files (existing ones are replaced only with `force`), or `data` itself: then the bytes are added
    from `hash_offset` (`fec.offset`) on, which must lie after the data, where there is nothing but zeros (unless `force`).
    `data_blocks` limits how much is protected; otherwise it is the whole file, whose size must be a multiple of the data block size
    unless `pad` allows it to be lengthened with zeros. When something fails, no file is changed.
    Raises: InputError, OutputError.
    """
    from ipe_build.integrity.placement import Placement

    inside = any(area is not None and is_same_file(data, area) for area in (hash_area, fec_area))
    with ExitStack() as stack:
        source = stack.enter_context(open_input(data, writable=pad or inside))
        blocks = _data_blocks(source, parameters.data_block_size, data_blocks, pad=pad)
        tree = VerityTree(parameters, blocks, b"", parameters.hash_offset)
        with Placement(source, hash_area, fec_area, tree, host, force=force) as placement:
            with host.progress.step(f"verity: hash {data.name}"):
                root_hash = write_tree(source, placement.hash_descriptor, tree, host, placement.hash_name)
            source.check_unchanged()
            tree = replace(tree, root_hash=root_hash, parameters=_with_uuid(parameters, root_hash))
            if parameters.superblock:
                os.pwrite(placement.hash_descriptor, tree.superblock.build(), parameters.hash_offset)
            tree = placement.finish(tree)
    return tree


def _with_uuid(parameters: VerityParameters, root_hash: bytes) -> VerityParameters:
    """Returns the parameters with the UUID that the superblock gets."""
    if not parameters.superblock or parameters.uuid is not None:
        return parameters
    return replace(parameters, uuid=uuid_of_root_hash(root_hash))


def _data_blocks(source: Input, block_size: int, wanted: int | None, *, pad: bool) -> int:
    """Returns how many blocks are protected. Raises: InputError when the file's size does not fit."""
    if wanted is not None:
        if wanted < 1 or wanted * block_size > source.size:
            raise InputError(
                f"{wanted} data blocks of {block_size} bytes were asked for, the file has {source.size} bytes", where=str(source.path)
            )
        return wanted
    if source.size == 0:
        raise InputError("is empty: there is nothing to protect", where=str(source.path))
    if source.size % block_size and not pad:
        raise InputError(
            f"its size, {source.size} bytes, is not a multiple of the data block size {block_size}",
            where=str(source.path),
            hint="say --pad to lengthen it with zeros, or name a smaller --data-block-size",
        )
    return -(-source.size // block_size)


def write_tree(source: Input, target: int, tree: VerityTree, host: Host, target_name: str) -> bytes:
    """Returns the root hash, after writing all levels into the open file `target`, whose bytes there must read as zeros."""
    parameters = tree.parameters
    size = min(source.size, tree.data_size)
    kernel = engine.choose_kernel(parameters.algorithm, host)
    end = tree.end_offset
    if os.fstat(target).st_size < end:
        os.ftruncate(target, end)
    progress = amount_shown(host, size)
    for job in level_jobs(source, target, tree, target_name):
        engine.hash_level(job, kernel, progress)
        progress = _nothing
    return _root_hash(source, target, tree)


def _nothing(_done: int) -> None:
    """Shows nothing: the upper levels are small."""


def _root_hash(source: Input, target: int, tree: VerityTree) -> bytes:
    """Returns the digest of the tree's root block or, when there is a single data block and so no tree, of that block."""
    parameters = tree.parameters
    if tree.levels:
        return engine.digest_block(parameters.hashing, os.pread(target, parameters.hash_block_size, parameters.tree_offset))
    block = source.read(0, parameters.data_block_size)
    return engine.digest_block(parameters.hashing, block.ljust(parameters.data_block_size, b"\0"))


def level_jobs(source: Input, target: int, tree: VerityTree, target_name: str, data_offset: int = 0) -> tuple[engine.LevelJob, ...]:
    """Returns the jobs that make (or check) a tree: the data (from `data_offset` of the file on) into level 0, each level into the next."""
    parameters = tree.parameters
    offset = data_offset
    size = min(source.size - data_offset, tree.data_size)
    read_from = source.descriptor
    block_size = parameters.data_block_size
    name = str(source.path)
    jobs = []
    for level in tree.levels:
        at = parameters.tree_offset + level.offset
        jobs.append(
            engine.LevelJob(parameters.hashing, read_from, offset, size, block_size, target, at, parameters.slots, name, target_name)
        )
        offset, size, read_from, block_size, name = (
            at,
            level.blocks * parameters.hash_block_size,
            target,
            parameters.hash_block_size,
            target_name,
        )
    return tuple(jobs)


def amount_shown(host: Host, total: int) -> Callable[[int], None]:
    """Returns a function that shows how many of `total` bytes are done."""
    import time

    started = time.monotonic()

    def show(done: int) -> None:
        host.progress.amount(done, total, started)

    return show


def read_superblock(hash_area: Path, hash_offset: int = 0) -> VerityTree:
    """Returns the tree that the superblock at byte `hash_offset` describes, without a root hash.

    Raises: InputError, FormatError when there is no superblock or its values cannot be.
    """
    with open_input(hash_area) as area:
        block = parse_superblock(area.read(hash_offset, SUPERBLOCK_SIZE), where=str(hash_area), offset=hash_offset)
    parameters = VerityParameters(
        block.algorithm, block.salt, block.uuid, block.data_block_size, block.hash_block_size, block.hash_type, hash_offset
    )
    return VerityTree(parameters, block.data_blocks, b"", hash_offset)


def verify_image(
    data: Path, hash_area: Path, root_hash: bytes, host: Host, *, hash_offset: int = 0, data_offset: int = 0
) -> tuple[int, ...]:
    """Returns the numbers of the data blocks that differ from what `root_hash` vouches for, in ascending order; () when all is well.

    Data and hash area may lie in one file, a whole disk say: `data_offset` and `hash_offset` (a multiple of the hash block size).

    Raises: VerificationError when the hash tree itself does not belong to `root_hash` (see `integrity.check` for which blocks),
    InputError when a file cannot be read, has no superblock or is too small.
    """
    from ipe_build.integrity.check import check_image

    tree = replace(read_superblock(hash_area, hash_offset), root_hash=root_hash)
    return check_image(data, hash_area, tree, host, data_offset=data_offset).data_or_raise()
