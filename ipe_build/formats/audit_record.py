"""IPE's audit records, as the kernel prints them without an audit daemon: text <-> values.

    audit: type=1420 audit(1653364370.067:61): ipe_op=EXECUTE ipe_hook=MMAP enforcing=1 pid=1 comm="ld.so" path="/tmp/lib.so"
        dev="tmpfs" ino=8 rule="DEFAULT action=DENY"

Strings that userspace chose are in quotes, or in upper-case hex without quotes when they hold a space, a quote or a control byte.
The algorithm of a digest inside `rule=` has quotes of its own (`dmverity_roothash="sha256":AB...`), so `rule=` ends with the record.
Source: security/ipe/audit.c (formats), kernel/audit.c (audit_log_untrustedstring, kauditd_printk_skb).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from ipe_build.errors import FormatError


class RecordType(IntEnum):
    """The record types that IPE uses (include/uapi/linux/audit.h)."""

    MAC_STATUS = 1404
    """Enforcement was switched; SELinux uses the same type, IPE's say lsm=ipe."""
    ACCESS = 1420
    CONFIG_CHANGE = 1421
    """A policy was activated."""
    POLICY_LOAD = 1422


@dataclass(frozen=True, slots=True)
class Access:
    """A decision. `path`, `dev` and `ino` are None where the kernel had no file (a buffer, anonymous memory).

    `rule` is the text between the outer quotes; `enforcing` false means that a denial was only logged.
    """

    op: str
    hook: str
    enforcing: bool
    pid: int
    comm: str
    path: str | None
    dev: str | None
    ino: int | None
    rule: str

    @property
    def action(self) -> str:
        """Returns `ALLOW` or `DENY`: what the rule says."""
        return self.rule.rpartition("action=")[2]


@dataclass(frozen=True, slots=True)
class PolicyIdentity:
    """A policy as records name it: `digest` is SHA-256 of the signed policy's bytes (PKCS#7).

    The boot policy is not signed: its digest is that of no bytes at all (e3b0c442…).
    """

    name: str
    version: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class PolicyLoad:
    """A policy was loaded, or (Linux 6.16 and later) refused: then `policy` may be None and `errno` says why."""

    policy: PolicyIdentity | None
    success: bool
    errno: int = 0


@dataclass(frozen=True, slots=True)
class PolicyActivation:
    """The policy in force changed. `old` is None when none was in force."""

    old: PolicyIdentity | None
    new: PolicyIdentity
    success: bool


@dataclass(frozen=True, slots=True)
class EnforceChange:
    """Enforcement was switched on or off."""

    enforcing: bool
    old_enforcing: bool


