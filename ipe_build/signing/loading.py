"""Certificates and private keys as files: PEM or DER in, `cryptography` objects out, each mistake explained."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key, load_pem_private_key

from ipe_build.errors import KeyMismatchError, SigningKeyError
from ipe_build.signing.algorithms import Algorithm, algorithm_of

_PEM = b"-----BEGIN "
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_DAMAGED = (x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_LARGEST_FILE_BYTES = 4 << 20


def load_certificate(path: Path) -> x509.Certificate:
    """Returns the one certificate in a PEM or DER file. Raises: SigningKeyError when there is none or more than one."""
    found = load_certificates(path)
    if len(found) > 1:
        raise SigningKeyError(f"wanted one certificate, got {len(found)}", where=str(path), hint="name the signer's own certificate file")
    return found[0]


def load_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """Returns all certificates of a PEM bundle, or the one of a DER file, in the file's order. Raises: SigningKeyError."""
    raw = _read(path, "certificate")
    return parse_certificates(raw, str(path))


def parse_certificates(raw: bytes, where: str) -> tuple[x509.Certificate, ...]:
    """Returns the certificates in PEM or DER bytes; `where` names them in errors. Raises: SigningKeyError when there is none."""
    if _PEM in raw and _CERTIFICATE not in raw:
        kind = raw.split(_PEM, 1)[1].split(b"-----", 1)[0].decode("ascii", "replace").lower()
        raise SigningKeyError(f"wanted a certificate, got a PEM {kind}", where=where)
    try:
        found = tuple(x509.load_pem_x509_certificates(raw)) if _CERTIFICATE in raw else (x509.load_der_x509_certificate(raw),)
        for certificate in found:
            # These are parsed when they are looked at first: better here, where the mistake has a place.
            _ = certificate.subject, certificate.issuer, certificate.extensions
    except (ValueError, TypeError, *_DAMAGED) as error:
        raise SigningKeyError(
            f"is not a certificate that can be read: {_first_line(error)}", where=where, hint="wanted X.509 in PEM or DER"
        ) from error
    return found


def load_private_key(path: Path, passphrase: bytes | None, how_to_give: str) -> PrivateKeyTypes:
    """Returns the private key in a PEM or DER file (PKCS#8, PKCS#1 or SEC1), decrypted when it is encrypted.

    `how_to_give` says where the passphrase is looked for; it ends in the hint. Raises: SigningKeyError, never with key bytes in it.
    """
    raw = _read(path, "private key")
    if _PEM in raw and b"PRIVATE KEY-----" not in raw:
        kind = raw.split(_PEM, 1)[1].split(b"-----", 1)[0].decode("ascii", "replace").lower()
        raise SigningKeyError(f"wanted a private key, got a PEM {kind}", where=str(path))
    load = load_pem_private_key if _PEM in raw else load_der_private_key
    try:
        # Its own check looks for the primes' factors for 100 ms (RSA-3072) to 250 ms (RSA-4096): as long as 200 to 500 signatures.
        return _consistent(load(raw, passphrase, unsafe_skip_rsa_key_validation=True))
    except TypeError as error:
        if passphrase is None:
            raise SigningKeyError("the key is encrypted and no passphrase was given", where=str(path), hint=how_to_give) from error
        # A passphrase for a key that is not encrypted does no harm: one environment serves several keys.
        return load_private_key(path, None, how_to_give)
    except ValueError as error:
        if passphrase is not None:
            raise SigningKeyError("the passphrase is wrong, or the key file is damaged", where=str(path), hint=how_to_give) from None
        raise SigningKeyError("is not a private key that can be read", where=str(path), hint="wanted PKCS#8 in PEM or DER") from error


def _consistent(key: PrivateKeyTypes) -> PrivateKeyTypes:
    """Returns the key when its numbers belong together, as those of RSA must: what is damaged never does. Raises: ValueError.

    It is the check of RFC 8017, 3.2, for two odd factors; only that these are primes is taken on trust from who made the key.
    """
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        p, q, d, e = numbers.p, numbers.q, numbers.d, numbers.public_numbers.e
        belong = (
            min(p, q, e) > 2
            and p % 2 == q % 2 == e % 2 == 1
            and p != q
            and p * q == numbers.public_numbers.n
            and d * e % (p - 1) == d * e % (q - 1) == 1
            and (numbers.dmp1, numbers.dmq1) == (d % (p - 1), d % (q - 1))
            and 0 < numbers.iqmp < p
            and numbers.iqmp * q % p == 1
        )
        if not belong:
            raise ValueError("the numbers of the RSA key do not belong together")
    return key


@lru_cache(maxsize=256)
def public_key_of(certificate: x509.Certificate) -> PublicKeyTypes:
    """Returns a certificate's public key; kept, because thousands of modules ask for the same one.

    Raises: SigningKeyError when it is damaged or of a kind that nobody here knows.
    """
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(f"the certificate's public key cannot be read: {_first_line(error)}", where="certificate") from error


@lru_cache(maxsize=256)
def algorithm_for(certificate: x509.Certificate) -> Algorithm:
    """Returns the row of a certificate's key; kept for the same reason. Raises: SigningKeyError."""
    return algorithm_of(public_key_of(certificate))


def public_bytes(key: PublicKeyTypes) -> bytes:
    """Returns the DER SubjectPublicKeyInfo of a public key: two keys are the same when these are."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_fit(public_key: PublicKeyTypes, certificate: x509.Certificate, where: str) -> None:
    """Checks that a key belongs to a certificate. Raises: KeyMismatchError otherwise."""
    if public_bytes(public_key) != public_bytes(public_key_of(certificate)):
        raise KeyMismatchError(
            f"the key does not belong to the certificate {certificate.subject.rfc4514_string()!r}",
            where=where,
            hint="give the certificate that was issued for this key",
        )


def _read(path: Path, what: str) -> bytes:
    """Returns a small file's bytes."""
    try:
        if path.is_file() and path.stat().st_size > _LARGEST_FILE_BYTES:
            raise SigningKeyError(f"is {path.stat().st_size} bytes long, too long for a {what}", where=str(path))
        return path.read_bytes()
    except OSError as error:
        raise SigningKeyError(f"the {what} cannot be read: {error.strerror}", where=str(path)) from error


def _first_line(error: Exception) -> str:
    """Returns the first line of a library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
