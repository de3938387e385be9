"""What the linter says: severities, findings, and what it is told about the policy and its target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ipe_build.formats.dotconfig import DotConfig
from ipe_build.policy.evaluate import Enabled, all_enabled
from ipe_build.policy.model import Policy, PolicyVersion
from ipe_build.policy.parser import ParseResult, Role
from ipe_build.policy.survey import Survey
from ipe_build.policy.versions import DEFAULT_KERNEL, KernelVersion


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The kernel refuses the policy, or it cannot do what its text says."""
    WARNING = "warning"
    """It works and is probably not what was meant, or protects less than it seems."""
    NOTE = "note"
    """Something to know."""


@dataclass(frozen=True, slots=True)
class PolicyFinding:
    """One finding: the lint rule's id, the place (line and column from 1, in bytes; 0: the text as a whole), and words."""

    rule: str
    severity: Severity
    line: int
    column: int
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Target:
    """What is known of where the policy will live; whatever is None is not checked.

    `stem` is the policy file's name without its ending; `recorded` maps a policy's name to the last version of the ledger (and the
    text's SHA-256); `active` is the policy in force when this one is loaded; `survey` is what was found in the root filesystem.
    """

    kernel: KernelVersion = DEFAULT_KERNEL
    role: Role = Role.DEVICE
    config: DotConfig | None = None
    stem: str | None = None
    recorded: tuple[PolicyVersion, bytes] | None = None
    active: Policy | None = None
    survey: Survey | None = None

    @property
    def enabled(self) -> Enabled:
        """Returns whether a symbol is on; without a configuration every one is taken to be."""
        return self.config.enabled if self.config is not None else all_enabled


@dataclass(frozen=True, slots=True)
class Subject:
    """A policy under the linter: its bytes, what the kernel answers, its target. `lines` are split at LF."""

    text: bytes
    result: ParseResult
    target: Target

    @property
    def policy(self) -> Policy:
        """Returns the policy; rules that need one run only where the text parses."""
        assert self.result.policy is not None
        return self.result.policy

    def column(self, line: int, token: str) -> int:
        """Returns the column of a token in a line (from 1), 1 if the line spells it otherwise."""
        rows = self.text.split(b"\n", line)
        at = rows[line - 1].find(token.encode("latin-1", "replace")) if 0 < line <= len(rows) else -1
        return max(at, 0) + 1


class Hit(NamedTuple):
    """What a check yields: a place and words; without `column`, `token` is looked up in the line. An empty hint means the rule's."""

    line: int
    message: str
    token: str = ""
    hint: str = ""
    column: int = 0


class LintRule(NamedTuple):
    """A row: a stable id, a severity, what it is about, the usual hint, the check, and whether it needs a policy that parses."""

    id: str
    severity: Severity
    about: str
    hint: str
    check: Callable[[Subject], Iterable[Hit]]
    needs_policy: bool = True
