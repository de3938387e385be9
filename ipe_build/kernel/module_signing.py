"""Signs kernel modules: plain or compressed, by the thousand, byte for byte as scripts/sign-file does.

Forked workers share one loaded key, so the cost is the signature operation itself and not a program's start for each module. There are
more of them than processors, because some always wait for the filesystem, which takes up a new file and lets go of an old one for each.
Source: scripts/sign-file.c.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import InputError, SignaturePendingError, ToolFailedError
from ipe_build.formats.module_signature import signature_trailer, strip_signatures
from ipe_build.integrity.engine import digest_messages
from ipe_build.kernel.module_compression import Compression, find_compression, unpack
from ipe_build.signing.loading import algorithm_for
from ipe_build.signing.profiles import PROFILES, digest_signer, payload_signer
from ipe_build.signing.signer import Signer
from ipe_build.signing.target import ANY_KERNEL, KernelTarget

if TYPE_CHECKING:
    from ipe_build.host import Host

_CHUNK = 16
_BATCH_BYTES = 8 << 20
"""As much as a worker holds of modules that wait for their signatures."""
_WORKERS_A_PROCESSOR = 3
_PROFILE = PROFILES["module"]
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class SignedModule:
    """A module that was signed: where it was and where it is now."""

    source: Path
    path: Path

    @property
    def sha256(self) -> bytes:
        """Returns SHA-256 of the file as it is now. Raises: OSError."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()


def sign_module(
    data: bytes, signer: Signer, digest_name: str | None, compression: Compression | None, where: str, target: KernelTarget = ANY_KERNEL
) -> bytes:
    """Returns a module's file with one signature, whatever signatures it had, compressed as it was unless `compression` says else.

    Raises: FormatError, SigningKeyError.
    """
    payload, found = _payload(data, where)
    return b"".join(_parts(payload, payload_signer(_PROFILE, signer, digest_name, target)(payload), compression or found))


def _payload(data: bytes, where: str) -> tuple[bytes, Compression]:
    """Returns what is signed of a module's file, and how the file was compressed. Raises: FormatError."""
    unpacked, found = unpack(data, where)
    return strip_signatures(unpacked, where), found


def _parts(payload: bytes, signature: bytes, compression: Compression) -> tuple[bytes, ...]:
    """Returns a signed module's file in parts, to be written one after the other: a plain module is not copied for its signature."""
    parts = payload, signature_trailer(signature)
    return (compression.compress(b"".join(parts)),) if compression.suffix else parts


class _Module(NamedTuple):
    """A module that was read: its file and permissions, what is signed of it, how the file is compressed."""

    source: Path
    mode: int
    payload: bytes
    compression: Compression


@dataclass(frozen=True, slots=True)
class _Work:
    """What every worker inherits by the fork."""

    host: Host
    payload_signer: Callable[[bytes], bytes]
    digest_signer: Callable[[bytes], bytes] | None
    digest_name: str
    compression: Compression | None
    out: Path | None
    root: Path | None

    def target(self, source: Path) -> Path:
        """Returns where the signed module goes: beside the root's name in `out`, or in place; the suffix follows the compression."""
        target = source if self.out is None else self.out / (source.relative_to(self.root) if self.root else source.name)
        if self.compression is None:
            return target
        stem = target.name[: target.name.rindex(".ko")] if ".ko" in target.name else target.name
        return target.with_name(f"{stem}.ko{self.compression.suffix}")

    def load(self, source: Path) -> _Module:
        """Returns one module as it is. Raises: FormatError, OSError."""
        data, mode = _read(str(source))
        return _Module(source, mode, *_payload(data, str(source)))

    def signatures(self, modules: Sequence[_Module]) -> list[Callable[[], bytes]]:
        """Returns for each module what makes its signature: they are hashed together where the key signs digests."""
        sign, sign_digest = self.payload_signer, self.digest_signer
        if sign_digest is None:
            return [partial(sign, module.payload) for module in modules]
        for module in modules:
            _PROFILE.check(module.payload)
        return [partial(sign_digest, digest) for digest in digest_messages(self.digest_name, [module.payload for module in modules])]

    def sign(self, module: _Module, signature: Callable[[], bytes]) -> bool:
        """Signs one module; False when its signature is still to come: the request for it is then written down.

        The file that was there is replaced whole, or left as it is; its permissions are kept.
        """
        try:
            parts = _parts(module.payload, signature(), self.compression or module.compression)
        except SignaturePendingError:
            return False
        target = self.target(module.source)
        if self.out is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        self.host.write_small(target, parts, mode=module.mode)
        if self.out is None and target != module.source:
            module.source.unlink()
        return True

    def sign_alone(self, source: Path) -> bool:
        """Signs one module; see `sign`."""
        module = self.load(source)
        return self.sign(module, *self.signatures([module]))


