"""The check of policies against the ledger: which versions went out before, and with which text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.policies import signed_policies
from ipe_build.policy.parser import Role, parse

if TYPE_CHECKING:
    from ipe_build.host import Host


def policy_ledger(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the ledger (--ledger) allows each device policy: its last version with this very text, or a higher one."""
    if facts.ledger is None:
        yield unknown("ledger", "not looked at: give --ledger FILE")
        return
    if facts.kernel is None:
        yield unknown("ledger", "the kernel could not be read")
        return
    found = False
    for one in signed_policies(facts):
        policy = parse(one.text, facts.kernel.version, Role.DEVICE).policy if one.text is not None else None
        if policy is None or one.text is None:
            continue
        found = True
        last = facts.ledger.last(policy.name)
        same = last is not None and last.sha256 == hashlib.sha256(one.text).digest()
        if last is None:
            yield good(one.path, f"{policy.display_name} {policy.version}: the ledger has no version of it")
        elif policy.version == last.version and same:
            yield good(one.path, f"{policy.display_name} {policy.version} is the last that went out, with this text")
        elif policy.version > last.version:
            yield good(one.path, f"{policy.display_name} {policy.version}, {last.version} went out last")
        elif policy.version == last.version:
            yield bad(
                one.path, f"{policy.display_name} {policy.version} went out with another text: devices that have that refuse this (ESTALE)"
            )
        else:
            yield bad(
                one.path, f"{policy.display_name} {policy.version} is older than {last.version}, which went out: devices refuse it (ESTALE)"
            )
    if not found:
        yield unknown("ledger", "the image has no signed policy that parses")
