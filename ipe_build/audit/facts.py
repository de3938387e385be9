"""What is known of an image before it is judged. Every part may be missing; the pipeline reads them, the checks judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from ipe_build.formats.cpio import CpioEntry
from ipe_build.formats.dotconfig import DotConfig
from ipe_build.formats.gpt import Partition, PartitionTable
from ipe_build.policy.versions import KernelVersion


@dataclass(frozen=True, slots=True)
class KernelView:
    """What a kernel binary says of itself. `lsms` None: the order of security modules was not found; `config` None: it carries none."""

    release: str
    version: KernelVersion
    ipe: bool
    boot_policy: bytes | None
    certificates: tuple[x509.Certificate, ...]
    lsms: tuple[str, ...] | None
    config: DotConfig | None


@dataclass(frozen=True, slots=True)
class BootEntry:
    """What the firmware or boot loader starts: the kernel's and the initramfs's bytes and the command line."""

    kernel: bytes
    initramfs: bytes
    command_line: str


@dataclass(frozen=True, slots=True)
class RootPartitions:
    """The three partitions of the verity root, each copied to a file of its own; None where there is none."""

    data: Partition | None
    hash: Partition | None
    signature: Partition | None
    data_file: Path | None
    hash_file: Path | None
    signature_bytes: bytes | None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image taken apart. `rootfs` is a folder with the root filesystem's files; `unreadable` says which part failed and why."""

    image: Path
    table: PartitionTable | None = None
    root: RootPartitions | None = None
    boot_entry: BootEntry | None = None
    kernel: KernelView | None = None
    initramfs: tuple[CpioEntry, ...] | None = None
    rootfs: Path | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    production: bool = False
