"""`ipe-build policy`: check, evaluate, render, diff, record, learn."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ipe_build.cli import Outcome
from ipe_build.cli.policy_answers import (
    configure_diff,
    configure_evaluate,
    configure_learn,
    configure_record,
    run_diff,
    run_evaluate,
    run_learn,
    run_record,
)
from ipe_build.cli.policy_common import (
    config_of,
    digest_word,
    encodable,
    existing_ledger,
    fact_options,
    kernel_of,
    load_policy,
    printable,
    shown,
    survey_of,
    target_options,
)
from ipe_build.errors import ExitStatus, UsageError
from ipe_build.host import Host
from ipe_build.policy.files import policy_files, read_policy
from ipe_build.policy.findings import Target
from ipe_build.policy.ledger import Ledger
from ipe_build.policy.lint import RULES, Report, check
from ipe_build.policy.model import PolicyVersion
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.render import PROFILES, VARIABLES, render


class _SubVerb(NamedTuple):
    """A row: the word, what adds its options, what runs it, one line of help."""

    name: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace, Host], Outcome]
    help: str


def configure(parser: ArgumentParser) -> None:
    """Adds the sub-verbs to the verb's parser."""
    subs = parser.add_subparsers(dest="subverb", metavar="SUBVERB", required=True)
    for row in _SUBVERBS:
        sub = subs.add_parser(row.name, help=row.help, description=f"{row.help[0].upper()}{row.help[1:]}.")
        row.configure(sub)


def run(arguments: Namespace, host: Host) -> Outcome:
    """Returns the outcome of the sub-verb that was asked for."""
    outcome = next(row for row in _SUBVERBS if row.name == arguments.subverb).run(arguments, host)
    return Outcome(encodable(outcome.value), printable(outcome.text), outcome.status)


def _configure_check(parser: ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE|DIR", help="policies: text, or signed ones (.p7b)")
    target_options(parser)
    fact_options(parser)
    parser.add_argument("--boot-policy", action="store_true", help="they are compiled into the kernel, not loaded")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="versions that went out: a policy must have a higher one")
    parser.add_argument(
        "--active", type=Path, metavar="FILE", help="the policy in force when they are loaded, for instance the boot policy"
    )
    parser.add_argument("--strict", action="store_true", help="warnings count as errors for the exit status")
    parser.add_argument("--list", action="store_true", help="print the lint rules and end")


def _run_check(arguments: Namespace, host: Host) -> Outcome:
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
    failing = {"error", "warning"} if arguments.strict else {"error"}
    values: list[dict[str, object]] = []
    lines: list[str] = []
    failed = False
    for path in policy_files(arguments.files):
        text = read_policy(path)
        report = check(text, Target(kernel, role, config, path.stem, _recorded(ledger, text), active, survey))
        failed = failed or any(finding.severity.value in failing for finding in report.findings)
        if arguments.json:
            values.append(_report_value(path, report))
        else:
            lines += _report_lines(path, report)
    return Outcome(values, "\n".join(lines), ExitStatus.FINDING if failed else ExitStatus.OK)


def _recorded(ledger: Ledger | None, text: bytes) -> tuple[PolicyVersion, bytes] | None:
    """Returns the last version that went out under the text's name, None where exactly this text is it."""
    policy = parse(text).policy if ledger is not None else None
    last = ledger.last(policy.name) if ledger is not None and policy is not None else None
    if last is None or last.sha256 == hashlib.sha256(text).digest():
        return None
    return last.version, last.sha256


def _report_value(path: Path, report: Report) -> dict[str, object]:
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


def _report_lines(path: Path, report: Report) -> list[str]:
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


def _configure_render(parser: ArgumentParser) -> None:
    parser.add_argument("template", nargs="?", metavar="TEMPLATE", help="a profile's name (see --list) or a jinja2 template's file")
    parser.add_argument("--list", action="store_true", help="print the profiles and the variables and end")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="a variable (repeatable)")
    parser.add_argument("--name", help="policy_name")
    parser.add_argument("--policy-version", metavar="A.B.C", help="policy_version")
    parser.add_argument("--role", choices=[role.value for role in Role], help="compiled into the kernel, or loaded later")
    parser.add_argument(
        "--root-hash",
        "--roothash",
        type=digest_word,
        action="append",
        default=[],
        metavar="ALG:HEX|FILE",
        help="a root hash, or a .roothash file (repeatable)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write it (default: stdout)")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")


def _run_render(arguments: Namespace, host: Host) -> Outcome:
    """Returns the rendered text."""
    if arguments.list:
        return _render_list()
    if arguments.template is None:
        raise UsageError("wanted a TEMPLATE, or --list", where="ipe-build policy render")
    variables: dict[str, object] = dict(_assignment(word) for word in arguments.set)
    named = {"name": arguments.name, "version": arguments.policy_version, "role": arguments.role}
    variables |= {name: value for name, value in named.items() if value is not None}
    if arguments.root_hash:
        variables["root_hashes"] = [str(digest) for digest in arguments.root_hash]
    text = render(arguments.template, variables)
    value = {"template": arguments.template, "text": text.decode(), "sha256": hashlib.sha256(text).hexdigest()}
    if arguments.output is None:
        return Outcome(value, text.decode().rstrip("\n"))
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_bytes(text)
    return Outcome(value | {"file": str(arguments.output)}, f"{arguments.output}: {len(text)} bytes")


def _render_list() -> Outcome:
    """Returns the profiles and variables."""
    profiles = [{"profile": row.name, "role": row.role.value, "allows": row.meaning} for row in PROFILES]
    variables = [{"variable": row.name, "needed": row.default is None, "help": row.help} for row in VARIABLES]
    lines = [f"{row['profile']:24} {row['role']:7} {row['allows']}" for row in profiles]
    lines += ["", *(f"{row['variable']:18} {row['help']}{' (needed)' if row['needed'] else ''}" for row in variables)]
    return Outcome({"profiles": profiles, "variables": variables}, "\n".join(lines))


def _assignment(word: str) -> tuple[str, str]:
    """Returns name and value of NAME=VALUE."""
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"wanted NAME=VALUE, got {word!r}", where="--set")
    return name, value


_SUBVERBS: tuple[_SubVerb, ...] = (
    _SubVerb("check", _configure_check, _run_check, "what the target kernel answers to policies, and what is wrong with them"),
    _SubVerb("evaluate", configure_evaluate, run_evaluate, "what a policy decides about a file, by which rule, and why"),
    _SubVerb("render", _configure_render, _run_render, "render a policy from a profile or a jinja2 template"),
    _SubVerb("diff", configure_diff, run_diff, "what a new policy allows and denies otherwise, and whether it is an update"),
    _SubVerb("record", configure_record, run_record, "enter the versions of policies that go out into the ledger"),
    _SubVerb("learn", configure_learn, run_learn, "explain denials of an audit log and propose rules"),
)
