"""The two policies of an update: one while it is in flight (old and new root hash), one when it is over (the new alone).

Versions follow the ledger, so that a device in whichever state takes them in this order and in no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ipe_build.errors import InputError
from ipe_build.policy.ledger import Ledger
from ipe_build.policy.model import PolicyVersion
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.render import render

_MAX = 0xFFFF
TEMPLATE = "pinned-roothash"


@dataclass(frozen=True, slots=True)
class Transition:
    """The texts of both policies, and the ledger with both entered."""

    in_flight: bytes
    final: bytes
    ledger: Ledger


def transition(
    name: str,
    old: tuple[str, ...],
    new: str,
    ledger: Ledger,
    *,
    template: str | Path = TEMPLATE,
    variables: Mapping[str, object] | None = None,
) -> Transition:
    """Returns the policies that carry a fleet from the root hashes `old` to `new` (each `ALGORITHM:HEX`).

    Raises: InputError when the new root hash is an old one, the template does not name both, or no version is left.
    """
    if new.lower() in {one.lower() for one in old}:
        raise InputError("the new root hash is the old one", where="policy transition", hint="the same image needs no update")
    if not old:
        raise InputError("wanted at least one old root hash", where="policy transition")
    texts = []
    for hashes in ((*old, new), (new,)):
        last = ledger.last(name.encode())
        version = next_version(last.version) if last else PolicyVersion(0, 0, 1)
        text = render(template, {**(variables or {}), "name": name, "version": str(version), "root_hashes": hashes})
        policy = parse(text, role=Role.DEVICE).policy
        assert policy is not None
        missing = [one for one in hashes if one.partition(":")[2].lower().encode() not in text]
        if missing:
            raise InputError(f"the rendered policy does not name {missing[0]}", where=str(template), hint=f"use {TEMPLATE}, or root_hashes")
        ledger = ledger.record(policy, text)
        texts.append(text)
    return Transition(texts[0], texts[1], ledger)


def next_version(version: PolicyVersion) -> PolicyVersion:
    """Returns the next higher version. Raises: InputError after 65535.65535.65535."""
    number = (version.major << 32 | version.minor << 16 | version.revision) + 1
    if number >> 48:
        raise InputError("there is no version after 65535.65535.65535", where="policy transition", hint="a new policy_name begins anew")
    return PolicyVersion(number >> 32, number >> 16 & _MAX, number & _MAX)
