"""Signs kernel modules: plain or compressed, by the thousand, byte for byte as scripts/sign-file does.

Forked workers share one loaded key, so the cost is the signature operation itself and not a program's start for each module. There are
more of them than processors, because some always wait for the filesystem, which takes up a new file and lets go of an old one for each.
Source: scripts/sign-file.c.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import InputError, SignaturePendingError
from ipe_build.formats.module_signature import signature_trailer, strip_signatures
from ipe_build.integrity.engine import digest_messages
from ipe_build.kernel.module_compression import Compression, find_compression, unpack
from ipe_build.kernel.module_workers import finishing, in_workers
from ipe_build.signing.loading import algorithm_for
from ipe_build.signing.profiles import PROFILES, digest_signer, payload_signer
from ipe_build.signing.signer import Signer
from ipe_build.signing.target import ANY_KERNEL, KernelTarget

if TYPE_CHECKING:
    from ipe_build.host import Host

_CHUNK = 16
_LAST_CHUNK = 4
_BATCH_BYTES = 8 << 20
"""As much as a worker holds of modules that wait for their signatures."""
_WORKERS_A_PROCESSOR = 3
_PROFILE = PROFILES["module"]


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
    batches = _in_process(files, work) if workers <= 1 else _in_workers(files, work, workers)
    with host.progress.step(f"sign {len(files)} modules"), closing(batches):
        for start, batch in batches:
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


def _in_process(files: Sequence[Path], work: _Work) -> Generator[tuple[int, list[bool]], None, None]:
    """Yields the number of each module, one by one, and whether it was signed (or its signature is still to come)."""
    for number, path in enumerate(files):
        yield number, [work.sign_alone(path)]


def _in_workers(files: Sequence[Path], work: _Work, workers: int) -> Generator[tuple[int, list[bool]], None, None]:
    """Yields the same from forked workers, a chunk at a time, as they come. Raises: ToolFailedError when a worker is killed.

    The first module is signed here: workers inherit what is made once (the message around a signature, parsers), and a key that
    does not sign at all says so before there are workers.
    """
    yield 0, [work.sign_alone(files[0])]
    chunks = _chunks(len(files), workers)
    yield from in_workers(_apart(len(chunks), workers), lambda number: _sign_chunk(files, work, chunks[number]), workers)


def _chunks(count: int, workers: int) -> list[range]:
    """Returns the numbers from 1 on in chunks, small ones at the end, so that the workers end at about the same time."""
    small_from = max(1, count - workers * _CHUNK)
    starts = [*range(1, small_from, _CHUNK), *range(small_from, count, _LAST_CHUNK)]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def _apart(count: int, workers: int) -> list[int]:
    """Returns the numbers of the chunks in an order in which those done at the same time are far apart.

    Workers that write to the same folder wait for each other. The last chunks stay the last.
    """
    first = max(0, count - workers * _CHUNK // _LAST_CHUNK)
    step = max(1, -(-first // workers))
    return [number for start in range(step) for number in range(start, first, step)] + list(range(first, count))


def _sign_chunk(files: Sequence[Path], work: _Work, chunk: range) -> tuple[int, list[bool]]:
    """Returns, from a worker that signed these modules, the first one's number and which were signed."""
    signed: list[bool] = []
    batch: list[_Module] = []
    held = 0
    for number in chunk:
        batch.append(work.load(files[number]))
        held += len(batch[-1].payload)
        if held > _BATCH_BYTES:
            signed += _sign_batch(work, batch)
            batch, held = [], 0
    return chunk.start, signed + _sign_batch(work, batch)


def _sign_batch(work: _Work, modules: Sequence[_Module]) -> list[bool]:
    """Signs modules that were read."""
    signed = []
    for module, signature in zip(modules, work.signatures(modules), strict=True):
        with finishing:
            signed.append(work.sign(module, signature))
    return signed
