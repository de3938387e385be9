"""What is known of an image before it is judged. Every part may be missing; the pipeline reads them, the checks judge them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, cast

from cryptography import x509

from ipe_build.audit.command_line import word_of
from ipe_build.audit.file_tree import FileTree, TreeFile
from ipe_build.formats.cpio import CpioEntry
from ipe_build.formats.dotconfig import DotConfig
from ipe_build.formats.gpt import Partition, PartitionTable
from ipe_build.formats.initramfs import Initramfs
from ipe_build.formats.ipe_init import IpeInitConfig, is_ipe_init, parse_ipe_init
from ipe_build.formats.verity import Superblock
from ipe_build.policy.ledger import Ledger
from ipe_build.policy.survey import Survey
from ipe_build.policy.versions import KernelVersion


@dataclass(frozen=True, slots=True)
class KernelView:
    """What a kernel binary says of itself.

    None: `lsms` the order of security modules was not found, `config` it carries none,
    `command_line` (the built-in one) cannot be told.
    """

    release: str
    version: KernelVersion
    architecture: str
    ipe: bool
    boot_policy: bytes | None
    certificates: tuple[x509.Certificate, ...]
    revoked: tuple[x509.Certificate, ...]
    lsms: tuple[str, ...] | None
    config: DotConfig | None
    command_line: str | None
    enrolled: tuple[x509.Certificate, ...] = ()
    """Those of `certificates` that firmware's db gives (.platform)."""
    banner: str = ""
    """What the kernel says of who built it, where, with what, and when."""
    signs: frozenset[str] = frozenset()
    """Kconfig symbols that its code shows to be built in: what is known of a kernel that does not carry its configuration."""

    def built_in(self, symbol: str) -> bool | None:
        """Returns whether a Kconfig symbol is `y`; None where the kernel carries no configuration and its code does not show it."""
        if self.config is None:
            return True if symbol in self.signs else None
        return self.config.get(symbol) == "y"


MODULE_NAMES = {
    "BLK_DEV_DM": "dm_mod",
    "DM_VERITY": "dm_verity",
    "EROFS_FS": "erofs",
    "SQUASHFS": "squashfs",
    "EXT4_FS": "ext4",
}
"""The modules of drivers that a root needs, where a stock kernel does not have them built in."""


class EntryKind(StrEnum):
    """What names kernel, initramfs and command line."""

    CONF = "boot entry"
    UKI = "unified kernel image"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class UkiFacts:
    """A unified kernel image: its sections' names, whether it carries a command line, who signed it, and its SHA-256 Authenticode digest.

    `signers` are the subjects of those whose signature is over this very image; `problem` says why one is not ("" otherwise).
    """

    sections: tuple[str, ...]
    has_command_line: bool
    signed: bool
    signers: tuple[str, ...]
    problem: str
    digest: bytes
    os_release: Mapping[str, str]
    doubtful: tuple[str, ...] = ()
    """Sections that are there twice, or under a longer name: which one is used depends on the stub."""


@dataclass(frozen=True, slots=True)
class BootEntry:
    """What the firmware or boot loader starts: the kernel's and the initramfs's bytes and the command line.

    `name` is its file's in the EFI system partition (`/loader/entries/demo.conf`), `default` whether it starts when nobody chooses.
    """

    kernel: bytes
    initramfs: bytes
    command_line: str
    name: str = "given"
    kind: EntryKind = EntryKind.GIVEN
    default: bool = True
    uki: UkiFacts | None = None


class EfiLoader(NamedTuple):
    """An EFI program where firmware looks: its architecture ("" unknown), what it says it is, and why it is none ("" it is one)."""

    architecture: str
    says: str
    problem: str


