"""Checks of the initramfs: what the kernel unpacks, and what ipe-init in it is told."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.checks_root import module_refusal
from ipe_build.audit.command_line import ipe_init_word
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.root_hash import disk_root_hash
from ipe_build.audit.sealed import sealed_by

if TYPE_CHECKING:
    from ipe_build.host import Host

RD_SYMBOLS = {
    "gzip": "RD_GZIP",
    "xz": "RD_XZ",
    "zstd": "RD_ZSTD",
    "lzma": "RD_LZMA",
    "lz4": "RD_LZ4",
    "bzip2": "RD_BZIP2",
    "lzo": "RD_LZO",
}


def initramfs_init(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the initramfs has an executable init."""
    if facts.initramfs is None:
        yield unknown("initramfs", "there is none that could be read")
        return
    init = {entry.path: entry for entry in facts.initramfs}.get("init")
    if init is None or not init.mode & 0o111:
        yield bad("initramfs", "has no executable /init")
    else:
        yield good("initramfs", f"/init of {len(init.data)} bytes")


def initramfs_config(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether ipe-init takes its configuration, and whether the initramfs's first program is ipe-init: others are not foreseen."""
    if facts.initramfs is None:
        yield unknown("/etc/ipe-init.conf", "there is no initramfs that could be read")
    elif (settings := facts.ipe_init()) is None:
        yield unknown("/etc/ipe-init.conf", f"/{facts.first_program} is not ipe-init: nobody is known to read it")
    elif settings.problem:
        yield bad("/etc/ipe-init.conf", f"{settings.problem}: the boot ends")
    else:
        yield good("/etc/ipe-init.conf", f"ipe-init takes its {sum(map(len, settings.settings.values()))} settings")


def initramfs_modules(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether this kernel accepts every module that ipe-init is told to load: signature, signer, and the kernel it was built for."""
    if facts.kernel is None or (settings := facts.initramfs_config()) is None:
        yield unknown("modules of the initramfs", "kernel or ipe-init's configuration could not be read")
        return
    told = settings.get("module", ())
    refusals = {path: module_refusal(facts, path) for path in told}
    for path, reason in refusals.items():
        if reason is None:
            yield unknown(path, "its name is no module's, so it was not looked at")
        elif reason:
            yield bad(path, reason)
    if not any(reason != "" for reason in refusals.values()):
        yield good("modules of the initramfs", f"the kernel accepts all {len(told)}" if told else "none are to be loaded")


def initramfs_replaced(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for files of the initramfs that a later archive replaces: what was there first is not what runs."""
    if facts.archive is None:
        yield unknown("initramfs", "there is none")
        return
    for path in facts.archive.replaced[:20]:
        yield bad(path, "is there more than once: the last one counts")
    if not facts.archive.replaced:
        yield good("initramfs", "every file is there once")


def initramfs_programs(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for programs in the initramfs besides init: each may run while the boot policy is in force."""
    if facts.initramfs is None:
        yield unknown("initramfs", "there is none that could be read")
        return
    others = [one.path for one in facts.initramfs if stat.S_ISREG(one.mode) and one.path != "init" and one.data[:4] == b"\x7fELF"]
    for path in others:
        yield bad(path, "is a program that the boot policy allows")
    if not others:
        yield good("initramfs", "init is its only program")


def initramfs_unpacks(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel can unpack the initramfs's compression."""
    if facts.boot_entry is None or facts.kernel is None:
        yield unknown("initramfs", "the initramfs, or the kernel, could not be read")
        return
    packed = dict.fromkeys(part.kind for part in (facts.archive.parts if facts.archive is not None else ()) if part.kind != "cpio")
    unpacks = {kind: facts.kernel.built_in(RD_SYMBOLS[kind]) for kind in packed}
    off = [kind for kind, answer in unpacks.items() if answer is False]
    taken = facts.kernel.built_in("BLK_DEV_INITRD")
    if taken is False:
        yield bad("initramfs", "CONFIG_BLK_DEV_INITRD is off: the kernel takes no initramfs")
    elif off:
        yield bad("initramfs", f"is compressed with {off[0]}, and CONFIG_{RD_SYMBOLS[off[0]]} is off")
    elif taken is None or None in unpacks.values():
        yield unknown("initramfs", "the kernel does not show what it can unpack")
    else:
        yield good("initramfs", f"the kernel unpacks {', '.join(packed) or 'plain archives'}")


def initramfs_intact(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel unpacks the initramfs to its end; it goes on booting with what it has unpacked before damage."""
    if facts.archive is None:
        yield unknown("initramfs", "there is none")
    elif facts.archive.error:
        yield bad("initramfs", facts.archive.error)
    else:
        parts = ", ".join(f"{part.kind} at {part.offset:#x} ({part.members} members)" for part in facts.archive.parts)
        yield good("initramfs", parts or "is empty")


def initramfs_root_hash(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the root hash that the initramfs will open is that of this disk."""
    stored, named = disk_root_hash(facts), _named_root_hash(facts)
    if stored is None or named is None:
        yield unknown("root hash", "the initramfs's configuration or the signature partition could not be read")
    elif named == stored.hex():
        yield good("root hash", "initramfs and disk agree")
    else:
        yield bad("root hash", f"the initramfs opens {named or 'nothing'}, the disk has {stored.hex()}")


def _setting(facts: ImageFacts, name: str) -> str | None:
    """Returns the last value of one of ipe-init's settings; "" when it is not set, None without a configuration."""
    settings = facts.initramfs_config()
    return None if settings is None else (settings.get(name) or ("",))[-1]


def _named_root_hash(facts: ImageFacts) -> str | None:
    """Returns the root hash (hex) that ipe-init's configuration, or by its leave the command line, names; None when unreadable."""
    value = _setting(facts, "root_hash")
    if value != "cmdline" or facts.boot_entry is None:
        return None if value is None else value.lower()
    return (ipe_init_word(facts, "roothash") or ("",))[-1].lower()


def initramfs_filesystem(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the filesystem that ipe-init mounts is the one on the root partition."""
    named = _setting(facts, "filesystem")
    if named is None or facts.files is None:
        yield unknown("filesystem", "the initramfs's configuration or the root filesystem could not be read")
    else:
        yield (good if named == facts.files.filesystem else bad)(
            "filesystem", f"ipe-init mounts {named}, the root is {facts.files.filesystem}"
        )


def initramfs_signature(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether ipe-init hands the kernel a signature: dmverity_signature=TRUE never matches otherwise."""
    source = _setting(facts, "signature")
    if source is None:
        yield unknown("signature", "the initramfs has no configuration of ipe-init")
    elif source == "none" and (reason := sealed_by(facts)):
        yield good("signature", f"not needed: sealed ({reason})")
    else:
        yield (bad if source == "none" else good)("signature", f"taken from: {source}")


def initramfs_policy(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether every policy that ipe-init will load is where it looks for it."""
    settings = facts.initramfs_config()
    if settings is None or facts.files is None or facts.initramfs is None:
        yield unknown("policies", "the initramfs's configuration or the root filesystem could not be read")
        return
    inside = {entry.path for entry in facts.initramfs}
    for place in settings.get("policy", ()):
        path = place.removeprefix("initramfs:").lstrip("/")
        of_root = facts.files.tree.find(path)
        there = path in inside if place.startswith("initramfs:") else of_root is not None and of_root.is_file
        yield (good if there else bad)(place, "is there" if there else "is missing: the boot stops")
    if reason := sealed_by(facts):
        yield good("policies", f"not needed: sealed, the boot policy stays in force ({reason})")
    elif not settings.get("policy"):
        yield bad("policies", "ipe-init loads none: the boot policy, which is for the initramfs, stays in force")


def initramfs_failure(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks what ipe-init does when a step fails."""
    action = _setting(facts, "on_failure")
    if action is None:
        yield unknown("on_failure", "the initramfs has no configuration of ipe-init")
    else:
        yield (bad if action == "recovery" else good)("on_failure", f"{action or 'panic'}")


def initramfs_override(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether init= of the command line may name another program of the root."""
    allowed = _setting(facts, "init_from_command_line")
    if allowed is None:
        yield unknown("init=", "the initramfs has no configuration of ipe-init")
    else:
        yield (bad if allowed == "yes" else good)("init=", "is taken from the command line" if allowed == "yes" else "is not taken")


def mac_admin(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether CAP_MAC_ADMIN is dropped: who has it may write 0 to ipe/enforce."""
    settings = facts.initramfs_config()
    if settings is None:
        yield unknown("CAP_MAC_ADMIN", "the initramfs has no configuration of ipe-init")
    elif "CAP_MAC_ADMIN" in settings.get("drop_capability", ()):
        yield good("CAP_MAC_ADMIN", "is dropped: policy and enforcement stay as they are until the next reboot")
    else:
        yield bad("CAP_MAC_ADMIN", "is kept: root on the device can switch enforcement off, and load newer signed policies")


def init_program(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the first program of the root exists and is executable."""
    init = _setting(facts, "init")
    if init is None or facts.files is None:
        yield unknown("init", "the initramfs's configuration or the root filesystem could not be read")
        return
    found = facts.files.tree.find(init)
    there = found is not None and found.is_executable
    yield (good if there else bad)(init, "is an executable file" if there else "is no executable file of the root")
