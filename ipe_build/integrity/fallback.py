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
_FORK_FROM = 4 << 20
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
    digests = _digester(job)
    report = (engine.STATUS_OK, 0, 0)
    try:
        for start in range(index * chunk, job.source_bytes, workers * chunk):
            length = min(chunk, job.source_bytes - start)
            settle(start // job.block_size, digests(_read(job, start, length), -(-length // job.block_size)))
            done += length
            _RECORD.pack_into(shared, record, done, *report)
    except _StoppedError as stopped:
        report = stopped.report
    _RECORD.pack_into(shared, record, done, *report)


def _read(job: engine.LevelJob, start: int, length: int) -> bytes:
    """Returns `length` source bytes from `start`, padded with zeros to whole blocks; b"" when all are in a hole."""
    offset = job.source_offset + start
    try:
        if os.lseek(job.source, offset, os.SEEK_DATA) >= offset + length:
            return b""
    except OSError as error:
        # ENXIO: a hole up to the end, which may also mean that the file now ends before us: fstat tells.
        if error.errno == errno.ENXIO and os.fstat(job.source).st_size >= offset + length:
            return b""
    data = b""
    while len(data) < length:
        try:
            piece = os.pread(job.source, length - len(data), offset + len(data))
        except OSError as error:
            raise _StoppedError(engine.STATUS_READ, error.errno or errno.EIO, offset + len(data)) from error
        if not piece:
            raise _StoppedError(engine.STATUS_SHORT, 0, offset + len(data))
        data = data + piece if data else piece
    return data if length % job.block_size == 0 else data + bytes(-length % job.block_size)


def _digester(job: engine.LevelJob) -> Callable[[bytes, int], list[bytes]]:
    """Returns a function from whole blocks and their number to their digests; b"" stands for blocks of zeros."""
    copy = constructor(job.hashing.algorithm)(job.hashing.prefix).copy
    suffix = job.hashing.suffix
    size = job.block_size
    zero = bytes(size)

    def one(block: bytes) -> bytes:
        state = copy()
        state.update(block)
        if suffix:
            state.update(suffix)
        return state.digest()

    of_zero = one(zero)

    def digests(data: bytes, count: int) -> list[bytes]:
        if not data:
            return [of_zero] * count
        if suffix or zero[:64] in data:
            blocks = (data[at : at + size] for at in range(0, count * size, size))
            return [of_zero if block == zero else one(block) for block in blocks]
        # The usual case, spelled out: a call a block would cost a tenth of the time.
        found = []
        for at in range(0, count * size, size):
            state = copy()
            state.update(data[at : at + size])
            found.append(state.digest())
        return found

    return digests


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
