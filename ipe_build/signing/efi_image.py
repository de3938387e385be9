"""Signs whole EFI programs, and says whether firmware with given databases would run one.

Source: EDK II, DxeImageVerificationLib (DxeImageVerificationHandler): any signature or digest that dbx knows forbids an image, then one
signature or digest that db knows is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from ipe_build.errors import FormatError, SignatureError
from ipe_build.formats.efi_signature_list import parse_signature_database
from ipe_build.formats.pe import authenticode_digest
from ipe_build.signing.algorithms import algorithm_of
from ipe_build.signing.authenticode import FIRMWARE_ALGORITHMS, REFUSED, attach_signatures, signatures_of, unsigned
from ipe_build.signing.certificates import Role
from ipe_build.signing.loading import parse_certificates, public_key_of
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.signer import Signer
from ipe_build.signing.verify import verify_signature

UEFI_ROLE = Role("secure-boot", "Secure Boot signing", in_bundle=False)
"""The role of keys that sign EFI programs: firmware must know them, the kernel need not."""
_PROFILE = PROFILES["efi-image"]
_WHERE = "EFI image"


@dataclass(frozen=True, slots=True)
class SignatureDatabase:
    """What firmware's db or dbx holds: certificates, and SHA-256 Authenticode digests of images."""

    certificates: tuple[x509.Certificate, ...] = ()
    digests: frozenset[bytes] = frozenset()

    @classmethod
    def parse(cls, data: bytes, where: str) -> SignatureDatabase:
        """Returns the database of an .esl file, an .auth update or a variable's file. Raises: FormatError, SigningKeyError."""
        found = parse_signature_database(data, where)
        certificates = tuple(one for raw in found.certificates for one in parse_certificates(raw, where))
        return cls(certificates, frozenset(found.sha256_digests))


EMPTY_DATABASE = SignatureDatabase()


def sign_image(data: bytes, signer: Signer, digest_name: str | None = None, *, keep: bool = False) -> bytes:
    """Returns the signed image: the same bytes for the same image, key and digest (RSA, and ECDSA of keys in files).

    A signature that is there is replaced; with `keep` ours comes after it. Ours is checked before it is used.
    Raises: InputError, FormatError, SigningKeyError.
    """
    payload = unsigned(data)
    signature = sign_payload(_PROFILE, payload, signer, digest_name)
    verify_signature(_PROFILE, payload, signature, [signer.certificate])
    return attach_signatures(payload, [*(signatures_of(data) if keep else ()), signature])


def verify_image(data: bytes, db: SignatureDatabase, dbx: SignatureDatabase = EMPTY_DATABASE) -> x509.Certificate | None:
    """Returns the certificate that vouches for a signed image, None when its digest itself is in db.

    Validity periods are not looked at, because firmware does not.
    Raises: SignatureError where firmware would refuse to run it, FormatError where it is no EFI program.
    """
    digest = authenticode_digest(data)
    if digest in dbx.digests:
        raise SignatureError("its digest is in dbx", errno=REFUSED, where=_WHERE)
    signatures = signatures_of(data)
    for signature in signatures:
        if dbx.certificates and _signer(data, signature, dbx.certificates) is not None:
            raise SignatureError("it is signed by a certificate in dbx", errno=REFUSED, where=_WHERE, hint="sign with a key not revoked")
    for signature in signatures:
        found = _signer(data, signature, db.certificates)
        if found is not None:
            return found
    if digest in db.digests:
        return None
    if not signatures:
        raise SignatureError("carries no signature", errno=REFUSED, where=_WHERE, hint="ipe-build sign efi FILE")
    # What is wrong with the last signature is said in the error of the check itself.
    _check(data, signatures[-1], db.certificates)
    raise AssertionError("a signature was refused and then taken")


def _signer(data: bytes, signature: bytes, certificates: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Returns the certificate that made a signature, None when no given one did or it is not over this image."""
    try:
        return _check(data, signature, certificates)
    except (SignatureError, FormatError):
        return None


def _check(data: bytes, signature: bytes, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    """Returns the signer. Raises: SignatureError, FormatError."""
    signer = verify_signature(_PROFILE, unsigned(data), signature, certificates)
    algorithm = algorithm_of(public_key_of(signer))
    if algorithm.name not in FIRMWARE_ALGORITHMS:
        raise SignatureError(f"firmware takes no {algorithm.name} signatures", errno=REFUSED, where=_WHERE, hint="sign with an RSA key")
    return signer
