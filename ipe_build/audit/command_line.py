"""The whole command line of a boot entry, as its kernel makes it of its own words and those that it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipe_build.formats.command_line import Word, all_words, cut, ipe_init_values, kernel_words

if TYPE_CHECKING:
    from ipe_build.audit.facts import ImageFacts


def uncut(facts: ImageFacts) -> str:
    """Returns the whole command line; "" without a boot entry.

    Source: Linux arch/x86/kernel/setup.c, drivers/of/fdt.c (CMDLINE_OVERRIDE, CMDLINE_FORCE, CMDLINE_EXTEND). Where a kernel of another
    architecture does not say what it does, words that are given stand in place of its own.
    """
    if facts.boot_entry is None:
        return ""
    kernel, given = facts.kernel, facts.boot_entry.command_line
    if kernel is None or not kernel.command_line:
        return given
    config, own = kernel.config, kernel.command_line
    if config is not None and (config.enabled("CMDLINE_OVERRIDE") or config.enabled("CMDLINE_FORCE")):
        return own
    if kernel.architecture == "x86-64":
        return f"{own} {given}"
    if config is not None and config.enabled("CMDLINE_EXTEND"):
        return f"{given} {own}"
    return given or own


def text_of(facts: ImageFacts) -> str:
    """Returns what the kernel takes of the command line; what is too long is cut off."""
    return cut(uncut(facts), facts.kernel.architecture if facts.kernel is not None else "")


def words_of(facts: ImageFacts) -> tuple[Word, ...]:
    """Returns the kernel's words."""
    return tuple(kernel_words(text_of(facts)))


def everybodys_words(facts: ImageFacts) -> tuple[Word, ...]:
    """Returns all words, also those behind `--`: programs read the whole of /proc/cmdline."""
    return tuple(all_words(text_of(facts)))


def word_of(facts: ImageFacts, name: str) -> str | None:
    """Returns the last value of one of the kernel's words; None when there is none with a value."""
    return next((word.value for word in reversed(words_of(facts)) if word.name == name and word.value is not None), None)


def ipe_init_word(facts: ImageFacts, name: str) -> tuple[str, ...]:
    """Returns the values that ipe-init reads of a word."""
    return ipe_init_values(text_of(facts), name)
