"""Judges an image by the table of checks, as each of its boot entries sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ipe_build.audit.checks import CHECKS, Check, Needs, Scope
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.findings import AuditReport, Finding
from ipe_build.audit.outcome import Outcome, good, unknown
from ipe_build.audit.prediction import predict
from ipe_build.audit.printable import printable
from ipe_build.audit.sealed import sealed_by
from ipe_build.errors import IpeBuildError

if TYPE_CHECKING:
    from ipe_build.host import Host


def audit(facts: ImageFacts, host: Host) -> AuditReport:
    """Returns the report: every check of the table on these facts, in the table's order, and what each boot entry is foreseen to do.

    A check of a boot entry looks at each; findings that are the same for several are one. Names out of the image are made printable.
    """
    views = tuple(facts.views())
    findings = [finding for check in CHECKS for finding in _findings(check, views, host)]
    predictions = tuple(predict(view, host) for view in views)
    shown = tuple(
        replace(one, entry=printable(one.entry), why=printable(one.why), enforces_why=printable(one.enforces_why)) for one in predictions
    )
    return AuditReport(facts.image.name, tuple(findings), shown, sealed=bool(sealed_by(facts)))


def _findings(check: Check, views: tuple[ImageFacts, ...], host: Host) -> Iterator[Finding]:
    """Yields what a check finds, each finding once, with the boot entries that it is true of."""
    found: dict[Outcome, list[str]] = {}
    for view in views if check.scope is Scope.ENTRY else views[:1]:
        for outcome in _outcomes(check, view, host):
            names = found.setdefault(outcome, [])
            if check.scope is Scope.ENTRY and view.boot_entry is not None:
                names.append(printable(view.entry_name))
    for outcome, names in found.items():
        subject, why = printable(outcome.subject), printable(outcome.why)
        yield Finding(check.id, check.severity, outcome.verdict, subject, why, check.hint, tuple(dict.fromkeys(names)))


def _outcomes(check: Check, view: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Yields what a check says of one view. What it would want of keys is not wanted of a sealed image."""
    reason = sealed_by(view) if check.needs is Needs.KEYS else ""
    if reason:
        yield good(check.id.replace("-", " "), f"not needed: sealed ({reason})")
        return
    try:
        yield from check.look(view, host)
    except IpeBuildError as error:
        # A file of the image that only this check reads is damaged: the others still look.
        yield unknown(check.id.replace("-", " "), error.message)
