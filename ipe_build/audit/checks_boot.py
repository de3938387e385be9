"""Checks of what starts the kernel: boot loader, boot entry, command line, initramfs."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.checks_disk import stored_root_hash
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.formats.kernel_compression import compression_of

if TYPE_CHECKING:
    from ipe_build.host import Host

Look = Callable[[ImageFacts, "Host"], Iterator[Outcome]]
_OFF = frozenset({"0", "n", "N", "off", "no", "false"})
_SHELLS = frozenset({"/bin/sh", "/bin/bash", "/bin/ash", "/bin/dash", "/bin/busybox", "/usr/bin/sh", "/usr/bin/bash"})
_RD = {"gzip": "RD_GZIP", "xz": "RD_XZ", "zstd": "RD_ZSTD", "lzma": "RD_LZMA", "lz4": "RD_LZ4", "bzip2": "RD_BZIP2"}


def boot_entry(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the EFI system partition says what to start."""
    entry = facts.boot_entry
    if entry is None:
        yield bad("boot entry", "the image names no kernel to start")
        return
    yield good("boot entry", f"kernel of {len(entry.kernel)} bytes, initramfs of {len(entry.initramfs)} bytes")


def one_boot_entry(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether there is a second boot entry: it may start an older kernel, and only the first one is audited."""
    if facts.esp is None:
        yield unknown("boot entries", "there is no EFI system partition")
    elif len(facts.esp.entries) > 1:
        yield bad("boot entries", f"{len(facts.esp.entries)}: {', '.join(facts.esp.entries)}")
    else:
        yield good("boot entries", "there is one")


def boot_loader(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether UEFI firmware finds a boot loader at the default place (EFI/BOOT/BOOT*.EFI)."""
    if facts.esp is None:
        yield unknown("boot loader", "there is no EFI system partition")
        return
    found = [name for name in facts.esp.files if name.upper().startswith("/EFI/BOOT/BOOT") and name.upper().endswith(".EFI")]
    yield good("boot loader", ", ".join(found)) if found else bad("boot loader", "there is none: something else must start the kernel")


def boot_loader_editor(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether systemd-boot lets a person at the console edit the command line (its default is yes)."""
    if facts.esp is None:
        yield unknown("loader.conf", "there is no EFI system partition")
        return
    settings = dict(line.split(None, 1) for line in facts.esp.loader_conf.splitlines() if len(line.split(None, 1)) == 2)
    if settings.get("editor", "yes").strip() in _OFF:
        yield good("loader.conf", "editor is off")
    else:
        yield bad("loader.conf", "editor is on: whoever is at the console adds ipe.enforce=0")


def unsigned_command_line(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the command line is inside something signed: that of a boot entry is a plain file."""
    if facts.boot_entry is None:
        yield unknown("command line", "there is no boot entry")
    else:
        yield bad("command line", "is a plain file in the EFI system partition: whoever can write there switches enforcement off")


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
    lambda name, value: "IPE only logs and denies nothing" if name == "ipe.enforce" and value in _OFF else None,
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
    lambda name, value: "chooses one legacy security module and lets go of the order that names ipe" if name == "security" else None,
    "no security= overrides the order",
    "Looks for security= on the command line.",
)
command_line_init = _word_check(
    lambda name, value: "starts a shell instead of the init program" if name in ("init", "rdinit") and value in _SHELLS else None,
    "no init= starts a shell",
    "Looks for init= or rdinit= that start a shell.",
)
command_line_modules = _word_check(
    lambda name, value: (
        "unsigned modules are accepted where the kernel does not force signatures"
        if name == "module.sig_enforce" and value in _OFF
        else None
    ),
    "module signatures are not switched off",
    "Looks for module.sig_enforce=0 on the command line.",
)
command_line_verity = _word_check(
    lambda name, value: (
        "dm-verity is weakened"
        if (name in ("dm_verity.require_signatures", "systemd.verity", "rd.systemd.verity") and value in _OFF)
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
    words, stored = _words(facts), stored_root_hash(facts)
    if words is None or stored is None:
        yield unknown("roothash=", "the command line or the signature partition could not be read")
        return
    named = [word.partition("=")[2] for word in words if word.startswith("roothash=")]
    wrong = [value for value in named if value.lower() != stored.root_hash.hex()]
    if wrong:
        yield bad("roothash=", f"names {wrong[0]}, the disk has {stored.root_hash.hex()}")
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
    row = compression_of(facts.boot_entry.initramfs)
    symbol = _RD.get(row.name) if row is not None else None
    config = facts.kernel.config
    if not config.enabled("BLK_DEV_INITRD"):
        yield bad("initramfs", "CONFIG_BLK_DEV_INITRD is off: the kernel takes no initramfs")
    elif row is not None and (symbol is None or not config.enabled(symbol)):
        yield bad("initramfs", f"is compressed with {row.name}, and CONFIG_{symbol or 'RD_…'} is off")
    else:
        yield good("initramfs", f"the kernel unpacks {row.name if row is not None else 'plain archives'}")


def initramfs_root_hash(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the root hash that the initramfs will open is that of this disk."""
    stored, named = stored_root_hash(facts), _named_root_hash(facts)
    if stored is None or named is None:
        yield unknown("root hash", "the initramfs's configuration or the signature partition could not be read")
    elif named == stored.root_hash.hex():
        yield good("root hash", "initramfs and disk agree")
    else:
        yield bad("root hash", f"the initramfs opens {named or 'nothing'}, the disk has {stored.root_hash.hex()}")


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
        there = path in inside if place.startswith("initramfs:") else (facts.files.folder / path).is_file()
        yield (good if there else bad)(place, "is there" if there else "is missing: the boot stops")
    if not settings.get("policy"):
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
    path = facts.files.folder / init.lstrip("/")
    if path.is_symlink():
        target = path.readlink()
        path = facts.files.folder / str(target).lstrip("/") if target.is_absolute() else path.parent / target
    there = path.is_file() and path.stat().st_mode & 0o111
    yield (good if there else bad)(init, "is an executable file" if there else "is no executable file of the root")
