"""`ipe-build keys create | show | check | bundle | rotation`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

from ipe_build.cli import Outcome, keys_rotation
from ipe_build.cli.payloads import TRUSTED_HELP, target_of, target_options
from ipe_build.errors import ExitStatus, InputError, KeyMismatchError, UsageError
from ipe_build.kernel.keyring import read_trusted
from ipe_build.signing.algorithms import KEY_MAKERS, algorithm_of
from ipe_build.signing.backends import open_signer
from ipe_build.signing.backends.file import ENVIRONMENT_NAME
from ipe_build.signing.certificate_checks import KEYRINGS, CertificateFinding, Severity, check_certificate
from ipe_build.signing.certificates import IMA_ROLE, ROLES, Role, create_keys, fingerprint
from ipe_build.signing.efi_image import UEFI_ROLE
from ipe_build.signing.loading import load_certificate, load_certificates, public_key_of
from ipe_build.signing.uris import read_secret

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = verbs.add_parser("create", help="make a root and signing keys in a new folder")
    create.add_argument("folder", type=Path, metavar="DIR")
    create.add_argument("--production", action="store_true", help="subjects do not say TEST; wants a passphrase")
    create.add_argument("--organisation", default="ipe-build", help="goes into every subject (default: %(default)s)")
    create.add_argument("--key-type", default="rsa3072", choices=list(KEY_MAKERS), help="default: %(default)s")
    create.add_argument("--ima", action="store_true", help="also a key for IMA and EVM; its certificate goes to .ima, not into the bundle")
    create.add_argument("--secure-boot", action="store_true", help="also a key for UKIs; its certificate goes into firmware's db")
    create.add_argument("--attestation", action="store_true", help="also a key for statements of provenance; no device trusts it")
    create.add_argument("--days", type=int, default=3650, help="lifetime of the certificates (default: %(default)s)")
    create.add_argument("--not-before", metavar="TIME", help="ISO 8601; default: SOURCE_DATE_EPOCH when it is set, else now")
    secret = create.add_mutually_exclusive_group()
    secret.add_argument("--passphrase-file", metavar="FILE", help="encrypt the key files with the file's first line")
    secret.add_argument("--passphrase-env", metavar="NAME", help=f"… with the value of this variable (default: {ENVIRONMENT_NAME}, if set)")
    show = verbs.add_parser("show", help="what a certificate or PEM bundle says")
    show.add_argument("certificate", type=Path, metavar="CERT")
    check = verbs.add_parser("check", help="is this certificate fit to be built into a device")
    check.add_argument("certificate", type=Path, metavar="CERT", nargs="+", help="PEM (also a bundle) or DER")
    check.add_argument("--key", metavar="URI", help="also check that this key belongs to the certificate")
    check.add_argument("--bundle", type=Path, metavar="FILE", help=f"also check that it is reached from this; {TRUSTED_HELP}")
    check.add_argument("--keyring", choices=KEYRINGS, help="also check that the kernel lets it into this one (with --bundle)")
    check.add_argument("--profile", choices=("development", "production"), default="development", help="production refuses TEST keys")
    target_options(check)
    check.add_argument("--at", metavar="TIME", help="judge validity by this time (ISO 8601) instead of now")
    keys_rotation.configure(verbs)


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs the sub-verb."""
    actions = {"create": _create, "show": _show, "check": _check, "bundle": keys_rotation.bundle, "rotation": keys_rotation.rotation}
    return actions[arguments.action](arguments, host)


