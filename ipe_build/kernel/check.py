"""Whether a resolved `.config` is what was asked for: Kconfig drops what it cannot have without a word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ipe_build.errors import InputError
from ipe_build.formats.dotconfig import DotConfig, unquote
from ipe_build.kernel.fragment import Fragment
from ipe_build.kernel.kconfig import Kconfig, evaluate


@dataclass(frozen=True, slots=True)
class Difference:
    """A symbol that did not come out as wanted. `got` is None where the configuration does not name it; `hint` may be empty."""

    symbol: str
    wanted: str
    got: str | None
    why: str
    needs: tuple[str, ...]
    hint: str = ""

    def __str__(self) -> str:
        got = "is not there" if self.got is None else "is off" if self.got == "n" else f"is {self.got}"
        hint = f"; {self.hint}" if self.hint else ""
        return f"CONFIG_{self.symbol} {got}, wanted {self.wanted} ({', '.join(self.needs)}: {self.why}){hint}"


def compare(wanted: Fragment, resolved: DotConfig) -> tuple[Difference, ...]:
    """Returns the symbols of a resolved configuration that are not as wanted, in the fragment's order; empty when all are.

    `n` and a symbol that is not there are the same. CONFIG_LSM must hold the wanted names; their order and others are the owner's.
    """
    found: list[Difference] = []
    for row in wanted.wanted:
        got = resolved.values.get(row.symbol)
        if row.symbol == "LSM":
            missing = _missing_lsms(wanted.lsms, got)
            if missing:
                found.append(Difference("LSM", ",".join(wanted.lsms), got, row.why, row.needs, f"it lacks {', '.join(missing)}"))
        elif got != row.value and not (row.value == "n" and got is None):
            found.append(Difference(row.symbol, row.value, got, row.why, row.needs))
    return tuple(found)


def explain(differences: tuple[Difference, ...], resolved: DotConfig, source: Path, srcarch: str) -> tuple[Difference, ...]:
    """Returns the differences with a hint each, read off the Kconfig files of the kernel tree `source`: what it depends on and is not set.

    `srcarch` is the folder below arch/ (`x86`).
    """
    if not differences:
        return ()
    kconfig = Kconfig.read(source, srcarch)
    return tuple(replace(row, hint=row.hint or _hint(row, resolved, kconfig)) for row in differences)


def require(differences: tuple[Difference, ...], *, where: str) -> None:
    """Raises InputError that lists the differences; nothing when there are none."""
    if differences:
        lines = "".join(f"\n    {row}" for row in differences)
        raise InputError(
            f"{len(differences)} symbol{'s' if len(differences) > 1 else ''} did not come out as wanted:{lines}",
            where=where,
            hint="Kconfig drops a symbol whose dependencies are not met; set these in the base configuration, or leave the need out",
        )


def _missing_lsms(lsms: tuple[str, ...], got: str | None) -> tuple[str, ...]:
    names = {name.strip() for name in unquote(got).split(",")} if got is not None else set()
    return tuple(name for name in lsms if name not in names)


def _hint(row: Difference, resolved: DotConfig, kconfig: Kconfig) -> str:
    definitions = kconfig.conditions.get(row.symbol)
    if definitions is None:
        return "this kernel has no such symbol"
    if row.wanted == "n":
        chosen = kconfig.selected_by(row.symbol, resolved)
        return f"selected by {', '.join(f'CONFIG_{name}' for name in chosen[:4])}" if chosen else ""
    unmet = [[condition for condition in conditions if not evaluate(condition, resolved)] for conditions in definitions]
    least = min(unmet, key=len)
    if not least:
        return "its dependencies are met: it is one of a choice, or has no prompt and follows from others"
    return "depends on " + " and ".join(least)
