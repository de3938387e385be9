"""`ipe-build keys bundle | rotation`: from old keys to new ones without a device that trusts neither."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

from ipe_build.cli import Outcome
from ipe_build.errors import ExitStatus, InputError
from ipe_build.kernel.rotation import Artefact, find_artefacts, issuer_among, signer_among
from ipe_build.signing.certificates import fingerprint, pem_bundle
from ipe_build.signing.loading import load_certificates

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both sub-verbs."""
    joining = verbs.add_parser("bundle", help="join certificates, old and new, into one PEM file for the kernel")
    joining.add_argument("certificates", type=Path, nargs="+", metavar="PEM")
    joining.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    joining.add_argument("--force", action="store_true", help="replace OUT when it exists")
    report = verbs.add_parser("rotation", help="which artefacts still depend on a certificate that is to go")
    report.add_argument(
        "places",
        type=Path,
        nargs="+",
        metavar="DIR|FILE|IMAGE",
        help="modules, .p7b, .p7s, .verity-sig, .sig, .evm, EFI programs; a disk or root image with all that is in it",
    )
    report.add_argument("--old", type=Path, action="append", required=True, metavar="PEM", help="the certificates that are to go")
    report.add_argument("--new", type=Path, action="append", default=[], metavar="PEM", help="those that take their place")


def bundle(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Writes each certificate once. Two certificates with one key id are refused: the kernel would find only one of them."""
    certificates = dict.fromkeys(item for path in arguments.certificates for item in load_certificates(path))
    twice = [key_id for key_id, count in Counter(map(_key_id, certificates)).items() if count > 1 and key_id]
    if twice:
        message = f"two certificates have the subject key identifier {twice[0].hex()}"
        raise InputError(message, where="keys bundle", hint="a renewed certificate wants a new key")
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_bytes(pem_bundle(tuple(certificates)))
    subjects = [certificate.subject.rfc4514_string() for certificate in certificates]
    return Outcome({"output": str(arguments.output), "certificates": subjects}, f"{arguments.output}: {len(subjects)} certificates")


def _key_id(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, ValueError):
        return b""


def rotation(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Lists every artefact; the exit status is 1 while one depends on an old certificate."""
    old = [item for path in arguments.old for item in load_certificates(path)]
    new = [item for path in arguments.new for item in load_certificates(path)]
    found = [artefact for place in arguments.places for artefact in _signed(place, host)]
    rows = [(artefact, *_state(artefact, old, new)) for artefact in found]
    value = [
        {
            "path": str(artefact.path),
            "kind": artefact.kind,
            "state": state,
            "signed_by": artefact.signed_by,
            "certificate_sha256": fingerprint(certificate) if certificate is not None else None,
        }
        for artefact, state, certificate in rows
    ]
    counts = Counter(state for _, state, _ in rows)
    lines = [f"{state:7} {artefact.path} ({artefact.kind}, signed by {artefact.signed_by})" for artefact, state, _ in rows]
    lines.append(", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "nothing signed found")
    return Outcome(value, "\n".join(lines), ExitStatus.FINDING if counts["old"] else ExitStatus.OK)


def _signed(place: Path, host: Host) -> tuple[Artefact, ...]:
    """Returns what is signed in a folder, a file or an image. Raises: InputError when it is none of them."""
    if not place.exists():
        raise InputError("does not exist", where=str(place))
    found = find_artefacts(place)
    if found or place.is_dir():
        return found
    from ipe_build.examine.signed import signed_in_image

    return signed_in_image(place, host)


def _state(artefact: Artefact, old: list[x509.Certificate], new: list[x509.Certificate]) -> tuple[str, x509.Certificate | None]:
    """Returns whether an artefact depends on a new certificate, an old one, or neither, and on which."""
    if artefact.signer is None:
        return "unsigned", None
    # A new certificate under an old root is named itself, so signers come first. Issuers are known by their name alone, which an old and a
    # new root may share: then the artefact counts as one of the old.
    for find, sets in ((signer_among, (("new", new), ("old", old))), (issuer_among, (("old", old), ("new", new)))):
        for state, certificates in sets:
            certificate = find(artefact, certificates)
            if certificate is not None:
                return state, certificate
    return "other", None
