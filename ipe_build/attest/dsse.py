"""DSSE envelopes: a payload with its type, signed by any Signer.

What is signed is the pre-authentication encoding: "DSSEv1", then type and payload, each with its length in decimal in front, all
separated by single spaces. The signer's certificate comes along (field `cert`), as in-toto's X.509 extension has it; who verifies
names the certificates to trust, the one inside is never trusted by itself.

Source: secure-systems-lab/dsse, protocol.md and envelope.md, version 1.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.errors import FormatError, SigningKeyError, VerificationError
from ipe_build.signing.algorithms import algorithm_of, is_signature
from ipe_build.signing.loading import parse_certificates, public_key_of
from ipe_build.signing.signer import Signer
from ipe_build.signing.verify import issued_by

_WHERE = "DSSE envelope"
_SHA256 = hashes.SHA256()


@dataclass(frozen=True, slots=True)
class DsseSignature:
    """A signature: a hint which key made it, the raw signature, the certificate that came along (PEM, may be empty)."""

    key_id: str
    value: bytes
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed envelope; nothing in it is verified."""

    payload_type: str
    payload: bytes
    signatures: tuple[DsseSignature, ...]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Returns the exact bytes that are signed."""
    kind = payload_type.encode()
    return b" ".join((b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload))


def seal(payload: bytes, payload_type: str, signer: Signer) -> bytes:
    """Returns the envelope's bytes: indented JSON and a newline. Raises: SigningKeyError, ToolFailedError, SignaturePendingError."""
    certificate = signer.certificate
    digest = algorithm_of(public_key_of(certificate)).digests[0]
    value = signer.sign(pre_authentication_encoding(payload_type, payload), digest)
    signature = {
        "keyid": certificate.fingerprint(_SHA256).hex(),
        "sig": base64.b64encode(value).decode(),
        "cert": certificate.public_bytes(Encoding.PEM).decode(),
    }
    envelope = {"payloadType": payload_type, "payload": base64.b64encode(payload).decode(), "signatures": [signature]}
    return json.dumps(envelope, indent=2).encode() + b"\n"


def parse_envelope(data: bytes, where: str = _WHERE) -> Envelope:
    """Returns the envelope, not verified. Raises: FormatError."""
    try:
        value = json.loads(data)
        signatures = tuple(
            DsseSignature(str(one.get("keyid", "")), _decoded(one["sig"]), str(one.get("cert", "")).encode()) for one in value["signatures"]
        )
        if not signatures or not isinstance(value["payloadType"], str):
            raise ValueError("no signature or no payload type")
        return Envelope(value["payloadType"], _decoded(value["payload"]), signatures)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise FormatError(f"wanted a DSSE envelope: {error}", where=where) from error


def verify_envelope(envelope: Envelope, trusted: Sequence[x509.Certificate], where: str = _WHERE) -> x509.Certificate:
    """Returns the certificate that signed: a trusted one, or one that came along and was issued by a trusted one.

    Raises: VerificationError that says why there is none.
    """
    message = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    strangers = []
    for signature in envelope.signatures:
        candidates = list(trusted)
        for certificate in _carried(signature, where):
            if certificate in trusted or any(issued_by(certificate, one) for one in trusted):
                candidates.insert(0, certificate)
            else:
                strangers.append(certificate.subject.rfc4514_string())
        for certificate in candidates:
            if _made(certificate, signature.value, message):
                return certificate
    who = f"; it names {', '.join(strangers)}, whom none of them vouches for" if strangers else ": it is over other bytes, or another key's"
    raise VerificationError(f"has no signature of the {len(trusted)} trusted certificates{who}", where=where)


def _made(certificate: x509.Certificate, value: bytes, message: bytes) -> bool:
    """Returns whether the certificate's key made a signature over the message, with any digest that its kind of key uses."""
    try:
        key = public_key_of(certificate)
        return any(is_signature(key, value, message, digest) for digest in algorithm_of(key).digests)
    except SigningKeyError:
        return False


def _carried(signature: DsseSignature, where: str) -> tuple[x509.Certificate, ...]:
    """Returns the certificates that came along. Raises: FormatError when they cannot be read."""
    if not signature.certificate:
        return ()
    try:
        return parse_certificates(signature.certificate, where)
    except SigningKeyError as error:
        raise FormatError(f"the certificate in it cannot be read: {error.message}", where=where) from error


def _decoded(text: object) -> bytes:
    """Returns base64-decoded bytes. Raises: ValueError."""
    if not isinstance(text, str):
        raise ValueError("wanted base64 text")
    return base64.b64decode(text, validate=True)
