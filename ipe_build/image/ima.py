"""Signs the files of a root filesystem for IMA and EVM: values in, values out; nobody needs to be root.

security.ima is over the content; a portable security.evm over the file's attributes, owner and mode, as they will be in the image. So
this comes last, after additions and owners. Forked workers share one loaded key, as for modules.
Source: security/integrity/ima/ima_appraise.c (xattr_verify), security/integrity/evm/evm_crypto.c.
"""

from __future__ import annotations

import multiprocessing
import signal
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509

from ipe_build.errors import FormatError, InputError, SignaturePendingError, ToolFailedError, VerificationError
from ipe_build.formats.ima_xattr import SECURITY_EVM, SECURITY_IMA, IntegrityKind, parse_integrity_xattr
from ipe_build.image.rootfs import Entry, Rootfs, TarContent
from ipe_build.policy.classify import classify
from ipe_build.signing.ima import EVM_XATTRS, evm_payload
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.signer import Signer
from ipe_build.signing.target import ANY_KERNEL, KernelTarget
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

_CHUNK = 16
_IMA = PROFILES["ima-file"]
_EVM = PROFILES["evm-portable"]


class ImaFiles(StrEnum):
    """Which files get signatures."""

    ALL = "all"
    """Every ordinary file."""
    CODE = "code"
    """What the kernel runs or loads: ELF files, executable scripts, modules, firmware, kernels, IMA policies and certificates."""


@dataclass(frozen=True, slots=True)
class ImaRequest:
    """How to sign. `evm` signs attributes, owner and mode too (None: no security.evm); often the same signer.

    `word_bits` is the device's word size, which is part of what EVM signs. What was signed before is signed anew.
    """

    signer: Signer
    files: ImaFiles = ImaFiles.ALL
    evm: Signer | None = None
    digest_name: str | None = None
    word_bits: int = 64
    target: KernelTarget = ANY_KERNEL
    jobs: int | None = None


class ImaVerdict(StrEnum):
    """What `appraise_type=imasig` says of a file, and EVM where its certificates were given."""

    SIGNED = "signed"
    UNSIGNED = "unsigned"
    """There is no security.ima, or one that is only a hash."""
    WRONG = "wrong"
    """A signature that is damaged, over another content or other attributes, or by a key that is not trusted."""


class FileVerdict(NamedTuple):
    """A file's verdict; `reason` is empty when it is signed."""

    path: str
    verdict: ImaVerdict
    reason: str


@dataclass(frozen=True, slots=True)
class _Work:
    """What every worker inherits by the fork."""

    entries: tuple[Entry, ...]
    request: ImaRequest


_inherited: list[_Work] = []
"""The current work, set just before the workers are forked: a loaded key cannot be sent to another process, only inherited."""


def sign_rootfs(rootfs: Rootfs, request: ImaRequest, host: Host) -> Rootfs:
    """Returns the root filesystem with security.ima, and security.evm if asked for, on each chosen file; hard links share their inode's.

    Raises: InputError (content that cannot be read), SigningKeyError; SignaturePendingError when all signatures were asked for.
    """
    entries = rootfs.entries
    chosen = [number for number, entry in enumerate(entries) if entry.is_file and not entry.hardlink]
    sizes = {number: entries[number].size_bytes for number in chosen}
    total, started, done, signed, pending = sum(sizes.values()), time.monotonic(), 0, 0, 0
    changed: dict[int, Entry] = {}
    with host.progress.step(f"sign {len(chosen)} files for IMA{' and EVM' if request.evm else ''}"):
        for batch in _batches(_Work(entries, request), chosen, request.jobs or host.jobs):
            for number, xattrs in batch:
                done += sizes[number]
                pending += xattrs is None
                if xattrs:
                    signed += 1
                    changed[number] = replace(entries[number], xattrs=xattrs)
            host.progress.amount(done, total, started)
    if pending:
        message = f"{pending} of {len(chosen)} files wait for signatures from elsewhere"
        raise SignaturePendingError(message, where="IMA", hint="answer the requests, then run this again")
    if not signed:
        raise InputError("holds no file to sign", where="IMA", hint=f"of its files, `{request.files}` chose none")
    return Rootfs(tuple(changed.get(number, entry) for number, entry in enumerate(entries)))


def verify_rootfs(
    rootfs: Rootfs, trusted: Sequence[x509.Certificate], evm_trusted: Sequence[x509.Certificate] = (), *, files: ImaFiles = ImaFiles.ALL
) -> tuple[FileVerdict, ...]:
    """Returns a verdict for each chosen file (hard links once). `trusted` stands for .ima; with `evm_trusted` (.evm) EVM must agree too."""
    found = []
    archives: dict[Path, tarfile.TarFile] = {}
    try:
        for entry in rootfs.entries:
            if entry.is_file and not entry.hardlink:
                content = _content(entry, archives)
                if _is_chosen(entry, content, files):
                    found.append(_judge(entry, content, trusted, evm_trusted))
    finally:
        _close(archives)
    return tuple(found)


