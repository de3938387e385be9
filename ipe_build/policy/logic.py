"""What conditions imply and exclude: which rules can never match, and which are hidden by an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

from ipe_build.policy.facts import Digest
from ipe_build.policy.model import Condition, Rule
from ipe_build.policy.properties import PROPERTY_OF_NAME

_BOOT = PROPERTY_OF_NAME["boot_verified"]
_NOT_INITRAMFS = Condition(_BOOT, False)
_INITRAMFS = Condition(_BOOT, True)
_OF_INITRAMFS = tuple(Condition(PROPERTY_OF_NAME[name], False) for name in ("dmverity_signature", "fsverity_signature"))


def implied(conditions: tuple[Condition, ...]) -> frozenset[Condition]:
    """Returns the conditions and what follows from them: the initramfs is in memory, on no block device and without fs-verity."""
    extra = [_NOT_INITRAMFS for condition in conditions if condition.property is not _BOOT and condition.value is not False]
    if _INITRAMFS in conditions:
        extra += _OF_INITRAMFS
    return frozenset((*conditions, *extra))


def contradiction(conditions: tuple[Condition, ...]) -> tuple[Condition, Condition] | None:
    """Returns two conditions that no file meets at once, the later one in the rule second; None where there are none."""
    if len(conditions) < 2:
        return None
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

    `alive` says whether a rule can match at all, so that it has one digest of a property at most; a dead one hides nothing. Linear in
    the rules: earlier ones are looked up by their digests, of which a rule has at most as many as there are properties with digests,
    and there are few sets of TRUE and FALSE.
    """
    seen: dict[tuple[Condition, ...], list[tuple[frozenset[Condition], Rule]]] = {}
    for rule in rules:
        if not alive(rule):
            continue
        own = frozenset(rule.conditions)
        digests = tuple(sorted((row for row in own if isinstance(row.value, Digest)), key=_property_name))
        needs = implied(rule.conditions)
        hiding = next((first for key in _subsets(digests) for has, first in seen.get(key, ()) if has <= needs), None)
        if hiding is not None:
            yield rule, hiding
        else:
            seen.setdefault(digests, []).append((own, rule))


def _property_name(condition: Condition) -> str:
    return condition.property.name


def _subsets(digests: tuple[Condition, ...]) -> Iterator[tuple[Condition, ...]]:
    """Yields every selection of a rule's digests, in their order; the empty one first."""
    for size in range(len(digests) + 1):
        yield from combinations(digests, size)
