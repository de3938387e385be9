"""Signs and reads kernel modules: plain or compressed, by the thousand, byte for byte as scripts/sign-file does.

Forked workers share one loaded key, so the cost is the signature operation itself and not a program's start for each module.
Source: scripts/sign-file.c, kernel/module/signing.c (module_sig_check), kernel/module/main.c (check_modinfo).
"""

from __future__ import annotations

import gc
import hashlib
import io
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from ipe_build.errors import (
    FormatError,
    InputError,
    IpeBuildError,
    SignatureError,
    SignaturePendingError,
    ToolFailedError,
    VerificationError,
)
from ipe_build.formats.cms import decode_signed_data
from ipe_build.formats.module_signature import OtherSignatureKindError, append_signature, split_signature, strip_signatures
from ipe_build.kernel.module_compression import Compression, find_compression, is_module, unpack
from ipe_build.signing.algorithms import name_of_oid
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.signer import Signer
from ipe_build.signing.target import ANY_KERNEL, KernelTarget
from ipe_build.signing.verify import describe_signer, verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

_CHUNK = 16
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


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What a module says of itself. `signer` and what follows are empty when it carries no signature."""

    path: Path
    compression: str
    vermagic: str
    payload: bytes
    signature: bytes | None
    signer: str
    algorithm: str
    digest_name: str


@dataclass(frozen=True, slots=True)
class ModuleVerdict:
    """What a kernel that enforces signatures answers. `errno` is empty when it accepts; `intact` is None when nobody can tell."""

    facts: ModuleFacts | None
    path: Path
    certificate: x509.Certificate | None
    intact: bool | None
    errno: str
    reason: str

    @property
    def accepted(self) -> bool:
        """Returns whether the kernel loads it."""
        return not self.errno


def find_modules(places: Iterable[Path]) -> tuple[Path, ...]:
    """Returns the module files among files and below folders, each folder's in sorted order; symbolic links are not followed.

    Raises: InputError when a place does not exist, or a folder holds no module.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in _walk(place) if is_module(path))
            if not inside:
                raise InputError("holds no kernel modules", where=str(place), hint="modules end in .ko, .ko.gz, .ko.xz or .ko.zst")
            found.extend(inside)
        elif place.is_file():
            found.append(place)
        else:
            raise InputError("is neither a file nor a folder", where=str(place))
    return tuple(dict.fromkeys(found))


def _walk(folder: Path) -> Iterator[Path]:
    """Yields the regular files below a folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def sign_module(
    data: bytes, signer: Signer, digest_name: str | None, compression: Compression | None, where: str, target: KernelTarget = ANY_KERNEL
) -> bytes:
    """Returns a module's file with one signature, whatever signatures it had, compressed as it was unless `compression` says else.

    Raises: FormatError, SigningKeyError.
    """
    unpacked, found = unpack(data, where)
    payload = strip_signatures(unpacked, where)
    signed = append_signature(payload, sign_payload(_PROFILE, payload, signer, digest_name, target))
    return (compression or found).compress(signed)


@dataclass(frozen=True, slots=True)
class _Work:
    """What every worker inherits by the fork."""

    signer: Signer
    host: Host
    digest_name: str | None
    compression: Compression | None
    out: Path | None
    root: Path | None
    kernel: KernelTarget

    def target(self, source: Path) -> Path:
        """Returns where the signed module goes: beside the root's name in `out`, or in place; the suffix follows the compression."""
        target = source if self.out is None else self.out / (source.relative_to(self.root) if self.root else source.name)
        if self.compression is None:
            return target
        stem = target.name[: target.name.rindex(".ko")] if ".ko" in target.name else target.name
        return target.with_name(f"{stem}.ko{self.compression.suffix}")

    def try_sign(self, source: Path) -> bool:
        """Signs one module; False when its signature is still to come: the request for it is then written down."""
        try:
            self.sign(source)
        except SignaturePendingError:
            return False
        return True

    def sign(self, source: Path) -> None:
        """Signs one module. The file that was there is replaced whole, or left as it is; its permissions are kept."""
        with source.open("rb", buffering=0) as file:
            mode, data = os.fstat(file.fileno()).st_mode, file.read()
        signed = sign_module(data, self.signer, self.digest_name, self.compression, str(source), self.kernel)
        target = self.target(source)
        if self.out is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        with self.host.output(target, force=True, flush=False) as temporary, temporary.open("xb", buffering=0) as file:
            os.fchmod(file.fileno(), mode & 0o777)
            left = memoryview(signed)
            while left:
                left = left[file.write(left) :]
        if self.out is None and target != source:
            source.unlink()


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

    `compression` is None (each as it was) or none, gz, xz, zst; `jobs` is the number of workers; `target` is the kernel that
    must be able to check the signatures. Signing again replaces a signature.
    When one fails, nothing is half written: each file is either as it was or signed, and a second run does the rest.
    Raises: FormatError, InputError, SigningKeyError, OutputError, ToolFailedError; SignaturePendingError when all were asked for.
    """
    work = _Work(signer, host, digest_name, find_compression(compression) if compression else None, out, root, target)
    targets = _targets(files, work)
    sizes, started = [path.stat().st_size for path in files], time.monotonic()
    total, done = sum(sizes), 0
    workers = min(jobs or host.jobs, -(-len(files) // _CHUNK)) if signer.survives_fork else 1
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
        yield number, [work.try_sign(path)]


def _in_workers(files: Sequence[Path], work: _Work, workers: int) -> Iterator[tuple[int, list[bool]]]:
    """Yields the same from forked workers, a chunk at a time, as they come. Raises: ToolFailedError when a worker is killed."""
    _inherited.append((work, files))
    gc.freeze()  # what workers inherit is shared with them as long as nobody writes to it
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"), initializer=_leave_signals_to_parent)
    try:
        chunks = {pool.submit(_sign_chunk, start): start for start in range(0, len(files), _CHUNK)}
        for chunk in as_completed(chunks):
            yield chunks[chunk], chunk.result()
    except BrokenProcessPool as error:
        raise ToolFailedError("a signing worker was killed", hint="was there enough memory? run it again: signing continues") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        gc.unfreeze()
        _inherited.pop()


def _leave_signals_to_parent() -> None:
    """Lets a worker finish its chunk when the build is interrupted; the parent gives it no more work, so it ends at once after."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _sign_chunk(start: int) -> list[bool]:
    """Signs the modules of the chunk that begins with number `start`, in a worker."""
    work, files = _inherited[-1]
    return [work.try_sign(path) for path in files[start : start + _CHUNK]]


