"""Command lines that are read without argparse mean what argparse makes of them."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.cli import VERBS, Verb, _read, add_common_options
from ipe_build.cli.parser import parse
from ipe_build.cli.plain import NotPlainError, PlainParser
from ipe_build.errors import IpeBuildError

_VALUES = ("", "-", "0", "1", "-1", "4096", "sha256", "rsa3072", "a b", "x=y", "none", "all", "EXECUTE", "--", "-x y", "file:k.pem")


def _plain(verb: Verb) -> PlainParser | None:
    parser = PlainParser()
    try:
        importlib.import_module(f"ipe_build.cli.{verb.module}").configure(parser)
    except NotPlainError:
        return None
    for leaf in parser.leaves():
        add_common_options(leaf)
    return parser


_PLAIN = {verb.name: parser for verb in VERBS if (parser := _plain(verb)) is not None}


def _paths(parser: PlainParser, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], PlainParser]]:
    if not parser._children:
        return [(words, parser)]
    return [path for name, child in parser._children.items() for path in _paths(child, (*words, name))]


_LEAVES = [path for name, parser in _PLAIN.items() for path in _paths(parser, (name,))]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A verb, then its options and values in any order, some of them wrong."""
    words, leaf = draw(st.sampled_from(_LEAVES))
    options = sorted(leaf._options)
    value = st.sampled_from(_VALUES)
    valued = st.builds(lambda name, text: [name, text], st.sampled_from(options), value)
    joined = st.builds(lambda name, text: [f"{name}={text}"], st.sampled_from(options), value)
    piece = st.one_of(
        st.just([]), value.map(lambda text: [text]), valued, joined, st.sampled_from(options).map(lambda name: [name]), valued
    )
    required = [
        [next(iter(flag for flag in options if leaf._options[flag] is argument)), draw(value)]
        for argument in dict.fromkeys(leaf._options.values())
        if argument.required and draw(st.integers(0, 5))
    ]
    positionals = [draw(value) for argument in leaf._positionals if argument.nargs in (None, "+")]
    pieces = draw(st.permutations([*draw(st.lists(piece, max_size=4)), *required, positionals]))
    return [*words, *(word for some in pieces for word in some)]


def _by_argparse(words: list[str]) -> object:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return vars(parse(words))
    except (IpeBuildError, SystemExit, ValueError) as error:
        return type(error)


_seen: dict[bool, int] = {True: 0, False: 0}


@settings(deadline=None, max_examples=800)
@given(command_lines())
def test_a_plain_command_line_means_what_argparse_makes_of_it(words: list[str]) -> None:
    wanted = _by_argparse(words)
    try:
        found: object = {**vars(_PLAIN[words[0]].read(words[1:])), "verb": words[0]}
    except NotPlainError:
        _seen[False] += 1
        return
    _seen[True] += 1
    assert found == wanted


def test_enough_of_them_were_plain() -> None:
    assert _seen[True] > _seen[False] / 10 > 0


@pytest.mark.parametrize(
    "words",
    [
        ["verity", "format", "data", "hash", "--hash", "sha512", "--salt", "-", "--quiet"],
        ["verity", "format", "--salt=00", "data", "--fec-device", "x", "--fec-roots", "4", "--json"],
        ["verity", "table", "data", "--root-hash", "00", "--option", "a", "--option", "b"],
        ["fsverity", "digest", "--compact", *map(str, range(2000))],
        ["fsverity", "seal", "image", "/a", "/b", "--salt", ""],
    ],
)
def test_these_are_plain(words: list[str]) -> None:
    assert {**vars(_PLAIN[words[0]].read(words[1:])), "verb": words[0]} == vars(parse(words))


@pytest.mark.parametrize(
    "words",
    [
        ["verity", "format", "--help"],
        ["verity", "format"],
        ["verity", "format", "a", "b", "c"],
        ["verity", "format", "a", "--salt"],
        ["verity", "format", "a", "--sal", "00"],
        ["verity", "format", "a", "--salt", "00", "b"],
        ["verity", "format", "a", "--fec-roots", "two"],
        ["verity", "verify", "a"],
        ["verity", "table", "a", "--root-hash", "0", "--form", "none"],
        ["verity", "format", "--", "a"],
        ["verity", "format", "a", "--json=1"],
        ["verity"],
        ["verity", "mend"],
    ],
)
def test_these_are_left_to_argparse(words: list[str]) -> None:
    with pytest.raises(NotPlainError):
        _PLAIN[words[0]].read(words[1:])


def test_options_that_exclude_each_other_are_left_to_argparse() -> None:
    parser = PlainParser()
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--one", action="store_true")
    group.add_argument("--two", action="store_true")
    assert parser.read(["--one", "--one"]).one is True
    with pytest.raises(NotPlainError):
        parser.read(["--one", "--two"])


def test_a_parser_that_needs_more_than_that_is_left_to_argparse() -> None:
    with pytest.raises(NotPlainError):
        PlainParser().add_argument("--pair", nargs=2)
    with pytest.raises(NotPlainError):
        PlainParser().add_argument("--count", action="count")
    assert isinstance(_read(["verity", "dump", "h"]), argparse.Namespace) is False


def test_hashing_imports_neither_argparse_nor_inspect(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(4096))
    program = (
        "import os, sys; sys.argv = ['ipe-build', 'verity', 'format', 'data', 'hash', '--salt', '-', '--quiet'];"
        "os._exit = lambda status: print('loaded', *sorted(sys.modules));"
        "from ipe_build.__main__ import command; command()"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    loaded = done.stdout.rsplit("loaded ", 1)[1].split()
    assert "ipe_build.integrity.verity" in loaded
    for heavy in ("argparse", "inspect", "ast", "hashlib", "json", "shutil", "subprocess", "urllib.parse", "cryptography"):
        assert heavy not in loaded