def _create(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Makes keys. Their start of validity is the one place where the clock may reach a file: new keys are never reproducible."""
    passphrase = read_secret(
        variable=arguments.passphrase_env, path=arguments.passphrase_file, default_variable=ENVIRONMENT_NAME, env=host.env
    )
    if arguments.production and passphrase is None:
        raise InputError(
            "production keys in files want a passphrase",
            where="keys create --production",
            hint=f"give --passphrase-file or --passphrase-env, or set {ENVIRONMENT_NAME}; or keep the keys in a token (pkcs11:)",
        )
    start = _time(arguments.not_before) if arguments.not_before else _default_start(host)
    keys = create_keys(
        arguments.folder,
        host,
        not_before=start,
        lifetime_days=arguments.days,
        key_type=arguments.key_type,
        organisation=arguments.organisation,
        test=not arguments.production,
        passphrase=passphrase.encode() if passphrase is not None else None,
        roles=(*ROLES, *_more_roles(arguments)),
    )
    rows = [{"role": pair.role, "key": pair.uri, **describe(load_certificate(pair.certificate))} for pair in (keys.root, *keys.pairs)]
    text = "\n".join(f"{row['role']:8} {row['subject']}" for row in rows)
    return Outcome({"folder": str(keys.folder), "bundle": str(keys.bundle), "keys": rows}, f"{text}\nbundle   {keys.bundle}")


def _more_roles(arguments: argparse.Namespace) -> Iterator[Role]:
    """Yields the roles that were asked for by name."""
    if arguments.ima:
        yield IMA_ROLE
    if arguments.secure_boot:
        yield UEFI_ROLE
    if arguments.attestation:
        from ipe_build.steps.provenance import ROLE

        yield ROLE


def _show(arguments: argparse.Namespace, _host: Host) -> Outcome:
    """Describes every certificate in the file."""
    rows = [describe(certificate) for certificate in load_certificates(arguments.certificate)]
    text = "\n\n".join("\n".join(f"{name:21} {value}" for name, value in row.items()) for row in rows)
    return Outcome(rows, text)


def _check(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Checks every certificate in the files."""
    target, keyring = target_of(arguments), arguments.keyring or ""
    if keyring and not arguments.bundle:
        raise UsageError("wants --bundle: what the kernel has built in", where="--keyring")
    at = _time(arguments.at) if arguments.at else datetime.now(UTC)
    bundle = read_trusted(arguments.bundle).certificates if arguments.bundle else ()
    certificates = [(path, item) for path in arguments.certificate for item in load_certificates(path)]
    if arguments.key and len(certificates) != 1:
        raise InputError(f"--key belongs to one certificate, {len(certificates)} were given", where="keys check")
    findings: list[CertificateFinding] = []
    for _, certificate in certificates:
        found = check_certificate(
            certificate, at=at, production=arguments.profile == "production", bundle=bundle, target=target, keyring=keyring
        )
        findings.extend(found)
    if arguments.key:
        findings.extend(_mismatch(arguments.key, certificates[0][0], host))
    value = {
        "certificates": [{"file": str(path), **describe(certificate)} for path, certificate in certificates],
        "findings": [
            {"rule": f.rule, "severity": f.severity, "subject": f.subject, "message": f.message, "hint": f.hint} for f in findings
        ],
    }
    lines = [f"{f.severity}: {f.subject}: {f.message} [{f.rule}]\n  hint: {f.hint}" for f in findings]
    failed = any(f.severity is Severity.ERROR for f in findings)
    text = "\n".join(lines) if lines else f"{len(certificates)} certificate{'s' if len(certificates) > 1 else ''}: nothing to say against"
    return Outcome(value, text, ExitStatus.FINDING if failed else ExitStatus.OK)


def _mismatch(uri: str, certificate: Path, host: Host) -> list[CertificateFinding]:
    """Returns the finding that the key does not fit, if so; a key that cannot be opened at all is an error."""
    try:
        open_signer(uri, certificate, host)
    except KeyMismatchError as error:
        subject = load_certificate(certificate).subject.rfc4514_string()
        return [CertificateFinding("key-mismatch", Severity.ERROR, subject, error.message, error.hint)]
    return []


def describe(certificate: x509.Certificate) -> dict[str, str]:
    """Returns a certificate's facts for people and JSON."""
    try:
        key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
    except (x509.ExtensionNotFound, ValueError):
        key_id = ""
    key = public_key_of(certificate)
    bits = getattr(key, "key_size", None)
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "algorithm": f"{algorithm_of(key).name}{f' {bits} bits' if bits else ''}",
        "subject_key_id": key_id,
        "sha256": fingerprint(certificate),
    }


def _default_start(host: Host) -> datetime:
    """Returns SOURCE_DATE_EPOCH when it is set, else now."""
    return datetime.fromtimestamp(host.source_date_epoch, UTC) if host.env.get("SOURCE_DATE_EPOCH") else datetime.now(UTC)


def _time(text: str) -> datetime:
    """Returns an ISO 8601 time; UTC unless it says otherwise. Raises: InputError."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"wanted an ISO 8601 time such as 2030-01-31T12:00, got {text!r}", where="time") from error
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
