"""`ipe-build attest statement`: sign, or verify, the statement of how an output folder was made."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.attest.provenance import BUILDER
from ipe_build.cli import Outcome
from ipe_build.errors import FormatError, UsageError

if TYPE_CHECKING:
    from ipe_build.host import Host

_VERB = "attest statement"


def configure(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the sub-verb."""
    statement = verbs.add_parser("statement", help="sign or verify the provenance of a build's output (in-toto, SLSA, DSSE)")
    statement.add_argument("folder", type=Path, metavar="DIR", help="the output folder of ipe-build build, or (--file) any folder")
    statement.add_argument("--statement", type=Path, metavar="FILE", help="where the statement is (default: DIR/provenance.dsse.json)")
    statement.add_argument("--verify", action="store_true", help="check signature, certificate and the digest of every file")
    statement.add_argument("--trusted", type=Path, metavar="PEM", help="with --verify: the signer's certificate, or its issuer's")
    statement.add_argument("--others", action="store_true", help="with --verify: files that the statement does not name may lie there too")
    statement.add_argument("-c", "--config", type=Path, help="the build's configuration: makes the statement anew from its inputs")
    statement.add_argument("--key", metavar="URI", help="who signs, for instance file:key.pem or pkcs11:…")
    statement.add_argument("--cert", type=Path, metavar="PEM", help="the key's certificate")
    named = statement.add_argument_group("a new statement about some files that another build system put together")
    named.add_argument("--file", action="append", default=[], metavar="NAME", help="a file of DIR, or a folder with all in it; repeatable")
    named.add_argument("--material", action="append", default=[], metavar="WHAT=PATH", help="what they were made from; repeatable")
    named.add_argument("--name", default="", metavar="TEXT", help="what the files are together (default: DIR's name)")
    named.add_argument("--builder", default=BUILDER, metavar="URI", help="SLSA builder.id: who put them together (default: %(default)s)")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Signs or verifies."""
    if arguments.verify:
        if arguments.trusted is None or arguments.key or arguments.cert or arguments.config or arguments.file or arguments.material:
            raise UsageError("--verify needs --trusted, and nothing to sign", where=_VERB)
        return _verify(arguments)
    if arguments.trusted is not None or not arguments.key or not arguments.cert:
        raise UsageError("wanted --key and --cert to sign with, or --verify and --trusted", where=_VERB)
    if arguments.others or (arguments.file and arguments.config) or (arguments.material and not arguments.file):
        raise UsageError("--others is for --verify, --material for --file, and --file for another build than --config's", where=_VERB)
    return _sign(arguments, host)


def _verify(arguments: argparse.Namespace) -> Outcome:
    """Checks the folder; raises VerificationError (status 1) that names what differs."""
    from ipe_build.attest.dsse import parse_envelope, verify_envelope
    from ipe_build.attest.provenance import PAYLOAD_TYPE, check_subjects, describe_statement
    from ipe_build.signing.certificates import fingerprint
    from ipe_build.signing.loading import load_certificates

    place = _place(arguments)
    envelope = parse_envelope(_read(place), str(place))
    signer = verify_envelope(envelope, load_certificates(arguments.trusted), str(place))
    if envelope.payload_type != PAYLOAD_TYPE:
        raise FormatError(f"wanted a payload of type {PAYLOAD_TYPE}, got {envelope.payload_type!r}", where=str(place))
    count = check_subjects(envelope.payload, arguments.folder, str(place), others=arguments.others)
    subject = signer.subject.rfc4514_string()
    value = {"folder": str(arguments.folder), "files": count, "signer": subject, "certificate_sha256": fingerprint(signer)}
    lines = [f"{arguments.folder}: {count} files are what {subject} signed", *describe_statement(envelope.payload)]
    return Outcome(value | {"statement": json.loads(envelope.payload)}, "\n".join(lines))


def _sign(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Signs: the statement that is there (its files are checked first), or a new one from the configuration or about named files."""
    from ipe_build.attest.dsse import seal
    from ipe_build.attest.provenance import PAYLOAD_TYPE, check_subjects
    from ipe_build.signing.backends import open_signer

    place = _place(arguments)
    payload = _payload(arguments, place, host)
    count = check_subjects(payload, arguments.folder, str(place), others=bool(arguments.file))
    signer = open_signer(arguments.key, arguments.cert, host)
    with host.output(place, force=True) as temporary:
        temporary.write_bytes(seal(payload, PAYLOAD_TYPE, signer))
    subject = signer.certificate.subject.rfc4514_string()
    return Outcome({"output": str(place), "files": count, "signer": subject}, f"{place}: {count} files, signed by {subject}")


def _payload(arguments: argparse.Namespace, place: Path, host: Host) -> bytes:
    """Returns the statement that is to be signed."""
    from ipe_build.attest.dsse import parse_envelope

    if arguments.file:
        from ipe_build.steps.provenance import files_statement

        name = arguments.name or arguments.folder.resolve().name
        made = files_statement(arguments.folder, arguments.file, map(_material, arguments.material), name, arguments.builder, host)
        return made.to_bytes()
    if arguments.config is not None:
        return _new_statement(arguments, host)
    return parse_envelope(_read(place), str(place)).payload


def _material(word: str) -> tuple[str, Path]:
    """Returns name and path of a WHAT=PATH word. Raises: UsageError."""
    what, equals, path = word.partition("=")
    if not (what and equals and path):
        raise UsageError(f"wanted WHAT=PATH, got {word!r}", where=f"{_VERB}: --material")
    return what, Path(path)


def _place(arguments: argparse.Namespace) -> Path:
    """Returns where the statement is, or goes."""
    from ipe_build.attest.provenance import FILE_NAME

    place: Path = arguments.statement or arguments.folder / FILE_NAME
    return place


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
