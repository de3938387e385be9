"""Takes an image apart for the audit: reads every part, and says which could not be read. Nothing is mounted or run."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ipe_build.audit.facts import BootEntry, EspFacts, ImageFacts, KernelView, ModuleView, RootFiles, RootPartitions
from ipe_build.boot.entry import read_entry
from ipe_build.errors import InputError, IpeBuildError
from ipe_build.formats.cpio import CpioEntry, read_archives
from ipe_build.formats.gpt import Partition
from ipe_build.formats.kernel_compression import compression_of, unpack
from ipe_build.formats.verity import SUPERBLOCK_SIZE, Superblock, parse_superblock
from ipe_build.host import Host
from ipe_build.image.disk import Disk, read_disk
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.kernel.modules import verify_module
from ipe_build.policy.facts import Facts
from ipe_build.policy.survey import Kind
from ipe_build.policy.survey_image import extract_filesystem, survey
from ipe_build.policy.versions import KernelVersion
from ipe_build.signing.loading import parse_certificates

_CHUNK_BYTES = 1 << 20
T = TypeVar("T")


@contextmanager
def examined(image: Path, host: Host, *, kernel: Path | None = None) -> Iterator[ImageFacts]:
    """Yields what is known of a disk image; its files lie in a scratch folder that goes away at the end.

    `kernel` stands for the kernel that the boot entry names. Raises: InputError when the image itself cannot be read.
    """
    if not image.is_file():
        raise InputError("wanted a disk image, there is no such file", where=str(image))
    with host.scratch("ipe-build-audit-") as scratch, host.progress.step(f"take {image.name} apart"):
        yield _examine(image, kernel, scratch, host)


def _examine(image: Path, kernel_file: Path | None, scratch: Path, host: Host) -> ImageFacts:
    """Returns the facts; what fails is noted in `unreadable` and left out."""
    unreadable: dict[str, str] = {}

    def attempt(part: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except IpeBuildError as error:
            unreadable[part] = error.message
            return None

    disk = attempt("partition table", lambda: read_disk(image))
    if disk is None:
        return ImageFacts(image, unreadable=unreadable)
    root = attempt("root partitions", lambda: _root_partitions(disk, scratch))
    entry = attempt("boot entry", lambda: _boot_entry(image, scratch, host))
    kernel_bytes = kernel_file.read_bytes() if kernel_file is not None else entry.kernel if entry is not None else None
    kernel = attempt("kernel", lambda: view_kernel(kernel_bytes)) if kernel_bytes is not None else None
    return ImageFacts(
        image=image,
        table=disk.table,
        root=root,
        superblock=attempt("verity superblock", lambda: _superblock(root)) if root is not None else None,
        esp=attempt("EFI system partition", lambda: _esp(disk, host)),
        boot_entry=entry,
        kernel=kernel,
        initramfs=attempt("initramfs", lambda: read_initramfs(entry.initramfs)) if entry is not None else None,
        files=attempt("root filesystem", lambda: _root_files(root, kernel, scratch, host)) if root is not None else None,
        unreadable=unreadable,
    )


def _superblock(root: RootPartitions) -> Superblock | None:
    """Returns the superblock of the hash partition."""
    if root.hash_file is None:
        return None
    with root.hash_file.open("rb") as file:
        return parse_superblock(file.read(SUPERBLOCK_SIZE), where="root-verity")


def _esp(disk: Disk, host: Host) -> EspFacts | None:
    """Returns the names in the EFI system partition and the boot loader's settings."""
    if disk.esp is None:
        return None
    place = f"{disk.path.absolute()}@@{disk.esp.offset_bytes}"
    listing = host.run(["mdir", "-i", place, "-/", "-b", "::/"], env={"MTOOLS_SKIP_CHECK": "1"}).text
    files = tuple(line.strip().removeprefix("::") for line in listing.splitlines() if line.strip() and not line.strip().endswith("/"))
    if "/loader/loader.conf" not in files:
        return EspFacts(files, "")
    return EspFacts(files, host.run(["mcopy", "-i", place, "::/loader/loader.conf", "-"], env={"MTOOLS_SKIP_CHECK": "1"}).text)


