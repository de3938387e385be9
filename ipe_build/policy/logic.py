"""What conditions imply and exclude: which rules can never match, and which are hidden by an earlier one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from ipe_build.policy.facts import Digest
from ipe_build.policy.model import Condition, Rule
from ipe_build.policy.properties import PROPERTY_OF_NAME

_BOOT = PROPERTY_OF_NAME["boot_verified"]
_NOT_INITRAMFS = Condition(_BOOT, False)
_INITRAMFS = Condition(_BOOT, True)
_OF_INITRAMFS = tuple(Condition(PROPERTY_OF_NAME[name], False) for name in ("dmverity_signature", "fsverity_signature"))


def implied(conditions: tuple[Condition, ...]) -> frozenset[Condition]:
    """Returns the conditions and what follows from them: the initramfs is in memory, on no block device and without fs-verity."""
    found = set(conditions)
    if _INITRAMFS in found:
        found.update(_OF_INITRAMFS)
    if any(condition.property is not _BOOT and condition.value is not False for condition in conditions):
        found.add(_NOT_INITRAMFS)
    return frozenset(found)


def contradiction(conditions: tuple[Condition, ...]) -> tuple[Condition, Condition] | None:
    """Returns two conditions that no file meets at once, the later one in the rule second; None where there are none."""
    seen: list[Condition] = []
    for condition in conditions:
        for other in seen:
            if _exclude(other, condition):
                return other, condition
        if condition not in seen:
            seen.append(condition)
    return None


def _exclude(one: Condition, other: Condition) -> bool:
    """Returns whether no file has both properties."""
    if one.property is other.property:
        return one.value != other.value
    return (one == _INITRAMFS and other.value is not False) or (other == _INITRAMFS and one.value is not False)


def hidden_rules(rules: tuple[Rule, ...], alive: Callable[[Rule], bool]) -> Iterator[tuple[Rule, Rule]]:
    """Yields (rule, earlier rule) where the earlier one, of the same operation, matches whenever the later one does.

    `alive` says whether a rule can match at all; a dead one hides nothing. Runs in near linear time: an earlier rule is looked up
    by its rarest condition.
    """
    counts = Counter(condition for rule in rules for condition in rule.conditions)
    by_condition: dict[Condition | None, list[tuple[frozenset[Condition], Rule]]] = {}
    seen: set[frozenset[Condition]] = set()
    for rule in rules:
        if not alive(rule):
            continue
        needs = implied(rule.conditions)
        candidates = (pair for key in (None, *needs) for pair in by_condition.get(key, ()))
        hiding = next((earlier for own, earlier in candidates if own <= needs), None)
        if hiding is not None:
            yield rule, hiding
            continue
        own = frozenset(rule.conditions)
        if own not in seen:
            seen.add(own)
            key = min(rule.conditions, key=counts.__getitem__) if own else None
            by_condition.setdefault(key, []).append((own, rule))


def is_digest(condition: Condition) -> bool:
    """Returns whether the condition pins a digest."""
    return isinstance(condition.value, Digest)
