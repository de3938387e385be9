"""The values of security.ima and security.evm when they are signatures: a 9-byte header, then the raw signature. Bytes <-> values.

Source: security/integrity/integrity.h (struct signature_v2_hdr, evm_ima_xattr_type), include/uapi/linux/hash_info.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

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


class SignatureBody(NamedTuple):
    """What follows the first byte: the number of the hash (HASH_ALGO_…), 4 bytes of the key id, the raw signature."""

    hash_number: int
    key_id: bytes
    signature: bytes


def parse_signature_body(data: bytes, version: int, where: str) -> SignatureBody:
    """Returns what a signature of this version holds; `data` is the whole value. Raises: FormatError with the offset of what is wrong."""
    if len(data) <= _HEADER.size:
        raise FormatError(f"wanted more than {_HEADER.size} bytes of struct signature_v2_hdr, got {len(data)}", where=where)
    _, found, number, key_id, size = _HEADER.unpack_from(data)
    if found != version:
        raise FormatError(f"wanted signature version {version}, got {found}", where=f"{where}: offset 0x1")
    if size != len(data) - _HEADER.size:
        raise FormatError(f"wanted {size} bytes of signature, got {len(data) - _HEADER.size}", where=f"{where}: offset 0x7")
    return SignatureBody(number, key_id.to_bytes(4, "big"), data[_HEADER.size :])


def parse_ima_signature(data: bytes, where: str = "signature") -> ImaSignature:
    """Returns the signature in an attribute's value. Raises: FormatError with the offset of what is wrong."""
    if data[:1] and data[0] not in tuple(XattrType):
        raise FormatError(f"wanted attribute type 3 (IMA signature) or 5 (portable EVM), got {data[0]}", where=f"{where}: offset 0x0")
    body = parse_signature_body(data, _VERSION, where)
    if body.hash_number not in _HASH_NAMES:
        raise FormatError(f"wanted hash number {sorted(_HASH_NAMES)}, got {body.hash_number}", where=f"{where}: offset 0x2")
    return ImaSignature(XattrType(data[0]), _HASH_NAMES[body.hash_number], body.key_id, body.signature)
