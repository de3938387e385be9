"""Every kind of file that two policies can tell apart: the cases that a comparison has to look at.

Digests that stand in the same places of both policies' rules are one case, so a thousand pinned files are compared once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.model import Condition, Policy, Rule
from ipe_build.policy.properties import Operation

_OTHER_ROOT = Digest(b"", b"another root hash")
_OTHER_FILE = Digest(b"", b"another fs-verity digest")


@dataclass(frozen=True, slots=True)
class Group:
    """Digests that no rule of either policy treats differently; `example` stands for all of them, None for none at all."""

    example: Digest | None
    count: int
    named: bool
    """Whether the policies name them; otherwise it is the case of any other digest."""


@dataclass(frozen=True, slots=True)
class FileClass:
    """A case: facts that stand for every file like that, and the groups that its digests come from."""

    facts: Facts
    root: Group
    file: Group


_NONE = Group(None, 0, False)


def digest_groups(policies: tuple[Policy, ...], name: str, other: Digest) -> tuple[Group, ...]:
    """Returns the groups of the digests that the policies name for a property, with the cases `another one` and `none`."""
    places: dict[Digest, list[tuple[int, int]]] = {}
    for number, policy in enumerate(policies):
        for op in Operation:
            run, shape = 0, None
            for rule in policy.rules_of(op):
                mine = [condition for condition in rule.conditions if condition.property.name == name]
                now = (rule.action, tuple(condition for condition in rule.conditions if condition not in mine), len(set(mine)))
                if now != shape or len(set(mine)) != 1:
                    run, shape = run + 1, now
                for condition in mine:
                    if isinstance(condition.value, Digest):
                        places.setdefault(condition.value, []).append((number * len(Operation) + list(Operation).index(op), run))
    groups: dict[tuple[tuple[int, int], ...], list[Digest]] = {}
    for digest, where in places.items():
        groups.setdefault(tuple(dict.fromkeys(where)), []).append(digest)
    named = tuple(Group(digests[0], len(digests), True) for digests in groups.values())
    return (*named, Group(other, 1, False), _NONE)


def file_classes(policies: tuple[Policy, ...]) -> Iterator[FileClass]:
    """Yields every case: no file, the initramfs, and all combinations of root hash, fs-verity digest and their signatures."""
    yield FileClass(Facts(has_file=False), _NONE, _NONE)
    yield FileClass(Facts(boot_verified=True), _NONE, _NONE)
    files = digest_groups(policies, "fsverity_digest", _OTHER_FILE)
    for root in digest_groups(policies, "dmverity_roothash", _OTHER_ROOT):
        for root_signed in _signed(root):
            for file in files:
                for file_signed in _signed(file):
                    facts = Facts(True, False, root.example, root_signed, file.example, file_signed)
                    yield FileClass(facts, root, file)


def _signed(group: Group) -> tuple[bool, ...]:
    """Returns the cases of a signature: there is none without the thing it signs."""
    return (True, False) if group.example is not None else (False,)


class Decider:
    """A policy prepared for many questions: only rules without digests, or with a digest the file has, are tried."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._plain: dict[Operation, list[tuple[int, Rule]]] = {op: [] for op in Operation}
        self._pinned: dict[tuple[Operation, Condition], list[tuple[int, Rule]]] = {}
        self._made: dict[tuple[Operation, tuple[Condition, ...]], Policy] = {}
        for index, rule in enumerate(policy.rules):
            digest = next((condition for condition in rule.conditions if isinstance(condition.value, Digest)), None)
            rows = self._plain[rule.op] if digest is None else self._pinned.setdefault((rule.op, digest), [])
            rows.append((index, rule))

    def candidates(self, op: Operation, conditions: tuple[Condition, ...]) -> Policy:
        """Returns the policy with only the rules that a file with these digests can match, in their order."""
        made = self._made.get((op, conditions))
        if made is None:
            rows = list(self._plain[op])
            for condition in conditions:
                rows += self._pinned.get((op, condition), [])
            rules = tuple(rule for _index, rule in sorted(rows, key=_index_of))
            made = Policy(self._policy.name, self._policy.version, rules, self._policy.defaults, self._policy.header_line)
            self._made[op, conditions] = made
        return made


def _index_of(row: tuple[int, Rule]) -> int:
    return row[0]
