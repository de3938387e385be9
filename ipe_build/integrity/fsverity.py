"""fs-verity: the digests of files, as the kernel would measure them and `fsverity digest` prints them.

A file's digest is the hash of a descriptor that holds its size, the salt and the root hash of a tree over its blocks (the last one
padded with zeros). Source: kernel Documentation/filesystems/fsverity.rst, "Merkle tree" and "File digest computation".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import InputError
from ipe_build.formats import fsverity as layout
from ipe_build.integrity import engine
from ipe_build.integrity.files import Input, open_input
from ipe_build.integrity.geometry import Slots, tree_levels, tree_size
from ipe_build.integrity.hashes import HashAlgorithm, find_hash

if TYPE_CHECKING:
    from ipe_build.host import Host

formatted_digest = layout.formatted_digest
_BIG = 32 << 20
"""Files from this size on are hashed one by one with all processors; smaller ones each by one thread."""
_RECORD = struct.Struct("<IIQ64s64s")
_RECORD_OK = engine.STATUS_OK
_RECORD_OPEN, _RECORD_KIND, _RECORD_CHANGED, _RECORD_BIG = range(16, 20)


@dataclass(frozen=True, slots=True)
class FsVerityParameters:
    """How a file is measured: sha256 or sha512, blocks of 1024 to 65536 bytes, a salt of up to 32 bytes.

    Raises: InputError for values that the kernel would not take.
    """

    hash_name: str = "sha256"
    block_size: int = 4096
    salt: bytes = b""

    def __post_init__(self) -> None:
        layout.algorithm_number(self.hash_name)
        object.__setattr__(self, "hash_name", self.hash_name.lower())
        size = self.block_size
        if not 1 << layout.MIN_LOG_BLOCK_SIZE <= size <= 1 << layout.MAX_LOG_BLOCK_SIZE or size & (size - 1):
            raise InputError(f"an fs-verity block is a power of two from 1024 to 65536 bytes, got {size}")
        if len(self.salt) > layout.MAX_SALT:
            raise InputError(f"an fs-verity salt has at most {layout.MAX_SALT} bytes, got {len(self.salt)}")

    @property
    def algorithm(self) -> HashAlgorithm:
        """Returns the row of the hash algorithm."""
        return find_hash(self.hash_name)

    @property
    def hashing(self) -> engine.BlockHash:
        """Returns what is hashed for a block: the salt, padded to the algorithm's own block, then the block."""
        row = self.algorithm
        return engine.BlockHash(row, prefix=self.salt.ljust(row.input_block_size, b"\0") if self.salt else b"")

    @property
    def slots(self) -> Slots:
        """Returns how digests lie in a tree's block."""
        return Slots.of(self.algorithm, self.block_size, 1)


@dataclass(frozen=True, slots=True)
class FsVerityFile:
    """A measured file: its path, the parameters, the descriptor (without signature) and the digest, which is the descriptor's hash."""

    path: Path
    parameters: FsVerityParameters
    descriptor: layout.Descriptor
    digest: bytes

    @property
    def payload(self) -> bytes:
        """Returns what a builtin signature signs."""
        return layout.formatted_digest(self.parameters.hash_name, self.digest)


def file_digest(path: Path, parameters: FsVerityParameters, host: Host) -> bytes:
    """Returns the fs-verity digest of one file. Raises: InputError when it cannot be read."""
    return measure(path, parameters, host).digest


