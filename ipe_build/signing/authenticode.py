"""EFI programs (UKIs, boot loaders, kernels with an EFI stub): signed for Secure Boot, and checked as firmware checks them.

Source: UEFI specification 2.10, section 32.5 (Image Execution); EDK II, DxeImageVerificationLib (DxeImageVerificationHandler).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.errors import InputError, SignatureError, SigningKeyError
from ipe_build.formats.cms import signer_identity
from ipe_build.formats.pe import (
    CERTIFICATE_ALIGNMENT,
    PKCS7_SIGNED_DATA,
    REVISION_2,
    PeImage,
    authenticode_digest,
    parse_pe,
    uncovered_ranges,
)
from ipe_build.formats.spc import decode_spc, encode_spc, signed_attributes
from ipe_build.signing.algorithms import HASHES, algorithm_of
from ipe_build.signing.envelopes import Claim
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.signer import Signer

REFUSED = "EFI_SECURITY_VIOLATION"
"""What firmware answers to an image that it does not let run."""
FIRMWARE_ALGORITHMS = ("rsa",)
"""The key algorithms that firmware takes. OVMF 2022.11 was seen to refuse P-256 and P-384, and to take RSA of 2048, 3072 and 4096 bits
with SHA-256, SHA-384 and SHA-512; the UEFI specification names RSA-2048 alone."""
_MESSAGE_DIGEST, _CONTENT_TYPE = "1.2.840.113549.1.9.4", "1.2.840.113549.1.9.3"
_SMALLEST, _LARGEST = 0x100, 0xFFFF
_WHERE = "EFI image"


@dataclass(frozen=True, slots=True)
class AuthenticodeEnvelope:
    """PKCS#7 around the image's Authenticode digest, with the signer's certificate and two signed attributes (no time)."""

    def message(self, payload: bytes, digest_name: str) -> bytes:
        """Returns the signed attributes, which hold the digest of the image's digest."""
        return signed_attributes(authenticode_digest(payload, digest_name), digest_name)

    def seal(self, payload: bytes, signer: Signer, digest_name: str) -> bytes:
        """Returns the DER signature of an image. Raises: SigningKeyError for a key that firmware does not take."""
        algorithm = algorithm_of(public_key_of(signer.certificate))
        if algorithm.name not in FIRMWARE_ALGORITHMS:
            raise SigningKeyError(
                f"firmware takes no {algorithm.name} signatures", where=_WHERE, hint="use an RSA key (rsa2048 to rsa4096)"
            )
        identifier = algorithm.identifier(digest_name)
        digest = authenticode_digest(payload, digest_name)
        raw = signer.sign(signed_attributes(digest, digest_name), digest_name)
        certificate = signer.certificate.public_bytes(Encoding.DER)
        made = encode_spc(digest, digest_name, signer_identity(certificate), identifier, raw, (certificate,))
        if not _SMALLEST <= len(made) <= _LARGEST:
            # HashPeImageByType looks for the digest's OID where it is when both outer lengths take two bytes.
            raise SigningKeyError(f"the signature has {len(made)} bytes; firmware reads only {_SMALLEST} to {_LARGEST}", where=_WHERE)
        return made

    def open(self, payload: bytes, signature: bytes) -> tuple[Claim, ...]:
        """Returns the claims of a signature that is over this image. Raises: FormatError, SignatureError when it is over another."""
        found = decode_spc(signature)
        if found.digest_name not in HASHES:
            raise SignatureError(f"the digest {found.digest_name} is not one that we accept", errno=REFUSED, where="signature")
        if found.image_digest != authenticode_digest(payload, found.digest_name):
            raise SignatureError("the signature is over another image than this one", errno=REFUSED, where="signature")
        claims = []
        for info in found.signer_infos:
            message = info.signed_attributes or found.content
            if info.digest_name != found.digest_name:
                raise SignatureError("the signature names two digests", errno=REFUSED, where="signature")
            if info.signed_attributes:
                if info.message_digest != hashlib.new(info.digest_name, found.content).digest():
                    raise SignatureError("the signed messageDigest is not the content's digest", errno=REFUSED, where="signature")
                if info.attribute_oids.count(_MESSAGE_DIGEST) != 1 or info.attribute_oids.count(_CONTENT_TYPE) != 1:
                    raise SignatureError("wanted contentType and messageDigest once each", errno=REFUSED, where="signature")
            claims.append(Claim(info.signer, message, info.digest_name, info.algorithm.oid, info.signature, found.certificates))
        return tuple(claims)


