"""Key stores: one file a backend, chosen by the scheme of the key URI. A new one is a file here and a row below."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509

from ipe_build.errors import SigningKeyError
from ipe_build.signing.backends import command, file, pkcs11, plan
from ipe_build.signing.loading import load_certificate
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host


class Backend(NamedTuple):
    """A row: the URI's scheme, what opens such a URI with its certificate, how such a URI looks."""

    scheme: str
    open: Callable[[str, x509.Certificate, Host], Signer]
    example: str


BACKENDS: tuple[Backend, ...] = (
    Backend("file", file.open_file, "file:keys/policy.key.pem"),
    Backend("pkcs11", pkcs11.open_pkcs11, "pkcs11:token=signing;id=%01?pin-source=pin.txt"),
    Backend("plan", plan.open_plan, "plan:to-sign"),
    Backend("command", command.open_command, "command:./kms-sign?input=digest"),
)


def open_signer(key_uri: str, certificate_path: Path, host: Host) -> Signer:
    """Returns the signer for a key URI with its certificate (PEM or DER), having checked that the two belong together.

    Raises: SigningKeyError when the scheme is unknown, the key or the certificate cannot be read, or they do not fit.
    """
    scheme = key_uri.partition(":")[0] if ":" in key_uri else ""
    for row in BACKENDS:
        if row.scheme == scheme:
            return row.open(key_uri, load_certificate(certificate_path), host)
    hint = "a key is a URI: " + ", ".join(row.example for row in BACKENDS)
    if not scheme:
        raise SigningKeyError("wanted a key URI with a scheme", where=key_uri[:80], hint=f"{hint}; did you mean file:{key_uri[:80]}?")
    raise SigningKeyError(f"no backend for the scheme {scheme[:40]!r}", where="key URI", hint=hint)
