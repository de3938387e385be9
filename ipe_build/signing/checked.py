"""What every backend outside this process shares: a signature that came from elsewhere is checked before anyone sees it."""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ipe_build.errors import KeyMismatchError, SigningKeyError
from ipe_build.signing.algorithms import is_signature
from ipe_build.signing.loading import public_key_of


def check_result(signature: bytes, message: bytes, digest_name: str, certificate: x509.Certificate, where: str) -> bytes:
    """Returns `signature` when it is right for the certificate. Raises: KeyMismatchError when it is not: another key, or garbage."""
    if is_signature(public_key_of(certificate), signature, message, digest_name):
        return signature
    raise KeyMismatchError(
        f"gave {len(signature)} bytes that are not a signature by {certificate.subject.rfc4514_string()!r}",
        where=where,
        hint="the key does not belong to the certificate, or the answer is not a raw signature",
    )


def ecdsa_to_der(raw: bytes, where: str) -> bytes:
    """Returns the DER form of an ECDSA signature given as r and s of equal length, one after the other (PKCS#11, IEEE P1363)."""
    if not raw or len(raw) % 2:
        raise SigningKeyError(f"wanted r and s of equal length, got {len(raw)} bytes", where=where)
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


def ecdsa_digest(key: ec.EllipticCurvePublicKey, message: bytes, digest_name: str) -> bytes:
    """Returns what ECDSA signs: the digest's leftmost bits, no more than the curve's order has (FIPS 186-5, 6.4.1)."""
    return hashlib.new(digest_name, message).digest()[: (key.curve.key_size + 7) // 8]