@dataclass(frozen=True, slots=True)
class EspFacts:
    """What else is in the EFI system partition: all files (`/EFI/BOOT/BOOTX64.EFI`), and loader/loader.conf's text ("" without it).

    `loader_is_uki` says that what firmware starts by default is itself a unified kernel image.
    """

    files: tuple[str, ...]
    loader_conf: str
    loader_is_uki: bool = False
    times: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """When each file was written, as FAT says it: year, month, day, hour, minute, second."""
    loaders: Mapping[str, EfiLoader] = field(default_factory=dict)
    """The programs `/EFI/BOOT/BOOT*.EFI`, by their files."""

    @property
    def entries(self) -> tuple[str, ...]:
        """Returns the boot entries' files."""
        return tuple(name for name in self.files if name.lower().startswith("/loader/entries/") and name.lower().endswith(".conf"))


@dataclass(frozen=True, slots=True)
class Region:
    """Where bytes lie: part of a file (all of it: offset 0 and its size)."""

    path: Path
    offset_bytes: int
    size_bytes: int

    def read(self, offset: int, length: int) -> bytes:
        """Returns that many bytes, fewer only at the region's end. Raises: OSError."""
        length = min(length, self.size_bytes - offset)
        if offset < 0 or length <= 0:
            return b""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.pread(descriptor, length, self.offset_bytes + offset)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class RootPartitions:
    """The verity root: its partitions (None for those that are not on a disk with a table), and where their bytes lie.

    `hash_region` may be `data_region` itself, then the tree begins `hash_offset` bytes into it. `named_hash` is a root hash that was
    given with the image.
    """

    data: Partition | None
    hash: Partition | None
    signature: Partition | None
    data_region: Region | None
    hash_region: Region | None
    signature_bytes: bytes | None
    hash_offset: int = 0
    named_hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class ModuleView:
    """A kernel module of the root or the initramfs: who signed it ("" nobody), and what this kernel answers (`errno` "" when it loads it).

    `forgiven` says that only the lack of a signature by a known key is the matter: a kernel that does not force signatures loads it.
    """

    path: str
    signer: str
    compression: str
    errno: str
    reason: str
    forgiven: bool = False


@dataclass(frozen=True, slots=True)
class RootFiles:
    """The files of the root filesystem, its name and size, what matters to a policy; `modules` as the kernel of an entry sees them."""

    tree: FileTree
    filesystem: str
    size_bytes: int
    survey: Survey
    modules: tuple[ModuleView, ...]

    @property
    def setuid(self) -> tuple[str, ...]:
        """Returns the files that run with their owner's or group's rights."""
        return tuple(one.path for one in self.tree if one.is_file and one.mode & 0o6000)


@dataclass(frozen=True, slots=True)
class OtherPartition:
    """A partition that is no part of the verity root and not the EFI system partition that firmware starts from.

    `filesystem` is "" for none that is known; `tree` its files, None where they could not be read: `problem` says why.
    """

    name: str
    region: Region
    filesystem: str
    tree: FileTree | None
    problem: str = ""
    partition: Partition | None = None


