"""Checks of what a kernel is told, or unpacks, besides the boot entry: this audit does not read it, so it must not be there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.hidden import boot_config, own_initramfs
from ipe_build.audit.outcome import Outcome, bad, good, unknown

if TYPE_CHECKING:
    from ipe_build.host import Host

_NO_CONFIG = "the kernel does not carry its configuration (IKCONFIG)"


def kernel_boot_config(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether a boot configuration, in the kernel or behind the initramfs, adds words to the command line that nobody has read."""
    found = boot_config(facts)
    if found is None:
        yield unknown("boot configuration", _NO_CONFIG)
    elif found:
        yield bad("boot configuration", f"{found}: it adds words to the command line (ipe.enforce=0, say), and is not read here")
    else:
        yield good("boot configuration", "the kernel takes none, or there is none")


def kernel_initramfs(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel has an initramfs of its own: its files are trusted as the other's, stay there, and are not looked at."""
    found = own_initramfs(facts)
    if found is None:
        yield unknown("CONFIG_INITRAMFS_SOURCE", _NO_CONFIG)
    elif found:
        yield bad("CONFIG_INITRAMFS_SOURCE", f"is {found}: its files are boot_verified, and are not looked at")
    else:
        yield good("CONFIG_INITRAMFS_SOURCE", "is empty: the kernel brings no files of its own")