def _read(path: str) -> tuple[bytes, int]:
    """Returns a file's bytes and its permissions. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        data = os.read(descriptor, status.st_size + 1)
        while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
            data += more
        return data, status.st_mode & 0o777
    finally:
        os.close(descriptor)


_inherited: list[tuple[_Work, Sequence[Path]]] = []
"""The current work and its files, set just before the workers are forked: a loaded key cannot be sent to them, only inherited."""


def sign_modules(
    files: Sequence[Path],
    signer: Signer,
    host: Host,
    *,
    digest_name: str | None = None,
    compression: str | None = None,
    out: Path | None = None,
    root: Path | None = None,
    jobs: int | None = None,
    target: KernelTarget = ANY_KERNEL,
) -> tuple[SignedModule, ...]:
    """Returns the signed modules in the order of `files`, signed in place, or into the folder `out` at their place below `root`.

    `compression` is None (each as it was) or none, gzip, xz, zstd; `jobs` is the number of workers; `target` is the kernel that
    must be able to check the signatures. Signing again replaces a signature.
    When one fails, nothing is half written: each file is either as it was or signed, and a second run does the rest.
    Raises: FormatError, InputError, SigningKeyError, OutputError, ToolFailedError; SignaturePendingError when all were asked for.
    """
    sign = payload_signer(_PROFILE, signer, digest_name, target)
    by_digest = digest_signer(_PROFILE, signer, digest_name, target)
    hashing = digest_name or algorithm_for(signer.certificate).digests[0]
    work = _Work(host, sign, by_digest, hashing, find_compression(compression) if compression else None, out, root)
    targets = _targets(files, work)
    sizes, started = [os.stat(path).st_size for path in files], time.monotonic()  # noqa: PTH116 - thousands of them
    total, done = sum(sizes), 0
    workers = min(jobs or host.jobs * _WORKERS_A_PROCESSOR, -(-len(files) // _CHUNK)) if signer.survives_fork else 1
    waiting = 0
    with host.progress.step(f"sign {len(files)} modules"):
        for start, batch in _in_process(files, work) if workers <= 1 else _in_workers(files, work, workers):
            waiting += batch.count(False)
            done += sum(sizes[start : start + len(batch)])
            host.progress.amount(done, total, started)
    if waiting:
        message = f"{waiting} of {len(files)} modules wait for signatures from elsewhere"
        raise SignaturePendingError(message, where="modules", hint="answer the requests, then run this again")
    return tuple(map(SignedModule, files, targets))


def _targets(files: Sequence[Path], work: _Work) -> list[Path]:
    """Returns where each signed module goes. Raises: InputError when two would be written to one file."""
    targets = [work.target(source) for source in files]
    first: dict[Path, Path] = {}
    for source, target in zip(files, targets, strict=True):
        other = first.setdefault(target, source)
        if other is not source:
            raise InputError(f"would be written to the same file as {other}", where=str(source))
    return targets


def _in_process(files: Sequence[Path], work: _Work) -> Iterator[tuple[int, list[bool]]]:
    """Yields the number of each module, one by one, and whether it was signed (or its signature is still to come)."""
    for number, path in enumerate(files):
        yield number, [work.sign_alone(path)]


def _in_workers(files: Sequence[Path], work: _Work, workers: int) -> Iterator[tuple[int, list[bool]]]:
    """Yields the same from forked workers, a chunk at a time, as they come. Raises: ToolFailedError when a worker is killed.

    The first module is signed here: workers inherit what is made once (the message around a signature, parsers), and a key that
    does not sign at all says so before there are workers.
    """
    yield 0, [work.sign_alone(files[0])]
    _inherited.append((work, files))
    gc.freeze()  # what workers inherit is shared with them as long as nobody writes to it
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"), initializer=_begin, initargs=(os.getpid(),))
    try:
        starts = range(1, len(files), _CHUNK)
        apart = -(-len(starts) // workers)  # workers that write to the same folder would wait for each other
        chunks = {pool.submit(_sign_chunk, start): start for first in range(apart) for start in starts[first::apart]}
        for chunk in as_completed(chunks):
            yield chunks[chunk], chunk.result()
    except BaseException as error:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGUSR1)  # none goes on to its next module
        if not isinstance(error, BrokenProcessPool):
            raise
        raise ToolFailedError("a signing worker was killed", hint="was there enough memory? run it again: signing continues") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        gc.unfreeze()
        _inherited.pop()


def _begin(parent: int) -> None:
    """Lets a worker end after its module, and not before, when the build is interrupted, when it fails, and when it is killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda _number, _frame: _worker.leave())
    gc.disable()  # a worker ends before there is garbage worth the search
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != parent:  # it was killed before that
        _worker.leave()


class _Worker:
    """This process, when it is a worker: whether it is signing a module now, and whether the build that it belongs to is gone."""

    signing = False
    orphaned = False

    def leave(self) -> None:
        """Ends the process: now, or after the module that it is signing, for nobody else would remove what is half written."""
        self.orphaned = True
        if not self.signing:
            os._exit(1)

    def sign(self, work: _Work, module: _Module, signature: Callable[[], bytes]) -> bool:
        """Signs one module; see `_Work.sign`."""
        self.signing = True
        try:
            return work.sign(module, signature)
        finally:
            self.signing = False
            if self.orphaned:
                os._exit(1)


_worker = _Worker()


def _sign_chunk(start: int) -> list[bool]:
    """Signs the modules of the chunk that begins with number `start`, in a worker."""
    work, files = _inherited[-1]
    signed: list[bool] = []
    batch: list[_Module] = []
    for path in files[start : start + _CHUNK]:
        batch.append(work.load(path))
        if sum(len(module.payload) for module in batch) > _BATCH_BYTES:
            signed += _sign_batch(work, batch)
            batch.clear()
    return signed + _sign_batch(work, batch)


def _sign_batch(work: _Work, modules: Sequence[_Module]) -> list[bool]:
    """Signs modules that were read."""
    return [_worker.sign(work, module, signature) for module, signature in zip(modules, work.signatures(modules), strict=True)]
