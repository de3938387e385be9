"""Signing elsewhere: a plan says what must be signed, anything signs it, what comes back is checked and put in place.

The plan is one JSON file. Each request has the digest to sign and, unless it is a module, the payload itself, so that who signs can
see what it is. Answers are raw signatures: a folder of `ID.sig` files, or JSON `{"signatures": {ID: base64}}`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ipe_build.errors import FormatError, InputError, SigningKeyError
from ipe_build.signing.algorithms import HASHES, algorithm_of, is_signature
from ipe_build.signing.certificates import fingerprint
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.profiles import PROFILES, Profile
from ipe_build.signing.target import ANY_KERNEL, KernelTarget, require

FORMAT = "ipe-build signing plan"
VERSION = 1
_LARGEST_SIGNATURE = 16384


@dataclass(frozen=True, slots=True)
class Request:
    """One signature that is wanted. `digest` is over the exact bytes to sign (the envelope's message); `output` is where the result goes.

    `payload` is None for a module and an EFI program (their bytes are read again from `source`).
    `certificate_sha256` names the certificate whose key must sign.
    """

    id: str
    profile: str
    source: str
    output: str
    algorithm: str
    digest_name: str
    digest: bytes
    payload: bytes | None
    certificate_sha256: str
    subject: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All requests of a build, in order; ids are unique."""

    requests: tuple[Request, ...]

    def to_json(self) -> str:
        """Returns the plan's file."""
        rows = [
            {
                "id": row.id,
                "profile": row.profile,
                "purpose": PROFILES[row.profile].what,
                "source": row.source,
                "output": row.output,
                "algorithm": row.algorithm,
                "digest_name": row.digest_name,
                "digest": row.digest.hex(),
                "payload": base64.b64encode(row.payload).decode() if row.payload is not None else None,
                "certificate_sha256": row.certificate_sha256,
                "subject": row.subject,
            }
            for row in self.requests
        ]
        return json.dumps({"format": FORMAT, "version": VERSION, "requests": rows}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back for a plan, checked: `good` by digest, and the requests that have no answer or a wrong one (with the reason)."""

    good: Mapping[tuple[str, bytes, str], bytes]
    missing: tuple[Request, ...]
    wrong: tuple[tuple[Request, str], ...]


@dataclass(frozen=True, slots=True)
class AnsweredSigner:
    """A signer that has its signatures already, and no key. Satisfies `Signer`."""

    certificate: x509.Certificate
    answers: Mapping[tuple[str, bytes, str], bytes]
    survives_fork: bool = True

    def sign(self, message: bytes, digest_name: str) -> bytes:
        """Returns the signature that came back for this message. Raises: SigningKeyError when there is none."""
        digest = hashlib.new(digest_name, message).digest()
        found = self.answers.get((digest_name, digest, fingerprint(self.certificate)))
        if found is None:
            raise SigningKeyError(
                f"no signature came back for {digest_name} {digest.hex()}",
                where="signing plan",
                hint="the file changed since the plan was made: make a new plan",
            )
        return found


def make_request(
    profile: Profile,
    number: int,
    payload: bytes,
    certificate: x509.Certificate,
    *,
    source: str,
    output: str,
    digest_name: str | None,
    carry: bool,
    target: KernelTarget = ANY_KERNEL,
) -> Request:
    """Returns the request to sign `payload`; with `carry` the payload is in it. Raises: InputError, SigningKeyError."""
    profile.check(payload)
    algorithm = algorithm_of(public_key_of(certificate))
    name = digest_name or algorithm.digests[0]
    require(algorithm, name, target)
    digest = hashlib.new(name, profile.envelope.message(payload, name)).digest()
    wanted = payload if carry or not algorithm.prehashed else None
    row_id = f"{number:05}-{profile.name}-{digest.hex()[:12]}"
    subject = certificate.subject.rfc4514_string()
    return Request(row_id, profile.name, source, output, algorithm.name, name, digest, wanted, fingerprint(certificate), subject)


def read_plan(path: Path) -> Plan:
    """Returns the plan in a file; every carried payload is checked against its digest. Raises: FormatError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format"] != FORMAT or value["version"] != VERSION:
            raise FormatError(f"wanted {FORMAT} version {VERSION}, got {value['format']!r} version {value['version']!r}", where=str(path))
        requests = tuple(_read_request(row) for row in value["requests"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"is not a signing plan: {type(error).__name__} {error}", where=str(path)) from error
    for row in requests:
        if row.payload is not None and hashlib.new(row.digest_name, _message(row, row.payload)).digest() != row.digest:
            raise FormatError(f"the payload of {row.id} does not have the digest that the plan says", where=str(path))
    if len({row.id for row in requests}) != len(requests):
        raise FormatError("two requests have one id", where=str(path))
    return Plan(requests)


def _message(row: Request, payload: bytes) -> bytes:
    """Returns the bytes that the key signs for a payload."""
    return PROFILES[row.profile].envelope.message(payload, row.digest_name)


def _read_request(row: Mapping[str, str]) -> Request:
    """Returns one request of the JSON. Raises: ValueError, KeyError, TypeError."""
    if row["profile"] not in PROFILES or row["digest_name"] not in HASHES:
        raise ValueError(f"unknown profile {row['profile']!r} or digest {row['digest_name']!r}")
    payload = base64.b64decode(row["payload"], validate=True) if row["payload"] is not None else None
    texts = (row["id"], row["profile"], row["source"], row["output"], row["algorithm"], row["digest_name"])
    if not all(isinstance(text, str) for text in (*texts, row["certificate_sha256"], row["subject"])):
        raise ValueError("wanted text")
    return Request(*texts, bytes.fromhex(row["digest"]), payload, row["certificate_sha256"], row["subject"])


def read_answers(places: Sequence[Path]) -> dict[str, bytes]:
    """Returns the raw signatures by request id, from folders of `ID.sig` files and JSON files. Raises: FormatError, InputError."""
    found: dict[str, bytes] = {}
    for place in places:
        if place.is_dir():
            # iterdir, not glob: that finds nothing in a folder that may not be read, and says nothing.
            new = {path.name.removesuffix(".sig"): path.read_bytes() for path in sorted(place.iterdir()) if path.suffix == ".sig"}
        else:
            new = _read_json_answers(place)
        for row_id, signature in new.items():
            if len(signature) > _LARGEST_SIGNATURE:
                raise FormatError(f"{row_id}: {len(signature)} bytes are not a raw signature", where=str(place))
            if found.setdefault(row_id, signature) != signature:
                raise InputError(f"{row_id} has two different signatures", where=str(place))
    return found


def _read_json_answers(path: Path) -> dict[str, bytes]:
    """Returns the answers of a JSON file. Raises: FormatError."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["signatures"]
        return {str(row_id): base64.b64decode(text, validate=True) for row_id, text in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        hint = 'wanted {"signatures": {ID: base64 of the raw signature}}, or a folder of ID.sig files'
        raise FormatError(f"holds no signatures: {type(error).__name__} {error}", where=str(path), hint=hint) from error


def check_answers(
    plan: Plan, answers: Mapping[str, bytes], certificates: Sequence[x509.Certificate], payloads: Mapping[str, bytes]
) -> Answers:
    """Returns which requests are answered well. `payloads` gives, by id, those that the plan does not carry.

    A signature is good when the key of the certificate that the plan names made it over this very payload.
    """
    known = {fingerprint(certificate): certificate for certificate in certificates}
    good: dict[tuple[str, bytes, str], bytes] = {}
    missing: list[Request] = []
    wrong: list[tuple[Request, str]] = []
    for row in plan.requests:
        payload = row.payload if row.payload is not None else payloads[row.id]
        certificate = known.get(row.certificate_sha256)
        signature = answers.get(row.id)
        if signature is None:
            missing.append(row)
        elif certificate is None:
            wrong.append((row, f"the certificate {row.subject!r} that the plan names was not given"))
        elif hashlib.new(row.digest_name, message := _message(row, payload)).digest() != row.digest:
            wrong.append((row, f"{row.source} changed since the plan was made"))
        elif not is_signature(public_key_of(certificate), signature, message, row.digest_name):
            wrong.append((row, f"the signature is not by {row.subject!r} over this payload"))
        else:
            good[(row.digest_name, row.digest, row.certificate_sha256)] = signature
    return Answers(good, tuple(missing), tuple(wrong))
