"""Things embedded in a kernel that are found by their shape alone, without symbols: the boot policy and the certificate lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ipe_build.policy.parser import Role, parse

_MAX_POLICY = 1 << 20
_MAX_LOOKED_AT = 4 << 20
"""Bytes of policies that are parsed at most: a file from a stranger may hold nothing else."""
_MAX_LIST = 1 << 20
_MAX_CANDIDATES = 4096
_MAX_PADDING = 255
_HEADER = re.compile(rb"policy_name=[^\s\0%\"]+[ \t]+policy_version=[0-9+]")
"""IPE's own format strings have `policy_name=` too, followed by % or a quote."""
_DER_CERTIFICATE = re.compile(rb"\x30\x82(..)\x30(?:\x82..|\x81.)(?:\xa0\x03\x02\x01[\x00-\x02])?\x02", re.DOTALL)
"""SEQUENCE (long length) { SEQUENCE tbsCertificate { [0] version, INTEGER serialNumber … (RFC 5280, 4.1)."""


@dataclass(frozen=True, slots=True)
class CertificateLists:
    """The certificates of a kernel as DER, in their order: those that it trusts, and those that are revoked."""

    trusted: tuple[bytes, ...]
    revoked: tuple[bytes, ...]

    @classmethod
    def of_bytes(cls, trusted: bytes, revoked: bytes) -> CertificateLists:
        """Returns the lists in two concatenations of DER certificates, as the kernel loads them."""
        return cls(split_certificates(trusted), split_certificates(revoked))


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a person wants to know of a certificate. `subject_key_id` is empty where the certificate has none; times are UTC."""

    subject: str
    issuer: str
    serial: int
    subject_key_id: bytes
    algorithm: str
    not_before: datetime
    not_after: datetime
    sha256: bytes


def certificate_facts(der: bytes) -> CertificateFacts:
    """Returns what the certificate says. Raises: ValueError when the bytes are none (those of a `CertificateLists` always are)."""
    found = x509.load_der_x509_certificate(der)
    try:
        key_id = found.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError, TypeError):
        key_id = b""
    return CertificateFacts(
        subject=_name(lambda: found.subject),
        issuer=_name(lambda: found.issuer),
        serial=found.serial_number,
        subject_key_id=key_id,
        algorithm=_algorithm(found),
        not_before=found.not_valid_before_utc,
        not_after=found.not_valid_after_utc,
        sha256=sha256(der).digest(),
    )


def _name(read: Callable[[], x509.Name]) -> str:
    """Returns the name as RFC 4514 writes it; the kernel takes names that this library cannot read."""
    try:
        return read().rfc4514_string()
    except (ValueError, TypeError):
        return "(a name that cannot be read)"


def _algorithm(certificate: x509.Certificate) -> str:
    """Returns the key's algorithm and size: `rsa3072`, `secp384r1`, else the algorithm's object identifier."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return certificate.public_key_algorithm_oid.dotted_string
    if isinstance(key, rsa.RSAPublicKey):
        return f"rsa{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.name
    return type(key).__name__.removesuffix("PublicKey").lstrip("_").lower()


def split_certificates(data: bytes) -> tuple[bytes, ...]:
    """Returns the DER certificates that stand one after the other; ends at the first thing that is none.

    Source: crypto/asymmetric_keys/x509_loader.c (x509_load_certificate_list): each is `30 82`, then its length in two bytes.
    """
    found = []
    at = 0
    while len(data) - at > 4 and data[at : at + 2] == b"\x30\x82":
        size = 4 + int.from_bytes(data[at + 2 : at + 4], "big")
        if size > len(data) - at or not _is_certificate(data[at : at + size]):
            break
        found.append(data[at : at + size])
        at += size
    return tuple(found)


def find_boot_policies(kernel: bytes) -> tuple[bytes, ...]:
    """Returns the C strings of the kernel that are IPE policies; those that the kernel accepts come first.

    The boot policy is one string literal (scripts/ipe/polgen), so it reaches from one NUL to the next, comments before the header included.
    """
    accepted: list[bytes] = []
    refused: list[bytes] = []
    seen_to = looked_at = 0
    for found in _HEADER.finditer(kernel):
        if found.start() < seen_to:
            continue
        start = kernel.rfind(b"\0", max(0, found.start() - _MAX_POLICY), found.start()) + 1
        end = kernel.find(b"\0", found.end(), found.end() + _MAX_POLICY)
        text = kernel[start:end] if end >= 0 else b""
        seen_to = max(end, found.end())
        looked_at += len(text)
        if looked_at > _MAX_LOOKED_AT:
            break
        text = _from_header(text) if text and not _only_comments_before(text) else text
        if text:
            (accepted if parse(text, role=Role.BOOT).accepted else refused).append(text)
    return tuple(dict.fromkeys((*accepted, *refused)))


def _only_comments_before(text: bytes) -> bool:
    """Returns whether what stands before the header is comments and blank lines only, as in a policy."""
    before = text[: text.index(b"policy_name=")]
    lines = re.split(rb"[\n\r]", before)
    return all(not line.split(b"#", 1)[0].strip() for line in lines[:-1]) and not lines[-1].strip()


def _from_header(text: bytes) -> bytes:
    """Returns the text from its header on: what stands before it are bytes of something else."""
    return text[text.index(b"policy_name=") :]


def find_certificate_lists(kernel: bytes) -> CertificateLists:
    """Returns the lists whose length stands behind them, as certs/system_certificates.S and revocation_certificates.S lay them out.

    A list is certificates one after the other, padding, and its length in bytes as a 64-bit number. The padding is `.align 8`: to
    8 bytes for x86, to 256 for arm64 and riscv, where as(1) takes a power of two. The trusted list comes first in the kernel.
    """
    lists: list[tuple[bytes, ...]] = []
    seen_to = 0
    for number, found in enumerate(_DER_CERTIFICATE.finditer(kernel)):
        if number >= _MAX_CANDIDATES:
            break
        if found.start() < seen_to:
            continue
        certificates = split_certificates(kernel[found.start() : found.start() + _MAX_LIST])
        length = sum(map(len, certificates))
        if certificates and _length_follows(kernel, found.start() + length, length):
            lists.append(certificates)
        seen_to = found.start() + max(length, 1)
    return CertificateLists(lists[0] if lists else (), lists[1] if len(lists) > 1 else ())


def _length_follows(kernel: bytes, end: int, length: int) -> bool:
    """Returns whether the length stands behind `end` and nothing but padding, as a little-endian 64-bit number."""
    behind = kernel[end : end + _MAX_PADDING + 8]
    at = behind.find(length.to_bytes(8, "little"))
    return at >= 0 and not any(behind[:at])


def _is_certificate(der: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        return False
    return True
