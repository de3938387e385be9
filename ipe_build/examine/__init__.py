"""Takes an image apart for the audit: reads every part, and says which could not be read. Nothing is mounted or run.

An image is a disk, or its partitions as files, a kernel, an initramfs, unified kernel images, in any mix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from ipe_build.audit.facts import (
    BootEntry,
    EntryKind,
    EntryView,
    EspFacts,
    ImageFacts,
    KernelView,
    ModuleView,
    Region,
    RootFiles,
)
from ipe_build.errors import IpeBuildError
from ipe_build.examine.boot_entries import read_esp, uki_entry
from ipe_build.examine.inputs import MAX_BOOT_FILE_BYTES, Inputs, sort_inputs
from ipe_build.examine.partitions import other_partitions
from ipe_build.examine.root import judge_initramfs, judge_modules, read_files, root_of_disk, root_of_files, superblock_of
from ipe_build.formats.dotconfig import DotConfig
from ipe_build.formats.fat import is_fat
from ipe_build.formats.initramfs import Initramfs, unpack_initramfs
from ipe_build.host import Host
from ipe_build.image.disk import Disk, read_disk
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.policy.ledger import Ledger
from ipe_build.policy.versions import KernelVersion
from ipe_build.signing.loading import parse_certificates

T = TypeVar("T")
_READS_DB = (
    "INTEGRITY_PLATFORM_KEYRING",
    "LOAD_UEFI_KEYS",
    "IPE_POLICY_SIG_PLATFORM_KEYRING",
    "DM_VERITY_VERIFY_ROOTHASH_SIG_PLATFORM_KEYRING",
)
"""What a kernel needs to take policies and root hashes that a certificate in firmware's db signed."""


@contextmanager
def examined(
    images: Path | Sequence[Path],
    host: Host,
    *,
    kernel: Path | None = None,
    initramfs: Sequence[Path] = (),
    command_line: str | None = None,
    db: Sequence[x509.Certificate] = (),
    config: DotConfig | None = None,
    ledger: Ledger | None = None,
) -> Iterator[ImageFacts]:
    """Yields what is known of an image; what had to be unpacked lies in a scratch folder that goes away at the end.

    What each of `images` is, is told from its bytes. `kernel`, `initramfs` (archives that follow each other) and `command_line` stand for
    what the boot entries say; then there is one entry. `db` is what firmware's db holds: a kernel with a platform keyring trusts it.
    `config` is the kernel's, for one that does not carry its own, `ledger` the
    versions of policies that went out before.
    Raises: InputError when a file cannot be read at all or two are of one kind.
    """
    paths = (images,) if isinstance(images, Path) else tuple(images)
    inputs = sort_inputs(paths, kernel=kernel, initramfs=initramfs, command_line=command_line)
    with host.scratch("ipe-build-audit-") as scratch, host.progress.step(f"take {inputs.first.name} apart"):
        yield _Examination(inputs, scratch, host, tuple(db), config, ledger).facts()


