"""What checks of the kernel have in common: they need a kernel that could be read, most of them its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.facts import ImageFacts, KernelView
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.formats.dotconfig import DotConfig

if TYPE_CHECKING:
    from ipe_build.host import Host

Look = Callable[[ImageFacts, "Host"], Iterator[Outcome]]


def of_kernel(look: Callable[[KernelView], Iterator[Outcome]]) -> Look:
    """Returns a check that needs a kernel that could be read; its summary is `look`'s."""

    def checked(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
        if facts.kernel is None:
            yield unknown("kernel", "it could not be read")
        else:
            yield from look(facts.kernel)

    checked.__doc__ = look.__doc__
    return checked


def of_config(symbols: str, fine: Callable[[DotConfig], bool], when_fine: str, when_not: str, summary: str) -> Look:
    """Returns a check of the kernel's configuration; unknown where the kernel does not carry it."""

    def look(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
        config = facts.kernel_config
        if config is None:
            yield unknown(symbols, "the kernel does not carry its configuration (IKCONFIG)")
        elif fine(config):
            yield good(symbols, when_fine)
        else:
            yield bad(symbols, when_not)

    look.__doc__ = summary
    return look


def off(symbol: str, danger: str) -> Look:
    """Returns a check that a symbol is off."""
    summary = f"Looks whether CONFIG_{symbol} is off: {danger}."
    return of_config(f"CONFIG_{symbol}", lambda config: not config.enabled(symbol), "is off", f"is on: {danger}", summary)


def on(symbol: str, use: str, when_on: str = "is on") -> Look:
    """Returns a check that a symbol is on; a kernel without configuration may show it by its code."""
    of_symbol = of_config(
        f"CONFIG_{symbol}",
        lambda config: config.enabled(symbol),
        when_on,
        f"is off: {use}",
        f"Looks whether CONFIG_{symbol} is on: {use}.",
    )

    def look(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
        if facts.kernel is not None and facts.kernel.config is None and symbol in facts.kernel.signs:
            yield good(f"CONFIG_{symbol}", "is on: its code is in the kernel")
        else:
            yield from of_symbol(facts, host)

    look.__doc__ = of_symbol.__doc__
    return look
