"""`ipe-build modules sign | verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.cli.payloads import TRUSTED_HELP, target_of, target_options
from ipe_build.errors import ExitStatus, UsageError
from ipe_build.host.output import existing_folder
from ipe_build.kernel.keyring import read_trusted
from ipe_build.kernel.module_compression import COMPRESSIONS
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.kernel.modules import ModuleVerdict, find_modules, verify_module
from ipe_build.signing.algorithms import HASHES
from ipe_build.signing.backends import BACKENDS, open_signer
from ipe_build.signing.certificates import fingerprint

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    sign = verbs.add_parser("sign", help="sign modules in place, or into a folder; signing again replaces a signature")
    sign.add_argument("places", type=Path, nargs="+", metavar="DIR|FILE")
    sign.add_argument("--key", required=True, metavar="URI", help="one of " + ", ".join(row.example for row in BACKENDS).replace("%", "%%"))
    sign.add_argument("--cert", required=True, type=Path, metavar="PEM", help="the key's certificate")
    sign.add_argument("--digest", choices=list(HASHES), help="default: what suits the key")
    kinds = [row.name for row in COMPRESSIONS]
    sign.add_argument("--compression", choices=kinds, type=_compression_name, help="default: each as it was")
    sign.add_argument("-o", "--output", type=Path, metavar="DIR", help="write the signed modules of one DIR here, instead of in place")
    target_options(sign)
    sign.add_argument("--jobs", type=int, metavar="N", help="workers (default: one a processor)")
    verify = verbs.add_parser("verify", help="what a kernel that enforces signatures answers for each module")
    verify.add_argument("places", type=Path, nargs="+", metavar="DIR|FILE")
    verify.add_argument("--trusted", required=True, type=Path, metavar="FILE", help=TRUSTED_HELP)
    verify.add_argument("--vermagic", metavar="TEXT", help="that kernel's vermagic: a module with another one is refused")


def _compression_name(word: str) -> str:
    """Returns a compression's name; a suffix (gz, zst) is one of its names. What is neither stays as it is."""
    return next((row.name for row in COMPRESSIONS if row.suffix == f".{word}"), word)


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs the sub-verb."""
    return {"sign": _sign, "verify": _verify}[arguments.action](arguments, host)


def _sign(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Signs; an output folder must be new or empty."""
    root = None
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UsageError(f"wanted at least 1, got {arguments.jobs}", where="--jobs")
    if arguments.output is not None:
        if len(arguments.places) != 1 or not arguments.places[0].is_dir():
            raise UsageError("wants exactly one folder of modules", where="--output", hint="without -o, modules are signed in place")
        if arguments.output.exists() and (not arguments.output.is_dir() or any(arguments.output.iterdir())):
            raise UsageError("exists and is not an empty folder", where=str(arguments.output), hint="name a new folder")
        existing_folder(arguments.output.parent, of=arguments.output)
        root = arguments.places[0]
    files = find_modules(arguments.places)
    signer = open_signer(arguments.key, arguments.cert, host)
    signed = sign_modules(
        files,
        signer,
        host,
        digest_name=arguments.digest,
        compression=arguments.compression,
        out=arguments.output,
        root=root,
        jobs=arguments.jobs,
        target=target_of(arguments),
    )
    value: dict[str, object] = {
        "signer": signer.certificate.subject.rfc4514_string(),
        "certificate_sha256": fingerprint(signer.certificate),
    }
    if arguments.json:  # otherwise nobody wants the digests, for which every module is read again
        value["modules"] = [{"source": str(row.source), "path": str(row.path), "sha256": row.sha256.hex()} for row in signed]
    return Outcome(value, f"{len(signed)} modules signed by {value['signer']}")


def _verify(arguments: argparse.Namespace, _host: Host) -> Outcome:
    """Verifies every module; one that is refused makes the exit status 1."""
    trusted = read_trusted(arguments.trusted)
    release = trusted.release if trusted.config is not None and not trusted.config.enabled("MODVERSIONS") else None
    verdicts = [
        verify_module(path, trusted.certificates, arguments.vermagic, revoked=trusted.revoked, release=release)
        for path in find_modules(arguments.places)
    ]
    refused = sum(not verdict.accepted for verdict in verdicts)
    lines = [_line(verdict) for verdict in verdicts]
    text = "\n".join([*lines, f"{len(verdicts) - refused} accepted, {refused} refused"])
    return Outcome([_value(verdict) for verdict in verdicts], text, ExitStatus.FINDING if refused else ExitStatus.OK)


def _line(verdict: ModuleVerdict) -> str:
    """Returns a verdict for people."""
    if verdict.accepted and verdict.facts is not None:
        return f"{verdict.path}: accepted, {verdict.facts.algorithm} {verdict.facts.digest_name}, {verdict.facts.signer}"
    return f"{verdict.path}: refused {verdict.errno}: {verdict.reason}"


def _value(verdict: ModuleVerdict) -> dict[str, object]:
    """Returns a verdict for --json."""
    facts = verdict.facts
    return {
        "path": str(verdict.path),
        "accepted": verdict.accepted,
        "errno": verdict.errno or None,
        "reason": verdict.reason or None,
        "intact": verdict.intact,
        "signer": facts.signer or None if facts else None,
        "certificate_sha256": fingerprint(verdict.certificate) if verdict.certificate is not None else None,
        "algorithm": facts.algorithm or None if facts else None,
        "digest": facts.digest_name or None if facts else None,
        "vermagic": facts.vermagic or None if facts else None,
        "compression": facts.compression if facts else None,
    }
