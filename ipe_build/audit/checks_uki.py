"""Checks of what comes with a unified kernel image: signatures, and what the EFI system partition may add to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.facts import EntryKind, ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown

if TYPE_CHECKING:
    from ipe_build.host import Host

_EXTRAS = re.compile(
    r"(/efi/linux/[^/]+\.efi\.extra\.d/|/efi/boot/[^/]+\.efi\.extra\.d/|/loader/addons/|/loader/credentials/).+", re.IGNORECASE
)
_SYSTEMD = ("usr/lib/systemd/systemd", "lib/systemd/systemd")


def uki_signed(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether a unified kernel image is signed, and whether each signature is over this very image."""
    uki = facts.boot_entry.uki if facts.boot_entry is not None else None
    if uki is None:
        yield good("signature", "no unified kernel image is started")
    elif uki.problem:
        yield bad("signature", uki.problem)
    elif not uki.signed:
        yield bad("signature", "nobody signed it: firmware with Secure Boot does not start it")
    else:
        yield good("signature", f"by {', '.join(uki.signers)}; whether firmware's db has that is not part of the image")


def uki_sections(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether a section of a unified kernel image is there twice, or under a longer name: stubs differ in which one they use."""
    uki = facts.boot_entry.uki if facts.boot_entry is not None else None
    for name in uki.doubtful if uki is not None else ():
        yield bad(name, "is there twice, or begins like another's name: the stub may use another one than was looked at here")
    if uki is None or not uki.doubtful:
        yield good("sections", "each is there once" if uki is not None else "no unified kernel image is started")


def uki_extras(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for credentials, extensions and add-ons in the EFI system partition: the stub of an image puts them into the initramfs."""
    if facts.boot_entry is None or facts.boot_entry.kind is not EntryKind.UKI or facts.esp is None:
        yield good("extras", "no unified kernel image is started from an EFI system partition")
        return
    found = [name for name in facts.esp.files if _EXTRAS.fullmatch(name)]
    for name in found[:20]:
        yield bad(name, "the stub puts it into the initramfs, where it counts as boot_verified; PCR 12 shows it, no signature is asked for")
    if not found:
        yield good("extras", "there are none: PCR 12 stays zero")


def uki_credentials(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the initramfs of a unified kernel image reads credentials, which whoever writes to the EFI system partition adds."""
    if facts.boot_entry is None or facts.boot_entry.kind is not EntryKind.UKI:
        yield good("credentials", "no unified kernel image is started")
    elif facts.initramfs is None:
        yield unknown("credentials", "the initramfs could not be read")
    elif any(facts.find_in_initramfs(path) is not None for path in _SYSTEMD):
        yield bad("credentials", "systemd in the initramfs takes unsigned ones: reference values must require PCR 12 to be zero")
    else:
        yield good("credentials", "nothing in the initramfs reads them")


def command_line_fixed(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel takes another command line than its own: without Secure Boot anybody at the console gives one."""
    config = facts.kernel_config
    if config is None:
        yield unknown("command line", "the kernel does not carry its configuration (IKCONFIG)")
    elif config.enabled("CMDLINE_OVERRIDE") or config.enabled("CMDLINE_FORCE"):
        yield good("command line", "the kernel takes its built-in one only")
    else:
        yield bad("command line", "the kernel takes what boot loader or stub hand it: with Secure Boot off that is anybody's")


def corruption(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks what happens when a damaged block of the root is read: the read alone fails, or the device stops."""
    settings = facts.initramfs_config()
    if settings is None:
        yield unknown("corruption", "the initramfs has no configuration of ipe-init")
        return
    options = settings.get("verity_option", ())
    stops = [one for one in options if one.startswith(("panic_on", "restart_on"))]
    yield (
        good("corruption", ", ".join(stops)) if stops else bad("corruption", "only the read fails: whoever reads decides what comes of it")
    )
