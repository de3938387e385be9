"""How one look of a check came out, before the table's severity and hint are added."""

from __future__ import annotations

from typing import NamedTuple

from ipe_build.audit.findings import Verdict


class Outcome(NamedTuple):
    """Verdict, what was looked at, and the reason in words."""

    verdict: Verdict
    subject: str
    why: str


def good(subject: str, why: str) -> Outcome:
    """Returns a pass."""
    return Outcome(Verdict.PASS, subject, why)


def bad(subject: str, why: str) -> Outcome:
    """Returns a failure."""
    return Outcome(Verdict.FAIL, subject, why)


def unknown(subject: str, why: str) -> Outcome:
    """Returns that nothing can be said, because what is needed was not there."""
    return Outcome(Verdict.UNKNOWN, subject, why)
