"""How a raw signature is wrapped for who checks it. An envelope seals a payload, and opens what was sealed for verification.

CMS is the one that most of the kernel's checks take; another kind (IMA's header, say) is another class with these two methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.errors import SignatureError, VerificationError
from ipe_build.formats.cms import (
    AlgorithmIdentifier,
    Layout,
    SignedData,
    SignerIdentity,
    SignerInfo,
    decode_signed_data,
    encode_signed_data,
    signer_identity,
)
from ipe_build.signing.algorithms import HASHES
from ipe_build.signing.loading import algorithm_for
from ipe_build.signing.signer import DigestSigner, Signer

_CONTENT_TYPE, _MESSAGE_DIGEST, _SIGNING_TIME = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4", "1.2.840.113549.1.9.5"
_ONCE = (_CONTENT_TYPE, _MESSAGE_DIGEST, _SIGNING_TIME)
_AUTHENTICODE_ONLY_NAMES = {
    "1.2.840.113549.1.9.15": "smimeCapabilities",
    "1.3.6.1.4.1.311.2.1.11": "msStatementType",
    "1.3.6.1.4.1.311.2.1.12": "msSpOpusInfo",
}
_AUTHENTICODE_ONLY = frozenset(_AUTHENTICODE_ONLY_NAMES)


@dataclass(frozen=True, slots=True)
class Claim:
    """One opened signature, not checked yet: who is said to have signed which message with what."""

    signer: SignerIdentity
    message: bytes
    digest_name: str
    signature_oid: str
    signature: bytes
    certificates: tuple[bytes, ...] = ()


class Envelope(Protocol):
    """Seals and opens. Raises: FormatError for what is not its format, VerificationError for what cannot match the payload."""

    def seal(self, payload: bytes, signer: Signer, digest_name: str) -> bytes:
        """Returns the bytes that the checker takes."""
        ...

    def message(self, payload: bytes, digest_name: str) -> bytes:
        """Returns the bytes that the key signs: the payload itself, or what stands for it."""
        ...

    def open(self, payload: bytes, signature: bytes) -> tuple[Claim, ...]:
        """Returns the signatures that sealed bytes hold, each to be checked against certificates."""
        ...


@dataclass(frozen=True, slots=True)
class CmsEnvelope:
    """CMS SignedData without attributes, over the payload itself.

    `attached`: the payload is inside; `certificates`: the signer's certificate is too. `attributes_allowed`: whether the kernel takes
    a message with signed attributes there (a module's it refuses with EKEYREJECTED); we never make such, but check them.
    """

    layout: Layout
    attached: bool
    certificates: bool
    attributes_allowed: bool = True

    def seal(self, payload: bytes, signer: Signer, digest_name: str) -> bytes:
        """Returns the DER message. Raises: SigningKeyError when the digest does not go with the key."""
        return self.sealer(signer, digest_name)(payload)

    def sealer(self, signer: Signer, digest_name: str) -> Callable[[bytes], bytes]:
        """Returns `seal` for many payloads: what does not depend on the payload is made once. Raises: SigningKeyError, as `seal`."""
        return self._sealer(signer, digest_name, lambda payload: signer.sign(payload, digest_name))

    def digest_sealer(self, signer: DigestSigner, digest_name: str) -> Callable[[bytes], bytes]:
        """Returns what makes the same message from a payload's digest; never for an attached one, which holds the payload itself."""
        assert not self.attached
        return self._sealer(signer, digest_name, lambda digest: signer.sign_digest(digest, digest_name))

    def _sealer(self, signer: Signer, digest_name: str, sign: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """Returns what puts around `sign`'s raw signature what belongs there."""
        identifier = algorithm_for(signer.certificate).identifier(digest_name)
        certificate = signer.certificate.public_bytes(Encoding.DER)
        carried = certificate if self.certificates else b""
        heads: dict[int, bytes] = {}

        def seal(payload: bytes) -> bytes:
            raw = sign(payload)
            if self.attached:
                return _head(self.layout, payload, carried, certificate, digest_name, identifier, len(raw)) + raw
            head = heads.get(len(raw))
            if head is None:
                head = heads[len(raw)] = _head(self.layout, None, carried, certificate, digest_name, identifier, len(raw))
            return head + raw

        return seal

    def message(self, payload: bytes, _digest_name: str) -> bytes:
        """Returns the payload: without attributes it is what the key signs."""
        return payload

    def open(self, payload: bytes, signature: bytes) -> tuple[Claim, ...]:
        """Returns one claim a SignerInfo. Raises: FormatError, VerificationError."""
        message = decode_signed_data(signature)
        if self.attached and message.content is None:
            raise VerificationError("the signature is detached; the kernel wants the content inside", where="signature")
        if not self.attached and message.content is not None:
            raise VerificationError("the signature carries content of its own; the kernel wants it detached", where="signature")
        if self.attached and message.content != payload:
            raise VerificationError("the signature is over another content than this payload", where="signature")
        return tuple(self._claim(info, payload, message.certificates) for info in message.signer_infos)

    def _claim(self, info: SignerInfo, payload: bytes, certificates: tuple[bytes, ...]) -> Claim:
        """Returns the claim of one SignerInfo; with signed attributes the signature is over those, and they bind the payload."""
        if info.digest_name not in HASHES:
            raise SignatureError(f"the digest {info.digest_name} is not one that we accept", errno="ENOPKG", where="signature")
        message = payload
        if info.signed_attributes:
            if not self.attributes_allowed:
                raise SignatureError("carries signed attributes, which the kernel refuses here", errno="EKEYREJECTED", where="signature")
            self._check_attributes(info)
            if info.message_digest != _digest(payload, info.digest_name):
                raise SignatureError("the signed messageDigest is not the payload's digest", errno="EKEYREJECTED", where="signature")
            message = info.signed_attributes
        return Claim(info.signer, message, info.digest_name, info.algorithm.oid, info.signature, certificates)

    def _check_attributes(self, info: SignerInfo) -> None:
        """Refuses the signed attributes that the kernel does (pkcs7_sig_note_authenticated_attr, …_set_of_authattrs)."""
        refused = sorted(_AUTHENTICODE_ONLY & set(info.attribute_oids))
        if refused:
            name = _AUTHENTICODE_ONLY_NAMES[refused[0]]
            message = f"carries the signed attribute {name}, which the kernel takes in Authenticode only"
            raise SignatureError(message, errno="EKEYREJECTED", where="signature", hint="openssl smime: add -noattr, or -nosmimecap")
        if any(info.attribute_oids.count(oid) > 1 for oid in _ONCE):
            raise SignatureError("repeats a signed attribute", errno="EKEYREJECTED", where="signature")
        if _CONTENT_TYPE not in info.attribute_oids or _MESSAGE_DIGEST not in info.attribute_oids:
            raise SignatureError("lacks the signed attribute contentType or messageDigest", errno="EBADMSG", where="signature")


@lru_cache(maxsize=64)
def _head(
    layout: Layout, content: bytes | None, carried: bytes, certificate: bytes, digest_name: str, identifier: AlgorithmIdentifier, size: int
) -> bytes:
    """Returns the DER message up to the raw signature, which is its last field: the same for all modules that one key signs.

    Kept, so that the first in a process makes it for those that are forked from it.
    """
    info = SignerInfo(signer_identity(certificate), digest_name, identifier, bytes(size))
    message = SignedData(content, (carried,) if carried else (), (info,))
    return encode_signed_data(message, layout)[:-size]


def _digest(data: bytes, name: str) -> bytes:
    """Returns the digest of the data."""
    return hashlib.new(name, data).digest()
