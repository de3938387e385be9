"""The linter: runs every lint rule that applies. The rules are rows in lint_text, lint_rules, lint_target and lint_image."""

from __future__ import annotations

from dataclasses import dataclass

from ipe_build.policy.findings import LintRule, PolicyFinding, Severity, Subject, Target
from ipe_build.policy.lint_image import IMAGE_RULES
from ipe_build.policy.lint_rules import RULE_RULES
from ipe_build.policy.lint_target import TARGET_RULES
from ipe_build.policy.lint_text import TEXT_RULES
from ipe_build.policy.parser import ParseResult, parse

RULES: tuple[LintRule, ...] = (*TEXT_RULES, *RULE_RULES, *TARGET_RULES, *IMAGE_RULES)
_SHOWN = 100
"""Most findings of one rule that are listed; one more says how many there are."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the kernel answers to a policy, and what a person should know; findings are in the order of their lines."""

    result: ParseResult
    findings: tuple[PolicyFinding, ...]

    @property
    def failed(self) -> bool:
        """Returns whether a finding is an error."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)


def check(text: bytes, target: Target | None = None) -> Report:
    """Returns the kernel's answer to a text and the linter's findings about it, for a target (by default Linux 6.12, as an update)."""
    target = target or Target()
    result = parse(text, target.kernel, target.role)
    return Report(result, lint(Subject(text, result, target)))


def lint(subject: Subject) -> tuple[PolicyFinding, ...]:
    """Returns the findings, by line, then by the rules' order."""
    target = subject.target
    groups = (
        (TEXT_RULES, True),
        (RULE_RULES, True),
        (TARGET_RULES, target.config is not None),
        (IMAGE_RULES, target.survey is not None),
    )
    found: list[PolicyFinding] = []
    for rules, applies in groups:
        for rule in rules if applies else ():
            if subject.result.policy is not None or not rule.needs_policy:
                found += _findings(rule, subject)
    found.sort(key=lambda finding: finding.line)
    return tuple(found)


def _findings(rule: LintRule, subject: Subject) -> list[PolicyFinding]:
    """Returns what one rule finds; a policy of thousands of equal mistakes gives a list that can be read."""
    found: list[PolicyFinding] = []
    more = 0
    for hit in rule.check(subject):
        if len(found) >= _SHOWN:
            more += 1
            continue
        column = hit.column or (subject.column(hit.line, hit.token) if hit.line and hit.token else int(hit.line > 0))
        found.append(PolicyFinding(rule.id, rule.severity, hit.line, column, hit.message, hit.hint or rule.hint))
    if more:
        found.append(PolicyFinding(rule.id, rule.severity, 0, 0, f"{more} more of these are not listed", rule.hint))
    return found
