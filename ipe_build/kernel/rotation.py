"""Which artefacts still depend on a certificate that is to be replaced: read from the artefacts, nothing is verified.

Reads modules, policies and detached signatures (CMS), root-verity-sig JSON, EFI programs, IMA and EVM values. What lies inside of an
image is handed in as its files' names and bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.errors import InputError
from ipe_build.formats.cms import SignerIdentity, decode_signed_data, signer_identity
from ipe_build.formats.ima_signature import parse_ima_signature
from ipe_build.formats.ima_xattr import parse_integrity_xattr
from ipe_build.formats.module_signature import split_signature
from ipe_build.formats.pe import is_pe
from ipe_build.formats.spc import decode_spc
from ipe_build.formats.verity_sig import parse_verity_signature
from ipe_build.kernel.module_compression import is_module, unpack
from ipe_build.signing.authenticode import signatures_of
from ipe_build.signing.verify import describe_signer

_LARGEST_SIGNATURE_FILE = 1 << 20
_CMS = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"


@dataclass(frozen=True, slots=True)
class Artefact:
    """A signed file: what it is, and who signed it. `signer` is None for a module or an EFI program without a signature."""

    path: Path
    kind: str
    signer: SignerIdentity | None

    @property
    def signed_by(self) -> str:
        """Returns the signer for people."""
        return describe_signer(self.signer) if self.signer is not None else "nobody"


def find_artefacts(place: Path) -> tuple[Artefact, ...]:
    """Returns what a file is, or the signed files below a folder in sorted order; nothing for a file that is nothing signed.

    Raises: FormatError for one that is damaged.
    """
    paths = sorted(_files(place)) if place.is_dir() else [place]
    return tuple(artefact for path in paths if (artefact := read_artefact(path)) is not None)


def _files(folder: Path) -> Iterator[Path]:
    """Yields the regular files below a folder, symbolic links not followed. Raises: InputError for a folder that cannot be listed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot be listed: {error.strerror}", where=str(error.filename)) from error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (path for name in names if (path := Path(parent, name)).is_file() and not path.is_symlink())


def read_artefact(path: Path) -> Artefact | None:
    """Returns what a file says of its signer, None when it is nothing signed. Raises: FormatError when it is damaged."""
    if may_be_signed(path, path.stat().st_size):
        return artefact_of(path, path.read_bytes())
    return None


def may_be_signed(path: Path, size_bytes: int) -> bool:
    """Returns whether a file of this name and size is worth reading."""
    return size_bytes <= _LARGEST_SIGNATURE_FILE or is_module(path) or path.suffix.lower() == ".efi"


def artefact_of(path: Path, data: bytes) -> Artefact | None:
    """Returns what the content of a file says of its signer, None when it is nothing signed. Raises: FormatError when it is damaged."""
    if is_module(path):
        signature = split_signature(unpack(data, str(path))[0], str(path)).signature
        return Artefact(path, "module", _cms_signer(signature, path) if signature is not None else None)
    if path.suffix.lower() == ".efi" and is_pe(data):
        found = signatures_of(data, str(path))
        return Artefact(path, "EFI program", decode_spc(found[0], str(path)).signer_infos[0].signer if found else None)
    if data[:1] == b"\x30" and _CMS in data[:32]:
        return Artefact(path, "CMS signature", _cms_signer(data, path))
    if data[:1] == b"{" and b'"signature"' in data and b'"rootHash"' in data:
        return Artefact(path, "root-verity-sig", _cms_signer(parse_verity_signature(data, where=str(path)).signature, path))
    if path.suffix in (".sig", ".evm") and data[:1] in (b"\x03", b"\x05"):
        return Artefact(path, "IMA or EVM signature", SignerIdentity(b"", 0, parse_ima_signature(data, str(path)).key_id))
    return None


def attribute_artefact(path: Path, name: str, value: bytes) -> Artefact | None:
    """Returns who signed the value of `security.ima` or `security.evm`; None for a hash. Raises: FormatError when it is damaged."""
    parsed = parse_integrity_xattr(name, value, f"{path}: {name}")
    return Artefact(path, name, SignerIdentity(b"", 0, parsed.key_id)) if parsed.is_signed else None


def _cms_signer(der: bytes, path: Path) -> SignerIdentity:
    """Returns the first signer of a CMS message."""
    return decode_signed_data(der, str(path)).signer_infos[0].signer


def signer_among(artefact: Artefact, certificates: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Returns which of the certificates is the signer's own."""
    signer = artefact.signer
    if signer is None:
        return None
    for certificate in certificates:
        if signer.subject_key_id:
            if _key_id(certificate).endswith(signer.subject_key_id):
                return certificate
        elif signer == signer_identity(certificate.public_bytes(Encoding.DER)):
            return certificate
    return None


def issuer_among(artefact: Artefact, certificates: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Returns which of the certificates has the name of the signer's issuer. Two that have one name cannot be told apart by it."""
    signer = artefact.signer
    if signer is None or signer.subject_key_id:
        return None
    return next((certificate for certificate in certificates if signer.issuer == _subject(certificate)), None)


def _key_id(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (x509.ExtensionNotFound, ValueError):
        return b""


def _subject(certificate: x509.Certificate) -> bytes:
    """Returns the subject's DER when the certificate may issue others, else nothing that a signer could name."""
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_authority = False
    return certificate.subject.public_bytes() if is_authority else b"\0"
