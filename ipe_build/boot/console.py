"""What the probe program said on the console, and what the kernel said while each probe ran: console lines -> values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipe_build.errors import FormatError
from ipe_build.formats.audit_record import AuditRecord, find_record

MARK = "@ipe-probe "
END = r'@ipe-probe \{"(end|failed)"'
"""Regular expression for the last thing that the probe program says."""
_STAMP = re.compile(r"^\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])? ")
_DRAIN = "ipe-probe-mark="
_VERSION = re.compile(r"Linux version (\S+) ")


@dataclass(frozen=True, slots=True)
class Report:
    """What a probe came to: errno and its name (0 and "" when no step failed), exit status (-1: no program ran), detail.

    `log` is the kernel's lines between the probe's begin and its result, without time stamps; `records` are the IPE records among them.
    """

    id: str
    errno: int
    error: str
    status: int
    detail: str
    log: tuple[str, ...] = ()
    records: tuple[AuditRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """What the probe program found when it began: texts as the kernel gives them, empty where it could not read them."""

    release: str
    machine: str
    enforce: str
    policy: str
    version: str
    success_audit: str
    audit: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """A whole run. `start` is None when the program never ran; `finished` false when it was cut short; `failed` says why it gave up."""

    start: Start | None
    reports: tuple[Report, ...]
    finished: bool
    failed: str = ""

    def report(self, probe_id: str) -> Report | None:
        """Returns the report of a probe, None when there is none."""
        return next((report for report in self.reports if report.id == probe_id), None)


def read_console(lines: Sequence[str]) -> Transcript:
    """Returns what the probe program said. A line of it that is damaged counts as not said: its probe then has no result."""
    start: Start | None = None
    reports: list[Report] = []
    finished, failed = False, ""
    log: list[str] = []
    for line in lines:
        text = _STAMP.sub("", line)
        said = _said(text)
        if said is None:
            if text and _DRAIN not in text:
                log.append(text)
        elif "start" in said:
            start = Start(*(str(said.get(name, "")) for name in Start.__dataclass_fields__))
        elif "begin" in said:
            log = []
        elif "id" in said:
            reports.append(_report(said, tuple(log)))
            log = []
        elif "failed" in said:
            failed = f"{said['failed']} {said.get('error', '')}".strip()
        elif "end" in said:
            finished = said["end"] == len(reports)
    return Transcript(start, tuple(reports), finished, failed)


def kernel_release(lines: Iterable[str]) -> str:
    """Returns the kernel's release from its banner, empty when the console has none."""
    return next((match[1] for line in lines if (match := _VERSION.search(line))), "")


def records_in(lines: Iterable[str]) -> tuple[AuditRecord, ...]:
    """Returns the IPE audit records in kernel log lines; lines that are cut off are left out."""
    found = []
    for line in lines:
        try:
            record = find_record(line)
        except FormatError:
            continue
        if record is not None:
            found.append(record)
    return tuple(found)


def _said(text: str) -> dict[str, object] | None:
    """Returns the JSON object of a line of the probe program, None for every other line."""
    if not text.startswith(MARK):
        return None
    try:
        value = json.loads(text[len(MARK) :])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _report(said: dict[str, object], log: tuple[str, ...]) -> Report:
    """Returns a probe's report."""
    errno, status = said.get("errno"), said.get("status")
    return Report(
        id=str(said["id"]),
        errno=errno if isinstance(errno, int) else -1,
        error=str(said.get("error", "?")),
        status=status if isinstance(status, int) else -1,
        detail=str(said.get("detail", "")),
        log=log,
        records=records_in(log),
    )