def measure(path: Path, parameters: FsVerityParameters, host: Host) -> FsVerityFile:
    """Returns the descriptor and digest of one file. Raises: InputError when it cannot be read or changes meanwhile."""
    with open_input(path) as source, host.scratch() as scratch:
        target = os.open(scratch / "tree", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            root_hash = write_tree(source, parameters, target, 0, host)
        finally:
            os.close(target)
        source.check_unchanged()
        return _measured(path, parameters, source.size, root_hash)


def _measured(path: Path, parameters: FsVerityParameters, size: int, root_hash: bytes) -> FsVerityFile:
    """Returns the value for a file whose tree has this root hash."""
    descriptor = layout.Descriptor(parameters.hash_name, parameters.block_size, parameters.salt, size, root_hash)
    return FsVerityFile(path, parameters, descriptor, engine.digest_message(parameters.algorithm, descriptor.build()))


def write_tree(source: Input, parameters: FsVerityParameters, target: int, offset: int, host: Host) -> bytes:
    """Returns the root hash of a file, after writing its Merkle tree into `target` from byte `offset` on (root block first).

    An empty file has no tree and a root hash of zeros; a file of one block has no tree and that block's digest.
    """
    return _hash_tree((source.descriptor, 0, source.size, str(source.path)), parameters, target, offset, host)


def root_hash_of_range(
    descriptor: int, offset: int, size: int, parameters: FsVerityParameters, target: int, host: Host, *, name: str
) -> bytes:
    """Returns the root hash of `size` bytes of an open file from `offset` on, as of a file of their own.

    The tree's blocks are written to the empty open file `target`. Raises: InputError when the bytes cannot be read.
    """
    return _hash_tree((descriptor, offset, size, name), parameters, target, 0, host)


def _hash_tree(source: tuple[int, int, int, str], parameters: FsVerityParameters, target: int, offset: int, host: Host) -> bytes:
    """Returns the root hash of a source (descriptor, offset, size, name), after writing the tree into `target` from `offset` on."""
    read_from, read_at, size, name = source
    if size == 0:
        return bytes(parameters.algorithm.digest_size)
    blocks = -(-size // parameters.block_size)
    levels = tree_levels(blocks, parameters.slots)
    if not levels:
        return engine.digest_block(parameters.hashing, os.pread(read_from, size, read_at).ljust(parameters.block_size, b"\0"))
    kernel = engine.choose_kernel(parameters.algorithm, host)
    os.ftruncate(target, max(os.fstat(target).st_size, offset + tree_size(levels, parameters.slots)))
    for level in levels:
        at = offset + level.offset
        job = engine.LevelJob(
            parameters.hashing, read_from, read_at, size, parameters.block_size, target, at, parameters.slots, name, "the Merkle tree"
        )
        engine.hash_level(job, kernel, lambda _done: None)
        read_from, read_at, size, name = target, at, level.blocks * parameters.block_size, "the Merkle tree"
    return engine.digest_block(parameters.hashing, os.pread(target, parameters.block_size, offset))


class Measured(NamedTuple):
    """What is known of one of many files: size in bytes, root hash, digest."""

    size_bytes: int
    root_hash: bytes
    digest: bytes


def measure_all(paths: Sequence[str | Path], parameters: FsVerityParameters, host: Host) -> tuple[Measured, ...]:
    """Returns the sizes and digests of files, in the order given. Raises: InputError for the first that cannot be read."""
    extension = engine.native()
    kernel = engine.choose_kernel(parameters.algorithm, host)
    if extension is None or not kernel.native or not paths:
        return tuple(_one(Path(path), parameters, host) for path in paths)
    started = monotonic()
    records: bytes = extension.measure(
        list(paths),
        *(parameters.hash_name, kernel.native, parameters.salt, layout.algorithm_number(parameters.hash_name)),
        *(parameters.block_size.bit_length() - 1, _BIG, host.jobs),
        lambda done: host.progress.amount(done, len(paths), started),
    )
    size = parameters.algorithm.digest_size
    if not any(records[:: _RECORD.size]):  # the statuses' low bytes: all is well, the usual case with thousands of files
        fields = struct.Struct(f"<8xQ{size}s{64 - size}x{size}s{64 - size}x")
        return tuple(map(Measured._make, fields.iter_unpack(records)))
    found = []
    for path, (status, code, size_bytes, root_hash, digest) in zip(paths, _RECORD.iter_unpack(records), strict=True):
        if status == _RECORD_OK:
            found.append(Measured(size_bytes, root_hash[:size], digest[:size]))
        elif status == _RECORD_BIG:
            found.append(_one(Path(path), parameters, host))
        else:
            raise _refused(str(path), status, code)
    return tuple(found)


def _one(path: Path, parameters: FsVerityParameters, host: Host) -> Measured:
    """Returns a file that is measured alone: with all processors, or without the extension."""
    file = measure(path, parameters, host)
    return Measured(file.descriptor.data_size, file.descriptor.root_hash, file.digest)


def _refused(path: str, status: int, code: int) -> InputError:
    """Returns the error for a file that the extension could not measure."""
    if status == _RECORD_KIND:
        return InputError("wanted a regular file", where=path, hint="work on files only")
    if status in (_RECORD_CHANGED, engine.STATUS_SHORT):
        return InputError("changed while it was read", where=path, hint="let nothing write to it meanwhile, then run again")
    verb = "opened" if status == _RECORD_OPEN else "read"
    return InputError(f"cannot be {verb}: {os.strerror(code)}", where=path)


def find_files(folder: Path) -> Iterable[Path]:
    """Yields the regular files below a folder, sorted by path as bytes; symbolic links and special files are left out.

    Raises: InputError when it is not a folder or a part of it cannot be listed.
    """
    if not folder.is_dir():
        raise InputError("wanted a folder", where=str(folder))

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot be listed: {error.strerror}", where=str(error.filename)) from error

    found: list[Path] = []
    for place, _, names in os.walk(folder, onerror=refuse):
        found.extend(path for name in names if (path := Path(place, name)).is_file() and not path.is_symlink())
    return sorted(found, key=os.fsencode)
