"""What is known of an image before it is judged. Every part may be missing; the pipeline reads them, the checks judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from ipe_build.formats.cpio import CpioEntry
from ipe_build.formats.dotconfig import DotConfig
from ipe_build.formats.gpt import Partition, PartitionTable
from ipe_build.formats.verity import Superblock
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


@dataclass(frozen=True, slots=True)
class BootEntry:
    """What the firmware or boot loader starts: the kernel's and the initramfs's bytes and the command line."""

    kernel: bytes
    initramfs: bytes
    command_line: str


@dataclass(frozen=True, slots=True)
class EspFacts:
    """What else is in the EFI system partition: all files (`/EFI/BOOT/BOOTX64.EFI`), and loader/loader.conf's text ("" without it)."""

    files: tuple[str, ...]
    loader_conf: str

    @property
    def entries(self) -> tuple[str, ...]:
        """Returns the boot entries' files."""
        return tuple(name for name in self.files if name.lower().startswith("/loader/entries/") and name.lower().endswith(".conf"))


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
class ModuleView:
    """A kernel module of the root: who signed it ("" nobody), and what this kernel answers (`errno` "" when it loads it)."""

    path: str
    signer: str
    compression: str
    errno: str
    reason: str


@dataclass(frozen=True, slots=True)
class RootFiles:
    """The root filesystem's files: copied to `folder`; what matters to a policy; its kernel modules; its filesystem's name and size."""

    folder: Path
    filesystem: str
    size_bytes: int
    survey: Survey
    modules: tuple[ModuleView, ...]
    setuid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image taken apart. `unreadable` says which part failed and why; a part that is None is not there, or failed."""

    image: Path
    table: PartitionTable | None = None
    root: RootPartitions | None = None
    superblock: Superblock | None = None
    esp: EspFacts | None = None
    boot_entry: BootEntry | None = None
    kernel: KernelView | None = None
    initramfs: tuple[CpioEntry, ...] | None = None
    files: RootFiles | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def initramfs_config(self) -> Mapping[str, tuple[str, ...]] | None:
        """Returns the settings of /etc/ipe-init.conf (a name may come more than once), None when the initramfs has none."""
        text = next((one.data for one in self.initramfs or () if one.path == "etc/ipe-init.conf"), None)
        if text is None:
            return None
        found: dict[str, tuple[str, ...]] = {}
        for line in text.decode("utf-8", "replace").splitlines():
            name, separator, value = line.partition("=")
            if separator and not line.lstrip().startswith("#"):
                found[name.strip()] = (*found.get(name.strip(), ()), value.strip())
        return found
