"""`ipe-build attest verify`: is what a device sent the boot that was expected."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.errors import ExitStatus, InputError, UsageError

if TYPE_CHECKING:
    from ipe_build.attest.appraise import Appraisal, SignedQuote
    from ipe_build.formats.tpm_quote import PublicKey
    from ipe_build.host import Host


def configure(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the sub-verb."""
    verify = verbs.add_parser("verify", help="check a device's quote and event log against reference values")
    verify.add_argument("reference", type=Path, metavar="REFERENCE", help="reference values of attest measure")
    verify.add_argument("--log", type=Path, metavar="LOG", help="the event log (securityfs/tpm0/binary_bios_measurements)")
    verify.add_argument("--quote", type=Path, metavar="FILE", help="what the TPM signed (tpm2_quote --message)")
    verify.add_argument("--signature", type=Path, metavar="FILE", help="its signature (tpm2_quote --signature)")
    verify.add_argument("--ak", type=Path, metavar="FILE", help="the attestation key: TPM2B_PUBLIC, or PEM (public key or certificate)")
    verify.add_argument("--nonce", metavar="HEX", help="what the quote was asked with; never use one twice")
    verify.add_argument("--without-quote", action="store_true", help="compare a log alone: nobody vouches for it")


def run(arguments: argparse.Namespace, _host: Host) -> Outcome:
    """Returns the verdict; status 1 when a check failed."""
    from ipe_build.attest.appraise import appraise
    from ipe_build.attest.reference import read_reference_values
    from ipe_build.formats.tpm_event_log import parse_event_log

    signed = _signed_quote(arguments)
    if signed is None and arguments.log is None:
        raise UsageError("--without-quote needs a --log", where="attest verify")
    log = parse_event_log(_read(arguments.log), str(arguments.log)) if arguments.log is not None else None
    verdict = appraise(read_reference_values(arguments.reference), log, signed)
    return Outcome(verdict.to_json(), _text(verdict, signed), ExitStatus.OK if verdict.ok else ExitStatus.FINDING)


def _signed_quote(arguments: argparse.Namespace) -> SignedQuote | None:
    """Returns the quote and what it is checked with. Raises: UsageError when a part of it is missing."""
    from ipe_build.attest.appraise import SignedQuote
    from ipe_build.formats.tpm_quote import parse_quote, parse_signature

    parts = {"--quote": arguments.quote, "--signature": arguments.signature, "--ak": arguments.ak, "--nonce": arguments.nonce}
    missing = [name for name, value in parts.items() if value is None]
    if arguments.without_quote:
        if len(missing) < len(parts):
            raise UsageError("--without-quote does not go with a quote", where="attest verify")
        return None
    if missing:
        hint = "a log alone can be compared with --without-quote; it proves nothing"
        raise UsageError(f"also give {', '.join(missing)}", where="attest verify", hint=hint)
    try:
        nonce = bytes.fromhex(arguments.nonce)
    except ValueError:
        nonce = b""
    if not nonce:  # a quote without one may be an old one
        raise UsageError(f"wanted hex, got {arguments.nonce!r}", where="--nonce")
    key, restricted = _attestation_key(arguments.ak)
    quote = parse_quote(_read(arguments.quote), str(arguments.quote))
    return SignedQuote(quote, parse_signature(_read(arguments.signature), str(arguments.signature)), key, nonce, restricted)


def _attestation_key(path: Path) -> tuple[PublicKey, bool | None]:
    """Returns the key, and whether its attributes are right (None: a PEM file says nothing of them). Raises: InputError, FormatError."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from ipe_build.formats.tpm_quote import parse_public
    from ipe_build.signing.loading import parse_certificates, public_key_of

    raw = _read(path)
    if b"-----BEGIN " not in raw:
        public = parse_public(raw, str(path))
        return public.key, public.is_attestation_key
    try:
        key = public_key_of(parse_certificates(raw, str(path))[0]) if b"BEGIN CERTIFICATE" in raw else load_pem_public_key(raw)
    except ValueError as error:
        raise InputError("is not a public key that can be read", where=str(path)) from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise InputError("wanted an RSA or ECDSA key", where=str(path))
    return key, None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _text(verdict: Appraisal, signed: SignedQuote | None) -> str:
    """Returns what a person reads: each check, the first difference, what nobody vouched for."""
    lines = [f"{'✓' if one.ok else '✗'} {one.id}: {one.got if one.ok else f'wanted {one.wanted}, got {one.got}'}" for one in verdict.checks]
    if verdict.difference is not None:
        lines.append(f"first difference: {verdict.difference.to_text()}")
    if signed is None:
        lines.append("note: without a quote nobody vouches for the log")
    elif signed.restricted is None:
        lines.append("note: a PEM key says nothing of its attributes; that it is a TPM's attestation key is taken on trust")
    lines.append("the boot is the expected one" if verdict.ok and signed else "the log is the expected one" if verdict.ok else "REFUSED")
    return "\n".join(lines)
