"""From a TOML table to a frozen dataclass: exact types, no unknown keys, an error that names file, section and key.

A key is a dataclass field made with `setting(...)`; its type may be bool, int, str, Path, a StrEnum, another section (a dataclass),
`X | None`, `tuple[X, ...]` or `dict[str, str]`. Nothing here knows which keys there are: that is `schema.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from ipe_build.errors import ConfigError

S = TypeVar("S")
Check = Callable[[Any], str | None]
"""Returns what is wrong with a value (`wanted 1 to 9`), or None."""


def setting(doc: str, default: Any = MISSING, *, check: Check | None = None) -> Any:
    """Returns a dataclass field for one key. `doc` is a sentence; `check` returns what is wrong with a value, or None."""
    return dataclasses.field(default=default, metadata={"doc": doc, "check": check})


def section(doc: str, kind: Callable[[], Any]) -> Any:
    """Returns a dataclass field for a section that may be left out: all its keys then have their defaults."""
    return dataclasses.field(default_factory=kind, metadata={"doc": doc, "check": None})


def load_section(kind: type[S], table: Mapping[str, Any], *, file: str, place: str, base: Path) -> S:
    """Returns `kind` filled from a TOML table; relative paths are resolved against `base`.

    Raises: ConfigError whose `where` is `file: [section] key`.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in table:
        if name not in fields:
            raise ConfigError("unknown key", where=_where(file, place, name), hint=_suggestion(name, list(fields)))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        where = _where(file, place, name)
        if name in table:
            inner = f"{place}.{name}" if place else name
            values[name] = _convert(hints[name], table[name], where=where, file=file, place=inner, base=base)
            complaint = field.metadata["check"](values[name]) if field.metadata["check"] else None
            if complaint:
                raise ConfigError(f"{complaint}, got {table[name]!r}", where=where)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError("is needed and missing", where=where, hint=field.metadata["doc"])
    return kind(**values)


def _convert(hint: Any, value: Any, *, where: str, file: str, place: str, base: Path) -> Any:
    """Returns a TOML value as the type that the field has."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(one for one in arguments if one is not type(None))
        return _convert(inner, value, where=where, file=file, place=place, base=base)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch("a list", value, where)
        return tuple(
            _convert(arguments[0], one, where=f"{where}[{number}]", file=file, place=f"{place}[{number}]", base=base)
            for number, one in enumerate(value)
        )
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            raise _mismatch("a table of strings", value, where)
        return dict(value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _mismatch("a table", value, where)
        return load_section(typing.cast(type, hint), value, file=file, place=place, base=base)
    return _scalar(hint, value, where, base)


def _scalar(hint: type, value: Any, where: str, base: Path) -> Any:
    """Returns a TOML scalar as bool, int, str, Path or a StrEnum's member."""
    if issubclass(hint, StrEnum):
        allowed = [str(member) for member in hint]
        if value not in allowed:
            raise ConfigError(f"wanted one of {', '.join(allowed)}, got {value!r}", where=where, hint=_suggestion(str(value), allowed))
        return hint(value)
    if hint is Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise _mismatch("a path", value, where)
        return (base / value).absolute()
    names = {bool: "true or false", int: "a whole number", str: "a string"}
    if type(value) is not hint:
        raise _mismatch(names[hint], value, where)
    return value


def _mismatch(wanted: str, value: Any, where: str) -> ConfigError:
    """Returns the error for a value of another type than the key has."""
    return ConfigError(f"wanted {wanted}, got {value!r}", where=where)


def _where(file: str, place: str, name: str) -> str:
    """Returns `file: [section] key`, or `file: [section]` for a top-level name."""
    return f"{file}: [{place}] {name}" if place else f"{file}: [{name}]"


def _suggestion(name: str, known: list[str]) -> str:
    """Returns a hint with the nearest known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