@dataclass(frozen=True, slots=True)
class EntryView:
    """What a boot entry makes of the image: its kernel, its initramfs, and what that kernel answers to the modules of both."""

    boot_entry: BootEntry
    kernel: KernelView | None
    initramfs: tuple[CpioEntry, ...] | None
    archive: Initramfs | None
    modules: tuple[ModuleView, ...]
    initramfs_modules: tuple[ModuleView, ...]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image taken apart, as seen from the boot entry that starts when nobody chooses; `others` are the further ones.

    `unreadable` says which part failed and why; a part that is None is not there, or failed. `initramfs` is what
    lies in the root after unpacking, `archive` how it was packed, `initramfs_modules` the kernel modules in it. `partitions` are
    those of a disk that no hash tree covers, `ledger` the versions of policies that went out before (None: it was not given).
    """

    image: Path
    table: PartitionTable | None = None
    root: RootPartitions | None = None
    superblock: Superblock | None = None
    esp: EspFacts | None = None
    boot_entry: BootEntry | None = None
    kernel: KernelView | None = None
    initramfs: tuple[CpioEntry, ...] | None = None
    archive: Initramfs | None = None
    initramfs_modules: tuple[ModuleView, ...] = ()
    files: RootFiles | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    others: tuple[EntryView, ...] = ()
    partitions: tuple[OtherPartition, ...] = ()
    ledger: Ledger | None = None
    memo: dict[object, object] = field(default_factory=dict, compare=False, repr=False)
    """What is costly to find out, kept by what it depends on; the views of one image share it."""

    def views(self) -> Iterator[ImageFacts]:
        """Yields the image as each boot entry sees it, the default one first."""
        yield self
        for one in self.others:
            yield replace(
                self,
                boot_entry=one.boot_entry,
                kernel=one.kernel,
                initramfs=one.initramfs,
                archive=one.archive,
                initramfs_modules=one.initramfs_modules,
                files=replace(self.files, modules=one.modules) if self.files is not None else None,
            )

    @property
    def kernel_config(self) -> DotConfig | None:
        """Returns the configuration of the kernel that boots; None where there is no kernel, or it does not carry one."""
        return self.kernel.config if self.kernel is not None else None

    @property
    def entry_name(self) -> str:
        """Returns the name of the boot entry that this is seen from; "" when there is none."""
        return self.boot_entry.name if self.boot_entry is not None else ""

    def find_in_initramfs(self, path: str) -> TreeFile | None:
        """Returns what a path leads to in the unpacked initramfs, symbolic links followed."""
        if self.initramfs is None:
            return None
        key = ("initramfs", id(self.initramfs))
        if key not in self.memo:
            # The entries are kept with their tree: their identity stays theirs as long as it is asked for.
            self.memo[key] = (self.initramfs, FileTree.of(file_of_member(one) for one in self.initramfs))
        _, tree = cast(tuple[object, FileTree], self.memo[key])
        return tree.find(path)

    def has_driver(self, symbol: str) -> bool | None:
        """Returns whether a Kconfig symbol is built in, or is a module that ipe-init loads first; None when the kernel does not say."""
        kernel = self.kernel
        if kernel is None:
            return None
        there = kernel.built_in(symbol)
        if there or (kernel.config is not None and kernel.config.get(symbol) != "m"):
            return there
        loaded = {
            name.rpartition("/")[2].partition(".ko")[0].replace("-", "_") for name in (self.initramfs_config() or {}).get("module", ())
        }
        return True if MODULE_NAMES.get(symbol, "?") in loaded else there

    @property
    def first_program(self) -> str:
        """Returns what the kernel starts in the initramfs, without a slash in front."""
        return (word_of(self, "rdinit") or "/init").lstrip("/")

    def ipe_init(self) -> IpeInitConfig | None:
        """Returns ipe-init's configuration as ipe-init reads it; None where the initramfs's first program is another."""
        program = self.find_in_initramfs(self.first_program)
        if program is None or not program.is_file:
            return None
        key = ("ipe-init", id(self.initramfs), program.path)
        if key not in self.memo:
            found = self.find_in_initramfs("etc/ipe-init.conf")
            text = found.read(found.size_bytes) if found is not None and found.is_file else None
            missing = IpeInitConfig({}, "there is none")
            known = is_ipe_init(program.read(program.size_bytes))
            self.memo[key] = (missing if text is None else parse_ipe_init(text)) if known else None
        return cast("IpeInitConfig | None", self.memo[key])

    def initramfs_config(self) -> Mapping[str, tuple[str, ...]] | None:
        """Returns ipe-init's settings (a name may come more than once), None where the initramfs's first program is another."""
        found = self.ipe_init()
        return None if found is None else found.settings


def file_of_member(one: CpioEntry) -> TreeFile:
    """Returns a member of an initramfs as a file of a tree."""
    target = one.data.decode("utf-8", "surrogateescape") if stat.S_ISLNK(one.mode) else ""
    return TreeFile(
        one.path, one.mode, len(one.data), one.uid, one.gid, target, read_at=lambda offset, length: one.data[offset : offset + length]
    )