@dataclass(slots=True)
class _Examination:
    """The reading of one image; what fails is noted in `unreadable` and left out."""

    inputs: Inputs
    scratch: Path
    host: Host
    db: tuple[x509.Certificate, ...] = ()
    config: DotConfig | None = None
    ledger: Ledger | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    kernels: dict[bytes, KernelView | None] = field(default_factory=dict)
    archives: dict[bytes, Initramfs] = field(default_factory=dict)
    modules: dict[bytes, tuple[ModuleView, ...]] = field(default_factory=dict)
    loaded: dict[tuple[bytes, bytes], tuple[ModuleView, ...]] = field(default_factory=dict)

    def attempt(self, part: str, read: Callable[[], T]) -> T | None:
        """Returns what `read` does, None when it fails."""
        try:
            return read()
        except IpeBuildError as error:
            self.unreadable[part] = error.message
        except OSError as error:
            self.unreadable[part] = f"cannot be read: {error.strerror}"
        return None

    def facts(self) -> ImageFacts:
        """Returns all facts."""
        inputs = self.inputs
        disk = self._disk()
        root = self.attempt("root partitions", lambda: root_of_disk(disk, inputs) if disk is not None else root_of_files(inputs))
        files = self.attempt("root filesystem", lambda: read_files(root, self.scratch, self.host)) if root is not None else None
        esp, entries = self._entries(disk)
        views = [self._view(entry, files) for entry in entries]
        first = views[0] if views else None
        return ImageFacts(
            image=inputs.first,
            table=disk.table if disk is not None else None,
            root=root,
            superblock=self.attempt("verity superblock", lambda: superblock_of(root)) if root is not None else None,
            esp=esp,
            boot_entry=first.boot_entry if first is not None else None,
            kernel=first.kernel if first is not None else None,
            initramfs=first.initramfs if first is not None else None,
            archive=first.archive if first is not None else None,
            initramfs_modules=first.initramfs_modules if first is not None else (),
            files=replace(files, modules=first.modules) if files is not None and first is not None else files,
            unreadable=self.unreadable,
            others=tuple(views[1:]),
            partitions=other_partitions(disk, root, self.scratch, self.host) if disk is not None else (),
            ledger=self.ledger,
        )

    def _disk(self) -> Disk | None:
        """Returns the disk; an image of nothing but partition files, kernels and the like has none."""
        path = self.inputs.disk
        return None if path is None else self.attempt("partition table", lambda: read_disk(path))

    def _entries(self, disk: Disk | None) -> tuple[EspFacts | None, tuple[BootEntry, ...]]:
        """Returns what the EFI system partition holds, and everything that can be started, the default first."""
        region = self.inputs.esp
        if disk is not None:
            region = _boot_partition(disk) or region
        found: tuple[BootEntry, ...] = ()
        esp = None
        if region is not None:
            place = region
            read = self.attempt("EFI system partition", lambda: read_esp(place, self.unreadable.__setitem__))
            esp, found = read if read is not None else (None, ())
        for path in self.inputs.ukis:
            entry = self.attempt(f"unified kernel image {path.name}", partial(_uki, path))
            found = (*found, *((replace(entry, default=not found),) if entry is not None else ()))
        return esp, self._given(found)

    def _given(self, found: tuple[BootEntry, ...]) -> tuple[BootEntry, ...]:
        """Returns the entries; just one when the caller named kernel, initramfs or command line, made of these and the default entry."""
        inputs = self.inputs
        if inputs.kernel is None and not inputs.initramfs and inputs.command_line is None:
            return found
        base = found[0] if found else BootEntry(b"", b"", "")
        named = inputs.kernel
        kernel = self.attempt("kernel", lambda: _boot_file(named)) if named is not None else base.kernel
        archives = self.attempt("initramfs", lambda: b"".join(map(_boot_file, inputs.initramfs))) if inputs.initramfs else base.initramfs
        return (
            BootEntry(
                kernel or b"",
                archives or b"",
                inputs.command_line if inputs.command_line is not None else base.command_line,
                f"{base.name}, changed" if found else "given",
                EntryKind.GIVEN,
            ),
        )

    def _view(self, entry: BootEntry, files: RootFiles | None) -> EntryView:
        """Returns what an entry makes of the image. Kernels and initramfses that entries share are read once."""
        digest = hashlib.sha256(entry.kernel).digest()
        name = "" if entry.default else f" of {entry.name}"
        if digest not in self.kernels:
            viewed = self.attempt(f"kernel{name}", lambda: view_kernel(entry.kernel, self.db, self.config)) if entry.kernel else None
            self.kernels[digest] = viewed
        kernel = self.kernels[digest]
        packed = hashlib.sha256(entry.initramfs).digest()
        if packed not in self.archives:
            self.archives[packed] = unpack_initramfs(entry.initramfs)
        archive = self.archives[packed]
        if archive.error and f"initramfs{name}" not in self.unreadable:
            self.unreadable[f"initramfs{name}"] = archive.error
        if digest not in self.modules:
            self.modules[digest] = judge_modules(files, kernel, self.scratch) if files is not None and kernel is not None else ()
        there = archive.entries if entry.initramfs else None
        if (digest, packed) not in self.loaded:
            self.loaded[digest, packed] = judge_initramfs(archive, kernel, self.scratch) if kernel is not None and entry.initramfs else ()
        return EntryView(entry, kernel, there, archive if entry.initramfs else None, self.modules[digest], self.loaded[digest, packed])


def _boot_partition(disk: Disk) -> Region | None:
    """Returns the EFI system partition; without one, the first that holds a FAT filesystem: firmware looks into those too."""
    candidates = (disk.esp,) if disk.esp is not None else disk.table.partitions
    regions = (Region(disk.path, one.offset_bytes, one.size_bytes) for one in candidates)
    return next((one for one in regions if disk.esp is not None or is_fat(one.read(0, 512))), None)


def _uki(path: Path) -> BootEntry:
    """Returns what a unified kernel image in a file of its own starts. Raises: FormatError, InputError."""
    return uki_entry(_boot_file(path), path.name)


def _boot_file(path: Path) -> bytes:
    """Returns a kernel's or initramfs's bytes. Raises: InputError when it is too large to be one."""
    from ipe_build.errors import InputError

    if path.stat().st_size > MAX_BOOT_FILE_BYTES:
        raise InputError(f"has more than {MAX_BOOT_FILE_BYTES} bytes", where=str(path))
    return path.read_bytes()


def view_kernel(data: bytes, db: tuple[x509.Certificate, ...] = (), config: DotConfig | None = None) -> KernelView:
    """Returns what a kernel binary says of itself, and what it is told: firmware's `db`, and `config` where it carries none.

    Raises: FormatError, InputError.
    """
    facts = inspect_kernel(data)
    known = facts.config or config
    enrolled = db if known is None or all(known.enabled(symbol) for symbol in _READS_DB) else ()
    return KernelView(
        release=facts.version,
        version=KernelVersion.of_text(facts.version),
        architecture=facts.architecture,
        ipe=facts.ipe,
        boot_policy=facts.boot_policy,
        certificates=(
            *(one for der in facts.certificates for one in parse_certificates(der, "certificate in the kernel")),
            *enrolled,
        ),
        revoked=tuple(one for der in facts.revoked for one in parse_certificates(der, "revoked certificate in the kernel")),
        lsms=facts.lsms,
        config=known,
        command_line=facts.command_line,
        enrolled=enrolled,
        banner=facts.banner,
        signs=facts.signs,
    )
