"""Hashing blocks without the C extension: forked workers, each with its own share of the chunks.

Processes, not threads: most of the time per 4096-byte block is Python's own, which threads cannot share. What workers tell the parent
(bytes done, a failure, which blocks differ) is in a shared anonymous map; digests go straight to their place in the target.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import struct
from collections.abc import Callable

from ipe_build.integrity import engine
from ipe_build.integrity.hashes import constructor

_CHUNK = 1 << 20
_PIECE = 256 << 10
"""Bytes read at once, to at most 512 places: they stay in the processor's cache until they are hashed."""
_FORK_FROM = 9 << 20
"""Source bytes from which workers are worth forking: 8 MiB (the second level of 1 GiB) take one process 7 ms, two forked ones 15."""
_POLL_MS = 100
_RECORD = struct.Struct("<QQQQ")
"""A worker's line in the shared map: bytes done, status, errno, offset."""


def run(job: engine.LevelJob, jobs: int, progress: engine.Progress, bitmap: bytearray | None) -> engine.Report:
    """Returns how the job ended; see `engine.hash_level` (no bitmap) and `engine.compare_level`."""
    chunk = max(1, _CHUNK // job.block_size) * job.block_size
    chunks = -(-job.source_bytes // chunk)
    workers = min(jobs, chunks) if job.source_bytes >= _FORK_FROM else 1
    bits = len(bitmap) if bitmap is not None else 0
    shared = mmap.mmap(-1, workers * _RECORD.size + workers * bits or 1)
    try:
        if workers == 1:
            _work(job, 0, 1, chunk, shared, bits)
            progress(job.source_bytes)
        else:
            _fork(job, workers, chunk, shared, bits, progress)
        if bitmap is not None:
            for index in range(workers):
                start = workers * _RECORD.size + index * bits
                merged = int.from_bytes(bitmap, "little") | int.from_bytes(shared[start : start + bits], "little")
                bitmap[:] = merged.to_bytes(bits, "little")
        return _first_failure(shared, workers)
    finally:
        shared.close()


def _fork(job: engine.LevelJob, workers: int, chunk: int, shared: mmap.mmap, bits: int, progress: engine.Progress) -> None:
    """Runs the workers and waits for them, telling the progress; kills them when the parent is interrupted."""
    children: dict[int, int] = {}
    poll = select.poll()
    try:
        for index in range(workers):
            child = os.fork()
            if child == 0:
                _child(job, index, workers, chunk, shared, bits)
            children[os.pidfd_open(child)] = child
        for handle in children:
            poll.register(handle, select.POLLIN)
        while children:
            for handle, _ in poll.poll(_POLL_MS):
                poll.unregister(handle)
                _, status = os.waitpid(children.pop(handle), 0)
                os.close(handle)
                if status:
                    raise ChildProcessError(errno.ECHILD, f"a hashing process ended with wait status {status}")
            progress(sum(_RECORD.unpack_from(shared, index * _RECORD.size)[0] for index in range(workers)))
    finally:
        for handle, child in children.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(handle)


def _child(job: engine.LevelJob, index: int, workers: int, chunk: int, shared: mmap.mmap, bits: int) -> None:
    """Does one worker's share and leaves the process at once, so that nothing of the parent's is flushed twice."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _work(job, index, workers, chunk, shared, bits)
        status = 0
    finally:
        os._exit(status)


def _first_failure(shared: mmap.mmap, workers: int) -> engine.Report:
    """Returns the failure with the lowest offset, or success."""
    records = [_RECORD.unpack_from(shared, index * _RECORD.size) for index in range(workers)]
    failed = sorted((offset, status, code) for _, status, code, offset in records if status != engine.STATUS_OK)
    return engine.Report(failed[0][1], failed[0][2], failed[0][0]) if failed else engine.Report(engine.STATUS_OK, 0, 0)


class _StoppedError(Exception):
    """A worker cannot go on: carries the report."""

    def __init__(self, status: int, code: int, offset: int) -> None:
        super().__init__(status, code, offset)
        self.report = (status, code, offset)


def _work(job: engine.LevelJob, index: int, workers: int, chunk: int, shared: mmap.mmap, bits: int) -> None:
    """Hashes chunks `index`, `index + workers`, …; writes what happened into this worker's record."""
    done = 0
    record = index * _RECORD.size
    bits_at = workers * _RECORD.size + index * bits
    settle = _compare(job, shared, bits_at) if bits else _write(job)
    pieces = _Pieces(job)
    report = (engine.STATUS_OK, 0, 0)
    try:
        for start in range(index * chunk, job.source_bytes, workers * chunk):
            length = min(chunk, job.source_bytes - start)
            settle(start // job.block_size, pieces.digests(start, length))
            done += length
            _RECORD.pack_into(shared, record, done, *report)
    except _StoppedError as stopped:
        report = stopped.report
    _RECORD.pack_into(shared, record, done, *report)


def _is_hole(job: engine.LevelJob, offset: int, length: int) -> bool:
    """Returns whether `length` bytes from `offset` of the source lie in a hole."""
    try:
        return os.lseek(job.source, offset, os.SEEK_DATA) >= offset + length
    except OSError as error:
        # ENXIO: a hole up to the end, which may also mean that the file now ends before us: fstat tells.
        return error.errno == errno.ENXIO and os.fstat(job.source).st_size >= offset + length


class _Pieces:
    """Reads the source into one buffer, again and again, and hashes its blocks there.

    The buffer holds whole messages: prefix, block, suffix. The blocks are read each to its place between the others, so that a block
    costs one call that hashes it and one that takes the digest. (Mapping the file spares the copying, but then a single lane waits for
    memory as long as the copying took.)
    """

    def __init__(self, job: engine.LevelJob) -> None:
        before, size = len(job.hashing.prefix), job.block_size
        message = job.hashing.prefix + bytes(size) + job.hashing.suffix
        buffer = memoryview(bytearray(message * max(1, _PIECE // size)))
        self._job = job
        self._hash = constructor(job.hashing.algorithm)
        self._messages = [buffer[at : at + len(message)] for at in range(0, len(buffer), len(message))]
        self._blocks = [one[before : before + size] for one in self._messages]
        self._first_bytes = buffer[before :: len(message)]
        self._zero = bytes(size)
        self._of_zero = self._hash(message).digest()

    def digests(self, start: int, length: int) -> list[bytes]:
        """Returns the digests of the blocks in `length` source bytes from `start`; the last block may be cut off."""
        size = self._job.block_size
        if _is_hole(self._job, self._job.source_offset + start, length):
            return [self._of_zero] * -(-length // size)
        found: list[bytes] = []
        make, whole = self._hash, len(self._blocks) * size
        for at in range(start, start + length, whole):
            some = min(whole, start + length - at)
            self._read(at, some)
            count = -(-some // size)
            # A block of zeros begins with one: only such blocks are looked at whole.
            first_bytes = self._first_bytes[:count].tobytes()
            if 0 in first_bytes and (zeros := {at for at, byte in enumerate(first_bytes) if not byte and self._blocks[at] == self._zero}):
                found += [self._of_zero if number in zeros else make(self._messages[number]).digest() for number in range(count)]
            else:
                found += [make(message).digest() for message in self._messages[:count]]
        return found

    def _read(self, start: int, length: int) -> None:
        """Fills the blocks with `length` source bytes from `start`, and with zeros up to a whole block. Raises: _StoppedError."""
        size = self._job.block_size
        offset, have = self._job.source_offset + start, 0
        full, rest = divmod(length, size)
        places = self._blocks[:full]
        if rest:
            places.append(self._blocks[full][:rest])
            self._blocks[full][rest:] = bytes(size - rest)
        while have < length:
            left = places[have // size :]
            left[0] = left[0][have % size :]
            try:
                got = os.preadv(self._job.source, left, offset + have)
            except OSError as error:
                raise _StoppedError(engine.STATUS_READ, error.errno or errno.EIO, offset + have) from error
            if not got:
                raise _StoppedError(engine.STATUS_SHORT, 0, offset + have)
            have += got


def _layout(job: engine.LevelJob, first: int, digests: list[bytes]) -> bytes:
    """Returns the bytes from the slot of block `first` to the end of the chunk's last digest."""
    slots = job.slots
    gap = bytes(slots.slot_size - slots.digest_size)
    tail = bytes(slots.block_size - slots.per_block * slots.slot_size)
    if not gap and not tail:
        return b"".join(digests)
    pieces: list[bytes] = []
    for index, digest in enumerate(digests, first):
        pieces += (digest, gap)
        if tail and (index + 1) % slots.per_block == 0:
            pieces.append(tail)
    last = first + len(digests) - 1
    return b"".join(pieces)[: slots.offset(last) + slots.digest_size - slots.offset(first)]


def _write(job: engine.LevelJob) -> Callable[[int, list[bytes]], None]:
    """Returns a function that writes a chunk's digests to the target."""

    def write(first: int, digests: list[bytes]) -> None:
        data = _layout(job, first, digests)
        offset = job.target_offset + job.slots.offset(first)
        while data:
            try:
                written = os.pwrite(job.target, data, offset)
            except OSError as error:
                raise _StoppedError(engine.STATUS_WRITE, error.errno or errno.EIO, offset) from error
            data = data[written:]
            offset += written

    return write


def _compare(job: engine.LevelJob, shared: mmap.mmap, bits_at: int) -> Callable[[int, list[bytes]], None]:
    """Returns a function that compares a chunk's digests with the target's and sets a bit for each that differs."""
    size = job.slots.digest_size

    def compare(first: int, digests: list[bytes]) -> None:
        data = _layout(job, first, digests)
        offset = job.target_offset + job.slots.offset(first)
        try:
            stored = os.pread(job.target, len(data), offset)
        except OSError as error:
            raise _StoppedError(engine.STATUS_TARGET_READ, error.errno or errno.EIO, offset) from error
        if len(stored) < len(data):
            raise _StoppedError(engine.STATUS_TARGET_SHORT, 0, offset + len(stored))
        if stored == data:
            return
        base = job.slots.offset(first)
        index = first
        while (at := job.slots.offset(index) - base) < len(data):
            if stored[at : at + size] != data[at : at + size]:
                shared[bits_at + index // 8] |= 1 << index % 8
            index += 1

    return compare