def check_efi_image(payload: bytes) -> None:
    """Checks that bytes are an unsigned EFI program as `unsigned` gives it. Raises: InputError, FormatError."""
    image = parse_pe(payload, _WHERE)
    if image.is_signed:
        raise InputError("carries a signature already", where=_WHERE, hint="what is signed is the image without it")
    if len(payload) % CERTIFICATE_ALIGNMENT:
        raise InputError(f"wanted a multiple of {CERTIFICATE_ALIGNMENT} bytes, got {len(payload)}", where=_WHERE)
    _check_signable(image, _WHERE)


def unsigned(data: bytes, where: str = _WHERE) -> bytes:
    """Returns an image without its certificate table, padded with zeros to a multiple of 8 bytes: what is signed.

    Raises: FormatError, InputError for an image that cannot be signed safely.
    """
    image = parse_pe(data, where)
    _check_signable(image, where)
    body = data
    if image.certificate_entry_offset:
        body = data[: image.certificate_table_offset] if image.certificate_table_size else data
        entry = image.certificate_entry_offset
        body = body[:entry] + bytes(8) + body[entry + 8 :]
    body = body.ljust(-(-len(body) // CERTIFICATE_ALIGNMENT) * CERTIFICATE_ALIGNMENT, b"\0")
    return with_checksum(body, image.checksum_offset)


def attach_signatures(data: bytes, signatures: Sequence[bytes]) -> bytes:
    """Returns the image with a certificate table that holds these DER signatures, in order.

    `data` is as `unsigned` gives it. Each entry is a WIN_CERTIFICATE of type PKCS#7, padded to a multiple of 8 bytes.
    """
    check_efi_image(data)
    image = parse_pe(data)
    table = b""
    for signature in signatures:
        # The length counts no padding, as sbsign writes it; who reads the table skips by the length rounded up.
        row = struct.pack("<IHH", 8 + len(signature), REVISION_2, PKCS7_SIGNED_DATA) + signature
        table += row.ljust(-(-len(row) // CERTIFICATE_ALIGNMENT) * CERTIFICATE_ALIGNMENT, b"\0")
    entry = image.certificate_entry_offset
    made = data[:entry] + struct.pack("<II", len(data), len(table)) + data[entry + 8 :] + table
    return with_checksum(made, image.checksum_offset)


def signatures_of(data: bytes, where: str = _WHERE) -> tuple[bytes, ...]:
    """Returns the PKCS#7 signatures in an image's certificate table, in order, with their padding. Raises: FormatError."""
    return tuple(entry.content for entry in parse_pe(data, where).certificates if entry.type == PKCS7_SIGNED_DATA)


def with_checksum(data: bytes, checksum_offset: int) -> bytes:
    """Returns the image with the checksum of the PE format: one's complement sum of 16-bit words, plus the file's length."""
    blank = data[:checksum_offset] + bytes(4) + data[checksum_offset + 4 :]
    number = int.from_bytes(blank, "little")
    # 2**16 is 1 modulo 2**16 - 1, so the remainder is the sum with end-around carry; only zero has two forms.
    folded = number % 0xFFFF or (0xFFFF if number else 0)
    value = (folded + len(data)) & 0xFFFFFFFF
    return data[:checksum_offset] + value.to_bytes(4, "little") + data[checksum_offset + 4 :]


def _check_signable(image: PeImage, where: str) -> None:
    """Refuses an image of which a signature would not cover every byte. Raises: InputError."""
    if not image.certificate_entry_offset:
        raise InputError("has no room for a certificate table in its headers", where=where)
    gaps = uncovered_ranges(image)
    if gaps:
        start, end = gaps[0]
        raise InputError(
            f"bytes {start:#x} to {end:#x} lie between its sections: a signature would not cover them",
            where=where,
            hint="build the image again without gaps between sections",
        )
