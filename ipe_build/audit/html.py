"""An audit as one HTML page that needs nothing else: no network, no other file, no script to be readable.

Everything that came out of an image is text of a stranger: it is escaped by the template engine, characters that do not show (controls,
line ends, reversals of the writing direction, stray bytes) are written as escapes, and the page's own Content-Security-Policy lets only the
one script and the one style sheet in it work, named by their SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ipe_build import __version__
from ipe_build.audit.chain import NODES, OTHER, Link, LinkState, chain_of, link_of, state_of
from ipe_build.audit.findings import Answer as Yes
from ipe_build.audit.findings import AuditReport, Finding, Prediction, Severity, Verdict
from ipe_build.audit.map_view import map_view
from ipe_build.audit.portrait import Portrait
from ipe_build.audit.printable import printable
from ipe_build.audit.tree import Answer, Program

MAX_ROWS = 20_000
"""Executables that the table lists, the refused first; a page of more would be slow to open, so the rest is counted."""
SHOWN_OF_GROUP, SHOWN_GROUPS = 2, 4
"""Findings of one check, and checks, that a link shows before it counts the rest; all are in its list."""


LEGEND_SHOWN = 12
"""Rules that stand above the map; a policy that pins every file has thousands, the others are folded away."""


class StateRow(NamedTuple):
    """A row: how a finding stands, in one word for the page's classes and one for people."""

    key: str
    word: str
    plural: str


STATES: tuple[StateRow, ...] = (
    StateRow("error", "error", "errors"),
    StateRow("unknown", "not looked at", "not looked at"),
    StateRow("warning", "warning", "warnings"),
    StateRow("note", "note", "notes"),
    StateRow("pass", "passed", "passed"),
)
"""In the order in which the table lists findings."""
_RANK = {row.key: number for number, row in enumerate(STATES)}
_FAILED = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}


@dataclass(frozen=True, slots=True)
class FindingRow:
    """A finding with its state's row and the link it speaks about."""

    finding: Finding
    state: StateRow
    link: str


class Headline(NamedTuple):
    """The page's answer: a state's key for its colour, and what it says."""

    state: str
    title: str
    text: str


def render_html(report: AuditReport, portrait: Portrait) -> str:
    """Returns the page. The same report and portrait give the same bytes."""
    environment = _environment()
    css = environment.get_template("report.css.j2").render()
    script = environment.get_template("report.js.j2").render()
    links = chain_of(report)
    rows = sorted((_row(one) for one in report.findings), key=lambda row: _RANK[row.state.key])
    programs = sorted(portrait.programs, key=lambda one: (one.ruling.answer is not Answer.REFUSED, -one.size_bytes, one.place, one.path))
    return environment.get_template(
        "report.html.j2"
    ).render(
        css=Markup(css),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        policy=_content_policy(css, script),
        version=__version__,
        report=report,
        portrait=portrait,
        headline=headline(report, links),
        counts=[(row, sum(one.state is row for one in rows)) for row in STATES],
        links=links,
        nodes=_nodes(links, portrait),
        shown_of_group=SHOWN_OF_GROUP,
        shown_groups=SHOWN_GROUPS,
        legend_shown=LEGEND_SHOWN,
        grouped=_grouped,
        other=tuple(row for row in rows if row.link == OTHER.id),
        other_claim=OTHER.claim,
        entries=_entries(report, portrait),
        several=len(report.predictions) > 1,
        of_entries=lambda one: one.entries if 0 < len(one.entries) < len(report.predictions) else (),
        row_of=_row,
        rows=rows,
        map=map_view(portrait.programs),
        programs=programs[:MAX_ROWS],
        left_out=len(programs) - len(programs[:MAX_ROWS]),
        answers=_answers(portrait.programs),
    )


def headline(report: AuditReport, links: tuple[Link, ...]) -> Headline:
    """Returns what stands at the top: broken by any error, open when something could not be looked at, else holding."""
    broken = next((link for link in links if link.state is LinkState.BROKEN), None)
    if broken is not None:
        first = broken.reasons[0]
        return Headline(
            "error", "The chain of trust is broken", f"First between {broken.source} and {broken.target}: {first.subject}: {first.why}."
        )
    if report.failed:
        first = next(one for one in report.findings if one.verdict is Verdict.FAIL and one.severity is Severity.ERROR)
        return Headline("error", "The image has errors", f"{first.subject}: {first.why}.")
    dark = next((link for link in links if link.state is LinkState.UNKNOWN), None)
    if dark is not None or state_of(report.findings) is LinkState.UNKNOWN:
        between = f"between {dark.source} and {dark.target}" if dark is not None else "outside the chain"
        return Headline(
            "unknown", "The chain of trust cannot be judged in full", f"No error was found, but something {between} is missing."
        )
    weak = sum(link.state is LinkState.WEAK for link in links)
    but = f"; warnings weaken {weak} of its {len(links)} links." if weak else "."
    return Headline(
        "pass", "The chain of trust holds", f"From the keys in the kernel to every file of the root, no check found an error{but}"
    )


