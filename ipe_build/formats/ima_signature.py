"""The values of security.ima and security.evm when they are signatures: a 9-byte header, then the raw signature. Bytes <-> values.

Source: security/integrity/integrity.h (struct signature_v2_hdr, evm_ima_xattr_type), include/uapi/linux/hash_info.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from ipe_build.errors import FormatError

_HEADER = struct.Struct(">BBBIH")
_VERSION = 2
HASH_NUMBERS: dict[str, int] = {"sha256": 4, "sha384": 5, "sha512": 6}
"""HASH_ALGO_… of the digests that we sign with."""
_HASH_NAMES = {number: name for name, number in HASH_NUMBERS.items()}


class XattrType(IntEnum):
    """Which attribute the signature is for."""

    IMA = 3
    """EVM_IMA_XATTR_DIGSIG: security.ima, over the file's content."""
    EVM_PORTABLE = 5
    """EVM_XATTR_PORTABLE_DIGSIG: security.evm, over other attributes, owner and mode, without the inode's number."""


@dataclass(frozen=True, slots=True)
class ImaSignature:
    """A signature of version 2. `key_id` is the last 4 bytes of the certificate's subject key identifier."""

    type: XattrType
    hash_name: str
    key_id: bytes
    signature: bytes

    def build(self) -> bytes:
        """Returns the attribute's value."""
        number = HASH_NUMBERS[self.hash_name]
        return _HEADER.pack(self.type, _VERSION, number, int.from_bytes(self.key_id, "big"), len(self.signature)) + self.signature


def parse_ima_signature(data: bytes, where: str = "signature") -> ImaSignature:
    """Returns the signature in an attribute's value. Raises: FormatError with the offset of what is wrong."""
    if len(data) <= _HEADER.size:
        raise FormatError(f"wanted more than {_HEADER.size} bytes of struct signature_v2_hdr, got {len(data)}", where=where)
    kind, version, number, key_id, size = _HEADER.unpack_from(data)
    if kind not in tuple(XattrType):
        raise FormatError(f"wanted attribute type 3 (IMA signature) or 5 (portable EVM), got {kind}", where=f"{where}: offset 0x0")
    if version != _VERSION:
        raise FormatError(f"wanted signature version {_VERSION}, got {version}", where=f"{where}: offset 0x1")
    if number not in _HASH_NAMES:
        raise FormatError(f"wanted hash number {sorted(_HASH_NAMES)}, got {number}", where=f"{where}: offset 0x2")
    if size != len(data) - _HEADER.size:
        raise FormatError(f"wanted {size} bytes of signature, got {len(data) - _HEADER.size}", where=f"{where}: offset 0x7")
    return ImaSignature(XattrType(kind), _HASH_NAMES[number], key_id.to_bytes(4, "big"), data[_HEADER.size :])
