"""The configuration fragment: what the needs ask for, made into one value per symbol, and merged over a base configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from ipe_build.errors import InputError
from ipe_build.formats.dotconfig import DotConfig, is_value, line_of, quote, unquote
from ipe_build.kernel.needs import ROWS, Need, without_keys
from ipe_build.policy.properties import PROPERTY_OF_NAME

BOOT_POLICY = "IPE_BOOT_POLICY"
TRUSTED_KEYS = "SYSTEM_TRUSTED_KEYS"
REVOKED_KEYS = "SYSTEM_REVOCATION_KEYS"

LSM_OF_NEED: tuple[tuple[Need, str], ...] = ((Need.HARDENING, "lockdown"), (Need.HARDENING, "yama"), (Need.IPE, "ipe"))
"""Which need puts which name into CONFIG_LSM; a name that is not there is a module that does nothing."""

LSM_ORDER = ("landlock", "lockdown", "yama", "loadpin", "safesetid", "selinux", "smack", "tomoyo", "apparmor", "ipe", "bpf")
"""The kernel's own default order. Names of modules that are not built are ignored by it. Source: security/Kconfig, config LSM."""

PROVIDERS: Mapping[str, tuple[Need, ...]] = MappingProxyType(
    {
        "IPE_PROP_DM_VERITY": (Need.DM_VERITY,),
        "IPE_PROP_DM_VERITY_SIGNATURE": (Need.DM_VERITY, Need.DM_VERITY_SIGNATURE),
        "IPE_PROP_FS_VERITY": (Need.FS_VERITY,),
        "IPE_PROP_FS_VERITY_BUILTIN_SIG": (Need.FS_VERITY, Need.FS_VERITY_SIGNATURE),
    }
)
"""What a property's own symbol depends on. Source: security/ipe/Kconfig."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One symbol, the value it must have (as in `.config`), and why; `needs` are the names of those that ask."""

    symbol: str
    value: str
    why: str
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fragment:
    """All symbols that are wanted, each once; `lsms` are the names that CONFIG_LSM must hold."""

    wanted: tuple[Wanted, ...]
    lsms: tuple[str, ...]


class Conflict(NamedTuple):
    """A symbol that somebody set to another value than is wanted: `theirs` gave way to `ours`."""

    symbol: str
    theirs: str
    ours: str
    why: str


def fragment(
    needs: Iterable[Need],
    properties: Iterable[str] = (),
    *,
    boot_policy: str | None = None,
    trusted_keys: str | None = None,
    revoked_keys: str | None = None,
) -> Fragment:
    """Returns what these needs, and IPE properties by name, ask for; the three are paths as the kernel's build finds them.

    Raises: InputError for a property that is not in the table, and when two needs want different values of one symbol.
    """
    asked, symbols = _of_properties(properties)
    chosen = without_keys({*needs, *asked})
    found: dict[str, Wanted] = {}
    for row in ROWS:
        if row.need in chosen:
            _add(found, Wanted(row.symbol, row.value, row.why, (row.need.value,)))
    paths = (
        (BOOT_POLICY, boot_policy, "the policy in force from the first program on"),
        (TRUSTED_KEYS, trusted_keys, "the certificates that signatures are checked against"),
        (REVOKED_KEYS, revoked_keys, "certificates that must not be trusted"),
    )
    for wanted in (*symbols, *(Wanted(name, quote(path), why, ("trust",)) for name, path, why in paths if path is not None)):
        _add(found, wanted)
    lsms = tuple(name for need, name in LSM_OF_NEED if need in chosen)
    if lsms:
        value = quote(",".join(LSM_ORDER))
        _add(found, Wanted("LSM", value, f"only modules named here do anything: {', '.join(lsms)}", (Need.IPE.value,)))
    return Fragment(tuple(found.values()), lsms)


