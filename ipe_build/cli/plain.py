"""Reads plain command lines without argparse, whose import and parsers take longer than most hash trees.

A verb's `configure` is given a `PlainParser` instead of an argparse one: it notes the options, and `read` gives the same namespace that
argparse would. Whatever is not plain (--help, a mistake, an abbreviation, an unusual order) it leaves to argparse by raising
`NotPlainError`, so that there is one help and one set of messages. A test holds the two equal on thousands of command lines.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_KNOWN = {"action", "choices", "default", "dest", "help", "metavar", "nargs", "required", "type"}


class NotPlainError(Exception):
    """This command line, or this parser, is for argparse."""


class _Argument:
    """An option or positional: where its value goes and how that is made."""

    __slots__ = ("action", "choices", "default", "dest", "group", "nargs", "required", "type")

    def __init__(self, flags: tuple[str, ...], keywords: dict[str, object], group: object) -> None:
        if not keywords.keys() <= _KNOWN:
            raise NotPlainError
        long = next((flag for flag in flags if flag.startswith("--")), flags[0])
        self.dest = str(keywords.get("dest") or long.lstrip("-").replace("-", "_"))
        self.action = keywords.get("action", "store")
        self.nargs = keywords.get("nargs")
        self.type: Callable[[str], object] | None = keywords.get("type")  # type: ignore[assignment]
        self.choices: Sequence[object] | None = keywords.get("choices")  # type: ignore[assignment]
        self.default = keywords.get("default", False if self.action == "store_true" else None)
        self.required = bool(keywords.get("required"))
        self.group = group
        is_option = flags[0].startswith("-")
        if self.action not in ("store", "store_true", "append") or self.nargs not in ((None,) if is_option else (None, "?", "+", "*")):
            raise NotPlainError

    def convert(self, word: str) -> object:
        """Returns the value of a word. Raises: NotPlainError when argparse would refuse it."""
        try:
            value = self.type(word) if self.type is not None else word
        except Exception as error:
            raise NotPlainError from error
        if self.choices is not None and value not in self.choices:
            raise NotPlainError
        return value

    def unset(self) -> object:
        """Returns the value when the argument is not given: argparse converts a default that is text."""
        return self.convert(self.default) if isinstance(self.default, str) and self.type is not None else self.default


class PlainParser:
    """The part of argparse.ArgumentParser that our verbs use. Attributes that only matter for help may be set."""

    def __init__(self) -> None:
        self._options: dict[str, _Argument] = {}
        self._positionals: list[_Argument] = []
        self._children: dict[str, PlainParser] = {}
        self._dest = ""

    def add_argument(self, *flags: str, **keywords: object) -> None:
        """Notes an argument."""
        self._add(flags, keywords, None)

    def _add(self, flags: tuple[str, ...], keywords: dict[str, object], group: object) -> None:
        argument = _Argument(flags, keywords, group)
        if not flags[0].startswith("-"):
            self._positionals.append(argument)
            return
        for flag in flags:
            self._options[flag] = argument

    def add_argument_group(self, *_: object, **__: object) -> PlainParser:
        """Returns itself: groups only matter for help."""
        return self

    def add_mutually_exclusive_group(self, *, required: bool = False) -> _ExclusiveGroup:
        """Returns a group of which one option at most may be given."""
        if required:
            raise NotPlainError
        return _ExclusiveGroup(self)

    def add_subparsers(self, *, dest: str, required: bool = False, **_: object) -> PlainParser:
        """Returns itself, for `add_parser`."""
        if not required:
            raise NotPlainError
        self._dest = dest
        return self

    def add_parser(self, name: str, **_: object) -> PlainParser:
        """Returns the parser of a sub-verb."""
        return self._children.setdefault(name, PlainParser())

    def leaves(self) -> Iterator[PlainParser]:
        """Yields the parsers that have no sub-verbs."""
        if not self._children:
            yield self
        for child in self._children.values():
            yield from child.leaves()

    def read(self, words: Sequence[str]) -> SimpleNamespace:
        """Returns the namespace of a plain command line. Raises: NotPlainError."""
        if self._children:
            if self._options or self._positionals or not words or words[0] not in self._children:
                raise NotPlainError
            found = self._children[words[0]].read(words[1:])
            setattr(found, self._dest, words[0])
            return found
        values: dict[str, object] = {}
        self._read_positionals(self._read_options(words, values), values)
        for argument in (*self._options.values(), *self._positionals):
            if argument.dest not in values:
                values[argument.dest] = argument.unset()
        return SimpleNamespace(**values)

    def _read_options(self, words: Sequence[str], values: dict[str, object]) -> Sequence[str]:
        """Returns the words that are no options; they must follow each other. Puts the options' values into `values`."""
        start, end = 0, 0  # the run of positionals
        seen: dict[object, _Argument] = {}
        given: set[int] = set()
        place, count = 0, len(words)
        while place < count:
            word = words[place]
            if word[:1] != "-" or word == "-":
                if end and end != place:
                    raise NotPlainError
                start = start if end else place
                while place < count and ((word := words[place])[:1] != "-" or word == "-"):
                    place += 1
                end = place
                continue
            name, equals, value = word.partition("=")
            argument = self._options.get(name)
            if argument is None or value == "--" or (equals and (argument.action == "store_true" or not name.startswith("--"))):
                raise NotPlainError
            if argument.group is not None and seen.setdefault(argument.group, argument) is not argument:
                raise NotPlainError
            given.add(id(argument))
            place += 1
            if argument.action == "store_true":
                values[argument.dest] = True
                continue
            if not equals:
                if place == count or (words[place][:1] == "-" and words[place] != "-"):
                    raise NotPlainError
                value = words[place]
                place += 1
            converted = argument.convert(value)
            if argument.action == "append":
                before = values.get(argument.dest, argument.unset())
                converted = [*(before if isinstance(before, list) else ()), converted]
            values[argument.dest] = converted
        if any(argument.required and id(argument) not in given for argument in self._options.values()):
            raise NotPlainError
        return words[start:end]

    def _read_positionals(self, words: Sequence[str], values: dict[str, object]) -> None:
        """Puts the words into the positionals: single ones first, then at most one that takes any number of them."""
        place, count = 0, len(words)
        for number, argument in enumerate(self._positionals):
            if argument.nargs in ("+", "*"):
                rest = words[place:]
                if number + 1 < len(self._positionals) or (argument.nargs == "+" and not rest):
                    raise NotPlainError
                if rest or argument.default is None:
                    values[argument.dest] = [argument.convert(word) for word in rest]
                return
            if place < count:
                values[argument.dest] = argument.convert(words[place])
                place += 1
            elif argument.nargs is None:
                raise NotPlainError
        if place < count:
            raise NotPlainError


class _ExclusiveGroup:
    """A group of options that exclude each other."""

    def __init__(self, parser: PlainParser) -> None:
        self._parser = parser

    def add_argument(self, *flags: str, **keywords: object) -> None:
        """Notes an option of the group."""
        self._parser._add(flags, keywords, self)
