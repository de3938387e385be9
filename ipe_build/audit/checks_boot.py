"""Checks of what starts the kernel: boot loader, boot entry, command line, initramfs."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.checks_disk import root_hash_of, stored_root_hash
from ipe_build.audit.facts import EntryKind, ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.sealed import sealed_by

if TYPE_CHECKING:
    from ipe_build.host import Host

Look = Callable[[ImageFacts, "Host"], Iterator[Outcome]]
_OFF = frozenset({"0", "n", "N", "off", "no", "false"})
"""What systemd takes for a no; what the kernel does is `kernel_bool`."""
_SHELLS = frozenset({"/bin/sh", "/bin/bash", "/bin/ash", "/bin/dash", "/bin/busybox", "/usr/bin/sh", "/usr/bin/bash"})
RD_SYMBOLS = {
    "gzip": "RD_GZIP",
    "xz": "RD_XZ",
    "zstd": "RD_ZSTD",
    "lzma": "RD_LZMA",
    "lz4": "RD_LZ4",
    "bzip2": "RD_BZIP2",
    "lzo": "RD_LZO",
}


def kernel_bool(value: str) -> bool | None:
    """Returns what the kernel makes of a truth value on its command line, None for one that it refuses. Source: lib/kstrtox.c."""
    first = value[:2].lower()
    if first[:1] in ("y", "t", "1") or first == "on":
        return True
    return False if first[:1] in ("n", "f", "0") or first == "of" else None


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
    found = [name for name in facts.esp.files if name.upper().startswith("/EFI/BOOT/BOOT") and name.upper().endswith(".EFI")]
    yield good("boot loader", ", ".join(found)) if found else bad("boot loader", "there is none: something else must start the kernel")


def boot_loader_editor(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether systemd-boot lets a person at the console edit the command line (its default is yes)."""
    if facts.esp is None:
        yield _no_esp(facts, "loader.conf")
        return
    if facts.esp.loader_is_uki:
        yield good("loader.conf", "no boot loader is needed: firmware starts the unified kernel image itself")
        return
    settings = dict(line.split(None, 1) for line in facts.esp.loader_conf.splitlines() if len(line.split(None, 1)) == 2)
    if settings.get("editor", "yes").strip() in _OFF:
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


def _words(facts: ImageFacts) -> list[str] | None:
    """Returns the words of the whole command line, the kernel's built-in ones first; None when there is no boot entry."""
    if facts.boot_entry is None:
        return None
    built_in = facts.kernel.command_line if facts.kernel is not None and facts.kernel.command_line else ""
    return f"{built_in} {facts.boot_entry.command_line}".split()


