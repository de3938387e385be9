"""The command line's parser by argparse: help, messages, and every command line that is not plain (see `cli.plain`)."""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING, NoReturn

from ipe_build import __version__
from ipe_build.cli import VERBS, add_common_options
from ipe_build.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose mistakes become our UsageError (one clear error, exit status 2)."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, where=self.prog, hint=f"see {self.prog} --help")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Returns what the words say. Raises: UsageError; SystemExit after --help and --version."""
    chosen = next((word for word in words if not word.startswith("-")), None)
    parser = _Parser(
        prog="ipe-build",
        description="Make and prove images whose kernel runs only authorised code (IPE).",
        epilog="Exit status: 0 fine, 1 a finding or a failed verification, 2 bad input or usage, 3 a needed tool is missing or failed, "
        "130 interrupted. `ipe-build VERB --help` says more.",
    )
    parser.add_argument("--version", action="version", version=f"ipe-build {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb in VERBS:
        sub = verbs.add_parser(verb.name, help=verb.help, description=f"{verb.help[0].upper()}{verb.help[1:]}.")
        if verb.name == chosen:
            importlib.import_module(f"ipe_build.cli.{verb.module}").configure(sub)
            _add_common_options(sub)
    return parser.parse_args(words)


def _describe(action: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Gives each sub-verb's own help the line that its verb's help has of it, unless it says more itself."""
    for row in action._choices_actions:
        child = action.choices[str(row.dest).split(" ")[0]]
        if child.description is None and row.help:
            child.description = f"{row.help[0].upper()}{row.help[1:]}."


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the common options to a verb's parser or, when it has sub-verbs, to each of theirs."""
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not children:
        add_common_options(parser)
    for action in children:
        _describe(action)
    for child in {id(sub): sub for action in children for sub in action.choices.values()}.values():
        _add_common_options(child)
