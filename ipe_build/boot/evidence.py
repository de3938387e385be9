"""Evidence: what was booted, what was expected of it, what came of it. Values, JSON and a table; docs/boot.md documents the JSON.

Everything that differs from run to run (times, process and inode numbers, console text) is under keys named `measured`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

SCHEMA = "ipe-build.evidence/1"


@dataclass(frozen=True, slots=True)
class ProbeMeasurement:
    """What may differ from run to run: the audit records that were expected and came (`records`), and all the kernel said meanwhile."""

    records: tuple[str, ...] = ()
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A probe. `problems` says why the result is not as expected; `skipped` why it was not tried (it then counts as neither)."""

    id: str
    what: str
    expected: str
    decided_by: str
    why: str
    wanted_records: tuple[str, ...]
    observed: str
    detail: str
    problems: tuple[str, ...]
    skipped: str
    measured: ProbeMeasurement

    @property
    def as_expected(self) -> bool:
        """Returns whether it came out as expected; false for a skipped one."""
        return not self.problems and not self.skipped


@dataclass(frozen=True, slots=True)
class BootMeasurement:
    """What may differ from run to run. `proof` is the console lines that show how far the boot came, `tail` its last lines."""

    proof: tuple[str, ...]
    tail: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class BootResult:
    """A boot of a damaged copy. `changed` says which bytes of the disk differ, as `offset length` in decimal."""

    id: str
    what: str
    expected: str
    why: str
    observed: str
    ended: str
    changed: tuple[str, ...]
    problems: tuple[str, ...]
    skipped: str
    measured: BootMeasurement

    @property
    def as_expected(self) -> bool:
        """Returns whether it came out as expected; false for a skipped one."""
        return not self.problems and not self.skipped


@dataclass(frozen=True, slots=True)
class Subject:
    """What was booted: names, digests in hex, the command lines; `policy` is `NAME VERSION` as the kernel gave it when the probes began."""

    image: str
    image_bytes: int
    image_sha256: str
    kernel_sha256: str
    initrd_sha256: str
    kernel_release: str
    command_line: str
    probe_command_line: str
    policy: str
    enforcing: bool
    emulator: str
    accelerator: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """The whole result. `seconds` is the wall time of all boots together."""

    subject: Subject
    probes: tuple[ProbeResult, ...]
    boots: tuple[BootResult, ...]
    problems: tuple[str, ...]
    seconds: float

    @property
    def results(self) -> tuple[ProbeResult | BootResult, ...]:
        """Returns the results of probes and boots in one row."""
        return (*self.probes, *self.boots)

    @property
    def as_expected(self) -> bool:
        """Returns whether the probes ran to their end and nothing came out otherwise than expected."""
        return not self.problems and not any(result.problems for result in self.results)


def evidence_value(evidence: Evidence) -> dict[str, object]:
    """Returns the evidence as a JSON value (docs/boot.md)."""
    return {
        "schema": SCHEMA,
        "as_expected": evidence.as_expected,
        "subject": asdict(evidence.subject),
        "problems": list(evidence.problems),
        "probes": [_result_value(result) for result in evidence.probes],
        "boots": [_result_value(result) for result in evidence.boots],
        "measured": {"seconds": round(evidence.seconds, 1)},
    }


def evidence_table(evidence: Evidence) -> str:
    """Returns the evidence as text for people: a table of probes, a table of boots, what is wrong, and the sum."""
    subject = evidence.subject
    lines = [
        f"image    {subject.image}  sha256:{subject.image_sha256}",
        f"kernel   {subject.kernel_release}  {subject.emulator} ({subject.accelerator})",
        f"policy   {subject.policy}  enforcing: {'yes' if subject.enforcing else 'no'}",
        "",
    ]
    rows: list[tuple[str, ...]] = [("", "probe", "what is tried", "expected", "observed", "decided by")]
    rows += [(_mark(r), r.id, r.what, r.expected, _seen(r), r.decided_by) for r in evidence.probes]
    lines += _aligned(rows)
    if evidence.boots:
        rows = [("", "boot of a copy", "what is changed", "expected", "observed", "")]
        rows += [(_mark(r), r.id, r.what, r.expected, _seen(r), "") for r in evidence.boots]
        lines += ["", *_aligned(rows)]
    lines += ["", *_remarks(evidence), _sum(evidence)]
    return "\n".join(lines)


def _result_value(result: ProbeResult | BootResult) -> dict[str, object]:
    """Returns a result as JSON, its verdict first."""
    verdict = "skipped" if result.skipped else "as expected" if result.as_expected else "not as expected"
    return {"verdict": verdict, **asdict(result)}


def _mark(result: ProbeResult | BootResult) -> str:
    return "-" if result.skipped else "✓" if result.as_expected else "✗"


def _seen(result: ProbeResult | BootResult) -> str:
    return "skipped" if result.skipped else result.observed


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Returns rows as lines with columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _remarks(evidence: Evidence) -> list[str]:
    """Returns a line for everything that went wrong or was skipped."""
    lines = [f"✗ {problem}" for problem in evidence.problems]
    for result in evidence.results:
        lines += [f"✗ {result.id}: {problem}" for problem in result.problems]
    for reason in dict.fromkeys(result.skipped for result in evidence.results if result.skipped):
        names = [result.id for result in evidence.results if result.skipped == reason]
        lines.append(f"- skipped, {reason}: {', '.join(names)}")
    return lines


def _sum(evidence: Evidence) -> str:
    """Returns the last line."""
    results = evidence.results
    good = sum(result.as_expected for result in results)
    bad = sum(bool(result.problems) for result in results)
    skipped = len(results) - good - bad
    return f"{good} as expected, {bad} not as expected, {skipped} skipped; {evidence.seconds:.0f} s of booting"
