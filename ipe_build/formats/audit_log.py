"""Logs that hold IPE's audit records, in whatever form they were kept: dmesg, journal (short or JSON), audit.log, ausearch -r.

Each line is brought into the kernel's own form, `type=1420 audit(TIME:SERIAL): …`, and read by `audit_record`.
Source: audit userspace lib/msg_typetab.h (names), systemd journald-audit.c (`UNKNOWN[1420] …`, `_AUDIT_TYPE=`), audit(8).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ipe_build.errors import FormatError
from ipe_build.formats.audit_record import AuditRecord, RecordType, find_record

_NAMES = {
    "MAC_STATUS": RecordType.MAC_STATUS,
    "IPE_ACCESS": RecordType.ACCESS,
    "IPE_CONFIG_CHANGE": RecordType.CONFIG_CHANGE,
    "IPE_POLICY_LOAD": RecordType.POLICY_LOAD,
}
_NAME = r"(?:(?:UNKNOWN\[|AUDIT)?(?P<number>14(?:04|20|21|22))\]?|(?P<name>" + "|".join(_NAMES) + "))"
_AUDITD = re.compile(rf"type={_NAME} msg=audit\((?P<time>\d{{1,12}}\.\d{{3}}):(?P<serial>\d{{1,18}})\): ?(?P<body>.*)", re.S)
_JOURNAL = re.compile(rf"(?:^|\s){_NAME} (?P<body>(?:ipe_op|policy_name|old_active_pol_name|enforcing)=.*)", re.S)
_KERNEL = re.compile(r"type=14(?:04|20|21|22) audit\(\d{1,12}\.\d{3}:\d{1,18}\): ")
_LINE_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line (counted from 1) that looks like a record of IPE's and cannot be read."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """The records in the order of the log, each once, and what could not be read."""

    records: tuple[AuditRecord, ...]
    skipped: tuple[Skipped, ...]


def read_log(data: bytes) -> Log:
    """Returns the IPE records of a log. Other lines are passed over; a broken record is named in `skipped`. Never raises."""
    records: dict[tuple[int, int, str], AuditRecord] = {}
    skipped: list[Skipped] = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        for text in _candidates(raw):
            try:
                record = find_record(text)
            except (FormatError, ValueError) as error:
                reason = error.message if isinstance(error, FormatError) else str(error)
                skipped.append(Skipped(number, reason[:300]))
                continue
            if record is not None:
                key = (record.time_ms, record.serial, record.text) if record.serial else (number, 0, record.text)
                records.setdefault(key, record)
    return Log(tuple(records.values()), tuple(skipped))


def _candidates(raw: bytes) -> Iterator[str]:
    """Yields the line's records in the kernel's form; none for a line that is about something else."""
    line = raw[:_LINE_MAX].decode("utf-8", "surrogateescape").lstrip("\x1e[, \t").rstrip("\r\n, ]")
    if line.startswith("{"):
        yield from _of_json(line)
        return
    line = line.split("\x1d", 1)[0]
    if _KERNEL.search(line):
        yield line
        return
    for pattern in (_AUDITD, _JOURNAL):
        found = pattern.search(line)
        if found is not None:
            yield _kernel_form(found, found.groupdict().get("time") or "0.000", found.groupdict().get("serial") or "0")
            return


def _kernel_form(found: re.Match[str], time: str, serial: str) -> str:
    """Returns a record as the kernel prints it."""
    kind = int(found["number"]) if found["number"] else _NAMES[found["name"]].value
    return f"type={kind} audit({time}:{serial}): {found['body']}"


def _of_json(line: str) -> Iterator[str]:
    """Yields the record of a line of `journalctl -o json`: a kernel message, or one that journald took from audit itself."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return
    message = _text(entry.get("MESSAGE")) if isinstance(entry, dict) else ""
    if not message:
        return
    if _KERNEL.search(message):
        yield message
        return
    found = _JOURNAL.search(message)
    if found is not None:
        stamp = _text(entry.get("_SOURCE_REALTIME_TIMESTAMP")) or _text(entry.get("__REALTIME_TIMESTAMP"))
        micro = int(stamp) if re.fullmatch(r"[0-9]{1,18}", stamp) else 0
        serial = _text(entry.get("_AUDIT_ID"))
        time = f"{micro // 1_000_000}.{micro // 1000 % 1000:03d}"
        yield _kernel_form(found, time, serial if re.fullmatch(r"[0-9]{1,18}", serial) else "0")


def _text(value: object) -> str:
    """Returns a journal field: text, or a list of bytes where it is not UTF-8."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        return bytes(value).decode("utf-8", "surrogateescape")
    return ""
