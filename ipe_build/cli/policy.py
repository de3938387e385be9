"""`ipe-build policy`: check, evaluate, render, make, diff, record, learn."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ipe_build.cli import Outcome
from ipe_build.cli.policy_answers import (
    configure_diff,
    configure_evaluate,
    configure_learn,
    configure_record,
    run_diff,
    run_evaluate,
    run_learn,
    run_record,
)
from ipe_build.cli.policy_check import configure_check, run_check
from ipe_build.cli.policy_common import encodable, printable
from ipe_build.cli.policy_render import configure_make, configure_render, run_make, run_render
from ipe_build.cli.subverbs import SubVerb, configure_rows, run_row
from ipe_build.host import Host


def configure(parser: ArgumentParser) -> None:
    """Adds the sub-verbs to the verb's parser."""
    configure_rows(parser, _SUBVERBS)


def run(arguments: Namespace, host: Host) -> Outcome:
    """Returns the outcome of the sub-verb that was asked for."""
    outcome = run_row(arguments, _SUBVERBS, host)
    return Outcome(encodable(outcome.value), printable(outcome.text), outcome.status)


_SUBVERBS: tuple[SubVerb, ...] = (
    SubVerb("check", configure_check, run_check, "what the target kernel answers to policies, and what is wrong with them"),
    SubVerb("evaluate", configure_evaluate, run_evaluate, "what a policy decides about a file, by which rule, and why"),
    SubVerb("render", configure_render, run_render, "render a policy from a profile or a jinja2 template"),
    SubVerb("make", configure_make, run_make, "render a policy, check it for its kernel and sign it: all, or nothing is written"),
    SubVerb("diff", configure_diff, run_diff, "what a new policy allows and denies otherwise, and whether it is an update"),
    SubVerb("record", configure_record, run_record, "enter the versions of policies that go out into the ledger"),
    SubVerb("learn", configure_learn, run_learn, "explain denials of an audit log and propose rules"),
)
