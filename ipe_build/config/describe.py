"""The schema for machines (JSON Schema) and for people (a commented TOML), both read off the dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from ipe_build.config.schema import Config

_SCALARS = {bool: "boolean", int: "integer", str: "string", Path: "string"}


class Key(NamedTuple):
    """One key: its section (`rootfs`, `rootfs.owner[]`), name, type for people, default (None when it is needed) and help."""

    section: str
    name: str
    type: str
    default: object
    needed: bool
    doc: str


def json_schema(kind: type = Config) -> dict[str, object]:
    """Returns a JSON Schema (2020-12) of a section; unknown keys are refused."""
    hints = typing.get_type_hints(kind)
    properties: dict[str, object] = {}
    needed: list[str] = []
    for field in dataclasses.fields(kind):
        schema = _type_schema(hints[field.name])
        properties[field.name] = schema | {"description": field.metadata["doc"]} | _default(field)
        if field.default is MISSING and field.default_factory is MISSING:
            needed.append(field.name)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ipe-build.toml"} if kind is Config else {}
    return head | {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def keys(kind: type = Config, section: str = "") -> Iterator[Key]:
    """Yields every key of the schema in order, those of nested sections after their section's own."""
    hints = typing.get_type_hints(kind)
    nested: list[tuple[type, str]] = []
    for field in dataclasses.fields(kind):
        inner, listed = _inner(hints[field.name])
        if dataclasses.is_dataclass(inner):
            place = f"{section}.{field.name}" if section else field.name
            nested.append((typing.cast(type, inner), f"{place}[]" if listed else place))
            continue
        needed = field.default is MISSING and field.default_factory is MISSING
        default = _default(field).get("default")
        yield Key(section, field.name, _type_text(hints[field.name]), default, needed, field.metadata["doc"])
    for inner_kind, place in nested:
        yield from keys(inner_kind, place)


def _inner(hint: Any) -> tuple[Any, bool]:
    """Returns a type without `| None` and without `tuple[..., ...]`, and whether it was a list."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _inner(next(one for one in arguments if one is not type(None)))
    if origin is tuple:
        return _inner(arguments[0])[0], True
    return hint, False


def _type_schema(hint: Any) -> dict[str, object]:
    """Returns the JSON Schema of one type."""
    inner, listed = _inner(hint)
    if typing.get_origin(inner) is dict:
        schema: dict[str, object] = {"type": "object", "additionalProperties": {"type": "string"}}
    elif dataclasses.is_dataclass(inner):
        schema = json_schema(typing.cast(type, inner))
    elif issubclass(inner, StrEnum):
        schema = {"enum": [str(member) for member in inner]}
    else:
        schema = {"type": _SCALARS[inner]}
    return {"type": "array", "items": schema} if listed else schema


def _type_text(hint: Any) -> str:
    """Returns a type in words: `path`, `list of strings`, `one of eio, restart, panic`."""
    inner, listed = _inner(hint)
    if typing.get_origin(inner) is dict:
        text = "table of strings"
    elif issubclass(inner, StrEnum):
        text = "one of " + ", ".join(str(member) for member in inner)
    else:
        text = {bool: "true or false", int: "whole number", str: "string", Path: "path"}[inner]
    return f"list of {text}s" if listed else text


def _default(field: dataclasses.Field[Any]) -> dict[str, object]:
    """Returns `{"default": value}` where a plain default exists, else nothing."""
    if field.default is MISSING or field.default is None:
        return {}
    value = field.default
    if isinstance(value, tuple):
        return {"default": [str(one) for one in value]}
    return {"default": str(value) if isinstance(value, StrEnum | Path) else value}
