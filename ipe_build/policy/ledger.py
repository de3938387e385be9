"""The ledger: which versions of each policy went out, in a small file under version control.

A JSON object `{"format": 1, "policies": {NAME: [{"version": "1.0.0", "sha256": hex of the text}, …]}}`, versions rising.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ipe_build.errors import InputError, VerificationError
from ipe_build.policy.model import Policy, PolicyVersion


@dataclass(frozen=True, slots=True)
class Entry:
    """One version that went out: its number and the SHA-256 of its text."""

    version: PolicyVersion
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Ledger:
    """Versions by policy name, oldest first."""

    policies: tuple[tuple[bytes, tuple[Entry, ...]], ...] = ()

    def last(self, name: bytes) -> Entry | None:
        """Returns the newest version of a policy, None where it has none."""
        entries = dict(self.policies).get(name, ())
        return entries[-1] if entries else None

    def record(self, policy: Policy, text: bytes) -> Ledger:
        """Returns the ledger with this version added; unchanged when exactly this text is its last version already.

        Raises: VerificationError when the version is not higher than the last one: the kernel would refuse it with ESTALE.
        """
        entry = Entry(policy.version, hashlib.sha256(text).digest())
        last = self.last(policy.name)
        if last == entry:
            return self
        if last is not None and policy.version <= last.version:
            raise VerificationError(
                f"version {policy.version} of {policy.display_name} is not higher than the recorded {last.version}",
                where="ledger",
                hint="raise policy_version: the kernel refuses such an update with ESTALE",
            )
        rows = dict(self.policies)
        rows[policy.name] = (*rows.get(policy.name, ()), entry)
        return Ledger(tuple(sorted(rows.items())))


def read_ledger(path: Path) -> Ledger:
    """Returns the ledger in a file; an empty one where there is no file. Raises: InputError when it is not a ledger."""
    if not path.exists():
        return Ledger()
    try:
        return parse_ledger(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(path)) from error


def parse_ledger(data: bytes, where: str = "ledger") -> Ledger:
    """Returns the ledger of its JSON text. Raises: InputError naming the entry that is wrong."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {error}", where=where) from error
    if not isinstance(value, dict) or value.get("format") != 1 or not isinstance(value.get("policies"), dict):
        raise InputError('wanted an object with "format": 1 and "policies"', where=where)
    rows = []
    for name, entries in sorted(value["policies"].items()):
        if not isinstance(entries, list):
            raise InputError("wanted a list of versions", where=f"{where}: {name}")
        parsed = tuple(_entry(entry, f"{where}: {name}") for entry in entries)
        if any(one.version >= two.version for one, two in pairwise(parsed)):
            raise InputError("the versions do not rise", where=f"{where}: {name}")
        rows.append((name.encode("utf-8", "surrogateescape"), parsed))
    return Ledger(tuple(sorted(rows)))


def _entry(value: object, where: str) -> Entry:
    """Returns one version of the JSON."""
    version = value.get("version") if isinstance(value, dict) else None
    sha256 = value.get("sha256") if isinstance(value, dict) else None
    try:
        numbers = [int(part) for part in version.split(".")] if isinstance(version, str) else []
        digest = bytes.fromhex(sha256) if isinstance(sha256, str) else b""
    except ValueError:
        numbers, digest = [], b""
    if len(numbers) != 3 or not all(0 <= number <= 0xFFFF for number in numbers) or len(digest) != 32:
        raise InputError(f'wanted {{"version": "A.B.C", "sha256": 64 hexadecimal digits}}, got {value!r}'[:200], where=where)
    return Entry(PolicyVersion(*numbers), digest)


def render_ledger(ledger: Ledger) -> bytes:
    """Returns the JSON text of a ledger: sorted by name, one version a line, so that version control shows what changed."""
    lines = []
    for name, entries in ledger.policies:
        key = json.dumps(name.decode("utf-8", "surrogateescape"))
        rows = ",\n".join(f'      {{"version": "{entry.version}", "sha256": "{entry.sha256.hex()}"}}' for entry in entries)
        lines.append(f"    {key}: [\n{rows}\n    ]")
    body = ",\n".join(lines)
    return f'{{\n  "format": 1,\n  "policies": {{\n{body}\n  }}\n}}\n'.encode()
