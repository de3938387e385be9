"""Checks of what starts the kernel: boot loader, boot entry, what vouches for the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.checks_command_line import OFF
from ipe_build.audit.facts import EntryKind, ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.formats.gpt import Partition
from ipe_build.formats.partition_types import EFI_SYSTEM, EXTENDED_BOOT_LOADER

if TYPE_CHECKING:
    from ipe_build.host import Host


def boot_entry(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the EFI system partition says what to start."""
    entry = facts.boot_entry
    if entry is None or not entry.kernel:
        yield bad("boot entry", "the image names no kernel to start")
        return
    yield good("boot entry", f"kernel of {len(entry.kernel)} bytes, initramfs of {len(entry.initramfs)} bytes")


def one_boot_entry(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether there is a second boot entry: whoever is at the console may choose it, however old its kernel is."""
    names = [one.entry_name for one in facts.views() if one.boot_entry is not None]
    if len(names) > 1:
        yield bad("boot entries", f"{len(names)}: {', '.join(names)}; the first starts when nobody chooses")
    else:
        yield good("boot entries", "there is one" if names else "there is none")


def _no_esp(facts: ImageFacts, subject: str) -> Outcome:
    """Returns what a check of the EFI system partition says without one: nothing is wrong with an image that is no disk."""
    if facts.table is None and "partition table" not in facts.unreadable and "EFI system partition" not in facts.unreadable:
        return good(subject, "the image is no disk: what starts its kernel is not part of it")
    return unknown(subject, "there is no EFI system partition")


def boot_loader(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether UEFI firmware finds a boot loader at the default place (EFI/BOOT/BOOT*.EFI)."""
    if facts.esp is None:
        yield _no_esp(facts, "boot loader")
        return
    if not facts.esp.loaders:
        yield bad("boot loader", "there is none: something else must start the kernel")
    for name, one in facts.esp.loaders.items():
        if one.problem:
            yield bad(name, f"firmware does not start it: {one.problem}")
        elif facts.esp.loader_is_uki or one.says.startswith("systemd-boot"):
            yield good(name, f"for {one.architecture}, {one.says or 'a unified kernel image'}")
        else:
            yield unknown(name, f"for {one.architecture}; it is not systemd-boot: whether it heeds the boot entries is not known")


_STARTED = re.compile(r"efi/boot/boot[^/]+\.efi", re.IGNORECASE)
_LISTED = re.compile(r"loader/entries/[^/]+\.conf|efi/linux/[^/]+\.efi", re.IGNORECASE)


def startable(facts: ImageFacts) -> Iterator[tuple[Partition, str]]:
    """Yields what else there is to start: partitions with a FAT filesystem, and the file on each.

    Firmware (EDK II) starts the boot loader of the first partition that has one, whatever its type; systemd-boot lists the entries of an
    extended boot loader partition. The EFI system partition of the other slot (esp-a, esp-b) is there on purpose.
    """
    esp = next((one for one in facts.table.partitions if one.type_uuid == EFI_SYSTEM), None) if facts.table is not None else None
    for one in facts.partitions:
        if one.partition is None or one.tree is None or one.filesystem != "vfat":
            continue
        if esp is not None and {esp.name, one.partition.name} == {"esp-a", "esp-b"}:
            continue
        patterns = (_STARTED, _LISTED) if one.partition.type_uuid == EXTENDED_BOOT_LOADER else (_STARTED,)
        found = next((file.path for file in one.tree if any(pattern.fullmatch(file.path) for pattern in patterns)), None)
        if found is not None:
            yield one.partition, f"/{found}"


def boot_partitions(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for boot loaders and boot entries on other partitions: firmware or systemd-boot may start those, which are not looked into."""
    found = list(startable(facts))
    for partition, path in found:
        yield bad(f"partition {partition.number} {partition.name}".strip(), f"holds {path}, which may be started too, or instead")
    if not found:
        yield good("other partitions", "nothing there is started")


def boot_loader_editor(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether systemd-boot lets a person at the console edit the command line (its default is yes)."""
    if facts.esp is None:
        yield _no_esp(facts, "loader.conf")
        return
    if facts.esp.loader_is_uki:
        yield good("loader.conf", "no boot loader is needed: firmware starts the unified kernel image itself")
        return
    settings = dict(line.split(None, 1) for line in facts.esp.loader_conf.splitlines() if len(line.split(None, 1)) == 2)
    if settings.get("editor", "yes").strip() in OFF:
        yield good("loader.conf", "editor is off")
    else:
        yield bad("loader.conf", "editor is on: whoever is at the console adds ipe.enforce=0")


def unsigned_command_line(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the command line is inside something signed: that of a boot entry is a plain file."""
    entry = facts.boot_entry
    if entry is None:
        yield unknown("command line", "there is no boot entry")
    elif entry.kind is EntryKind.GIVEN:
        yield bad("command line", "was given for this audit: nothing in the image says it, and nothing vouches for it")
    elif entry.uki is None:
        yield bad("command line", "is a plain file in the EFI system partition: whoever can write there switches enforcement off")
    elif not entry.uki.has_command_line:
        yield bad("command line", "the unified kernel image carries none, so it takes any")
    elif entry.uki.signed and not entry.uki.problem:
        yield good(
            "command line", f"is in a unified kernel image signed by {', '.join(entry.uki.signers)}; it holds where Secure Boot is on"
        )
    else:
        yield bad("command line", "is in a unified kernel image that nobody signed: whoever can write the file changes it")