Event = Access | PolicyLoad | PolicyActivation | EnforceChange


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A record: type, Unix time in milliseconds, serial number, what it says, and its text from `type=` on."""

    type: RecordType
    time_ms: int
    serial: int
    event: Event
    text: str


_VALUE = r'"[^"]*"|\?|[0-9A-F]*'
_NUMBER = r"\d{1,20}"
_HEAD = re.compile(r"type=(\d{4}) audit\((\d{1,20})\.(\d{3}):(\d{1,20})\): ", re.ASCII)
_ACCESS = re.compile(
    r"ipe_op=(?P<op>\w+) ipe_hook=(?P<hook>\w+) enforcing=(?P<enforcing>[01]) pid=(?P<pid>\d{1,20}) "
    rf"comm=(?P<comm>{_VALUE}) path=(?P<path>{_VALUE}) dev=(?P<dev>{_VALUE}) ino=(?P<ino>{_NUMBER}|\?) "
    r'rule="(?P<rule>.*action=(?:ALLOW|DENY))"',
    re.ASCII,
)
_SESSION = r"auid=\d+ ses=\d+"
_POLICY = r"(?P<{0}>\?|\"[^ \t\n]*\") {1}=(?P<{1}>\?|\d+\.\d+\.\d+) {2}=(?:\?|sha256:(?P<{2}>[0-9A-F]{{64}}))"
_LOAD = re.compile(
    "policy_name=" + _POLICY.format("policy_name", "policy_version", "policy_digest") + rf" {_SESSION} lsm=ipe res=(?P<res>[01])"
    r"(?: errno=(?P<errno>-?\d{1,20}))?",
    re.ASCII,
)
_OLD = "old_active_pol_name=" + _POLICY.format("old_active_pol_name", "old_active_pol_version", "old_policy_digest")
_NEW = "new_active_pol_name=" + _POLICY.format("new_active_pol_name", "new_active_pol_version", "new_policy_digest")
_ACTIVATION = re.compile(rf"{_OLD} {_NEW} {_SESSION} lsm=ipe res=(?P<res>[01])", re.ASCII)
_ENFORCE = re.compile(
    rf"enforcing=(?P<new>[01]) old_enforcing=(?P<old>[01]) {_SESSION} enabled=1 old-enabled=1 lsm=ipe res=1",
    re.ASCII,
)


def find_record(line: str) -> AuditRecord | None:
    """Returns the IPE record in a line of the kernel log, or None when the line holds none (other types included).

    What stands before `type=` (time stamp, `audit:`) is skipped.
    Raises: FormatError for a record of IPE's type that is cut off or not as security/ipe/audit.c writes it.
    """
    head = _HEAD.search(line)
    if head is None or int(head[1]) not in _READERS:
        return None
    kind = RecordType(int(head[1]))
    body = line[head.end() :].rstrip("\r\n ")
    if kind is RecordType.MAC_STATUS and "lsm=ipe" not in body:
        return None
    pattern, read = _READERS[kind]
    match = pattern.fullmatch(body)
    if match is None:
        raise FormatError(f"not an IPE record of type {kind.value}: {body!r}", where="audit record", hint="the line may be cut off")
    time_ms = int(head[2]) * 1000 + int(head[3])
    return AuditRecord(kind, time_ms, int(head[4]), read(match), line[head.start() :].rstrip("\r\n "))


def untrusted(value: str) -> str | None:
    """Returns the string that audit_log_untrustedstring wrote: quoted as it is, or in hex; None for `?`.

    Bytes that are not UTF-8 become surrogate escapes. Raises: FormatError for an odd number of hex digits.
    """
    if value == "?":
        return None
    if value.startswith('"'):
        return value[1:-1]
    try:
        return bytes.fromhex(value).decode("utf-8", "surrogateescape")
    except ValueError:
        raise FormatError(f"wanted a quoted string or hex, got {value!r}", where="audit record") from None


def _access(match: re.Match[str]) -> Access:
    """Returns a type 1420 record's content."""
    return Access(
        op=match["op"],
        hook=match["hook"],
        enforcing=match["enforcing"] == "1",
        pid=int(match["pid"]),
        comm=untrusted(match["comm"]) or "",
        path=untrusted(match["path"]),
        dev=untrusted(match["dev"]),
        ino=None if match["ino"] == "?" else int(match["ino"]),
        rule=match["rule"],
    )


def _identity(name: str, version: str, digest: str | None) -> PolicyIdentity | None:
    """Returns a policy's identity, None where the kernel had none (`?`)."""
    if name == "?":
        return None
    return PolicyIdentity(name[1:-1], version, bytes.fromhex(digest or ""))


def _load(match: re.Match[str]) -> PolicyLoad:
    """Returns a type 1422 record's content."""
    policy = _identity(match["policy_name"], match["policy_version"], match["policy_digest"])
    return PolicyLoad(policy, match["res"] == "1", abs(int(match["errno"] or 0)))


def _activation(match: re.Match[str]) -> PolicyActivation:
    """Returns a type 1421 record's content."""
    old = _identity(match["old_active_pol_name"], match["old_active_pol_version"], match["old_policy_digest"])
    new = _identity(match["new_active_pol_name"], match["new_active_pol_version"], match["new_policy_digest"])
    if new is None:
        raise FormatError("names no new policy", where="audit record of type 1421")
    return PolicyActivation(old, new, match["res"] == "1")


def _enforce(match: re.Match[str]) -> EnforceChange:
    """Returns a type 1404 record's content."""
    return EnforceChange(match["new"] == "1", match["old"] == "1")


_READERS: dict[int, tuple[re.Pattern[str], Callable[[re.Match[str]], Event]]] = {
    RecordType.MAC_STATUS: (_ENFORCE, _enforce),
    RecordType.ACCESS: (_ACCESS, _access),
    RecordType.CONFIG_CHANGE: (_ACTIVATION, _activation),
    RecordType.POLICY_LOAD: (_LOAD, _load),
}
