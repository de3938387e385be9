"""A policy as values: what the parser makes and the renderer, linter, evaluator and differ read."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipe_build.policy.properties import Action, Operation, Property, Value


@dataclass(frozen=True, slots=True, order=True)
class PolicyVersion:
    """A policy's version, compared as the kernel does: three 16-bit numbers, the first counts most."""

    major: int
    minor: int
    revision: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.revision}"


@dataclass(frozen=True, slots=True)
class Condition:
    """One property of a rule and the value it must have."""

    property: Property
    value: Value

    def __str__(self) -> str:
        value = ("TRUE" if self.value else "FALSE") if isinstance(self.value, bool) else str(self.value)
        return f"{self.property.name}={value}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: it decides an operation when all its conditions hold (none: always). `line` counts from 1, 0 is nowhere."""

    op: Operation
    conditions: tuple[Condition, ...]
    action: Action
    line: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return " ".join([f"op={self.op}", *map(str, self.conditions), f"action={self.action}"])


@dataclass(frozen=True, slots=True)
class Default:
    """What happens when no rule of the operation matches; `op` None is the global default."""

    op: Operation | None
    action: Action
    line: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"DEFAULT action={self.action}" if self.op is None else f"DEFAULT op={self.op} action={self.action}"


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy. `name` is bytes, as the kernel takes any; rules are in the order of the text."""

    name: bytes
    version: PolicyVersion
    rules: tuple[Rule, ...]
    defaults: tuple[Default, ...]
    header_line: int = field(default=0, compare=False)

    @property
    def display_name(self) -> str:
        """Returns the name for people: bytes that are no UTF-8 are escaped."""
        return self.name.decode("utf-8", "backslashreplace")

    def rules_of(self, op: Operation) -> tuple[Rule, ...]:
        """Returns the rules of one operation, in the order in which the kernel tries them."""
        return tuple(rule for rule in self.rules if rule.op is op)

    def default_of(self, op: Operation) -> Default:
        """Returns the default that decides `op` when no rule matches: its own, else the global one."""
        own = next((row for row in self.defaults if row.op is op), None)
        return own or next(row for row in self.defaults if row.op is None)

    def to_text(self) -> bytes:
        """Returns the policy's text: header, global default, then per operation its default and rules; LF line ends.

        Parsing it gives an equal policy but for line numbers and the order of rules of different operations, which the kernel
        keeps in separate lists anyway. Algorithm names and policy names keep their bytes.
        """
        lines = [b"policy_name=%s policy_version=%s" % (self.name, str(self.version).encode())]
        lines += [str(row).encode() for row in self.defaults if row.op is None]
        for op in Operation:
            lines += [str(row).encode() for row in self.defaults if row.op is op]
            lines += [str(rule).encode("latin-1") for rule in self.rules if rule.op is op]
        return b"\n".join(lines) + b"\n"
