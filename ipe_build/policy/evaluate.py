"""What a policy decides: the kernel's evaluation, restated. Source: Linux 6.12 security/ipe/eval.c, audit.c."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.model import Condition, Default, Policy, Rule
from ipe_build.policy.properties import Action, Operation

Enabled = Callable[[str], bool]
"""Says whether a Kconfig symbol (without CONFIG_) is on in the target kernel."""


def all_enabled(_symbol: str) -> bool:
    """Returns True: a kernel with every trust provider."""
    return True


@dataclass(frozen=True, slots=True)
class Miss:
    """A rule that was tried and did not match, and its first condition that did not hold."""

    rule: Rule
    condition: Condition
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the kernel does, the rule or default that says so, and the rules before it that did not match."""

    op: Operation
    action: Action
    by: Rule | Default
    misses: tuple[Miss, ...]

    @property
    def audit_rule(self) -> str:
        """Returns the text that the kernel's record 1420 has in `rule="…"`."""
        return audit_text(self.by)


def decide(policy: Policy, op: Operation, facts: Facts, enabled: Enabled = all_enabled) -> Rule | Default:
    """Returns the rule or default that decides: the first rule of the operation whose conditions all hold."""
    for rule in policy.rules:
        if rule.op is op and all(holds(condition, facts, enabled) for condition in rule.conditions):
            return rule
    return policy.default_of(op)


def holds(condition: Condition, facts: Facts, enabled: Enabled = all_enabled) -> bool:
    """Returns whether the file has the property; never, for TRUE and FALSE alike, where the kernel was built without it."""
    row = condition.property
    return (row.kconfig is None or enabled(row.kconfig)) and row.matches(facts, condition.value)


def evaluate(policy: Policy, op: Operation, facts: Facts, enabled: Enabled = all_enabled) -> Decision:
    """Returns the decision with the reasons why earlier rules of the operation did not match."""
    by = decide(policy, op, facts, enabled)
    misses = []
    for rule in policy.rules_of(op):
        if rule is by:
            break
        failed = next(condition for condition in rule.conditions if not holds(condition, facts, enabled))
        misses.append(Miss(rule, failed, _reason(failed, facts, enabled)))
    return Decision(op, by.action, by, tuple(misses))


def _reason(condition: Condition, facts: Facts, enabled: Enabled) -> str:
    """Returns why a condition does not hold, in words."""
    row = condition.property
    if row.kconfig is not None and not enabled(row.kconfig):
        return f"{condition} never matches: CONFIG_{row.kconfig} is off"
    if condition.value is False:
        return f"{row.meaning}, and the rule wants the contrary"
    if not facts.has_file:
        return f"{condition} needs a file, and there is none (memory or a buffer is judged)"
    if isinstance(condition.value, Digest):
        return _digest_reason(condition, facts)
    return f"it is not so that {row.meaning}"


def _digest_reason(condition: Condition, facts: Facts) -> str:
    """Returns why a digest does not match."""
    of_verity = condition.property.name == "dmverity_roothash"
    have = facts.root_hash if of_verity else facts.fsverity_digest
    what, where = ("root hash", "on no dm-verity volume") if of_verity else ("fs-verity digest", "without fs-verity")
    if have is None:
        return f"the file is {where}"
    assert isinstance(condition.value, Digest)
    if have.algorithm != condition.value.algorithm and have.value == condition.value.value:
        return f"the {what} is the same, but its algorithm is written {condition.value.algorithm.decode('latin-1')!r}"
    return f"the file's {what} is {have}"


def audit_text(by: Rule | Default) -> str:
    """Returns a rule as the kernel writes it into record 1420: an algorithm's name in quotes, digests in upper case."""
    if isinstance(by, Default):
        return str(by)
    return " ".join([f"op={by.op}", *map(_audit_condition, by.conditions), f"action={by.action}"])


def _audit_condition(condition: Condition) -> str:
    """Returns a condition as audit_rule() writes it."""
    if not isinstance(condition.value, Digest):
        return str(condition)
    name = condition.value.algorithm
    plain = all(0x21 <= byte <= 0x7E and byte != 0x22 for byte in name)
    shown = f'"{name.decode("ascii")}"' if plain else name.hex().upper()
    return f"{condition.property.name}={shown}:{condition.value.value.hex().upper()}"
