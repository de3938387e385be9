"""The stages of a foreseen boot up to the root: boot loader, kernel, the initramfs's first program, IPE.

Sources: Linux init/main.c (kernel_init), init/initramfs.c, security/security.c (ordered_lsm_init); our image/guest/ipe-init.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipe_build.audit.checks_boot import startable
from ipe_build.audit.checks_initramfs import RD_SYMBOLS
from ipe_build.audit.checks_root import module_refusal
from ipe_build.audit.command_line import word_of
from ipe_build.audit.facts import EntryKind, ImageFacts
from ipe_build.audit.findings import Answer
from ipe_build.audit.hidden import boot_config, own_initramfs
from ipe_build.audit.policies import boot_policy_in
from ipe_build.formats.partition_types import EFI_SYSTEM, PARTITION_TYPES
from ipe_build.policy.properties import Operation

if TYPE_CHECKING:
    from ipe_build.host import Host

from ipe_build.audit.walk import (
    OF_INITRAMFS,
    ON,
    Step,
    allows,
    ends,
    ipe_active,
    settings_of,
    switched_off,
    unforeseen,
)
from ipe_build.audit.walk_program import starts

_FOREIGN = "its first program is not ipe-init: what that does is not foreseen"


def loader(facts: ImageFacts, host: Host) -> Step:
    """Firmware finds something, and that finds the kernel."""
    entry = facts.boot_entry
    if entry is None or not entry.kernel:
        return ends("nothing of the image names a kernel")
    if entry.uki is not None and entry.uki.doubtful:
        return unforeseen(f"which section {entry.uki.doubtful[0]} the stub uses is not foreseen")
    if facts.esp is None or entry.kind is EntryKind.GIVEN:
        return ON
    wanted = PARTITION_TYPES[facts.kernel.architecture].efi_name if facts.kernel and facts.kernel.architecture in PARTITION_TYPES else ""
    found = {name: one for name, one in facts.esp.loaders.items() if not wanted or name.upper() == f"/EFI/BOOT/BOOT{wanted}.EFI"}
    if not found:
        return ends(f"firmware finds no boot loader (EFI/BOOT/BOOT{wanted or '*'}.EFI)")
    esp = next((one.number for one in facts.table.partitions if one.type_uuid == EFI_SYSTEM), 0) if facts.table is not None else 0
    before = next((f"{path} of partition {one.number}" for one, path in startable(facts) if one.number < esp), "")
    if before:
        return unforeseen(f"firmware may start {before}, which comes first")
    name, first = next(iter(found.items()))
    if first.problem:
        return ends(f"firmware does not start {name}: {first.problem}")
    if wanted and facts.kernel and first.architecture != facts.kernel.architecture:
        return ends(f"firmware does not start {name}: it is for {first.architecture or 'another architecture'}")
    if facts.esp.loader_is_uki:
        return ON if entry.default else unforeseen("firmware starts another unified kernel image")
    if not first.says.startswith("systemd-boot"):
        return unforeseen(f"{name} is not systemd-boot: what it starts is not foreseen")
    return ON


def kernel_unpacks(facts: ImageFacts, host: Host) -> Step:
    """The kernel unpacks itself."""
    if facts.kernel is not None:
        added = boot_config(facts)
        return unforeseen(f"the words of a boot configuration {added} are not read") if added else ON
    reason = next((why for part, why in facts.unreadable.items() if part.startswith("kernel")), "the kernel could not be read")
    return ends(reason) if "damaged" in reason else unforeseen(reason)


def initramfs_starts(facts: ImageFacts, host: Host) -> Step:
    """The kernel unpacks the initramfs and starts its first program."""
    archive = facts.archive
    if own_initramfs(facts):
        return unforeseen("the kernel has an initramfs of its own (CONFIG_INITRAMFS_SOURCE), which is not read")
    if archive is None:
        return (
            unforeseen("there is no initramfs; how the kernel mounts root= by itself is not foreseen")
            if word_of(facts, "root")
            else ends("there is no initramfs, and no root= names what the kernel should mount")
        )
    assert facts.kernel is not None
    taken = facts.kernel.built_in("BLK_DEV_INITRD")
    if taken is False and word_of(facts, "root"):
        return unforeseen("the kernel takes no initramfs (CONFIG_BLK_DEV_INITRD); how it mounts root= by itself is not foreseen")
    if taken is False:
        return ends("the kernel takes no initramfs (CONFIG_BLK_DEV_INITRD)")
    unpacks = {part.kind: facts.kernel.built_in(RD_SYMBOLS[part.kind]) for part in archive.parts if part.kind != "cpio"}
    for kind, answer in unpacks.items():
        if answer is False:
            return ends(f"the kernel cannot unpack {kind} (CONFIG_{RD_SYMBOLS[kind]})")
    if taken is None or None in unpacks.values():
        return unforeseen("the kernel does not show whether it can unpack the initramfs")
    path = facts.first_program
    program = facts.find_in_initramfs(path)
    if program is None or not program.is_executable or any(name.lstrip("./") == path for name in archive.incomplete):
        return (
            ends(f"the initramfs has no executable /{path}")
            if word_of(facts, "root") is None
            else unforeseen(f"there is no /{path}, root= is mounted")
        )
    if archive.error:
        return unforeseen(f"the initramfs is damaged: {archive.error}")
    denied = "" if allows(facts, boot_policy_in(facts), Operation.EXECUTE, OF_INITRAMFS) else "the boot policy denies"
    started = starts(facts, f"/{path}", facts.find_in_initramfs, lambda one: denied and f"{denied} /{one.path}", "the initramfs")
    if started.goes_on is not Answer.YES:
        return started
    settings = facts.ipe_init()
    if settings is None:
        return unforeseen(_FOREIGN)
    return ends(f"ipe-init refuses /etc/ipe-init.conf: {settings.problem}") if settings.problem else ON


def ipe_enforces(facts: ImageFacts, host: Host) -> Step:
    """ipe-init looks whether IPE enforces, and loads the modules that it needs."""
    active = ipe_active(facts)
    if active.goes_on is not Answer.YES:
        return active
    if switched_off(facts):
        return ends("ipe-init wants IPE to enforce, and the command line switches that off")
    for path in settings_of(facts, "module"):
        if facts.find_in_initramfs(path.lstrip("/")) is None:
            return ends(f"{path} is not in the initramfs")
        if not allows(facts, boot_policy_in(facts), Operation.KMODULE, OF_INITRAMFS):
            return ends(f"the boot policy denies the module {path}")
        refusal = module_refusal(facts, path)
        if refusal is None:
            return unforeseen(f"whether the kernel takes {path} as a module is not foreseen")
        if refusal:
            return ends(f"the kernel refuses the module {path}: {refusal}")
    return ON
