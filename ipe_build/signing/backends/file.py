"""Keys in files: `file:PATH[?passphrase-file=PATH|passphrase-env=NAME]`, PEM or DER, PKCS#8 (PKCS#1 and SEC1 are read too)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from ipe_build.errors import SigningKeyError
from ipe_build.signing.algorithms import Algorithm, algorithm_of
from ipe_build.signing.loading import check_fit, load_private_key, public_key_of
from ipe_build.signing.uris import parse_key_uri, read_secret

if TYPE_CHECKING:
    from ipe_build.host import Host

ENVIRONMENT_NAME = "IPE_BUILD_KEY_PASSPHRASE"
_HOW = f"set {ENVIRONMENT_NAME}, or add ?passphrase-file=PATH or ?passphrase-env=NAME to the URI"


class FileSigner:
    """A private key held in this process's memory. Satisfies `Signer`."""

    survives_fork = True

    def __init__(self, key: PrivateKeyTypes, certificate: x509.Certificate) -> None:
        """`key` must fit `certificate` (see `check_fit`)."""
        self._key = key
        self._certificate = certificate
        self._algorithm: Algorithm = algorithm_of(public_key_of(certificate))

    @property
    def certificate(self) -> x509.Certificate:
        """Returns the key's certificate."""
        return self._certificate

    def sign(self, message: bytes, digest_name: str) -> bytes:
        """Returns the raw signature; see `Signer.sign`."""
        self._algorithm.identifier(digest_name)
        return self._algorithm.sign(self._key, message, digest_name)

    def sign_digest(self, digest: bytes, digest_name: str) -> bytes:
        """Returns the raw signature over the message with this digest; see `DigestSigner.sign_digest`."""
        self._algorithm.identifier(digest_name)
        if self._algorithm.sign_digest is None:
            raise SigningKeyError(f"a key of {self._algorithm.name} signs messages, not their digests")
        return self._algorithm.sign_digest(self._key, digest, digest_name)

    def __repr__(self) -> str:
        """Returns the subject only: nothing of the key may get into a log."""
        return f"FileSigner({self._certificate.subject.rfc4514_string()!r})"


def key_path(body: str) -> Path:
    """Returns the path in a file: URI's body: `a/b.pem`, `/a/b.pem` or `///a/b.pem` (RFC 8089)."""
    if body.startswith("//"):
        host, slash, rest = body[2:].partition("/")
        if host not in ("", "localhost"):
            raise SigningKeyError(
                f"a file: URI cannot name the host {host!r}", where="file: URI", hint="write file:/absolute or file:relative"
            )
        body = slash + rest
    body = unquote(body)
    if not body:
        raise SigningKeyError("names no file", where="file: URI", hint="write file:keys/policy.key.pem")
    return Path(body)


def open_file(uri: str, certificate: x509.Certificate, host: Host) -> FileSigner:
    """Returns the signer of a file: URI. Raises: SigningKeyError."""
    parts = parse_key_uri(uri, ("passphrase-file", "passphrase-env"))
    path = key_path(parts.body)
    passphrase = read_secret(
        variable=parts.get("passphrase-env"), path=parts.get("passphrase-file"), default_variable=ENVIRONMENT_NAME, env=host.env
    )
    key = load_private_key(path, passphrase.encode() if passphrase is not None else None, _HOW)
    check_fit(key.public_key(), certificate, str(path))
    if path.stat().st_mode & 0o077:
        host.progress.warn(f"{path}: other users may read this private key; chmod 600 it")
    return FileSigner(key, certificate)