def render_fragment(wanted: Fragment, *, reasons: bool = True) -> bytes:
    """Returns the fragment as a file for `merge_config.sh`, Yocto or Buildroot; with a comment that says why above each symbol."""
    lines: list[str] = []
    group: tuple[str, ...] = ()
    for row in wanted.wanted:
        if reasons and row.needs[:1] != group[:1]:
            lines += ["", f"# {row.needs[0]}"]
        group = row.needs
        lines += [f"# {row.why}"] if reasons else []
        lines.append(line_of(row.symbol, row.value))
    return "\n".join(lines).strip().encode() + b"\n"


def merge(base: DotConfig, wanted: Fragment) -> tuple[DotConfig, tuple[Conflict, ...]]:
    """Returns the base with what is wanted put over it, and what had to give way.

    CONFIG_LSM keeps the base's names and order; those wanted that are missing are put in, at their place in the kernel's order.
    What is wanted stands last: of the members of a choice, Kconfig takes the last one that is `y`.
    """
    values = dict(base.values)
    conflicts: list[Conflict] = []
    for row in wanted.wanted:
        ours = quote(",".join(_lsm_order(base, wanted.lsms))) if row.symbol == "LSM" else row.value
        theirs = values.pop(row.symbol, None)
        if theirs is not None and theirs != ours and row.symbol != "LSM":
            conflicts.append(Conflict(row.symbol, theirs, ours, row.why))
        values[row.symbol] = ours
    return DotConfig(MappingProxyType(values)), tuple(conflicts)


def overlay(base: DotConfig, *others: DotConfig) -> DotConfig:
    """Returns the base with each of the others put over it; the last one that names a symbol counts."""
    values = dict(base.values)
    for other in others:
        for symbol, value in other.values.items():
            values.pop(symbol, None)
            values[symbol] = value
    return DotConfig(MappingProxyType(values))


def _lsm_order(base: DotConfig, lsms: tuple[str, ...]) -> list[str]:
    """Returns the base's CONFIG_LSM (the kernel's default where it has none) with the missing names put in."""
    value = base.values.get("LSM")
    names = [name.strip() for name in unquote(value).split(",") if name.strip()] if value is not None else list(LSM_ORDER)
    for lsm in lsms:
        if lsm not in names:
            after = {*LSM_ORDER[: LSM_ORDER.index(lsm)]} if lsm in LSM_ORDER else {*names}
            place = max((at + 1 for at, name in enumerate(names) if name in after), default=0)
            names.insert(place, lsm)
    return names


def _of_properties(properties: Iterable[str]) -> tuple[set[Need], tuple[Wanted, ...]]:
    """Returns the needs and the symbols of IPE properties."""
    needs: set[Need] = set()
    symbols: list[Wanted] = []
    for name in properties:
        row = PROPERTY_OF_NAME.get(name)
        if row is None:
            raise InputError(f"no IPE property is called {name!r}", where="properties", hint=f"known: {', '.join(PROPERTY_OF_NAME)}")
        needs.add(Need.IPE)
        if row.kconfig is not None:
            needs.update(PROVIDERS.get(row.kconfig, ()))
            symbols.append(Wanted(row.kconfig, "y", f"a policy uses {name}=: {row.meaning}", (f"property {name}",)))
    return needs, tuple(symbols)


def _add(found: dict[str, Wanted], new: Wanted) -> None:
    """Adds a symbol, or another need that asks for the same value. Raises: InputError when the values differ."""
    if not is_value(new.value):
        new = Wanted(new.symbol, quote(new.value), new.why, new.needs)
    old = found.get(new.symbol)
    if old is None:
        found[new.symbol] = new
    elif old.value == new.value:
        found[new.symbol] = Wanted(old.symbol, old.value, old.why, (*old.needs, *new.needs))
    else:
        raise InputError(
            f"CONFIG_{new.symbol} cannot be {old.value} (for {', '.join(old.needs)}) and {new.value} (for {', '.join(new.needs)})",
            where="kernel needs",
            hint="leave one of these needs out",
        )
