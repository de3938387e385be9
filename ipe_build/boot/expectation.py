"""What a probe is: what is tried, what must come of it, who decides, which audit records must appear; and what an image makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from ipe_build.formats.audit_record import Access, AuditRecord, EnforceChange, PolicyActivation, PolicyLoad


class Outcome(StrEnum):
    """What comes of a probe."""

    ALLOWED = "allowed"
    DENIED = "denied"
    NOT_COVERED = "not covered"
    """IPE has no say in this: the row shows what a policy does not protect from."""


class Layer(StrEnum):
    """Who decides."""

    IPE = "IPE"
    MODULE_SIGNATURE = "module signature"
    POLICY_SIGNATURE = "policy signature"
    POLICY_VERSION = "policy version"
    CAPABILITY = "dropped capability"
    NOBODY = "nobody"
    HARDENING = "kernel hardening"
    IMA = "IMA appraisal"


class Need(StrEnum):
    """What a probe needs beside the probe program; where it is missing, the probe is reported as skipped, with the reason."""

    MODULES = "modules"
    POLICY = "policy"
    OLDER_POLICY = "older policy"
    NEWER_POLICY = "newer policy"
    OTHER_POLICY = "other policy"
    APPLICATION = "application"
    INTERPRETER = "interpreter"
    FINAL_POLICY = "final policy"
    FROZEN_INITRAMFS = "frozen initramfs"
    SIGNED_MODULE = "signed module"
    FOREIGN_POLICY = "foreign policy"


@dataclass(frozen=True, slots=True)
class WantedRecord:
    """An IPE audit record that must appear while the probe runs; empty fields match everything."""

    op: str = ""
    hook: str = ""
    action: str = ""
    dev: str | None = None
    path: str | None = None
    loads: str = ""
    activates: str = ""
    enforcing: bool | None = None

    def matches(self, record: AuditRecord) -> bool:
        """Returns whether a record is such a one."""
        match record.event:
            case Access() as event:
                same = (event.op, event.hook, event.action) == (self.op, self.hook, self.action)
                return same and self.dev in (None, event.dev) and self.path in (None, event.path)
            case PolicyLoad() as event:
                return bool(self.loads) and event.success and event.policy is not None and event.policy.version == self.loads
            case PolicyActivation() as event:
                return bool(self.activates) and event.success and event.new.version == self.activates
            case EnforceChange() as event:
                return event.enforcing == self.enforcing
        return False

    def describe(self) -> str:
        """Returns the record in words, as the kernel would name its fields."""
        parts = {"ipe_op": self.op, "ipe_hook": self.hook, "action": self.action, "dev": self.dev, "path": self.path}
        parts |= {"policy_version": self.loads, "new_active_pol_version": self.activates}
        text = " ".join(f"{name}={value}" for name, value in parts.items() if value)
        return text if self.enforcing is None else f"enforcing={int(self.enforcing)}"


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come of a probe. `errors` are the errno names that count as that outcome ("" = none failed).

    `detail` and `message` are regular expressions: for the probe's own detail, and for a line of the kernel log.
    """

    outcome: Outcome
    layer: Layer
    why: str
    errors: tuple[str, ...] = ("",)
    status: int | None = None
    detail: str = ""
    message: str = ""
    records: tuple[WantedRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """A row: `what` is a sentence's end for people; `plan` is KIND and arguments of the probe program, with {words} of `Facts`.

    `capability` is what the kernel demands of the caller for this operation: where the image dropped it, EPERM is expected instead.
    `keyless` is what must come of it where the kernel has no key at all, when that differs; `appraised` where IMA appraises mapped code.
    """

    id: str
    what: str
    plan: tuple[str, ...]
    expected: Expected
    needs: tuple[Need, ...] = ()
    capability: str = ""
    keyless: Expected | None = None
    appraised: Expected | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of the image. `words` replaces {name} in plans; a plan field that is one {name} becomes as many fields as words."""

    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: dict[Need, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    keyless: bool = False
    appraised: bool = False


def resolve(probe: Probe, facts: Facts) -> Probe | str:
    """Returns the probe as it is for this image, its words filled in, or the reason why it is skipped.

    Where the image dropped the capability that the operation takes, the kernel must say EPERM, whatever the row expects otherwise.
    """
    for need in probe.needs:
        if need in facts.missing:
            return facts.missing[need]
    expected = probe.keyless if facts.keyless and probe.keyless is not None else probe.expected
    if facts.appraised and probe.appraised is not None:
        expected = probe.appraised
    if probe.capability and probe.capability in facts.dropped:
        expected = Expected(Outcome.DENIED, Layer.CAPABILITY, f"no process of the device has {probe.capability}", ("EPERM",))
    plan = tuple(word for item in probe.plan for word in _fill_field(item, facts))
    return replace(probe, plan=plan, expected=_fill_expected(expected, facts))


def _fill_field(item: str, facts: Facts) -> tuple[str, ...]:
    """Returns a plan's field with its words in place; a field that is one {name} may become several."""
    if item.startswith("{") and item.endswith("}"):
        return facts.words[item[1:-1]]
    return (_fill(item, facts),)


def _fill(text: str, facts: Facts) -> str:
    """Returns a text with {name} replaced by the fact's one word."""
    for name, words in facts.words.items():
        text = text.replace(f"{{{name}}}", " ".join(words))
    return text


def _fill_path(path: str | None, facts: Facts) -> str | None:
    return None if path is None else _fill(path, facts)


def _fill_expected(expected: Expected, facts: Facts) -> Expected:
    """Returns the expectation with the facts' words in place."""
    records = tuple(
        replace(r, path=_fill_path(r.path, facts), loads=_fill(r.loads, facts), activates=_fill(r.activates, facts))
        for r in expected.records
    )
    return replace(expected, why=_fill(expected.why, facts), detail=_fill(expected.detail, facts), records=records)