def view_kernel(data: bytes) -> KernelView:
    """Returns what a kernel binary says of itself. Raises: FormatError, InputError."""
    facts = inspect_kernel(data)
    return KernelView(
        release=facts.version,
        version=KernelVersion.of_text(facts.version),
        architecture=facts.architecture,
        ipe=facts.ipe,
        boot_policy=facts.boot_policy,
        certificates=tuple(one for der in facts.certificates for one in parse_certificates(der, "certificate in the kernel")),
        revoked=tuple(one for der in facts.revoked for one in parse_certificates(der, "revoked certificate in the kernel")),
        lsms=facts.lsms,
        config=facts.config,
        command_line=facts.command_line,
    )


def _root_partitions(disk: Disk, scratch: Path) -> RootPartitions:
    """Returns the verity root's partitions, copied out."""

    def copied(partition: Partition | None, name: str) -> Path | None:
        if partition is None:
            return None
        copy_range(disk.path, partition.offset_bytes, partition.size_bytes, scratch / name)
        return scratch / name

    signature = copied(disk.root_verity_sig, "root-verity-sig")
    return RootPartitions(
        data=disk.root,
        hash=disk.root_verity,
        signature=disk.root_verity_sig,
        data_file=copied(disk.root, "root"),
        hash_file=copied(disk.root_verity, "root-verity"),
        signature_bytes=signature.read_bytes() if signature is not None else None,
    )


def copy_range(source: Path, offset: int, size_bytes: int, target: Path) -> None:
    """Copies a range of a file to a new file; blocks of zeros become holes."""
    zeros = bytes(_CHUNK_BYTES)
    with source.open("rb") as reader, target.open("wb") as writer:
        reader.seek(offset)
        left = size_bytes
        while left and (piece := reader.read(min(left, _CHUNK_BYTES))):
            left -= len(piece)
            if piece == zeros[: len(piece)]:
                writer.seek(len(piece), 1)
            else:
                writer.write(piece)
        writer.truncate(size_bytes - left)


def _boot_entry(image: Path, scratch: Path, host: Host) -> BootEntry:
    """Returns what the boot entry names, as bytes."""
    folder = scratch / "esp"
    folder.mkdir()
    entry = read_entry(image, folder, host)
    return BootEntry(entry.kernel.read_bytes(), entry.initrd.read_bytes() if entry.initrd else b"", entry.options)


def read_initramfs(data: bytes) -> tuple[CpioEntry, ...]:
    """Returns the members of all archives of an initramfs, in order: plain, or as a whole in one of the kernel's compressions.

    Raises: FormatError.
    """
    compression = compression_of(data)
    plain = data if compression is None else unpack(data, compression)
    return tuple(entry for archive in read_archives(plain) for entry in archive.entries)


def _root_files(root: RootPartitions, kernel: KernelView | None, scratch: Path, host: Host) -> RootFiles | None:
    """Returns the files of the root filesystem, and what this kernel would answer to each of its modules."""
    if root.data_file is None:
        return None
    folder = scratch / "rootfs"
    filesystem = extract_filesystem(root.data_file, folder, host)
    found = survey(folder, host, Facts())
    modules = [entry.path for entry in found.entries if entry.kind in (Kind.MODULE, Kind.COMPRESSED_MODULE)]
    return RootFiles(
        folder=folder,
        filesystem=filesystem,
        size_bytes=root.data_file.stat().st_size,
        survey=found,
        modules=tuple(_module(folder, path, kernel) for path in modules) if kernel is not None else (),
        setuid=tuple(path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if _is_setuid(path)),
    )


def _module(folder: Path, path: str, kernel: KernelView) -> ModuleView:
    """Returns what the kernel answers to a module of the root."""
    verdict = verify_module(folder / path, kernel.certificates, revoked=kernel.revoked, release=kernel.release)
    signer = verdict.certificate.subject.rfc4514_string() if verdict.certificate is not None else ""
    return ModuleView(path, signer, verdict.facts.compression if verdict.facts is not None else "", verdict.errno, verdict.reason)


def _is_setuid(path: Path) -> bool:
    """Returns whether a file runs with its owner's or group's rights."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & (stat.S_ISUID | stat.S_ISGID))