def _judge(entry: Entry, content: bytes, trusted: Sequence[x509.Certificate], evm_trusted: Sequence[x509.Certificate]) -> FileVerdict:
    """Returns the verdict on one file, EVM first as in the kernel."""
    xattrs = dict(entry.xattrs)
    if SECURITY_IMA not in xattrs:
        return FileVerdict(entry.path, ImaVerdict.UNSIGNED, "has no security.ima")
    try:
        if evm_trusted:
            if SECURITY_EVM not in xattrs:
                return FileVerdict(entry.path, ImaVerdict.UNSIGNED, "has no security.evm")
            if parse_integrity_xattr(SECURITY_EVM, xattrs[SECURITY_EVM]).kind is not IntegrityKind.PORTABLE_SIGNATURE:
                return FileVerdict(entry.path, ImaVerdict.WRONG, "security.evm is no portable signature")
            payload = evm_payload(_protected(entry), uid=entry.uid, gid=entry.gid, mode=entry.mode)
            verify_signature(_EVM, payload, xattrs[SECURITY_EVM], evm_trusted)
        kind = parse_integrity_xattr(SECURITY_IMA, xattrs[SECURITY_IMA]).kind
        if kind is not IntegrityKind.SIGNATURE:
            return FileVerdict(entry.path, ImaVerdict.UNSIGNED, f"security.ima is a {kind}")
        verify_signature(_IMA, content, xattrs[SECURITY_IMA], trusted)
    except (VerificationError, FormatError) as error:
        return FileVerdict(entry.path, ImaVerdict.WRONG, f"{error.where}: {error.message}" if error.where else error.message)
    return FileVerdict(entry.path, ImaVerdict.SIGNED, "")


def _protected(entry: Entry) -> dict[str, bytes]:
    """Returns the attributes that EVM protects."""
    return {name: value for name, value in entry.xattrs if name in EVM_XATTRS}


def _is_chosen(entry: Entry, content: bytes, files: ImaFiles) -> bool:
    """Returns whether the file is one that is asked for."""
    return files is ImaFiles.ALL or classify(entry.path, bool(entry.mode & 0o111), content) is not None


_Signed = tuple[int, tuple[tuple[str, bytes], ...] | None]
"""A file's number and its attributes: empty when it was not chosen, None when a signature is still to come."""


def _batches(work: _Work, chosen: Sequence[int], jobs: int) -> Iterator[list[_Signed]]:
    """Yields the signed files, in this process, or by forked workers a chunk at a time where the signers survive that."""
    signers = [signer for signer in (work.request.signer, work.request.evm) if signer is not None]
    workers = min(jobs, -(-len(chosen) // _CHUNK)) if all(signer.survives_fork for signer in signers) else 1
    if workers > 1:
        yield from _in_workers(work, chosen, workers)
        return
    for number in chosen:
        yield _sign_chunk_of(work, [number])


def _in_workers(work: _Work, chosen: Sequence[int], workers: int) -> Iterator[list[_Signed]]:
    """Yields signed files from forked workers. Raises: ToolFailedError when a worker is killed."""
    _inherited.append(work)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"), initializer=_leave_signals_to_parent)
    try:
        chunks = [pool.submit(_sign_chunk, chosen[start : start + _CHUNK]) for start in range(0, len(chosen), _CHUNK)]
        for chunk in as_completed(chunks):
            yield chunk.result()
    except BrokenProcessPool as error:
        raise ToolFailedError("a signing worker was killed", hint="was there enough memory?") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _inherited.pop()


def _leave_signals_to_parent() -> None:
    """Lets a worker finish its chunk when the build is interrupted; the parent gives it no more work."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _sign_chunk(numbers: Sequence[int]) -> list[_Signed]:
    """Signs some files in a worker."""
    return _sign_chunk_of(_inherited[-1], numbers)


def _sign_chunk_of(work: _Work, numbers: Iterable[int]) -> list[_Signed]:
    """Returns the attributes of some files."""
    archives: dict[Path, tarfile.TarFile] = {}
    try:
        return [(number, _sign_entry(work.entries[number], work.request, archives)) for number in numbers]
    finally:
        _close(archives)


def _sign_entry(entry: Entry, request: ImaRequest, archives: dict[Path, tarfile.TarFile]) -> tuple[tuple[str, bytes], ...] | None:
    """Returns a file's attributes with the new signatures among them."""
    content = _content(entry, archives)
    if not _is_chosen(entry, content, request.files):
        return ()
    kept = tuple((name, value) for name, value in entry.xattrs if name not in (SECURITY_IMA, SECURITY_EVM))
    try:
        signature = sign_payload(_IMA, content, request.signer, request.digest_name, request.target)
        signed = replace(entry, xattrs=tuple(sorted((*kept, (SECURITY_IMA, signature)))))
        if request.evm is None:
            return signed.xattrs
        payload = evm_payload(_protected(signed), uid=entry.uid, gid=entry.gid, mode=entry.mode, word_bits=request.word_bits)
        evm = sign_payload(_EVM, payload, request.evm, request.digest_name, request.target)
    except SignaturePendingError:
        return None
    return tuple(sorted((*signed.xattrs, (SECURITY_EVM, evm))))


def _content(entry: Entry, archives: dict[Path, tarfile.TarFile]) -> bytes:
    """Returns a file's whole content. Raises: InputError."""
    content = entry.content
    if isinstance(content, bytes):
        return content
    if isinstance(content, TarContent):
        where = f"{content.archive}: member {content.member.name}"
        try:
            if content.archive not in archives:
                archives[content.archive] = tarfile.TarFile(content.archive)
            source = archives[content.archive].extractfile(content.member)
            data = source.read() if source is not None else b""
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"cannot be read: {error}", where=where) from error
        if len(data) != content.member.size:
            raise InputError("the archive ends in the middle of it", where=where)
        return data
    try:
        return content.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(content)) from error


def _close(archives: dict[Path, tarfile.TarFile]) -> None:
    """Closes the archives that were opened."""
    for archive in archives.values():
        archive.close()
