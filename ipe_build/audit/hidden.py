"""What a kernel is told, or unpacks, besides what its boot entry shows.

Source: Linux init/main.c (setup_boot_config), init/Kconfig (BOOT_CONFIG_FORCE, BOOT_CONFIG_EMBED), usr/Kconfig (INITRAMFS_SOURCE).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipe_build.audit.command_line import words_of

if TYPE_CHECKING:
    from ipe_build.audit.facts import ImageFacts


def boot_config(facts: ImageFacts) -> str | None:
    """Returns where the boot configuration lies that the kernel adds to its command line, "" without one; None when that is not known.

    One behind the initramfs comes before the kernel's own. Either counts only with `bootconfig` among the words, or forced.
    """
    config = facts.kernel_config
    asked = any(word.name == "bootconfig" for word in words_of(facts))
    behind = facts.archive is not None and facts.archive.boot_config is not None
    if config is None:
        return None if facts.kernel is None or not (asked and behind) else "behind the initramfs"
    if not config.enabled("BOOT_CONFIG") or not (asked or config.enabled("BOOT_CONFIG_FORCE")):
        return ""
    if behind:
        return "behind the initramfs"
    named = config.text("BOOT_CONFIG_EMBED_FILE") if config.enabled("BOOT_CONFIG_EMBED") else None
    return f"in the kernel (CONFIG_BOOT_CONFIG_EMBED_FILE={named})" if named else ""


def own_initramfs(facts: ImageFacts) -> str | None:
    """Returns what the kernel's own initramfs was made of, "" without one; None when that is not known.

    It is unpacked first: files of the other replace its files, those that are only in it stay.
    """
    config = facts.kernel_config
    if config is None:
        return None
    return (config.text("INITRAMFS_SOURCE") or "") if config.enabled("BLK_DEV_INITRD") else ""
