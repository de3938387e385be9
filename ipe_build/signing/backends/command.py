"""Keys behind a program: `command:PROGRAM?…`, the way to a cloud KMS, a signing server, sigul, or anything that can sign.

The program gets the message (or, with input=digest, its digest) on stdin and writes the signature to stdout. Attributes:
`arg=` (repeatable) its arguments; `env=` (repeatable) variables of ours that it may see; `input=message|digest`;
`output=raw|base64`; `form=der|p1363` how an ECDSA signature comes; `timeout=` seconds (60).
It also gets IPE_BUILD_DIGEST (sha256, sha384, sha512) and IPE_BUILD_ALGORITHM (rsa, ecdsa-p256, …).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ipe_build.errors import SigningKeyError
from ipe_build.signing.algorithms import algorithm_of
from ipe_build.signing.checked import check_result, ecdsa_to_der
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.uris import parse_key_uri

if TYPE_CHECKING:
    from ipe_build.host import Host

_QUERY = ("arg", "env", "input", "output", "form", "timeout")
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class CommandSigner:
    """A program that signs. Satisfies `Signer`."""

    certificate: x509.Certificate
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    wants_digest: bool
    is_base64: bool
    is_p1363: bool
    timeout_s: float
    host: Host
    survives_fork: bool = True

    def sign(self, message: bytes, digest_name: str) -> bytes:
        """Returns the raw signature, checked against the certificate. Raises: SigningKeyError, ToolFailedError, ToolMissingError."""
        algorithm = algorithm_of(public_key_of(self.certificate))
        algorithm.identifier(digest_name)
        if self.wants_digest and not algorithm.prehashed:
            raise SigningKeyError(f"{algorithm.name} signs the message itself", where=self._where, hint="say input=message")
        stdin = hashlib.new(digest_name, message).digest() if self.wants_digest else message
        env = {**dict(self.env), "IPE_BUILD_DIGEST": digest_name, "IPE_BUILD_ALGORITHM": algorithm.name}
        done = self.host.run(self.argv, stdin=stdin, env=env, timeout_s=self.timeout_s)
        return check_result(self._decoded(done.stdout), message, digest_name, self.certificate, self._where)

    @property
    def _where(self) -> str:
        return f"command {self.argv[0]}"

    def _decoded(self, printed: bytes) -> bytes:
        """Returns the raw signature in what the program printed. Raises: SigningKeyError."""
        if not printed:
            raise SigningKeyError("printed nothing", where=self._where, hint="the signature is wanted on stdout")
        raw = printed
        if self.is_base64:
            try:
                raw = base64.b64decode(b"".join(printed.split()), validate=True)
            except binascii.Error as error:
                raise SigningKeyError(f"printed {len(printed)} bytes that are not base64", where=self._where) from error
        is_ecdsa = isinstance(public_key_of(self.certificate), ec.EllipticCurvePublicKey)
        return ecdsa_to_der(raw, self._where) if self.is_p1363 and is_ecdsa else raw


def open_command(uri: str, certificate: x509.Certificate, host: Host) -> CommandSigner:
    """Returns the signer of a command: URI; the program must exist. Raises: SigningKeyError, ToolMissingError."""
    parts = parse_key_uri(uri, _QUERY)
    program = unquote(parts.body)
    if not program:
        raise SigningKeyError("names no program", where="command: URI", hint="write command:./sign-with-kms?arg=KEY")
    for name in parts.get_all("env"):
        if name not in host.env:
            raise SigningKeyError(f"the variable {name[:40]} that the program should get is not set", where="command: URI")
    return CommandSigner(
        certificate,
        (str(host.tool(program)), *parts.get_all("arg")),
        tuple((name, host.env[name]) for name in parts.get_all("env")),
        parts.choose("input", ("message", "digest")) == "digest",
        parts.choose("output", ("raw", "base64")) == "base64",
        parts.choose("form", ("der", "p1363")) == "p1363",
        _timeout(parts.get("timeout")),
        host,
    )


def _timeout(text: str | None) -> float:
    """Returns the seconds that the program may take. Raises: SigningKeyError."""
    if text is None:
        return _TIMEOUT_S
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise SigningKeyError(f"timeout= wants whole seconds, got {text[:20]!r}", where="command: URI")
    return float(text)
