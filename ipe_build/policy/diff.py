"""What changes between two policies: not which lines differ, but which files are decided differently."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from ipe_build.errors import InputError
from ipe_build.policy.classes import Decider, FileClass, Group, file_classes
from ipe_build.policy.evaluate import Enabled, all_enabled, decide
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.model import Condition, Default, Policy, Rule
from ipe_build.policy.properties import OPERATIONS, PROPERTY_OF_NAME, Action, Operation

_MAX_CASES = 200_000
_ROOT = PROPERTY_OF_NAME["dmverity_roothash"]
_FILE = PROPERTY_OF_NAME["fsverity_digest"]


@dataclass(frozen=True, slots=True)
class Change:
    """Files of one kind that are decided otherwise by the new policy. `op` None: operations that only later kernels have."""

    op: Operation | None
    files: str
    old: Rule | Default | None
    new: Rule | Default | None
    weakens: bool
    cases: int

    @property
    def sentence(self) -> str:
        """Returns the change in words."""
        was, now = ("denied", "allowed") if self.weakens else ("allowed", "denied")
        what = self.op.value if self.op else "an operation that this kernel does not know"
        return f"{what} of {self.files}: was {was} by {_quoted(self.old)}, is now {now} by {_quoted(self.new)}"


@dataclass(frozen=True, slots=True)
class Difference:
    """All changes, weakening ones first, and whether the kernel takes the new policy as an update: None or its errno, and why."""

    changes: tuple[Change, ...]
    update_errno: str | None
    update_reason: str

    @property
    def weakens(self) -> bool:
        """Returns whether something that was denied becomes allowed."""
        return any(change.weakens for change in self.changes)


def compare(old: Policy, new: Policy, enabled: Enabled = all_enabled) -> Difference:
    """Returns what the new policy decides otherwise, and whether the kernel would take it as an update of the old one.

    Raises: InputError when the policies tell more kinds of files apart than can be compared one by one.
    """
    cases = list(islice(file_classes((old, new)), _MAX_CASES + 1))
    if len(cases) > _MAX_CASES:
        raise InputError(
            f"the policies tell more than {_MAX_CASES} kinds of files apart", where="policy diff", hint="pin fewer different digests"
        )
    found: dict[tuple[Operation, str, str], list[tuple[FileClass, Rule | Default, Rule | Default]]] = {}
    olds, news = Decider(old), Decider(new)
    for row in OPERATIONS:
        for case in cases:
            if case.facts.has_file or row.from_buffer:
                was, now = (_decide(policy, row.operation, case.facts, enabled) for policy in (olds, news))
                if was.action is not now.action:
                    found.setdefault((row.operation, _shape(was), _shape(now)), []).append((case, was, now))
    changes = [_change(op, rows) for (op, _was, _now), rows in found.items()]
    changes += _unknown_operations(old, new)
    errno, reason = update_answer(old, new)
    return Difference(tuple(sorted(changes, key=lambda change: not change.weakens)), errno, reason)


def update_answer(old: Policy, new: Policy) -> tuple[str | None, str]:
    """Returns what writing the new policy to policies/OLD/update gives: None or an errno, and a sentence. Source: ipe_update_policy()."""
    if old.name != new.name:
        active = "; activating it needs a version that is not lower (EINVAL)" if new.version < old.version else ""
        return (
            "EINVAL",
            f"the names differ ({old.display_name}, {new.display_name}): it is another policy, loaded through new_policy{active}",
        )
    if new.version <= old.version:
        return "ESTALE", f"version {new.version} is not higher than {old.version}"
    return None, f"the kernel takes it as an update: {old.version} to {new.version}"


def _decide(decider: Decider, op: Operation, facts: Facts, enabled: Enabled) -> Rule | Default:
    """Returns the rule or default that decides one case."""
    digests = ((_ROOT, facts.root_hash), (_FILE, facts.fsverity_digest))
    had = tuple(Condition(row, digest) for row, digest in digests if digest is not None)
    return decide(decider.candidates(op, had), op, facts, enabled)


def _shape(by: Rule | Default) -> str:
    """Returns a rule's text with digests left out, so that rules that differ in them alone are told together."""
    if isinstance(by, Default):
        return str(by)
    words = [f"{row.property.name}=…" if isinstance(row.value, Digest) else str(row) for row in by.conditions]
    return " ".join([f"op={by.op}", *words, f"action={by.action}"])


def _change(op: Operation, rows: list[tuple[FileClass, Rule | Default, Rule | Default]]) -> Change:
    """Returns one change of the cases that the same rules decide."""
    _case, was, now = rows[0]
    return Change(op, describe(tuple(case for case, _was, _now in rows)), was, now, now.action is Action.ALLOW, len(rows))


def _unknown_operations(old: Policy, new: Policy) -> list[Change]:
    """Returns the change for operations of later kernels, which the global default decides, and without one are allowed."""
    was, now = (next((row for row in policy.defaults if row.op is None), None) for policy in (old, new))
    old_action, new_action = (row.action if row is not None else Action.ALLOW for row in (was, now))
    if old_action is new_action:
        return []
    return [Change(None, "any file", was, now, new_action is Action.ALLOW, 1)]


def _quoted(by: Rule | Default | None) -> str:
    return f'"{by}"' if by is not None else "the lack of a DEFAULT action="


def describe(cases: tuple[FileClass, ...]) -> str:
    """Returns words for what the cases have in common."""
    facts = [case.facts for case in cases]
    if all(not one.has_file for one in facts):
        return "memory or a buffer, with no file behind it"
    files = [case for case in cases if case.facts.has_file]
    words = []
    if all(case.facts.boot_verified for case in files):
        words.append("in the initramfs")
    words += _volume_words(files) + _file_words(files)
    tail = ", and what has no file behind it" if len(files) < len(cases) else ""
    return ("files " + " and ".join(words) if words else "files of several kinds") + tail


def _volume_words(cases: list[FileClass]) -> list[str]:
    """Returns what the cases have in common about their volume."""
    if any(case.facts.boot_verified for case in cases):
        return []
    if all(case.facts.root_hash is None for case in cases):
        return ["on no dm-verity volume"]
    words = []
    if all(case.root.named for case in cases):
        words.append(_named("on a dm-verity volume with root hash", tuple(case.root for case in cases)))
    signed = {case.facts.root_hash_signed for case in cases}
    if len(signed) == 1:
        words.append(
            "on a dm-verity volume with a signed root hash" if signed == {True} else "not on a dm-verity volume with a signed root hash"
        )
    return words


def _file_words(cases: list[FileClass]) -> list[str]:
    """Returns what the cases have in common about fs-verity."""
    if any(case.facts.boot_verified for case in cases):
        return []
    if all(case.facts.fsverity_digest is None for case in cases):
        return ["without fs-verity"]
    words = []
    if all(case.file.named for case in cases):
        words.append(_named("with fs-verity digest", tuple(case.file for case in cases)))
    signed = {case.facts.fsverity_signed for case in cases}
    if len(signed) == 1:
        words.append("with a signed fs-verity digest" if signed == {True} else "without a signed fs-verity digest")
    return words


def _named(what: str, groups: tuple[Group, ...]) -> str:
    """Returns `what DIGEST`, or how many there are."""
    distinct = set(groups)
    total = sum(group.count for group in distinct)
    example = next(iter(groups)).example
    return f"{what} {example}" if total == 1 else f"{what} {example} or one of {total - 1} others"
