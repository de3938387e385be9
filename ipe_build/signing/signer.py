"""What a key store must give: its certificate, and raw signatures. Everything else is built around these two."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cryptography import x509


class Signer(Protocol):
    """A key that signs, wherever it lives. Backends satisfy this; nothing else ever sees a private key."""

    @property
    def certificate(self) -> x509.Certificate:
        """Returns the certificate that belongs to the key."""
        ...

    @property
    def survives_fork(self) -> bool:
        """Returns whether forked workers may use this signer too (a key in memory: yes; a session with a token: no)."""
        ...

    def sign(self, message: bytes, digest_name: str) -> bytes:
        """Returns the raw signature over `message`: the bytes that go into the CMS signature field.

        RSA: PKCS#1 v1.5 over `digest_name` of the message, as many bytes as the modulus. ECDSA: DER SEQUENCE of r and s over the
        digest. Ed25519 and ML-DSA: pure signature over the message itself; `digest_name` then only names the CMS digest field.
        Raises: SigningKeyError, ToolFailedError.
        """
        ...


@runtime_checkable
class DigestSigner(Signer, Protocol):
    """A signer that also signs what was hashed already, for who hashes many messages faster than one after the other."""

    def sign_digest(self, digest: bytes, digest_name: str) -> bytes:
        """Returns what `sign` returns for the message with this digest. Raises: SigningKeyError, also when the key signs messages only."""
        ...
