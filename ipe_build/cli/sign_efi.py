"""`ipe-build sign efi` (or `uki`), and `sign verify efi-image` of a file that carries its signature: Secure Boot."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import named
from ipe_build.errors import SignatureError
from ipe_build.formats.efi_signature_list import starts_like_signature_list
from ipe_build.formats.pe import authenticode_digest
from ipe_build.kernel.keyring import read_trusted
from ipe_build.signing.authenticode import signatures_of, unsigned
from ipe_build.signing.backends import open_signer
from ipe_build.signing.certificates import fingerprint
from ipe_build.signing.efi_image import EMPTY_DATABASE, SignatureDatabase, sign_image, verify_image
from ipe_build.signing.profiles import PROFILES

if TYPE_CHECKING:
    from ipe_build.host import Host

ACTIONS = ("efi", "uki")
_NAMELESS = ("EFI image", "PE image")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds what only this sub-verb has."""
    parser.add_argument("input", type=Path, metavar="FILE", help="a UKI, a boot loader, a kernel with an EFI stub; x86-64 or arm64")
    parser.add_argument("--keep", action="store_true", help="keep the signatures that are there, and add one")


def sign(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Writes the signed program. The signature is checked before it is used."""
    signer = open_signer(arguments.key, arguments.cert, host)
    with named(arguments.input, *_NAMELESS):
        made = sign_image(arguments.input.read_bytes(), signer, arguments.digest, keep=arguments.keep)
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_bytes(made)
    subject = signer.certificate.subject.rfc4514_string()
    value = {
        "profile": "efi-image",
        "output": str(arguments.output),
        "bytes": len(made),
        "authenticode_sha256": authenticode_digest(made).hex(),
        "signer": subject,
        "certificate_sha256": fingerprint(signer.certificate),
        "signatures": len(signatures_of(made)),
    }
    return Outcome(value, f"{arguments.output}: signed by {subject}")


def verify(program: Path, trusted: Path, forbidden: Path | None) -> Outcome:
    """Says who vouches for a signed program: firmware's db, certificates, or the keys of a kernel that is to start it by kexec."""
    data = program.read_bytes()
    with named(program, *_NAMELESS):
        digest = authenticode_digest(data)
        signer = _judged(data, trusted, forbidden)
    subject = signer.subject.rfc4514_string() if signer is not None else None
    value = {
        "profile": "efi-image",
        "signer": subject,
        "certificate_sha256": fingerprint(signer) if signer is not None else None,
        "authenticode_sha256": digest.hex(),
    }
    return Outcome(value, f"{program}: {f'signed by {subject}' if subject else 'its digest is in db'}")


def _judged(data: bytes, trusted: Path, forbidden: Path | None) -> x509.Certificate | None:
    """Returns who vouches for it. Raises: SignatureError."""
    dbx = SignatureDatabase.parse(forbidden.read_bytes(), str(forbidden)) if forbidden is not None else EMPTY_DATABASE
    raw = trusted.read_bytes()
    if starts_like_signature_list(raw):
        return verify_image(data, SignatureDatabase.parse(raw, str(trusted)), dbx)
    keys = read_trusted(trusted)
    if not keys.keyring:
        return verify_image(data, SignatureDatabase(keys.certificates), dbx)
    signatures = signatures_of(data)
    if not signatures:
        raise SignatureError("carries no signature", errno="ENODATA", where="EFI image", hint="ipe-build sign efi FILE")
    if len(signatures) > 1:
        # crypto/asymmetric_keys/verify_pefile.c, pefile_strip_sig_wrapper: the first entry must be as long as the whole table.
        raise SignatureError(f"carries {len(signatures)} signatures; the kernel takes one", errno="ELIBBAD", where="EFI image")
    return keys.verify(PROFILES["efi-image"], unsigned(data), signatures[0])
