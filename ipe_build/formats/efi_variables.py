"""The variables in a firmware's flash (EDK II: OVMF_VARS.fd and the like): bytes to values, read only.

Nothing in it is trusted: sizes are checked, and a store without an end is an error.
Source: EDK II, MdeModulePkg/Include/Guid/VariableFormat.h (authenticated variables), MdePkg/Include/Pi/PiFirmwareVolume.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from ipe_build.errors import FormatError

_VOLUME_GUID = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
_STORE_GUID = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
_VOLUME = struct.Struct("<16x16sQ4sIH")
_STORE = struct.Struct("<16sIBB6x")
_VARIABLE = struct.Struct("<HBxIQ16xIII16s")
_SIGNATURE = b"_FVH"
_START = 0x55AA
_FORMATTED, _HEALTHY, _ADDED = 0x5A, 0xFE, 0x3F
_WHERE = "variable store"


@dataclass(frozen=True, slots=True)
class FirmwareVariable:
    """A variable that is set: name, namespace, attributes, data."""

    name: str
    guid: UUID
    attributes: int
    data: bytes


def parse_variable_store(data: bytes, where: str = _WHERE) -> tuple[FirmwareVariable, ...]:
    """Returns the variables of a flash image that are set, in its order; deleted and unfinished ones are left out.

    Raises: FormatError when it holds no volume of authenticated variables, or one that is damaged.
    """
    start = _store_offset(data, where)
    guid, size, form, state = _STORE.unpack_from(data, start)
    if UUID(bytes_le=guid) != _STORE_GUID or (form, state) != (_FORMATTED, _HEALTHY) or start + size > len(data):
        raise FormatError("wanted a healthy store of authenticated variables", where=f"{where}: offset {start:#x}")
    return tuple(_variables(data, start + _STORE.size, start + size, where))


def _store_offset(data: bytes, where: str) -> int:
    """Returns where the variable store begins: behind the header of its firmware volume."""
    for at in range(0, max(0, len(data) - _VOLUME.size), 4096):
        guid, _, signature, _, header = _VOLUME.unpack_from(data, at)
        if signature == _SIGNATURE and UUID(bytes_le=guid) == _VOLUME_GUID and at + header + _STORE.size <= len(data):
            return at + int(header)
    raise FormatError("has no firmware volume with variables", where=where)


def _variables(data: bytes, at: int, end: int, where: str) -> Iterator[FirmwareVariable]:
    """Yields the variables between two offsets. Raises: FormatError for one that reaches out of the store."""
    while at + _VARIABLE.size <= end:
        start, state, attributes, _, _, name_size, data_size, guid = _VARIABLE.unpack_from(data, at)
        if start != _START:
            return
        name_at = at + _VARIABLE.size
        data_at = name_at + name_size
        if name_size % 2 or data_at + data_size > end:
            message = f"a variable with a name of {name_size} and data of {data_size} bytes does not fit"
            raise FormatError(message, where=f"{where}: offset {at:#x}")
        if state == _ADDED:
            name = data[name_at:data_at].decode("utf-16-le", "replace").rstrip("\0")
            yield FirmwareVariable(name, UUID(bytes_le=guid), attributes, data[data_at : data_at + data_size])
        at = -(-(data_at + data_size) // 4) * 4
