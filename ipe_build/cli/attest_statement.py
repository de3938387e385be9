"""`ipe-build attest statement`: sign, or verify, the statement of how an output folder was made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.errors import FormatError, UsageError

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the sub-verb."""
    statement = verbs.add_parser("statement", help="sign or verify the provenance of a build's output (in-toto, SLSA, DSSE)")
    statement.add_argument("folder", type=Path, metavar="DIR", help="the output folder of ipe-build build")
    statement.add_argument("--verify", action="store_true", help="check signature, certificate and the digest of every file")
    statement.add_argument("--trusted", type=Path, metavar="PEM", help="with --verify: the signer's certificate, or its issuer's")
    statement.add_argument("-c", "--config", type=Path, help="the build's configuration: makes the statement anew from its inputs")
    statement.add_argument("--key", metavar="URI", help="who signs, for instance file:key.pem or pkcs11:…")
    statement.add_argument("--cert", type=Path, metavar="PEM", help="the key's certificate")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Signs or verifies."""
    if arguments.verify:
        if arguments.trusted is None or arguments.key or arguments.cert or arguments.config:
            raise UsageError("--verify needs --trusted and no key", where="attest statement")
        return _verify(arguments)
    if arguments.trusted is not None or not arguments.key or not arguments.cert:
        raise UsageError("wanted --key and --cert to sign with, or --verify and --trusted", where="attest statement")
    return _sign(arguments, host)


def _verify(arguments: argparse.Namespace) -> Outcome:
    """Checks the folder; raises VerificationError (status 1) that names what differs."""
    from ipe_build.attest.dsse import parse_envelope, verify_envelope
    from ipe_build.attest.provenance import FILE_NAME, PAYLOAD_TYPE, check_subjects, describe_statement
    from ipe_build.signing.certificates import fingerprint
    from ipe_build.signing.loading import load_certificates

    place = arguments.folder / FILE_NAME
    envelope = parse_envelope(_read(place), str(place))
    signer = verify_envelope(envelope, load_certificates(arguments.trusted), str(place))
    if envelope.payload_type != PAYLOAD_TYPE:
        raise FormatError(f"wanted a payload of type {PAYLOAD_TYPE}, got {envelope.payload_type!r}", where=str(place))
    count = check_subjects(envelope.payload, arguments.folder, str(place))
    subject = signer.subject.rfc4514_string()
    value = {"folder": str(arguments.folder), "files": count, "signer": subject, "certificate_sha256": fingerprint(signer)}
    lines = [f"{arguments.folder}: {count} files are what {subject} signed", *describe_statement(envelope.payload)]
    return Outcome(value | {"statement": json.loads(envelope.payload)}, "\n".join(lines))


def _sign(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Signs: the statement that is there (its files are checked first), or a new one from the configuration."""
    from ipe_build.attest.dsse import parse_envelope, seal
    from ipe_build.attest.provenance import FILE_NAME, PAYLOAD_TYPE, check_subjects
    from ipe_build.signing.backends import open_signer

    place = arguments.folder / FILE_NAME
    again = arguments.config is None
    payload = parse_envelope(_read(place), str(place)).payload if again else _new_statement(arguments, host)
    count = check_subjects(payload, arguments.folder, str(place))
    signer = open_signer(arguments.key, arguments.cert, host)
    with host.output(place, force=True) as temporary:
        temporary.write_bytes(seal(payload, PAYLOAD_TYPE, signer))
    subject = signer.certificate.subject.rfc4514_string()
    return Outcome({"output": str(place), "files": count, "signer": subject}, f"{place}: {count} files, signed by {subject}")


def _new_statement(arguments: argparse.Namespace, host: Host) -> bytes:
    """Returns a statement about the folder as it is, made from the configuration's inputs."""
    from ipe_build.attest.manifest import FILE_NAME as MANIFEST_NAME
    from ipe_build.config import load_config
    from ipe_build.steps.provenance import materials, new_statement

    place = arguments.folder / MANIFEST_NAME
    try:
        release = str(json.loads(_read(place))["kernel"]["release"])
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError("wanted a manifest of ipe-build", where=str(place)) from error
    config = load_config(arguments.config)
    return new_statement(config, materials(config, arguments.config), release, arguments.folder, host).to_bytes()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", where=str(path)) from error
