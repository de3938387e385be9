"""Verbs with a table of sub-verbs: one row each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Sequence

    from ipe_build.cli import Outcome
    from ipe_build.host import Host


class SubVerb(NamedTuple):
    """A row: the word, what adds its options, what runs it, one line of help."""

    name: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace, Host], Outcome]
    help: str


def configure_rows(parser: ArgumentParser, rows: Sequence[SubVerb]) -> None:
    """Adds the sub-verbs to the verb's parser."""
    subs = parser.add_subparsers(dest="subverb", metavar="SUBVERB", required=True)
    for row in rows:
        row.configure(subs.add_parser(row.name, help=row.help, description=f"{row.help[0].upper()}{row.help[1:]}."))


def run_row(arguments: Namespace, rows: Sequence[SubVerb], host: Host) -> Outcome:
    """Returns the outcome of the sub-verb that was asked for."""
    return next(row for row in rows if row.name == arguments.subverb).run(arguments, host)
