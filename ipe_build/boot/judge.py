"""Observed against expected: reports and consoles -> results. Nothing is run here."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ipe_build.boot.console import Report, Start, Transcript, read_console
from ipe_build.boot.damage import Damage
from ipe_build.boot.evidence import BootMeasurement, BootResult, ProbeMeasurement, ProbeResult
from ipe_build.boot.expectation import Expected, Outcome, Probe
from ipe_build.boot.qemu import Boot, Ended, Patch

APPLICATION_PROBE = "run-dynamic"
_TAIL_LINES = 20


def judge_probe(probe: Probe, report: Report | None, start: Start | None) -> ProbeResult:
    """Returns the result of a probe (resolved); no report counts as not as expected."""
    expected = probe.expected
    matching: list[str] = []
    if report is None:
        problems, observed, detail = ["the probe gave no result"], "no result", ""
    else:
        observed, detail = _observed(report), report.detail
        problems = _differences(expected, report)
        wanted = [w for w in expected.records if w.action != "ALLOW" or (start is not None and start.success_audit == "1")]
        for record in wanted:
            found = [item.text for item in report.records if record.matches(item)]
            matching += found[:1]
            if not found:
                problems.append(f"no audit record {record.describe()}")
    return ProbeResult(
        id=probe.id,
        what=probe.what,
        expected=describe_expected(expected),
        decided_by=expected.layer.value,
        why=expected.why,
        wanted_records=tuple(record.describe() for record in expected.records),
        observed=observed,
        detail=detail,
        problems=tuple(problems),
        skipped="",
        measured=ProbeMeasurement(tuple(matching), report.log if report else ()),
    )


def skipped_probe(probe: Probe, reason: str) -> ProbeResult:
    """Returns the result of a probe that was not tried."""
    expected = probe.expected
    return ProbeResult(
        id=probe.id,
        what=probe.what,
        expected=describe_expected(expected),
        decided_by=expected.layer.value,
        why=expected.why,
        wanted_records=tuple(record.describe() for record in expected.records),
        observed="",
        detail="",
        problems=(),
        skipped=reason,
        measured=ProbeMeasurement(),
    )


def describe_expected(expected: Expected) -> str:
    """Returns `allowed`, `denied: EACCES`, `denied: exit status 127`, `not covered: EIO or allowed`."""
    ways = [error for error in expected.errors if error] + ["allowed"] * ("" in expected.errors and not expected.status)
    if expected.status:
        ways.append(f"exit status {expected.status}")
    return expected.outcome.value if expected.outcome is Outcome.ALLOWED else f"{expected.outcome.value}: {' or '.join(ways)}"


def judge_damage(damage: Damage, boot: Boot, patches: Sequence[Patch], on_corruption: str) -> BootResult:
    """Returns the result of a destructive boot. `on_corruption` is what the image tells dm-verity to do: eio, panic or restart."""
    transcript = read_console(boot.console)
    proof = [line for line in boot.console if re.search(damage.proof, line)]
    problems = [] if proof else [f"no console line matches {damage.proof}"]
    problems += [f"the console says: {line}" for line in boot.console if damage.never and re.search(damage.never, line)]
    if boot.ended is Ended.TIMEOUT:
        problems.append("the machine hung until its time was up")
    observed: str
    more: list[str]
    if damage.firmware:
        observed, more = (damage.expected if proof else "it was not started"), []
    elif damage.runs_application:
        observed, more = _judge_application(transcript, on_corruption)
    else:
        observed, more = _judge_unreached(transcript, damage)
    proof += [line for line in boot.console if "ipe-init: FATAL" in line or "Kernel panic" in line]
    return BootResult(
        id=damage.id,
        what=damage.what,
        expected=damage.expected,
        why=damage.why,
        observed=observed,
        ended=boot.ended.value,
        changed=tuple(f"{patch.offset} {len(patch.data)}" for patch in patches),
        problems=(*problems, *more),
        skipped="",
        measured=BootMeasurement(tuple(proof), _tail(boot.console), round(boot.seconds, 1)),
    )


def skipped_damage(damage: Damage, reason: str) -> BootResult:
    """Returns the result of a destructive boot that was not tried."""
    nothing = BootMeasurement((), (), 0.0)
    return BootResult(damage.id, damage.what, damage.expected, damage.why, "", "", (), (), reason, nothing)


def _observed(report: Report) -> str:
    """Returns what came of a probe, in the words of `describe_expected`."""
    if report.errno:
        return f"denied: {report.error}"
    return "allowed" if report.status in (-1, 0) else f"denied: exit status {report.status}"


def _differences(expected: Expected, report: Report) -> list[str]:
    """Returns in words what is not as expected of a report, its records aside."""
    problems = []
    if report.error not in expected.errors or (expected.status is not None and not report.errno and report.status != expected.status):
        problems.append(f"expected {describe_expected(expected)}, observed {_observed(report)}")
    elif expected.status is None and report.status > 0 and not report.errno:
        problems.append(f"expected {describe_expected(expected)}, observed exit status {report.status}")
    if not problems and expected.detail and not re.search(expected.detail, report.detail):
        problems.append(f"expected a detail like {expected.detail!r}, got {report.detail!r}")
    if not problems and expected.message and not any(re.search(expected.message, line) for line in report.log):
        problems.append(f"the kernel did not say {expected.message!r}")
    return problems


def _judge_unreached(transcript: Transcript, damage: Damage) -> tuple[str, list[str]]:
    """Returns what was observed of a boot that must not reach the root's programs, and what is wrong."""
    if transcript.start is None and not transcript.failed:
        return damage.expected, []
    return "a program of the root ran", ["the probe program of the root was started"]


def _judge_application(transcript: Transcript, on_corruption: str) -> tuple[str, list[str]]:
    """Returns what was observed of the boot whose application is damaged, and what is wrong."""
    if transcript.start is None:
        return "no program of the root ran", ["the probe program of the root was not started"]
    control, damaged = transcript.report("run-program"), transcript.report(APPLICATION_PROBE)
    problems = [] if control is not None and not control.errno and control.status == 0 else ["an undamaged program did not run"]
    if on_corruption != "eio":
        observed = "the machine stopped when it was read" if damaged is None else _observed(damaged)
        return observed, problems + ([] if damaged is None and not transcript.finished else ["the machine went on"])
    if damaged is None:
        return "no result", [*problems, "the application's probe gave no result"]
    observed = f"its exec: {_observed(damaged)}; others run" if not problems else _observed(damaged)
    return observed, problems + ([] if damaged.error == "EIO" else [f"expected denied: EIO, observed {_observed(damaged)}"])


def _tail(console: Sequence[str]) -> tuple[str, ...]:
    """Returns the console's last lines that are not empty; after a panic, the last up to it (registers and addresses follow)."""
    lines = [line for line in console if line.strip()]
    panic = next((number for number, line in enumerate(lines, 1) if "Kernel panic - not syncing" in line), len(lines))
    return tuple(lines[:panic][-_TAIL_LINES:])