def _word_check(complaint: Callable[[str, str], str | None], fine: str, summary: str) -> Look:
    """Returns a check that asks `complaint(name, value)` of each word of the command line; names have `_` for `-`, as in the kernel."""

    def look(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
        words = _words(facts)
        if words is None:
            yield unknown("command line", "there is no boot entry")
            return
        found = False
        for word in words:
            name, _, value = word.partition("=")
            said = complaint(name.replace("-", "_"), value.strip('"'))
            if said is not None:
                found = True
                yield bad(word, said)
        if not found:
            yield good("command line", fine)

    look.__doc__ = summary
    return look


command_line_enforce = _word_check(
    lambda name, value: "IPE only logs and denies nothing" if name == "ipe.enforce" and kernel_bool(value) is False else None,
    "no word switches IPE off",
    "Looks for ipe.enforce=0 on the command line.",
)
command_line_lsm = _word_check(
    lambda name, value: (
        "the list of security modules has no ipe: nothing is enforced" if name == "lsm" and "ipe" not in value.split(",") else None
    ),
    "no lsm= leaves ipe out",
    "Looks for an lsm= on the command line that leaves ipe out.",
)
command_line_security = _word_check(
    lambda name, value: "switches off every major security module but one; IPE stays" if name == "security" else None,
    "no security= switches other security modules off",
    "Looks for security= on the command line: of SELinux, AppArmor, Smack and TOMOYO it leaves one.",
)
command_line_init = _word_check(
    lambda name, value: "starts a shell instead of the init program" if name in ("init", "rdinit") and value in _SHELLS else None,
    "no init= starts a shell",
    "Looks for init= or rdinit= that start a shell.",
)
command_line_modules = _word_check(
    lambda name, value: (
        "unsigned modules are accepted where the kernel does not force signatures"
        if name == "module.sig_enforce" and kernel_bool(value) is False
        else None
    ),
    "module signatures are not switched off",
    "Looks for module.sig_enforce=0 on the command line.",
)
command_line_verity = _word_check(
    lambda name, value: (
        "dm-verity is weakened"
        if (name == "dm_verity.require_signatures" and kernel_bool(value) is False)
        or (name in ("systemd.verity", "rd.systemd.verity") and value in _OFF)
        or (name == "systemd.verity_root_options" and "ignore" in value)
        else None
    ),
    "dm-verity is not weakened",
    "Looks for words that let unsigned or damaged verity volumes through.",
)
command_line_debug = _word_check(
    lambda name, value: (
        "gives a shell to whoever is at the console"
        if name in ("rd.break", "break", "systemd.debug_shell", "rd.systemd.debug_shell", "single", "S", "emergency", "rescue", "1")
        or (name == "systemd.unit" and value in ("rescue.target", "emergency.target"))
        else None
    ),
    "no word opens a debug shell",
    "Looks for words that open a shell at boot.",
)
command_line_mitigations = _word_check(
    lambda name, value: (
        "makes kernel exploits easier, and nothing holds after one"
        if (name == "mitigations" and value == "off")
        or name in ("nokaslr", "nosmep", "nosmap", "nopti", "nospectre_v2", "no_stack_protector")
        or (name == "pti" and value == "off")
        or (name == "slab_nomerge" and value in _OFF)
        else None
    ),
    "no word weakens the kernel's own hardening",
    "Looks for words that switch off KASLR, SMEP, SMAP, page table isolation or mitigations.",
)
command_line_memory = _word_check(
    lambda name, value: (
        "opens kernel memory"
        if (name == "iomem" and value == "relaxed") or name in ("memmap", "crashkernel") or (name == "debugfs" and value == "on")
        else None
    ),
    "no word opens kernel memory",
    "Looks for iomem=relaxed, crashkernel=, debugfs=on.",
)


def command_line_root_hash(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether a roothash= on the command line is this disk's."""
    words, stored = _words(facts), _disk_root_hash(facts)
    if words is None or stored is None:
        yield unknown("roothash=", "the command line or the signature partition could not be read")
        return
    named = [word.partition("=")[2] for word in words if word.startswith("roothash=")]
    wrong = [value for value in named if value.lower() != stored.hex()]
    if wrong:
        yield bad("roothash=", f"names {wrong[0]}, the disk has {stored.hex()}")
    elif len(named) > 1:
        yield bad("roothash=", "is there more than once")
    else:
        yield good("roothash=", "names this disk's root hash" if named else "is not used")


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
    if facts.boot_entry is None or facts.kernel is None or facts.kernel.config is None:
        yield unknown("initramfs", "the initramfs, or the kernel's configuration, could not be read")
        return
    config = facts.kernel.config
    packed = dict.fromkeys(part.kind for part in (facts.archive.parts if facts.archive is not None else ()) if part.kind != "cpio")
    off = [kind for kind in packed if not config.enabled(RD_SYMBOLS[kind])]
    if not config.enabled("BLK_DEV_INITRD"):
        yield bad("initramfs", "CONFIG_BLK_DEV_INITRD is off: the kernel takes no initramfs")
    elif off:
        yield bad("initramfs", f"is compressed with {off[0]}, and CONFIG_{RD_SYMBOLS[off[0]]} is off")
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
    stored, named = _disk_root_hash(facts), _named_root_hash(facts)
    if stored is None or named is None:
        yield unknown("root hash", "the initramfs's configuration or the signature partition could not be read")
    elif named == stored.hex():
        yield good("root hash", "initramfs and disk agree")
    else:
        yield bad("root hash", f"the initramfs opens {named or 'nothing'}, the disk has {stored.hex()}")


def _disk_root_hash(facts: ImageFacts) -> bytes | None:
    """Returns the root hash that the disk itself says: in its signature partition, else the one whose halves are its partitions' UUIDs."""
    stored = stored_root_hash(facts)
    if stored is not None:
        return stored.root_hash
    named = root_hash_of(facts)
    if named is None or facts.root is None or facts.root.data is None or facts.root.hash is None:
        return named.value if named is not None else None
    halves = facts.root.data.uuid.bytes + facts.root.hash.uuid.bytes
    return named.value if halves == named.value[:16] + named.value[-16:] else halves


def _setting(facts: ImageFacts, name: str) -> str | None:
    """Returns the last value of one of ipe-init's settings; "" when it is not set, None without a configuration."""
    settings = facts.initramfs_config()
    return None if settings is None else (settings.get(name) or ("",))[-1]


def _named_root_hash(facts: ImageFacts) -> str | None:
    """Returns the root hash (hex) that ipe-init's configuration, or by its leave the command line, names; None when unreadable."""
    value = _setting(facts, "root_hash")
    if value != "cmdline" or facts.boot_entry is None:
        return value
    words = [word.partition("=")[2] for word in facts.boot_entry.command_line.split() if word.startswith("roothash=")]
    return words[-1] if words else ""


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
