"""UEFI signature databases (db, dbx): read from an .esl file, a signed .auth update, or a variable's file in efivarfs, and written.

Source: UEFI specification 2.10, sections 32.4.1 (EFI_SIGNATURE_LIST), 8.2.2 (EFI_VARIABLE_AUTHENTICATION_2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from ipe_build.errors import FormatError

_X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
_PKCS7 = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
_SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328")
_KNOWN = {
    _X509,
    _SHA256,
    UUID("3c5766e8-269c-4e34-aa14-ed776e85b3b6"),  # RSA-2048
    UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed"),  # SHA-256 of a certificate's TBS
    UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01"),  # SHA-384
    UUID("093e0fae-a6c4-4f50-9f1b-d41e2b89c19a"),  # SHA-512
}
_LIST = struct.Struct("<16sIII")
_OWNER_BYTES = 16
_TIME_BYTES = 16
_WIN_CERTIFICATE = struct.Struct("<IHH")
_WIN_CERT_TYPE_EFI_GUID = 0x0EF1


@dataclass(frozen=True, slots=True)
class SignatureLists:
    """What a database holds: DER certificates, and SHA-256 Authenticode digests of images, each in order."""

    certificates: tuple[bytes, ...]
    sha256_digests: tuple[bytes, ...]


def starts_like_signature_list(data: bytes) -> bool:
    """Returns whether bytes begin as one of the three forms do."""
    return any(len(data) >= at + 16 and UUID(bytes_le=data[at : at + 16]) in _KNOWN for at in _starts(data))


def parse_signature_list(data: bytes, where: str) -> tuple[bytes, ...]:
    """Returns the DER certificates of a signature database, in order. Raises: FormatError with the offset of what is wrong."""
    return parse_signature_database(data, where).certificates


def parse_signature_database(data: bytes, where: str) -> SignatureLists:
    """Returns the certificates and digests of a signature database. Raises: FormatError with the offset of what is wrong."""
    start = next((at for at in _starts(data) if UUID(bytes_le=data[at : at + 16].ljust(16, b"\0")) in _KNOWN), 0)
    entries = tuple(_entries(data, start, where))
    return SignatureLists(
        tuple(content for kind, content in entries if kind == _X509), tuple(content for kind, content in entries if kind == _SHA256)
    )


def build_signature_list(certificates: Sequence[bytes], owner: UUID, sha256_digests: Sequence[bytes] = ()) -> bytes:
    """Returns an .esl file: one EFI_SIGNATURE_LIST for each certificate (DER), then one for all digests. `owner` is in every entry."""
    rows: list[tuple[UUID, tuple[bytes, ...]]] = [(_X509, (content,)) for content in certificates]
    if sha256_digests:
        rows.append((_SHA256, tuple(sha256_digests)))
    made = b""
    for kind, contents in rows:
        size = _OWNER_BYTES + len(contents[0])
        entries = b"".join(owner.bytes_le + content for content in contents)
        made += _LIST.pack(kind.bytes_le, _LIST.size + len(entries), 0, size) + entries
    return made


def _starts(data: bytes) -> Iterator[int]:
    """Yields where the lists may begin: at 0, behind an efivarfs file's attributes, behind an update's authentication."""
    yield 0
    yield 4
    at = _TIME_BYTES
    if len(data) >= at + _WIN_CERTIFICATE.size + 16:
        length, _, kind = _WIN_CERTIFICATE.unpack_from(data, at)
        guid = UUID(bytes_le=data[at + 8 : at + 24])
        if kind == _WIN_CERT_TYPE_EFI_GUID and guid == _PKCS7 and length >= 24:
            yield at + length


def _entries(data: bytes, at: int, where: str) -> Iterator[tuple[UUID, bytes]]:
    """Yields the entries of all lists from offset `at` to the end: their type and content without the owner."""
    while at < len(data):
        if len(data) - at < _LIST.size:
            raise FormatError(f"wanted {_LIST.size} bytes of EFI_SIGNATURE_LIST, got {len(data) - at}", where=f"{where}: offset {at:#x}")
        guid, list_size, header_size, entry_size = _LIST.unpack_from(data, at)
        entries = at + _LIST.size + header_size
        end = at + list_size
        if end > len(data) or entries > end or entry_size <= _OWNER_BYTES or (end - entries) % entry_size:
            raise FormatError(
                f"list of {list_size} bytes, header of {header_size}, entries of {entry_size} do not fit together",
                where=f"{where}: offset {at:#x}",
            )
        for entry in range(entries, end, entry_size):
            yield UUID(bytes_le=guid), data[entry + _OWNER_BYTES : entry + entry_size]
        at = end
