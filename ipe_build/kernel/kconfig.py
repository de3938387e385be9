"""What a kernel tree's Kconfig files say a symbol depends on and is selected by: for hints, so best effort, and read only when needed.

Source: Documentation/kbuild/kconfig-language.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ipe_build.formats.dotconfig import DotConfig, unquote

_WORD = re.compile(r'\s*(&&|\|\||!=|<=|>=|[!()=<>]|"[^"]*"|\$\([^)]*\)|[A-Za-z0-9_.\-]+)')
_OPENS = ("if", "menu", "choice")
_DEFINES = ("config", "menuconfig")
_MAX_DEPTH = 40
_LEVEL = {"n": 0, "m": 1, "y": 2}


@dataclass(frozen=True, slots=True)
class Kconfig:
    """For each symbol: its definitions, each the conditions that must all hold; and who selects it, each with the condition."""

    conditions: Mapping[str, tuple[tuple[str, ...], ...]]
    selects: Mapping[str, tuple[tuple[str, str], ...]]

    @classmethod
    def read(cls, source: Path, srcarch: str) -> Kconfig:
        """Returns what the Kconfig files of this kernel tree say, from `Kconfig` on through every `source`."""
        reader = _Reader(source, srcarch)
        reader.file("Kconfig", (), 0)
        return cls(
            MappingProxyType({symbol: tuple(map(tuple, found)) for symbol, found in reader.conditions.items()}),
            MappingProxyType({symbol: tuple(found) for symbol, found in reader.selects.items()}),
        )

    def selected_by(self, symbol: str, resolved: DotConfig) -> tuple[str, ...]:
        """Returns the symbols that are on in this configuration and select `symbol`."""
        rows = self.selects.get(symbol, ())
        return tuple(name for name, condition in rows if resolved.enabled(name) and (not condition or evaluate(condition, resolved)))


class _Reader:
    """Walks the files, keeping the conditions of the blocks that it is in."""

    def __init__(self, source: Path, srcarch: str) -> None:
        self.source, self.srcarch = source, srcarch
        self.conditions: dict[str, list[list[str]]] = {}
        self.selects: dict[str, list[tuple[str, str]]] = {}

    def file(self, name: str, outer: tuple[str, ...], depth: int) -> None:
        """Reads one file, whose symbols all have the conditions `outer`."""
        try:
            text = (self.source / name).read_text("utf-8", "replace")
        except OSError:
            return
        stack: list[list[str]] = [list(outer)]
        current: list[str] | None = None
        symbol = ""
        for keyword, rest in _statements(text):
            if keyword in _DEFINES:
                symbol, current = rest, list(stack[-1])
                self.conditions.setdefault(symbol, []).append(current)
            elif keyword in _OPENS:
                stack.append([*stack[-1], rest] if keyword == "if" else [*stack[-1]])
                symbol, current = "", stack[-1] if keyword != "if" else None
            elif keyword in ("endif", "endmenu", "endchoice"):
                if len(stack) > 1:
                    stack.pop()
                current = None
            elif keyword == "comment":
                current = None
            elif keyword == "depends" and current is not None:
                current.append(rest.removeprefix("on").strip())
            elif keyword in ("select", "imply") and symbol:
                target, _, condition = rest.partition(" if ")
                self.selects.setdefault(target.strip(), []).append((symbol, condition.strip()))
            elif keyword == "source" and depth < _MAX_DEPTH:
                path = unquote(rest).replace("$(SRCARCH)", self.srcarch).replace("$SRCARCH", self.srcarch)
                self.file(path, tuple(stack[-1]), depth + 1)
                current = None


def _statements(text: str) -> Iterator[tuple[str, str]]:
    """Yields keyword and rest of each line; help texts and comments are left out, continued lines joined."""
    help_indent: int | None = None
    in_help = False
    for raw in text.replace("\\\n", " ").expandtabs(8).split("\n"):
        line = raw.strip()
        if not line:
            continue
        indent = len(raw) - len(raw.lstrip())
        if in_help:
            help_indent = indent if help_indent is None else help_indent
            if indent >= help_indent and indent > 0:
                continue
            in_help = False
        keyword, _, rest = line.partition(" ")
        if keyword in ("help", "---help---"):
            in_help, help_indent = True, None
        elif not keyword.startswith("#"):
            yield keyword, " ".join(rest.split(" #")[0].split())


def evaluate(expression: str, config: DotConfig) -> bool:
    """Returns whether a Kconfig expression is not `n` in this configuration; what cannot be read counts as true."""
    try:
        words = _split(expression)
        level, rest = _either(words, config)
        return level > 0 or bool(rest)
    except (IndexError, ValueError):
        return True


def _split(expression: str) -> list[str]:
    words, at = [], 0
    while at < len(expression.rstrip()):
        found = _WORD.match(expression, at)
        if found is None:
            raise ValueError(expression)
        words.append(found[1])
        at = found.end()
    return words


def _either(words: list[str], config: DotConfig) -> tuple[int, list[str]]:
    level, words = _both(words, config)
    while words and words[0] == "||":
        right, words = _both(words[1:], config)
        level = max(level, right)
    return level, words


def _both(words: list[str], config: DotConfig) -> tuple[int, list[str]]:
    level, words = _one(words, config)
    while words and words[0] == "&&":
        right, words = _one(words[1:], config)
        level = min(level, right)
    return level, words


def _one(words: list[str], config: DotConfig) -> tuple[int, list[str]]:
    first, words = words[0], words[1:]
    if first == "!":
        level, words = _one(words, config)
        return 2 - level, words
    if first == "(":
        level, words = _either(words, config)
        return level, words[1:]
    if words and words[0] in ("=", "!=", "<", ">", "<=", ">="):
        return 2 if _relation(_value(first, config), words[0], _value(words[1], config)) else 0, words[2:]
    return (2 if first.startswith("$(") else _LEVEL.get(_value(first, config), 2)), words


def _relation(left: str, operator: str, right: str) -> bool:
    if operator in ("=", "!="):
        return (left == right) == (operator == "=")
    difference = int(left, 0) - int(right, 0)
    return "=" in operator if difference == 0 else ("<" if difference < 0 else ">") in operator


def _value(word: str, config: DotConfig) -> str:
    if word in _LEVEL or word.startswith('"') or word.lstrip("-").isdigit():
        return unquote(word)
    return unquote(config.get(word))
