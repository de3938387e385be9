"""The event log of a measured boot (crypto-agile form): bytes to values, and the PCRs that its events lead to.

Nobody vouches for a log: what it says is worth something only once the PCRs it leads to are those that a TPM signed.
Every length in it is checked.

Source: TCG PC Client Platform Firmware Profile 1.05, chapter 10; Linux include/linux/tpm_eventlog.h (__calc_tpm2_event_size).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from ipe_build.formats.byte_reader import ByteReader

PCR_COUNT = 24
_WHERE = "TPM event log"
_SIGNATURE = b"Spec ID Event03\0"
_OLD_SIGNATURES = (b"Spec ID Event00\0", b"Spec ID Event02\0")
_LOCALITY = b"StartupLocality\0"
_MAX_ALGORITHMS = 8
_RESET_TO_ONES = range(17, 23)
"""PCRs of a dynamic launch begin with all ones."""


class HashAlgorithm(NamedTuple):
    """A row of the TPM's registry: hashlib's name, the identifier TPM_ALG_*, bytes of a digest."""

    name: str
    identifier: int
    size: int


ALGORITHMS: tuple[HashAlgorithm, ...] = (
    HashAlgorithm("sha1", 0x0004, 20),
    HashAlgorithm("sha256", 0x000B, 32),
    HashAlgorithm("sha384", 0x000C, 48),
    HashAlgorithm("sha512", 0x000D, 64),
    HashAlgorithm("sm3_256", 0x0012, 32),
    HashAlgorithm("sha3_256", 0x0027, 32),
    HashAlgorithm("sha3_384", 0x0028, 48),
    HashAlgorithm("sha3_512", 0x0029, 64),
)
_BY_IDENTIFIER = {row.identifier: row for row in ALGORITHMS}


class EventType(IntEnum):
    """The event types that boots of UEFI machines log."""

    EV_PREBOOT_CERT = 0x0
    EV_POST_CODE = 0x1
    EV_NO_ACTION = 0x3
    EV_SEPARATOR = 0x4
    EV_ACTION = 0x5
    EV_EVENT_TAG = 0x6
    EV_S_CRTM_CONTENTS = 0x7
    EV_S_CRTM_VERSION = 0x8
    EV_CPU_MICROCODE = 0x9
    EV_PLATFORM_CONFIG_FLAGS = 0xA
    EV_TABLE_OF_DEVICES = 0xB
    EV_COMPACT_HASH = 0xC
    EV_IPL = 0xD
    EV_IPL_PARTITION_DATA = 0xE
    EV_NONHOST_CODE = 0xF
    EV_NONHOST_CONFIG = 0x10
    EV_NONHOST_INFO = 0x11
    EV_OMIT_BOOT_DEVICE_EVENTS = 0x12
    EV_POST_CODE2 = 0x13
    EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
    EV_EFI_VARIABLE_BOOT = 0x80000002
    EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
    EV_EFI_BOOT_SERVICES_DRIVER = 0x80000004
    EV_EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
    EV_EFI_GPT_EVENT = 0x80000006
    EV_EFI_ACTION = 0x80000007
    EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
    EV_EFI_HANDOFF_TABLES = 0x80000009
    EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
    EV_EFI_HANDOFF_TABLES2 = 0x8000000B
    EV_EFI_VARIABLE_BOOT2 = 0x8000000C
    EV_EFI_HCRTM_EVENT = 0x80000010
    EV_EFI_VARIABLE_AUTHORITY = 0x800000E0
    EV_EFI_SPDM_FIRMWARE_BLOB = 0x800000E1
    EV_EFI_SPDM_FIRMWARE_CONFIG = 0x800000E2


_TYPE_NAMES = {int(row): row.name for row in EventType}


def type_name(number: int) -> str:
    """Returns an event type's name in the specification, or its number in hex."""
    return _TYPE_NAMES.get(number, f"{number:#010x}")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its place in the log from 0, the PCR, the type, a digest a bank (by hashlib's name), and what says what it was."""

    number: int
    pcr: int
    type: int
    digests: tuple[tuple[str, bytes], ...]
    data: bytes

    @property
    def extends(self) -> bool:
        """Returns whether the event changed its PCR; EV_NO_ACTION only says something."""
        return self.type != EventType.EV_NO_ACTION

    def digest(self, algorithm: str) -> bytes:
        """Returns the digest for a bank. Raises: KeyError when the log has none for it."""
        return dict(self.digests)[algorithm]


@dataclass(frozen=True, slots=True)
class EventLog:
    """A log: the banks it has digests for, and its events without the first, which only says how the log is written."""

    algorithms: tuple[str, ...]
    events: tuple[Event, ...]


def parse_event_log(data: bytes, where: str = _WHERE) -> EventLog:
    """Returns the events of a crypto-agile log, such as securityfs/tpm0/binary_bios_measurements.

    Raises: FormatError with the offset of what is wrong: another kind of log, cut short, a digest missing or given twice.
    """
    reader = ByteReader(data, where, "little", shortage=": the log is cut short or not one")
    algorithms = _read_header(reader)
    events: list[Event] = []
    while not reader.at_end:
        events.append(_read_event(reader, algorithms, len(events)))
    return EventLog(tuple(row.name for row in algorithms), tuple(events))


def build_event_log(log: EventLog) -> bytes:
    """Returns the log's bytes; `parse_event_log` gives the same value back."""
    rows = [row for name in log.algorithms for row in ALGORITHMS if row.name == name]
    spec = _SIGNATURE + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(rows))
    spec += b"".join(struct.pack("<HH", row.identifier, row.size) for row in rows) + b"\0"
    out = [struct.pack("<II20sI", 0, EventType.EV_NO_ACTION, bytes(20), len(spec)), spec]
    for event in log.events:
        out.append(struct.pack("<III", event.pcr, event.type, len(rows)))
        out += [struct.pack("<H", row.identifier) + event.digest(row.name) for row in rows]
        out.append(struct.pack("<I", len(event.data)) + event.data)
    return b"".join(out)


