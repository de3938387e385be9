"""`ipe-build policy check`: what the target kernel answers to policies, and what is wrong with them."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.cli import Outcome
from ipe_build.cli.policy_common import config_of, existing_ledger, fact_options, kernel_of, load_policy, shown, survey_of, target_options
from ipe_build.errors import ExitStatus, UsageError
from ipe_build.host import Host
from ipe_build.policy.files import policy_files, read_policy
from ipe_build.policy.findings import Severity, Target
from ipe_build.policy.ledger import Ledger
from ipe_build.policy.lint import RULES, Report, check
from ipe_build.policy.model import PolicyVersion
from ipe_build.policy.parser import Role, parse


def configure_check(parser: ArgumentParser) -> None:
    """Adds the options of `policy check`."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE|DIR", help="policies: text, or signed ones (.p7b)")
    target_options(parser)
    fact_options(parser)
    parser.add_argument("--boot-policy", action="store_true", help="they are compiled into the kernel, not loaded")
    report_options(parser)
    parser.add_argument(
        "--active", type=Path, metavar="FILE", help="the policy in force when they are loaded, for instance the boot policy"
    )
    parser.add_argument("--list", action="store_true", help="print the lint rules and end")


def report_options(parser: ArgumentParser) -> None:
    """Adds the options of what is compared with, and what counts as an error."""
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="versions that went out: a policy must have a higher one")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors for the exit status")


def run_check(arguments: Namespace, host: Host) -> Outcome:
    """Returns one object a file, in the order given."""
    if arguments.list:
        rows = [{"rule": rule.id, "severity": rule.severity.value, "about": rule.about} for rule in RULES]
        return Outcome(rows, "\n".join(f"{row['severity']:8} {row['rule']:26} {row['about']}" for row in rows))
    if not arguments.files:
        raise UsageError("wanted at least one FILE or DIR", where="ipe-build policy check")
    config, kernel = config_of(arguments), kernel_of(arguments)
    role = Role.BOOT if arguments.boot_policy else Role.DEVICE
    ledger = existing_ledger(arguments.ledger) if arguments.ledger else None
    survey = survey_of(arguments, host)
    active = load_policy(arguments.active) if arguments.active else None
    values: list[dict[str, object]] = []
    lines: list[str] = []
    failed = False
    for path in policy_files(arguments.files):
        text = read_policy(path)
        report = check(text, Target(kernel, role, config, path.stem, recorded(ledger, text), active, survey))
        failed = failed or fails(report, strict=arguments.strict)
        if arguments.json:
            values.append(report_value(path, report))
        else:
            lines += report_lines(path, report)
    return Outcome(values, "\n".join(lines), ExitStatus.FINDING if failed else ExitStatus.OK)


def fails(report: Report, *, strict: bool) -> bool:
    """Returns whether the findings are a reason not to go on: errors, with `strict` warnings too."""
    failing = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    return any(finding.severity in failing for finding in report.findings)


def recorded(ledger: Ledger | None, text: bytes) -> tuple[PolicyVersion, bytes] | None:
    """Returns the last version that went out under the text's name, None where exactly this text is it."""
    policy = parse(text).policy if ledger is not None else None
    last = ledger.last(policy.name) if ledger is not None and policy is not None else None
    if last is None or last.sha256 == hashlib.sha256(text).digest():
        return None
    return last.version, last.sha256


def report_value(path: Path, report: Report) -> dict[str, object]:
    """Returns one file's object of `policy check --json`."""
    findings = [
        {
            "rule": finding.rule,
            "severity": finding.severity.value,
            "line": finding.line,
            "column": finding.column,
            "message": finding.message,
            "hint": finding.hint,
        }
        for finding in report.findings
    ]
    name = shown(path)
    return {"file": name, "accepted": report.result.accepted, "errno": report.result.errno, "findings": findings}


def report_lines(path: Path, report: Report) -> list[str]:
    """Returns one file's lines for people."""
    result = report.result
    name = shown(path)
    policy = f" ({result.policy.display_name} {result.policy.version})" if result.policy else ""
    lines = [f"{name}: {'accepted' if result.accepted else f'refused with {result.errno}'}{policy}"]
    for finding in report.findings:
        place = f"{name}:{finding.line}:{finding.column}" if finding.line else name
        lines.append(f"  {place}: {finding.severity}: {finding.message} [{finding.rule}]")
        if finding.hint:
            lines.append(f"    hint: {finding.hint}")
    return lines
