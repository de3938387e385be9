"""`ipe-build policy evaluate, diff, record, learn`: what a policy decides, what a new one changes, what a log teaches."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.cli import Outcome
from ipe_build.cli.policy_common import (
    begin_option,
    config_of,
    enabled_of,
    fact_options,
    facts_of,
    kernel_of,
    ledger_to_enter,
    load_policy,
    read_file,
    root_hashes_option,
    shown,
    survey_of,
    target_options,
)
from ipe_build.errors import ExitStatus, InputError, UsageError
from ipe_build.formats.audit_log import Log, read_log
from ipe_build.host import Host
from ipe_build.integrity.fsverity import FsVerityParameters, measure
from ipe_build.policy.classify import OPERATION_OF_KIND
from ipe_build.policy.diff import Change, compare
from ipe_build.policy.evaluate import Decision, decide, evaluate
from ipe_build.policy.facts import NO_FILE, Digest
from ipe_build.policy.files import read_policy
from ipe_build.policy.learn import Denial, Knowledge, Lesson, learn
from ipe_build.policy.ledger import render_ledger
from ipe_build.policy.model import Policy
from ipe_build.policy.properties import Operation
from ipe_build.policy.survey import Kind, Survey


def configure_evaluate(parser: ArgumentParser) -> None:
    """Adds the options of `evaluate`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the policy")
    parser.add_argument("--op", choices=[op.value for op in Operation], help="the operation")
    fact_options(parser)
    target_options(parser)


def run_evaluate(arguments: Namespace, host: Host) -> Outcome:
    """Returns the decision, the rule, and why the rules before it did not match."""
    policy = load_policy(arguments.file, kernel_of(arguments))
    found = survey_of(arguments, host)
    if found is not None:
        return _image_outcome(arguments, policy, found)
    if arguments.op is None:
        raise UsageError("wanted --op OPERATION, or --image IMAGE", where="ipe-build policy evaluate")
    decision = evaluate(policy, Operation(arguments.op), facts_of(arguments), enabled_of(arguments))
    return Outcome(_decision_value(arguments.file, decision), "\n".join(_decision_lines(arguments.file, decision)))


def _image_outcome(arguments: Namespace, policy: Policy, found: Survey) -> Outcome:
    """Returns the verdict for every file of an image: totals per operation, and the files."""
    enabled, config = enabled_of(arguments), config_of(arguments)
    files = []
    totals = {op.value: {"allow": 0, "deny": 0} for op in Operation}
    for entry in found.entries:
        op = OPERATION_OF_KIND[entry.kind]
        if arguments.op not in (None, op.value):
            continue
        unpacked_first = entry.kind is Kind.COMPRESSED_MODULE and config is not None and not config.enabled("MODULE_DECOMPRESS")
        by = decide(policy, op, NO_FILE if unpacked_first else entry.facts, enabled)
        totals[op.value][by.action.value.lower()] += 1
        files.append(
            {
                "path": f"/{entry.path}",
                "kind": entry.kind.value,
                "op": op.value,
                "action": by.action.value,
                "rule": str(by),
                "line": by.line,
            }
        )
    value = {
        "file": shown(arguments.file),
        "image": shown(arguments.image),
        "filesystem": found.filesystem,
        "totals": totals,
        "files": files,
    }
    lines = [f"{row['action']:5} {row['op']:12} {row['path']}   ({row['rule']})" for row in files]
    lines += [f"{op}: {count['allow']} allowed, {count['deny']} denied" for op, count in totals.items() if count["allow"] or count["deny"]]
    return Outcome(value, "\n".join(lines or ["no file that IPE is asked about"]))


def _decision_value(file: Path, decision: Decision) -> dict[str, object]:
    misses = [{"line": miss.rule.line, "rule": str(miss.rule), "reason": miss.reason} for miss in decision.misses]
    return {
        "file": shown(file),
        "op": decision.op.value,
        "action": decision.action.value,
        "rule": str(decision.by),
        "line": decision.by.line,
        "audit_rule": decision.audit_rule,
        "misses": misses,
    }


def _decision_lines(file: Path, decision: Decision) -> list[str]:
    head = f"{decision.op}: {decision.action} by {shown(file)}:{decision.by.line}: {decision.by}"
    return [head, *(f"  line {miss.rule.line} does not match: {miss.reason}\n    {miss.rule}" for miss in decision.misses)]


def configure_diff(parser: ArgumentParser) -> None:
    """Adds the options of `diff`."""
    parser.add_argument("old", type=Path, metavar="OLD", help="the policy in force")
    parser.add_argument("new", type=Path, metavar="NEW", help="the policy that should follow it")
    parser.add_argument("--allow-weakening", action="store_true", help="something that was denied may become allowed")
    target_options(parser)


def run_diff(arguments: Namespace, host: Host) -> Outcome:
    """Returns what changes, in words, and whether the kernel would take NEW as an update of OLD."""
    kernel = kernel_of(arguments)
    old, new = load_policy(arguments.old, kernel), load_policy(arguments.new, kernel)
    difference = compare(old, new, enabled_of(arguments))
    refused = difference.update_errno is not None or (difference.weakens and not arguments.allow_weakening)
    value = {
        "old": {"file": shown(arguments.old), "name": old.display_name, "version": str(old.version)},
        "new": {"file": shown(arguments.new), "name": new.display_name, "version": str(new.version)},
        "update": {"accepted": difference.update_errno is None, "errno": difference.update_errno, "reason": difference.update_reason},
        "weakens": difference.weakens,
        "changes": [_change_value(change) for change in difference.changes],
    }
    lines = [f"{'+ allowed' if change.weakens else '- denied'}: {change.sentence}" for change in difference.changes]
    lines = lines or ["nothing is decided differently"]
    lines.append(f"update: {f'refused with {difference.update_errno}, ' if difference.update_errno else ''}{difference.update_reason}")
    if difference.weakens and not arguments.allow_weakening:
        lines.append("NEW allows what OLD denies: say --allow-weakening if that is meant")
    return Outcome(value, "\n".join(lines), ExitStatus.FINDING if refused else ExitStatus.OK)


