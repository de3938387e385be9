"""What a check says: one value a finding, the same for the terminal, JSON and later reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is when a check fails."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Verdict(StrEnum):
    """How a check came out. `UNKNOWN`: what it needs was not there to look at, so nothing is claimed."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's verdict: its stable id, what was looked at, why it came out so, and what to do."""

    check: str
    severity: Severity
    verdict: Verdict
    subject: str
    why: str
    hint: str = ""

    def to_json(self) -> dict[str, str]:
        """Returns the finding as JSON's values."""
        return {
            "check": self.check,
            "severity": str(self.severity),
            "verdict": str(self.verdict),
            "subject": self.subject,
            "why": self.why,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All findings about one image, in the order of the table of checks."""

    image: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Returns whether any check of severity error failed."""
        return any(one.verdict is Verdict.FAIL and one.severity is Severity.ERROR for one in self.findings)

    def to_json(self) -> dict[str, object]:
        """Returns the report as JSON's values: image, the counts by verdict, the findings."""
        return {
            "image": self.image,
            "verdict": "fail" if self.failed else "pass",
            "counts": {str(verdict): sum(one.verdict is verdict for one in self.findings) for verdict in Verdict},
            "findings": [one.to_json() for one in self.findings],
        }
