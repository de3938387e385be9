"""What a root filesystem holds that matters for a policy: programs, scripts, modules, firmware, and what will not work under IPE."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ipe_build.policy.facts import Facts


class Kind(StrEnum):
    """What a file is to the kernel."""

    ELF = "elf"
    SCRIPT = "script"
    MODULE = "module"
    COMPRESSED_MODULE = "compressed module"
    FIRMWARE = "firmware"
    POLICY = "policy"
    CERTIFICATE = "certificate"
    KERNEL = "kernel"


class Trait(StrEnum):
    """What about a file will surprise somebody under IPE."""

    JIT = "jit"
    MEMFD = "memfd"
    LIBFFI = "libffi"
    UPX = "upx"
    INTERPRETER = "interpreter"
    INIT = "init"
    LOADER = "policy loader"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its path in the image, what it is, its traits, and what the kernel will know about it."""

    path: str
    kind: Kind
    traits: frozenset[Trait] = frozenset()
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True, slots=True)
class Survey:
    """A root filesystem: its type where known (`erofs`, `btrfs`, …), the relevant files by path, and mounts of /etc/fstab."""

    filesystem: str | None
    entries: tuple[Entry, ...]
    mounts: tuple[tuple[str, str], ...] = ()
    """(mount point, type) of file systems that /etc/fstab names."""