def _change_value(change: Change) -> dict[str, object]:
    """Returns one change for --json."""
    was, now = ("DENY", "ALLOW") if change.weakens else ("ALLOW", "DENY")
    return {
        "op": change.op.value if change.op else None,
        "files": change.files,
        "old": {"action": was, "rule": str(change.old) if change.old else None, "line": change.old.line if change.old else 0},
        "new": {"action": now, "rule": str(change.new) if change.new else None, "line": change.new.line if change.new else 0},
        "weakens": change.weakens,
        "sentence": change.sentence,
    }


def configure_record(parser: ArgumentParser) -> None:
    """Adds the options of `record`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="policies that go out")
    parser.add_argument("--ledger", type=Path, required=True, metavar="FILE", help="the ledger")
    begin_option(parser)


def run_record(arguments: Namespace, host: Host) -> Outcome:
    """Returns the versions that were entered into the ledger."""
    policies = [(path, load_policy(path)) for path in arguments.files]
    ledger = ledger_to_enter(arguments.ledger, (policy.name for _, policy in policies), begin=arguments.begin)
    rows = []
    for path, policy in policies:
        ledger = ledger.record(policy, read_policy(path))
        rows.append({"file": shown(path), "name": policy.display_name, "version": str(policy.version)})
    with host.output(arguments.ledger, force=True) as temporary:
        temporary.write_bytes(render_ledger(ledger))
    return Outcome(rows, "\n".join(f"{row['name']} {row['version']} is recorded" for row in rows))


def configure_learn(parser: ArgumentParser) -> None:
    """Adds the options of `learn`."""
    parser.add_argument(
        "logs", nargs="+", type=Path, metavar="AUDITLOG", help="dmesg, journalctl -k, journalctl -o json, audit.log; - is stdin"
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="the policy that was in force")
    root_hashes_option(parser, "root hash of a volume")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the device's files: fs-verity digests are made of those denied")
    parser.add_argument("--last-resort", action="store_true", help="also propose rules that let unverified things through (=FALSE)")


def run_learn(arguments: Namespace, host: Host) -> Outcome:
    """Returns each denial explained, and rules to add."""
    logs = [(path, read_log(read_file(path))) for path in arguments.logs]
    if arguments.root is not None and not arguments.root.is_dir():
        raise InputError("wanted the folder of the device's files", where=f"--root {arguments.root}", hint="a mounted or unpacked root")

    def file_digest(path: str) -> Digest | None:
        place = None if arguments.root is None else arguments.root / path.lstrip("/")
        if place is None or ".." in place.parts or "\0" in path or place.is_symlink() or not place.is_file():
            return None
        return Digest(b"sha256", measure(place, FsVerityParameters(), host).digest)

    policy = load_policy(arguments.policy) if arguments.policy else None
    knowledge = Knowledge(policy, tuple(arguments.root_hash), file_digest, arguments.last_resort)
    lesson = learn((record for _path, log in logs for record in log.records), knowledge)
    return Outcome(_lesson_value(lesson, logs), "\n".join(_lesson_lines(lesson, logs)))


def _lesson_value(lesson: Lesson, logs: list[tuple[Path, Log]]) -> dict[str, object]:
    """Returns the lesson for --json."""
    return {
        "records": sum(len(log.records) for _path, log in logs),
        "skipped": [{"file": shown(path), "line": row.line, "reason": row.reason} for path, log in logs for row in log.skipped],
        "events": list(lesson.events),
        "denials": [_denial_value(denial) for denial in lesson.denials],
        "rules": [str(rule) for rule in lesson.rules],
    }


def _denial_value(denial: Denial) -> dict[str, object]:
    access = denial.access
    return {
        "op": access.op,
        "hook": access.hook,
        "path": access.path,
        "dev": access.dev,
        "comm": access.comm,
        "count": denial.count,
        "enforcing": access.enforcing,
        "rule": access.rule,
        "sentence": denial.sentence,
        "fix": denial.fix,
        "proposals": [{"rule": str(row.rule), "trust": row.trust.name.lower()} for row in denial.proposals],
    }


def _lesson_lines(lesson: Lesson, logs: list[tuple[Path, Log]]) -> list[str]:
    """Returns the lesson for people."""
    lines = [f"{shown(path)}:{row.line}: cannot be read: {row.reason}" for path, log in logs for row in log.skipped]
    lines += [f"* {event}" for event in lesson.events]
    for denial in lesson.denials:
        lines += [f"* {denial.sentence}", f"    fix: {denial.fix}"]
        lines += [f"    or allow it: {row.rule}   ({row.trust.name.lower().replace('_', ' ')})" for row in denial.proposals]
    if lesson.rules:
        lines += ["", "# rules to add, best trusted first:", *(str(rule) for rule in lesson.rules)]
    return lines or ["no records of IPE"]
