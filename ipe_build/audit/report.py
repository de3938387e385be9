"""An audit's findings as text for people."""

from __future__ import annotations

from ipe_build.audit.findings import AuditReport, Finding, Severity, Verdict

_FAILED = {Severity.ERROR: "✗", Severity.WARNING: "!", Severity.NOTE: "·"}


def render_text(report: AuditReport) -> str:
    """Returns one line a check (✓ passed, ✗ error, ! warning, · note, ? not looked at), hints below the failed, and a last line."""
    lines: list[str] = []
    for finding in report.findings:
        lines.append(f"{_mark(finding)} {finding.check:<28} {finding.subject}: {finding.why}")
        if finding.verdict is Verdict.FAIL and finding.hint:
            lines.append(f"    hint: {finding.hint}")
    failed = sum(one.verdict is Verdict.FAIL for one in report.findings)
    unknown = sum(one.verdict is Verdict.UNKNOWN for one in report.findings)
    passed = len(report.findings) - failed - unknown
    lines.append(f"{report.image}: {passed} passed, {failed} failed, {unknown} could not be looked at")
    return "\n".join(lines)


def _mark(finding: Finding) -> str:
    """Returns the sign in front of a line."""
    if finding.verdict is Verdict.PASS:
        return "✓"
    return "?" if finding.verdict is Verdict.UNKNOWN else _FAILED[finding.severity]
