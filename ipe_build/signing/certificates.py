"""Makes keys and certificates: a root that stays offline, and a signing certificate for each role, with what the kernel wants.

Sources: crypto/asymmetric_keys/x509_cert_parser.c (x509_process_extension: key usage, basic constraints, key ids), restrict.c,
RFC 5280 sections 4.1.2.2 and 4.2.1.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ipe_build.errors import InputError, OutputError
from ipe_build.signing.algorithms import KEY_MAKERS, algorithm_of
from ipe_build.signing.backends import open_signer
from ipe_build.signing.loading import public_bytes
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host

BUNDLE_NAME = "trusted-keys.pem"
ROOT = "root"
TEST_ORGANISATION = "TEST KEYS, NOT FOR PRODUCTION"


@dataclass(frozen=True, slots=True)
class Role:
    """A row: what one signing key is for. `name` is its file name's stem.

    `in_bundle`: whether the kernel must have the certificate built in; one for .ima is loaded later and vouched for by the root.
    """

    name: str
    title: str
    in_bundle: bool = True


ROLES: tuple[Role, ...] = (
    Role("policy", "IPE policy signing"),
    Role("verity", "dm-verity and fs-verity signing"),
    Role("module", "kernel module signing"),
)
"""The roles that every device needs."""
IMA_ROLE = Role("ima", "IMA and EVM signing", in_bundle=False)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key file (PEM, PKCS#8, mode 0600) and its certificate file (PEM)."""

    role: str
    key: Path
    certificate: Path

    @property
    def uri(self) -> str:
        """Returns the key's URI."""
        return f"file:{quote(str(self.key))}"

    def signer(self, host: Host) -> Signer:
        """Returns the signer. Raises: SigningKeyError."""
        return open_signer(self.uri, self.certificate, host)


@dataclass(frozen=True, slots=True)
class KeySet:
    """A folder of keys as `create_keys` makes it. `bundle` is the PEM for CONFIG_SYSTEM_TRUSTED_KEYS: root, then signing certificates.

    The signing certificates are in the bundle because root hash and module signatures carry none: the kernel must have them.
    """

    folder: Path
    bundle: Path
    root: KeyPair
    pairs: tuple[KeyPair, ...]

    def pair(self, role: str) -> KeyPair:
        """Returns the pair of a role. Raises: InputError when the folder has none."""
        for pair in self.pairs:
            if pair.role == role:
                return pair
        raise InputError(
            f"has no key for the role {role!r}", where=str(self.folder), hint=f"it has {', '.join(p.role for p in self.pairs)}"
        )


