"""An audit's findings as text for people."""

from __future__ import annotations

from ipe_build.audit.findings import Answer, AuditReport, Finding, Prediction, Severity, Verdict

_FAILED = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.NOTE: "·"}


def render_text(report: AuditReport) -> str:
    """Returns one line a check (✓ passed, ✗ error, ! warning, · note, ? not looked at), hints below the failed, and a last line."""
    return _render(report, report.findings)


def render_summary(report: AuditReport) -> str:
    """Returns the lines of errors, warnings and what could not be looked at, and the last line."""
    shown = tuple(one for one in report.findings if one.verdict is not Verdict.PASS and one.severity is not Severity.NOTE)
    return _render(report, shown)


def _render(report: AuditReport, findings: tuple[Finding, ...]) -> str:
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{_mark(finding)} {finding.check:<28} {finding.subject}: {finding.why}{_of_entries(report, finding)}")
        if finding.verdict is Verdict.FAIL and finding.hint:
            lines.append(f"    hint: {finding.hint}")
    lines += [_foreseen(one) for one in report.predictions]
    failed = [one.severity for one in report.findings if one.verdict is Verdict.FAIL]
    errors, warnings, notes = (failed.count(severity) for severity in Severity)
    unknown = sum(one.verdict is Verdict.UNKNOWN for one in report.findings)
    passed = len(report.findings) - len(failed) - unknown
    lines.append(f"audit of {report.image}: {errors} errors, {warnings} warnings, {notes} notes; {passed} passed, {unknown} not looked at")
    return "\n".join(lines)


def _of_entries(report: AuditReport, finding: Finding) -> str:
    """Returns the boot entries that a finding is true of, where that is not all of them."""
    some = 0 < len(finding.entries) < len(report.predictions)
    return f" [{', '.join(finding.entries)}]" if some else ""


_BOOTS = {Answer.YES: "boots", Answer.NO: "does not boot", Answer.UNKNOWN: "may boot"}
_ENFORCES = {Answer.YES: "enforces", Answer.NO: "does not enforce", Answer.UNKNOWN: "may enforce"}


def _foreseen(one: Prediction) -> str:
    """Returns a prediction as a line."""
    name = f"{one.entry}{' (default)' if one.default else ''}" if one.entry else "image"
    if one.boots is Answer.NO:
        return f"foreseen: {name} does not boot, it ends at the stage '{one.stage}': {one.why}"
    open_end = f" (not foreseen from the stage '{one.stage}' on: {one.why})" if one.boots is Answer.UNKNOWN else ""
    return f"foreseen: {name} {_BOOTS[one.boots]}{open_end} and {_ENFORCES[one.enforces]}: {one.enforces_why}"


def _mark(finding: Finding) -> str:
    """Returns the sign in front of a line."""
    if finding.verdict is Verdict.PASS:
        return "✓"
    return "?" if finding.verdict is Verdict.UNKNOWN else _FAILED[finding.severity]
