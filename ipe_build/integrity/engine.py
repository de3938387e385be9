"""Hashing many blocks: the one place that chooses between our C extension and pure Python, and turns their failures into errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import InputError
from ipe_build.integrity.geometry import Slots
from ipe_build.integrity.hashes import HashAlgorithm

if TYPE_CHECKING:
    from ipe_build.host import Host

KERNEL_VARIABLE = "IPE_BUILD_HASH_KERNEL"
"""Environment variable that names the implementation to use: `python`, or one of `kernels()`; empty or unset chooses the fastest."""


class BlockHash(NamedTuple):
    """What is hashed for a block: `prefix`, the block (zero-padded to its full size), `suffix`."""

    algorithm: HashAlgorithm
    prefix: bytes = b""
    suffix: bytes = b""

    @classmethod
    def salted(cls, algorithm: HashAlgorithm, salt: bytes, hash_type: int) -> BlockHash:
        """Returns dm-verity's: type 1 hashes salt and block, type 0 block and salt."""
        return cls(algorithm, prefix=salt) if hash_type else cls(algorithm, suffix=salt)


class LevelJob(NamedTuple):
    """Blocks to hash, and where their digests lie.

    `source` and `target` are open descriptors, read by pread and written by pwrite only. `source_bytes` need not be a multiple of
    `block_size`: the last block is then taken as padded with zeros. The target's unwritten bytes must read as zeros.
    """

    hashing: BlockHash
    source: int
    source_offset: int
    source_bytes: int
    block_size: int
    target: int
    target_offset: int
    slots: Slots
    source_name: str
    target_name: str

    @property
    def blocks(self) -> int:
        """Returns how many blocks there are, a partial last one included."""
        return -(-self.source_bytes // self.block_size)


class Report(NamedTuple):
    """How a job ended: what failed (`STATUS_…`), the operating system's errno, the byte offset in the file it failed at."""

    status: int
    errno: int
    offset: int


_LANES_FROM_MESSAGES = 4
_LANES_UP_TO_BYTES = 1 << 20
"""Fewer messages than this, and longer ones, are hashed one by one: lanes that have nothing to do cost as much as those that have."""

STATUS_OK = 0
STATUS_READ = 1
STATUS_SHORT = 2
STATUS_WRITE = 3
STATUS_TARGET_READ = 4
STATUS_TARGET_SHORT = 5

Progress = Callable[[int], None]
"""Called now and then with how many source bytes are done."""


class Kernel(NamedTuple):
    """How to hash: `native` is the C extension's kernel name, or empty for pure Python; `jobs` workers at once."""

    native: str
    jobs: int


def choose_kernel(algorithm: HashAlgorithm, host: Host) -> Kernel:
    """Returns the fastest implementation of `algorithm` on this machine, or the one that $IPE_BUILD_HASH_KERNEL names.

    Raises: InputError when the one named does not exist here or cannot compute `algorithm`.
    """
    wanted = host.env.get(KERNEL_VARIABLE, "")
    extension = native()
    if wanted == "python" or (extension is None and not wanted):
        return Kernel("", host.jobs)
    if extension is not None and not wanted:
        return Kernel(extension.best(algorithm.name), host.jobs)
    able = kernels(algorithm)
    if wanted not in able:
        raise InputError(
            f"no implementation {wanted!r} of {algorithm.name} on this machine",
            where=f"environment: {KERNEL_VARIABLE}",
            hint=f"one of {', '.join((*able, 'python'))}, or leave it unset",
        )
    return Kernel(wanted, host.jobs)


def kernels(algorithm: HashAlgorithm) -> tuple[str, ...]:
    """Returns the names of the C extension's implementations that run on this processor, the fastest first; () without the extension."""
    extension = native()
    if extension is None:
        return ()
    found: tuple[str, ...] = extension.kernels(algorithm.name)
    return found


def native() -> ModuleType | None:
    """Returns the C extension, or None where the package was installed without it."""
    try:
        from ipe_build.integrity import _native
    except ImportError:
        return None
    return _native


def hash_level(job: LevelJob, kernel: Kernel, progress: Progress) -> None:
    """Writes the digest of each source block to its slot.

    Raises: InputError when the source cannot be read (naming the block) or is shorter than it was; OSError when the target
    cannot be written.
    """
    _raise(job, _run(job, kernel, progress, None))


def compare_level(job: LevelJob, kernel: Kernel, progress: Progress) -> tuple[int, ...]:
    """Returns the numbers of the source blocks whose digest is not the one in the target, in ascending order.

    Raises: InputError as `hash_level` does, also for a target that is too short.
    """
    bitmap = bytearray(-(-job.blocks // 8))
    _raise(job, _run(job, kernel, progress, bitmap))
    if not any(bitmap):
        return ()
    return tuple(8 * at + bit for at, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1)


def digest_block(hashing: BlockHash, block: bytes) -> bytes:
    """Returns the digest of one block that is in memory."""
    return digest_message(hashing.algorithm, hashing.prefix + block + hashing.suffix)


def digest_message(algorithm: HashAlgorithm, message: bytes) -> bytes:
    """Returns the digest of some bytes: by the extension where it can, since importing hashlib takes longer than most trees do."""
    extension = native()
    if extension is not None and extension.best(algorithm.name):
        found: bytes = extension.digest(algorithm.name, message)
        return found
    from ipe_build.integrity.hashes import constructor

    return constructor(algorithm)(message).digest()


def digest_messages(name: str, messages: Sequence[bytes]) -> list[bytes]:
    """Returns the digest of each message, by an algorithm of the kernel's name that hashlib knows too.

    The extension hashes several at once, each in a lane of a vector: four times OpenSSL's rate for SHA-384 where there is AVX-512. One that
    is much longer than the others would keep the other lanes waiting.
    """
    import hashlib

    by_lanes = [number for number, message in enumerate(messages) if len(message) <= _LANES_UP_TO_BYTES]
    kernel = _message_kernel(name) if len(by_lanes) >= _LANES_FROM_MESSAGES else ""
    extension = native()
    if extension is None or not kernel:
        return [hashlib.new(name, message).digest() for message in messages]
    found = [b"" if len(message) <= _LANES_UP_TO_BYTES else hashlib.new(name, message).digest() for message in messages]
    by_lanes.sort(key=lambda number: len(messages[number]), reverse=True)
    digests: bytes = extension.digests(name, kernel, [messages[number] for number in by_lanes])
    size = len(digests) // len(by_lanes)
    for place, number in enumerate(by_lanes):
        found[number] = digests[place * size : (place + 1) * size]
    return found


@lru_cache(maxsize=16)
def _message_kernel(name: str) -> str:
    """Returns the extension's fastest implementation of several lanes, or an empty string when there is none here."""
    extension = native()
    best: str = extension.best(name) if extension is not None else ""
    return "" if best == "openssl" else best


def _run(job: LevelJob, kernel: Kernel, progress: Progress, bitmap: bytearray | None) -> Report:
    """Returns how the job ended; with `bitmap` digests are compared (a bit set for each that differs), without they are written."""
    extension = native() if kernel.native else None
    if extension is None:
        from ipe_build.integrity import fallback

        return fallback.run(job, kernel.jobs, progress, bitmap)
    hashing, slots = job.hashing, job.slots
    found = extension.level(
        *(hashing.algorithm.name, kernel.native, hashing.prefix, hashing.suffix),
        *(job.source, job.source_offset, job.source_bytes, job.block_size),
        *(job.target, job.target_offset, slots.block_size, slots.per_block, slots.slot_size),
        *(bitmap, kernel.jobs, progress),
    )
    progress(job.source_bytes)
    return Report(*found)


def _raise(job: LevelJob, report: Report) -> None:
    """Turns a report of failure into the error that says what to do."""
    if report.status == STATUS_OK:
        return
    block = (report.offset - job.source_offset) // job.block_size
    reason = os.strerror(report.errno)
    if report.status == STATUS_READ:
        raise InputError(
            f"block {block} cannot be read: {reason}",
            where=f"{job.source_name}: offset {report.offset:#x}",
            hint="the medium or its filesystem is failing; copy the file elsewhere first",
        )
    if report.status == STATUS_SHORT:
        raise InputError(
            f"ends at block {block} of {job.blocks}: the file became shorter while it was read",
            where=f"{job.source_name}: offset {report.offset:#x}",
            hint="let nothing write to it meanwhile",
        )
    if report.status == STATUS_TARGET_READ:
        raise InputError(f"cannot be read: {reason}", where=f"{job.target_name}: offset {report.offset:#x}")
    if report.status == STATUS_TARGET_SHORT:
        raise InputError("the hash area is too small for the tree", where=f"{job.target_name}: offset {report.offset:#x}")
    raise OSError(report.errno, reason, str(Path(job.target_name)))