def read_module(path: Path) -> ModuleFacts:
    """Returns what a module's file says. Raises: FormatError when it is not a module or its signature block is damaged."""
    return _facts(path, *unpack(path.read_bytes(), str(path)))


def _facts(path: Path, unpacked: bytes, compression: Compression) -> ModuleFacts:
    """Returns the facts of an unpacked module."""
    payload, signature = split_signature(unpacked, str(path))
    signer, algorithm, digest_name = "", "", ""
    if signature is not None:
        info = decode_signed_data(signature, f"{path}: signature").signer_infos[0]
        signer, algorithm, digest_name = describe_signer(info.signer), name_of_oid(info.algorithm.oid), info.digest_name
    return ModuleFacts(path, compression.name, _vermagic(payload, str(path)), payload, signature, signer, algorithm, digest_name)


def _vermagic(payload: bytes, where: str) -> str:
    """Returns the vermagic= of section .modinfo (strings ended by NUL), empty when there is none. Raises: FormatError."""
    try:
        section = ELFFile(io.BytesIO(payload)).get_section_by_name(".modinfo")
        data: bytes = section.data() if section is not None else b""
    except (ELFError, ConstructError, ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError, AttributeError) as error:
        raise FormatError(f"is a damaged ELF file: {' '.join(str(error).split())}", where=where) from error
    for item in data.split(b"\0"):
        if item.startswith(b"vermagic="):
            return item.removeprefix(b"vermagic=").decode("utf-8", "replace")
    return ""


def verify_module(
    path: Path,
    certificates: Sequence[x509.Certificate],
    vermagic: str | None = None,
    *,
    revoked: Sequence[x509.Certificate] = (),
    release: str | None = None,
) -> ModuleVerdict:
    """Returns what a kernel with these trusted certificates that enforces module signatures answers when it loads the file.

    `vermagic` is that kernel's, where known, `release` its first word: a module of another kernel is refused (ENOEXEC) even when it is
    well signed. Give no `release` for a kernel with CONFIG_MODVERSIONS, which does not compare it (same_magic).
    Raises: OSError when the file cannot be read.
    """
    try:
        unpacked, compression = unpack(path.read_bytes(), str(path))
    except FormatError as error:
        return ModuleVerdict(None, path, None, False, "ENOEXEC", error.message)
    try:
        facts = _facts(path, unpacked, compression)
    except OtherSignatureKindError as error:
        return ModuleVerdict(None, path, None, None, "EKEYREJECTED", error.message)
    except FormatError as error:
        return ModuleVerdict(None, path, None, False, "EBADMSG", error.message)
    if facts.signature is None:
        # The kernel's inner answer is ENODATA; where signatures are enforced it gives EKEYREJECTED (module_sig_check).
        return ModuleVerdict(facts, path, None, None, "EKEYREJECTED", "unsigned: never signed, or stripped or changed at its end since")
    try:
        certificate = verify_signature(_PROFILE, facts.payload, facts.signature, certificates, revoked)
    except SignatureError as error:
        intact = None if error.errno == "ENOKEY" else False
        return ModuleVerdict(facts, path, None, intact, "EKEYREJECTED", error.message)
    except (VerificationError, FormatError) as error:
        return ModuleVerdict(facts, path, None, False, "EBADMSG", error.message)
    except IpeBuildError as error:
        return ModuleVerdict(facts, path, None, None, "EKEYREJECTED", error.message)
    fits = facts.vermagic == vermagic if vermagic is not None else release is None or facts.vermagic.split(" ")[0] == release
    if not fits:
        reason = f"built for another kernel: vermagic {facts.vermagic!r}, wanted {vermagic or release!r}"
        return ModuleVerdict(facts, path, certificate, True, "ENOEXEC", reason)
    return ModuleVerdict(facts, path, certificate, True, "", "")
