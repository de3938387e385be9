"""Secure Boot's state for PCR 7: out of a firmware's variable store, or out of the event log of a machine that is known to be good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from uuid import UUID

from ipe_build.attest.chain import SECURE_BOOT_VARIABLES, EfiProgram, SecureBoot, Variable
from ipe_build.errors import FormatError, InputError, VerificationError
from ipe_build.formats.efi_variables import parse_variable_store
from ipe_build.formats.pe import authenticode_digest
from ipe_build.formats.tpm_event_log import EventLog, EventType
from ipe_build.signing.authenticode import signatures_of, unsigned
from ipe_build.signing.loading import parse_certificates
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.verify import verify_signature

_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
_LIST = Struct("<16sIII")
_HEADER = Struct("<16sQQ")
SECURE_BOOT_ENABLE = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
"""EDK II's namespace of the switch SecureBootEnable."""


def read_variable_store(path: Path, programs: Sequence[EfiProgram]) -> SecureBoot:
    """Returns what EDK II firmware with this variable store (OVMF_VARS.fd) measures, and the db entries that authorise the programs.

    SecureBoot is 1 where a platform key is enrolled and the switch SecureBootEnable is not off, as EDK II sets it at start.
    Raises: InputError, FormatError; VerificationError when Secure Boot is on and a program is not authorised: it would not start.
    """
    names = _read_store(path)
    data = {name: names.get(name, b"") for name, _ in SECURE_BOOT_VARIABLES}
    is_on = bool(data["PK"]) and names.get("SecureBootEnable", b"\1") == b"\1"
    data["SecureBoot"] = b"\1" if is_on else b"\0"
    variables = tuple(Variable(name, guid, data[name]) for name, guid in SECURE_BOOT_VARIABLES)
    return SecureBoot(variables, _authorities(data["db"], programs) if is_on else ())


def of_event_log(log: EventLog) -> SecureBoot:
    """Returns what the event log of a machine that is known to be good says of PCR 7: its variables, and what authorised its programs.

    Raises: InputError when the log does not have them.
    """
    variables, authorities = [], []
    for event in log.events:
        if event.pcr == 7 and event.type == EventType.EV_EFI_VARIABLE_DRIVER_CONFIG:
            variables.append(_variable(event.data))
        elif event.pcr == 7 and event.type == EventType.EV_EFI_VARIABLE_AUTHORITY:
            authorities.append(_variable(event.data).data)
    if [one.name for one in variables[:5]] != [name for name, _ in SECURE_BOOT_VARIABLES]:
        wanted = ", ".join(name for name, _ in SECURE_BOOT_VARIABLES)
        found = ", ".join(one.name for one in variables) or "none"
        raise InputError(f"wanted measurements of {wanted}, got {found}", where="event log: PCR 7")
    return SecureBoot(tuple(variables), tuple(authorities))


def _read_store(path: Path) -> dict[str, bytes]:
    """Returns the store's variables that matter here, by name. Raises: InputError, FormatError."""
    wanted = {*SECURE_BOOT_VARIABLES, ("SecureBootEnable", SECURE_BOOT_ENABLE)}
    try:
        found = parse_variable_store(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    return {one.name: one.data for one in found if (one.name, one.guid) in wanted}


def _variable(data: bytes) -> Variable:
    """Returns the variable in UEFI_VARIABLE_DATA. Raises: FormatError."""
    if len(data) < _HEADER.size:
        raise FormatError(f"wanted UEFI_VARIABLE_DATA, got {len(data)} bytes", where="event log: PCR 7")
    guid, name_length, data_length = _HEADER.unpack_from(data)
    at = _HEADER.size + 2 * name_length
    if at + data_length != len(data):
        raise FormatError(f"UEFI_VARIABLE_DATA says {at + data_length} bytes, it has {len(data)}", where="event log: PCR 7")
    return Variable(data[_HEADER.size : at].decode("utf-16-le", "replace"), UUID(bytes_le=guid), data[at:])


def _authorities(database: bytes, programs: Iterable[EfiProgram]) -> tuple[bytes, ...]:
    """Returns the db entries that let the programs start, in the order of their first use; each is measured once."""
    entries = list(_entries(database))
    found: dict[bytes, None] = {}
    for program in programs:
        found[_authority(program, entries)] = None
    return tuple(found)


def _authority(program: EfiProgram, entries: Sequence[tuple[UUID, bytes]]) -> bytes:
    """Returns the first db entry that vouches for a program: by one of its signatures, or by its digest. Raises: VerificationError."""
    for signature in signatures_of(program.data, program.name):
        for kind, entry in entries:
            if kind == _X509 and _is_signed_under(program, signature, entry[16:]):
                return entry
    digest = authenticode_digest(program.data)
    for kind, entry in entries:
        if kind == _SHA256 and entry[16:] == digest:
            return entry
    raise VerificationError(
        "no entry of db authorises it: firmware with Secure Boot on would refuse to start it",
        where=program.name,
        hint="sign it with a key whose certificate is in db: ipe-build sign efi",
    )


def _is_signed_under(program: EfiProgram, signature: bytes, der: bytes) -> bool:
    """Returns whether a signature traces to a db certificate."""
    try:
        certificates = parse_certificates(der, "db")
        verify_signature(PROFILES["efi-image"], unsigned(program.data, program.name), signature, certificates)
    except (VerificationError, InputError):
        return False
    return True


def _entries(database: bytes) -> Iterator[tuple[UUID, bytes]]:
    """Yields each EFI_SIGNATURE_DATA (owner and content) of the lists with its type. Raises: FormatError."""
    at = 0
    while at < len(database):
        if len(database) - at < _LIST.size:
            raise FormatError(f"wanted an EFI_SIGNATURE_LIST, got {len(database) - at} bytes", where=f"db: offset {at:#x}")
        kind, list_size, header_size, size = _LIST.unpack_from(database, at)
        first, end = at + _LIST.size + header_size, at + list_size
        if first > end or end > len(database) or size <= 16 or (end - first) % size:
            raise FormatError(f"a list of {list_size} bytes with entries of {size} does not fit", where=f"db: offset {at:#x}")
        for entry in range(first, end, size):
            yield UUID(bytes_le=kind), database[entry : entry + size]
        at = end
