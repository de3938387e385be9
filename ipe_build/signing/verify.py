"""Checks a signature the way the kernel does, against a set of certificates that stand for its keyring.

Source: crypto/asymmetric_keys/pkcs7_verify.c, pkcs7_trust.c (pkcs7_validate_trust_one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.errors import FormatError, SignatureError, SigningKeyError
from ipe_build.formats.cms import SignerIdentity, signer_identity
from ipe_build.signing.algorithms import algorithm_of, errno_of_wrong_signature, is_signature, name_of_oid
from ipe_build.signing.envelopes import Claim
from ipe_build.signing.loading import parse_certificates, public_key_of
from ipe_build.signing.profiles import Profile

_IMA_KEY_ID_BYTES = 4


class _Known(NamedTuple):
    """A certificate with what a SignerInfo may call it by."""

    certificate: x509.Certificate
    identity: SignerIdentity
    subject_key_id: bytes


def verify_signature(
    profile: Profile,
    payload: bytes,
    signature: bytes,
    certificates: Sequence[x509.Certificate],
    revoked: Sequence[x509.Certificate] = (),
) -> x509.Certificate:
    """Returns the certificate that signed `payload`; it is one of `certificates`, or comes inside and is issued by one of them.

    As the kernel: every signature that can be traced to a trusted certificate must be right, and at least one must be traceable.
    A signature that traces to one of `revoked` is refused, whoever else vouches for it (CONFIG_SYSTEM_REVOCATION_KEYS).
    A carried certificate counts only if it is in the trusted set byte for byte, or has an issuer there; the kernel goes by names and
    key ids and is laxer with damaged copies of certificates that it has.
    Validity periods are not looked at, because the kernel does not (see `certificate_checks` for that).
    Raises: SignatureError (or another VerificationError) that says why; FormatError when `signature` is not of the profile's format.
    """
    profile.check(payload)
    trusted = [_known(certificate) for certificate in certificates]
    found: x509.Certificate | None = None
    strangers = []
    blacklist = [_known(certificate) for certificate in revoked]
    for claim in profile.envelope.open(payload, signature):
        revoked_signer = _check_claim(claim, blacklist) if blacklist else None
        if revoked_signer is not None:
            message = f"signed by {revoked_signer.subject.rfc4514_string()!r}, which is revoked or issued by a revoked certificate"
            raise SignatureError(message, errno="EKEYREJECTED", where=profile.name, hint="sign again with a key that is not revoked")
        signer = _check_claim(claim, trusted)
        if signer is None:
            strangers.append(claim)
        else:
            found = found or signer
    if found is None:
        raise SignatureError(
            f"signed by {describe_signer(strangers[0].signer)}, which none of the {len(trusted)} trusted certificates vouches for",
            errno="ENOKEY",
            where=profile.name,
            hint="sign with a key whose certificate is in the trusted set, or add its certificate there",
        )
    return found


def _check_claim(claim: Claim, trusted: list[_Known]) -> x509.Certificate | None:
    """Returns the signer's certificate when the claim is right and traces to the trusted set, None when it does not trace.

    Raises: SignatureError when a signature is wrong.
    """
    carried = _carried(claim)
    own = _find(claim.signer, carried)
    signer = own or _find(claim.signer, trusted)
    if signer is None:
        return None
    key = public_key_of(signer.certificate)
    algorithm = algorithm_of(key)
    if claim.signature_oid and claim.signature_oid != algorithm.identifier(claim.digest_name).oid:
        message = f"names signature algorithm {claim.signature_oid}, its signer's key is {algorithm.name}"
        is_known = name_of_oid(claim.signature_oid) != claim.signature_oid
        raise SignatureError(message, errno="EKEYREJECTED" if is_known else "ENOPKG", where="signature")
    if not is_signature(key, claim.signature, claim.message, claim.digest_name):
        # With the signer's certificate inside, the kernel checks with that first and passes the cipher's own answer on (pkcs7_verify_one).
        errno = errno_of_wrong_signature(key, claim.signature, claim.digest_name) if own is not None else "EKEYREJECTED"
        message = f"the signature of {signer.certificate.subject.rfc4514_string()!r} is not over this payload"
        raise SignatureError(message, errno=errno, where="signature")
    if any(row.certificate == signer.certificate for row in trusted) or _is_vouched_for(signer, carried, trusted):
        return signer.certificate
    if any(row.identity == signer.identity or row.subject_key_id == signer.subject_key_id for row in trusted):
        message = f"carries a changed copy of the trusted certificate {signer.certificate.subject.rfc4514_string()!r}"
        raise SignatureError(message, errno="EKEYREJECTED", where="signature")
    return None


def _carried(claim: Claim) -> list[_Known]:
    """Returns the certificates that came inside the message. Raises: FormatError when one of them is damaged."""
    try:
        rows = [_known(item) for raw in claim.certificates for item in parse_certificates(raw, "certificate in the signature")]
        for row in rows:
            public_key_of(row.certificate)
    except (SigningKeyError, ValueError) as error:
        raise FormatError(f"a certificate inside the message is damaged: {error}", where="signature") from error
    return rows


def _is_vouched_for(signer: _Known, carried: list[_Known], trusted: list[_Known]) -> bool:
    """Returns whether a certificate is issued, if need be through carried ones, by one in the trusted set."""
    current = signer
    for _ in range(len(carried) + 1):
        if any(issued_by(current.certificate, row.certificate) for row in trusted):
            return True
        issuer = next((row for row in carried if row is not current and issued_by(current.certificate, row.certificate)), None)
        if issuer is None:
            return False
        current = issuer
    return False


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Returns whether the issuer's key made the certificate's signature, and the names agree."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _find(identity: SignerIdentity, rows: list[_Known]) -> _Known | None:
    """Returns the certificate that a signature names: by issuer and serial number, by subject key id, or (IMA) by its last 4 bytes."""
    wanted = identity.subject_key_id
    for row in rows:
        if wanted:
            if row.subject_key_id == wanted or (len(wanted) == _IMA_KEY_ID_BYTES and row.subject_key_id.endswith(wanted)):
                return row
        elif (row.identity.issuer, row.identity.serial) == (identity.issuer, identity.serial):
            return row
    return None


def _known(certificate: x509.Certificate) -> _Known:
    """Returns the certificate with its names."""
    try:
        key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, ValueError):
        key_id = b""
    return _Known(certificate, signer_identity(certificate.public_bytes(Encoding.DER)), key_id)


def describe_signer(signer: SignerIdentity) -> str:
    """Returns how a message names its signer, for people."""
    if signer.subject_key_id:
        return f"key id {signer.subject_key_id.hex()}"
    try:
        name = asn1_x509.Name.load(signer.issuer).human_friendly
    except ValueError:
        name = signer.issuer.hex()
    return f"serial {signer.serial:x} of issuer {name!r}"
