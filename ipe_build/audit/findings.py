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
    """One check's verdict: its stable id, what was looked at, why it came out so, and what to do.

    `entries` names the boot entries that it is true of; empty for what is true of the image whatever starts.
    """

    check: str
    severity: Severity
    verdict: Verdict
    subject: str
    why: str
    hint: str = ""
    entries: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Returns the finding as JSON's values."""
        return {
            "check": self.check,
            "severity": str(self.severity),
            "verdict": str(self.verdict),
            "subject": self.subject,
            "why": self.why,
            "hint": self.hint,
            "entries": list(self.entries),
        }


class Answer(StrEnum):
    """A yes or a no, or that what is needed to tell was not there."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Stage(StrEnum):
    """How far a boot comes: the stage in which it ends, in order. `RUNS` is none of them: the first program of the root has started."""

    FIRMWARE = "boot loader"
    KERNEL = "kernel"
    INITRAMFS = "first program of the initramfs"
    IPE = "IPE before the root"
    VERITY = "verity root"
    MOUNT = "mounting the root"
    POLICY = "device policy"
    INIT = "first program of the root"
    RUNS = "runs"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a boot entry is foreseen to do when it is started.

    `stage` is where it ends (`RUNS` when it boots; where telling ends, when `boots` is unknown), `why` says the reason. `enforces` is
    about the system once it runs: IPE denies a program that nothing vouches for. It is unknown where it does not boot.
    """

    entry: str
    kind: str
    default: bool
    boots: Answer
    stage: Stage
    why: str
    enforces: Answer
    enforces_why: str

    def to_json(self) -> dict[str, object]:
        """Returns the prediction as JSON's values."""
        return {
            "name": self.entry,
            "kind": self.kind,
            "default": self.default,
            "boots": str(self.boots),
            "stage": str(self.stage),
            "why": self.why,
            "enforces": str(self.enforces),
            "enforces_why": self.enforces_why,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All findings about one image, in the order of the table of checks; what its boot entries are foreseen to do, the default first."""

    image: str
    findings: tuple[Finding, ...]
    predictions: tuple[Prediction, ...] = ()
    sealed: bool = False

    @property
    def failed(self) -> bool:
        """Returns whether any check of severity error failed."""
        return any(one.verdict is Verdict.FAIL and one.severity is Severity.ERROR for one in self.findings)

    def to_json(self) -> dict[str, object]:
        """Returns the report as JSON's values: image, the counts by verdict, the predictions, the findings."""
        return {
            "image": self.image,
            "verdict": "fail" if self.failed else "pass",
            "sealed": self.sealed,
            "entries": [one.to_json() for one in self.predictions],
            "counts": {str(verdict): sum(one.verdict is verdict for one in self.findings) for verdict in Verdict},
            "findings": [one.to_json() for one in self.findings],
        }