def replay(events: Iterable[Event], algorithm: str) -> tuple[bytes, ...]:
    """Returns the 24 PCRs of a bank after the events, from the values of a reset: PCR n = H(PCR n, digest) for each.

    An EV_NO_ACTION `StartupLocality` event gives PCR 0 its start value, as firmware does that starts the TPM from locality 3 or 4.
    """
    size = hashlib.new(algorithm).digest_size
    pcrs = [(b"\xff" if index in _RESET_TO_ONES else b"\0") * size for index in range(PCR_COUNT)]
    for event in events:
        if event.extends:
            pcrs[event.pcr] = extend(pcrs[event.pcr], event.digest(algorithm), algorithm)
        elif event.pcr == 0 and event.data[: len(_LOCALITY)] == _LOCALITY:
            pcrs[0] = event.data[len(_LOCALITY) :][:1].rjust(size, b"\0")
    return tuple(pcrs)


def extend(value: bytes, digest: bytes, algorithm: str) -> bytes:
    """Returns a PCR's value after `digest` was extended into it."""
    return hashlib.new(algorithm, value + digest).digest()


def _read_header(reader: ByteReader) -> tuple[HashAlgorithm, ...]:
    """Returns the log's algorithms, from its first event, which has the old form (one SHA-1 digest)."""
    pcr, kind = reader.number(4, "PCR index"), reader.number(4, "event type")
    reader.take(20, "SHA-1 digest")
    size = reader.number(4, "event size")
    signature = reader.take(16, "signature of the first event")
    if signature in _OLD_SIGNATURES or (pcr, kind) != (0, EventType.EV_NO_ACTION) or signature != _SIGNATURE:
        hint = "the log of a TPM 1.2 or of SHA-1 alone proves nothing" if pcr < PCR_COUNT and kind in _TYPE_NAMES else ""
        raise reader.error(f"wanted a crypto-agile log (Spec ID Event03), got {signature!r}", hint=hint)
    reader.take(8, "version of the first event")
    count = reader.number(4, "number of algorithms")
    if not 1 <= count <= _MAX_ALGORITHMS:
        raise reader.error(f"wanted 1 to {_MAX_ALGORITHMS} algorithms, got {count}")
    rows = []
    for _ in range(count):
        identifier, digest_size = reader.number(2, "algorithm"), reader.number(2, "digest size")
        row = _BY_IDENTIFIER.get(identifier)
        if row is None or row.size != digest_size or row in rows:
            raise reader.error(f"wanted algorithms that are known, each once, got {identifier:#06x} with digests of {digest_size} bytes")
        rows.append(row)
    vendor_size = reader.number(1, "size of the vendor's data")
    reader.take(vendor_size, "vendor's data")
    if size != 16 + 8 + 4 + 4 * count + 1 + vendor_size:
        raise reader.error(f"the first event says {size} bytes, it has {16 + 8 + 4 + 4 * count + 1 + vendor_size}")
    return tuple(rows)


def _read_event(reader: ByteReader, algorithms: tuple[HashAlgorithm, ...], number: int) -> Event:
    """Returns the next event (TCG_PCR_EVENT2). Raises: FormatError."""
    pcr, kind, count = reader.number(4, "PCR index"), reader.number(4, "event type"), reader.number(4, "number of digests")
    if pcr >= PCR_COUNT and kind != EventType.EV_NO_ACTION:
        raise reader.error(f"event {number}: wanted a PCR below {PCR_COUNT}, got {pcr}")
    if count != len(algorithms):
        raise reader.error(f"event {number}: wanted {len(algorithms)} digests, got {count}")
    digests: dict[str, bytes] = {}
    for _ in range(count):
        row = _BY_IDENTIFIER.get(reader.number(2, "algorithm"))
        if row not in algorithms or row.name in digests:
            raise reader.error(f"event {number}: wanted one digest for each of {', '.join(one.name for one in algorithms)}")
        digests[row.name] = reader.take(row.size, f"{row.name} digest")
    data = reader.take(reader.number(4, "event size"), "event data")
    return Event(number, pcr, kind, tuple(digests.items()), data)
