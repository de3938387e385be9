"""Checks of the kernel's command line: words that take away what the image promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.command_line import everybodys_words, text_of, uncut, words_of
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.root_hash import disk_root_hash
from ipe_build.formats.command_line import Word, kernel_bool

if TYPE_CHECKING:
    from ipe_build.host import Host

Look = Callable[[ImageFacts, "Host"], Iterator[Outcome]]
OFF = frozenset({"0", "n", "N", "off", "no", "false"})
"""What systemd takes for a no; what the kernel does is `kernel_bool`."""
_SHELLS = frozenset({"/bin/sh", "/bin/bash", "/bin/ash", "/bin/dash", "/bin/busybox", "/usr/bin/sh", "/usr/bin/bash"})


def _words(facts: ImageFacts, everybodys: bool) -> tuple[Word, ...] | None:
    """Returns the kernel's words of the whole command line, or everybody's; None when there is no boot entry."""
    if facts.boot_entry is None:
        return None
    return everybodys_words(facts) if everybodys else words_of(facts)


def _word_check(complaint: Callable[[str, str], str | None], fine: str, summary: str, *, everybodys: bool = False) -> Look:
    """Returns a check that asks `complaint(name, value)` of each word of the command line; names have `_` for `-`, as in the kernel.

    `everybodys` words are also those behind `--`: programs read them in /proc/cmdline, the kernel does not.
    """

    def look(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
        words = _words(facts, everybodys)
        if words is None:
            yield unknown("command line", "there is no boot entry")
            return
        found = False
        for word in words:
            said = complaint(word.name, word.value or "")
            if said is not None:
                found = True
                yield bad(word.text, said)
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
        or (name in ("systemd.verity", "rd.systemd.verity") and value in OFF)
        or (name == "systemd.verity_root_options" and "ignore" in value)
        else None
    ),
    "dm-verity is not weakened",
    "Looks for words that let unsigned or damaged verity volumes through.",
    everybodys=True,
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
    everybodys=True,
)
command_line_mitigations = _word_check(
    lambda name, value: (
        "makes kernel exploits easier, and nothing holds after one"
        if (name == "mitigations" and value == "off")
        or name in ("nokaslr", "nosmep", "nosmap", "nopti", "nospectre_v2", "no_stack_protector")
        or (name in ("pti", "rodata", "hardened_usercopy", "spectre_v2", "retbleed") and kernel_bool(value) is False)
        or (name == "slab_nomerge" and value in OFF)
        else None
    ),
    "no word weakens the kernel's own hardening",
    "Looks for words that switch off KASLR, SMEP, SMAP, read-only code, page table isolation or mitigations.",
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


command_line_initcalls = _word_check(
    lambda name, value: (
        "leaves out parts of the kernel: revoked certificates and keys, say, are then not loaded" if name == "initcall_blacklist" else None
    ),
    "no word leaves parts of the kernel out",
    "Looks for initcall_blacklist= on the command line: what it names of the kernel does not begin its work.",
)


def command_line_length(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel takes the whole command line: what is too long (2048 bytes on x86-64 and arm64) is cut off."""
    if facts.boot_entry is None:
        yield unknown("command line", "there is no boot entry")
        return
    whole, taken = uncut(facts), text_of(facts)
    if taken != whole:
        yield bad("command line", f"has {len(whole.encode())} bytes, the kernel drops all from here: {whole[len(taken) :].strip()[:60]}")
    else:
        yield good("command line", f"{len(whole.encode())} bytes, which the kernel takes whole")


def command_line_root_hash(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether a roothash= on the command line is this disk's."""
    words, stored = _words(facts, everybodys=True), disk_root_hash(facts)
    if words is None or stored is None:
        yield unknown("roothash=", "the command line or the signature partition could not be read")
        return
    named = [word.value or "" for word in words if word.name == "roothash"]
    wrong = [value for value in named if value.lower() != stored.hex()]
    if wrong:
        yield bad("roothash=", f"names {wrong[0]}, the disk has {stored.hex()}")
    elif len(named) > 1:
        yield bad("roothash=", "is there more than once")
    else:
        yield good("roothash=", "names this disk's root hash" if named else "is not used")
