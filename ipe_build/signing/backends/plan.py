"""Keys that are not here: `plan:FOLDER`. What is to be signed is written there; a build stops, and goes on when the answers are in.

For each signature: `ID.json` (what, for whom), `ID.digest` (the raw digest, for `openssl pkeyutl` or a token), and, once somebody
signed it, `ID.sig` (the raw signature). The same inputs ask for the same ID, so a second run finds the answers of the first.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ipe_build.errors import SignaturePendingError, SigningKeyError
from ipe_build.signing.algorithms import algorithm_of
from ipe_build.signing.checked import check_result
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.uris import parse_key_uri

if TYPE_CHECKING:
    from ipe_build.host import Host

_SHA256 = hashes.SHA256()
_LARGEST_CARRIED = 64 * 1024
"""Bytes of a message that its request holds, so that who signs can read a policy; of a larger one only the digest."""


@dataclass(frozen=True, slots=True)
class PlanSigner:
    """A folder of requests and answers. Satisfies `Signer`. `purpose` says in the requests what the signatures are for."""

    certificate: x509.Certificate
    folder: Path
    host: Host
    survives_fork: bool = True
    purpose: str = ""

    def sign(self, message: bytes, digest_name: str) -> bytes:
        """Returns the answer for this message, checked. Raises: SignaturePendingError after writing the request; KeyMismatchError."""
        algorithm = algorithm_of(public_key_of(self.certificate))
        algorithm.identifier(digest_name)
        digest = hashlib.new(digest_name, message).digest()
        name = self._name(digest, digest_name)
        answer = self.folder / f"{name}.sig"
        if answer.is_file():
            return check_result(answer.read_bytes(), message, digest_name, self.certificate, str(answer))
        carried = len(message) <= _LARGEST_CARRIED or not algorithm.prehashed
        request = {
            "purpose": self.purpose,
            "algorithm": algorithm.name,
            "digest_name": digest_name,
            "digest": digest.hex(),
            "message": base64.b64encode(message).decode() if carried else None,
            "message_bytes": len(message),
            "subject": self.certificate.subject.rfc4514_string(),
            "certificate_sha256": self.certificate.fingerprint(_SHA256).hex(),
            "answer": f"{name}.sig",
        }
        text = json.dumps(request, indent=2, ensure_ascii=False) + "\n"
        for suffix, data in ((".digest", digest), (".json", text.encode())):
            with self.host.output(self.folder / f"{name}{suffix}", force=True, flush=False) as temporary:
                temporary.write_bytes(data)
        what = f" ({self.purpose})" if self.purpose else ""
        message_text = f"a signature by {request['subject']!r} is wanted{what}"
        where = str(self.folder / f"{name}.json")
        raise SignaturePendingError(message_text, where=where, hint=f"put it into {answer}, run again")

    def _name(self, digest: bytes, digest_name: str) -> str:
        """Returns the request's ID: 32 hex digits that follow from certificate, digest and its name."""
        return hashlib.sha256(self.certificate.fingerprint(_SHA256) + digest_name.encode() + digest).hexdigest()[:32]


def open_plan(uri: str, certificate: x509.Certificate, host: Host) -> PlanSigner:
    """Returns the signer of a plan: URI; its folder is made when it is not there. Raises: SigningKeyError."""
    folder = Path(unquote(parse_key_uri(uri, ()).body))
    if str(folder) in ("", "."):
        raise SigningKeyError("names no folder", where="plan: URI", hint="write plan:to-sign")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SigningKeyError(f"cannot be made: {error.strerror}", where=str(folder)) from error
    return PlanSigner(certificate, folder, host)