def shown(value: object) -> object:
    """Returns what a template writes for a value: text with every character visible; Markup and other values stay as they are."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def human_size(size_bytes: int) -> str:
    """Returns a size for people: 812 B, 7.2 KiB, 34 MiB."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1023.5 or unit == "TiB":
            break
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def _environment() -> Environment:
    """Returns the template engine: everything escaped, unknown names are errors."""
    environment = Environment(
        loader=PackageLoader("ipe_build.audit", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        finalize=shown,
    )
    environment.filters["size"] = human_size
    environment.filters["short"] = _short
    return environment


def _short(text: str, length: int) -> str:
    """Returns a text that is at most so long, as it will be shown."""
    whole = printable(text)
    return whole if len(whole) <= length else f"{whole[: length - 1]}…"


def _content_policy(css: str, script: str) -> str:
    """Returns the Content-Security-Policy: nothing is loaded from anywhere, and nothing runs but these two."""

    def named(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return f"default-src 'none'; style-src {named(css)}; script-src {named(script)}; base-uri 'none'; form-action 'none'"


def _row(finding: Finding) -> FindingRow:
    """Returns a finding as the page shows it."""
    key = {Verdict.PASS: "pass", Verdict.UNKNOWN: "unknown"}.get(finding.verdict) or _FAILED[finding.severity]
    return FindingRow(finding, STATES[_RANK[key]], link_of(finding.check))


class ReasonGroup(NamedTuple):
    """Findings that belong together: those of one check that failed, or all that the same missing thing left open."""

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    hint: str


def _grouped(findings: tuple[Finding, ...]) -> list[ReasonGroup]:
    """Returns the groups, in the order in which their first findings come. What was not looked at has no hint: nothing is wrong with it."""
    found: dict[str, list[Finding]] = {}
    for one in findings:
        found.setdefault(one.why if one.verdict is Verdict.UNKNOWN else f"check {one.check}", []).append(one)
    groups = []
    for ones in found.values():
        open_ones = ones[0].verdict is Verdict.UNKNOWN
        shown = tuple({(one.subject, one.why): one for one in reversed(ones)}.values())[::-1]
        groups.append(ReasonGroup(shown, tuple(dict.fromkeys(one.check for one in ones)), "" if open_ones else ones[0].hint))
    return groups


def _nodes(links: tuple[Link, ...], portrait: Portrait) -> list[dict[str, object]]:
    """Returns the chain's nodes: name, caption (what it is in this image), whether trust reaches it."""
    reached = [True, *(before.reached and before.state in (LinkState.HOLDS, LinkState.WEAK) for before in links)]
    return [
        {"name": name, "caption": caption or "not found", "reached": there and caption is not None}
        for name, caption, there in zip(NODES, portrait.captions, reached, strict=True)
    ]


class EntryCard(NamedTuple):
    """A boot entry as the page shows it: its state's key, what is foreseen of it in sentences, and what is known of it."""

    prediction: Prediction
    state: str
    boots: str
    why: str
    enforces: str
    facts: tuple[tuple[str, str], ...]
    errors: int


_BOOTS = {Yes.YES: "Boots", Yes.NO: "Does not boot", Yes.UNKNOWN: "Whether it boots is not foreseen"}
_ENFORCES = {Yes.YES: "Enforces", Yes.NO: "Does not enforce", Yes.UNKNOWN: "Whether it enforces is not foreseen"}


def _entries(report: AuditReport, portrait: Portrait) -> list[EntryCard]:
    """Returns the boot entries, the default one first."""
    facts = {one.name: one.facts for one in portrait.entries}
    cards = []
    for one in report.predictions:
        good, wrong = (one.boots, one.enforces) == (Yes.YES, Yes.YES), Yes.NO in (one.boots, one.enforces)
        ends = {Yes.YES: "", Yes.NO: f": it ends at the stage “{one.stage}”", Yes.UNKNOWN: f" from the stage “{one.stage}” on"}[one.boots]
        why = "" if one.boots is Yes.YES else f"Reason: {one.why}."
        failed = (found for found in report.findings if found.verdict is Verdict.FAIL and found.severity is Severity.ERROR)
        errors = sum(one.entry in found.entries for found in failed)
        cards.append(
            EntryCard(
                one,
                "pass" if good else "error" if wrong else "unknown",
                f"{_BOOTS[one.boots]}{ends}.",
                why,
                "" if one.boots is Yes.NO else f"{_ENFORCES[one.enforces]}: {one.enforces_why}.",
                facts.get(one.entry, ()),
                errors,
            )
        )
    return cards


def _answers(programs: tuple[Program, ...]) -> dict[str, tuple[int, int]]:
    """Returns number and size of the programs by answer."""
    found = {str(answer): (0, 0) for answer in Answer}
    for one in programs:
        number, size = found[one.ruling.answer]
        found[one.ruling.answer] = number + 1, size + one.size_bytes
    return found