def create_keys(
    folder: Path,
    host: Host,
    *,
    not_before: datetime,
    lifetime_days: int = 3650,
    key_type: str = "rsa3072",
    organisation: str = "ipe-build",
    test: bool = True,
    passphrase: bytes | None = None,
    roles: Sequence[Role] = ROLES,
) -> KeySet:
    """Returns the new keys and certificates, in a new folder of mode 0700: `ROLE.key.pem`, `ROLE.cert.pem` and the bundle.

    With `test` the subjects' organisation is `TEST_ORGANISATION` and every common name begins with TEST. Validity is
    [`not_before`, `not_before` + lifetime]; serial numbers come from the keys, so the keys are the only randomness.
    Raises: OutputError when the folder exists and is not empty (keys are never overwritten), InputError.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError("exists and is not empty; keys are never overwritten", where=str(folder), hint="name a new folder")
    if key_type not in KEY_MAKERS:
        raise InputError(f"unknown key type {key_type!r}", where="key type", hint=f"known are {', '.join(KEY_MAKERS)}")
    validity = _validity(not_before, lifetime_days)
    make, prefix = KEY_MAKERS[key_type], "TEST " if test else ""
    encryption: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    with host.progress.step(f"make {key_type} keys in {folder}"), host.output_directory(folder, marker=BUNDLE_NAME) as temporary:
        temporary.chmod(0o700)
        root_key = make()
        root_name = _name(TEST_ORGANISATION if test else organisation, f"{prefix}{organisation} root")
        root = _root_certificate(root_key, root_name, validity)
        _write_pair(temporary, ROOT, root_key, root, encryption)
        bundle = [root]
        for role in roles:
            key = make()
            name = _name(TEST_ORGANISATION if test else organisation, f"{prefix}{organisation} {role.title}")
            certificate = _signing_certificate(key, name, validity, root, root_key)
            _write_pair(temporary, role.name, key, certificate, encryption)
            if role.in_bundle:
                bundle.append(certificate)
        (temporary / BUNDLE_NAME).write_bytes(b"".join(item.public_bytes(Encoding.PEM) for item in bundle))
    return load_keys(folder)


def load_keys(folder: Path) -> KeySet:
    """Returns the keys that are in a folder made by `create_keys`. Raises: InputError when it is none."""
    bundle = folder / BUNDLE_NAME
    if not bundle.is_file():
        raise InputError(f"holds no {BUNDLE_NAME}", where=str(folder), hint="make keys with: ipe-build keys create")
    names = sorted(path.name.removesuffix(".cert.pem") for path in folder.glob("*.cert.pem"))
    pairs = {name: KeyPair(name, folder / f"{name}.key.pem", folder / f"{name}.cert.pem") for name in names}
    if ROOT not in pairs:
        raise InputError("holds no root certificate", where=str(folder), hint="make keys with: ipe-build keys create")
    return KeySet(folder, bundle, pairs.pop(ROOT), tuple(pairs.values()))


def pem_bundle(certificates: Sequence[x509.Certificate]) -> bytes:
    """Returns the certificates as one PEM file for CONFIG_SYSTEM_TRUSTED_KEYS, in order, each once."""
    unique = {fingerprint(certificate): certificate for certificate in certificates}
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in unique.values())


def fingerprint(certificate: x509.Certificate) -> str:
    """Returns SHA-256 of the DER certificate as lower-case hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _validity(not_before: datetime, lifetime_days: int) -> tuple[datetime, datetime]:
    """Returns both ends of the validity in whole seconds UTC. Raises: InputError when they cannot be written in X.509."""
    if lifetime_days < 1:
        raise InputError(f"wanted a lifetime of at least a day, got {lifetime_days}", where="lifetime")
    start = not_before.astimezone(UTC).replace(microsecond=0)
    try:
        return start, start + timedelta(days=lifetime_days)
    except OverflowError as error:
        raise InputError(f"{lifetime_days} days end after the year 9999", where="lifetime") from error


def _name(organisation: str, common_name: str) -> x509.Name:
    """Returns a subject. Raises: InputError when X.509 has no room for it."""
    try:
        return x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        )
    except ValueError as error:
        raise InputError(f"cannot be part of a certificate's subject: {error}", where="organisation") from error


def _serial(key: CertificateIssuerPrivateKeyTypes, name: x509.Name) -> int:
    """Returns a serial number of 127 bits that follows from key and subject: unique, and no second source of randomness."""
    digest = hashlib.sha256(public_bytes(key.public_key()) + name.public_bytes()).digest()
    return int.from_bytes(digest[:16], "big") >> 1 | 1 << 126


def _builder(key: CertificateIssuerPrivateKeyTypes, name: x509.Name, validity: tuple[datetime, datetime]) -> x509.CertificateBuilder:
    """Returns what root and signing certificates share."""
    public = key.public_key()
    algorithm_of(public)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(public)
        .serial_number(_serial(key, name))
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _root_certificate(key: CertificateIssuerPrivateKeyTypes, name: x509.Name, validity: tuple[datetime, datetime]) -> x509.Certificate:
    """Returns a self-signed CA certificate that may only sign end certificates."""
    builder = _builder(key, name, validity).issuer_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    return builder.sign(key, algorithm_of(key.public_key()).certificate_hash)


def _signing_certificate(
    key: CertificateIssuerPrivateKeyTypes,
    name: x509.Name,
    validity: tuple[datetime, datetime],
    root: x509.Certificate,
    root_key: CertificateIssuerPrivateKeyTypes,
) -> x509.Certificate:
    """Returns a certificate that may sign data and nothing else: digitalSignature, codeSigning, CA:FALSE, both key ids."""
    root_id = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(key, name, validity).issuer_name(root.subject)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    return builder.sign(root_key, algorithm_of(root_key.public_key()).certificate_hash)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    """Returns a KeyUsage with only the named bits."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _write_pair(
    folder: Path, name: str, key: CertificateIssuerPrivateKeyTypes, certificate: x509.Certificate, encryption: KeySerializationEncryption
) -> None:
    """Writes both files; the key's is created with mode 0600, so that it is never readable by others, not even briefly."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    descriptor = os.open(folder / f"{name}.key.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(pem)
    (folder / f"{name}.cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
