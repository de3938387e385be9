"""What is wrong with a signing certificate before it is built into a device: one row a check, each says what to do.

Sources: crypto/asymmetric_keys/x509_cert_parser.c, x509_public_key.c (x509_key_preparse), asymmetric_type.c (find_asymmetric_key),
restrict.c; NIST SP 800-57 part 1 (key sizes).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from ipe_build.errors import SigningKeyError
from ipe_build.signing.algorithms import algorithm_of
from ipe_build.signing.loading import public_bytes, public_key_of
from ipe_build.signing.target import ANY_KERNEL, KernelTarget, why_refused
from ipe_build.signing.verify import issued_by

_TEST_WORD = re.compile(r"\bTEST\b")
DIGSIG_KEYRINGS = (".ima", ".evm")
KEYRINGS = (*DIGSIG_KEYRINGS, ".secondary_trusted_keys")
"""The keyrings that take certificates while the system runs, if a built-in key vouches for them."""
_SOON = timedelta(days=90)
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class Severity(StrEnum):
    """How bad a finding is; only errors make `keys check` fail."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class CertificateFinding:
    """What a check found about the certificate `subject`."""

    rule: str
    severity: Severity
    subject: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class CheckContext:
    """What a certificate is checked against. `at` is the time that validity is judged by; `bundle` is what the kernel trusts."""

    certificate: x509.Certificate
    at: datetime
    production: bool
    key: PublicKeyTypes | None
    bundle: tuple[x509.Certificate, ...]
    target: KernelTarget = ANY_KERNEL
    keyring: str = ""

    @property
    def is_authority(self) -> bool:
        """Returns whether the certificate says that it is a CA."""
        constraints = _extension(self.certificate, x509.BasicConstraints)
        return constraints is not None and constraints.ca


class CheckRow(NamedTuple):
    """A row: the rule's name, its severity, what finds it (a message, or None), what to do about it."""

    rule: str
    severity: Severity
    find: Callable[[CheckContext], str | None]
    hint: str


def check_certificate(
    certificate: x509.Certificate,
    *,
    at: datetime,
    production: bool = False,
    key: PublicKeyTypes | None = None,
    bundle: Sequence[x509.Certificate] = (),
    target: KernelTarget = ANY_KERNEL,
    keyring: str = "",
) -> tuple[CertificateFinding, ...]:
    """Returns what is wrong with a certificate, worst first; empty when nothing is.

    With `key`, whether it fits; with `bundle`, whether the kernel that has these certificates would trust this one's signatures;
    with `target`, whether that kernel can check such a key's signatures at all; with `keyring` (`.ima`, `.evm` or
    `.secondary_trusted_keys`), whether the kernel lets the certificate into it while it runs.
    """
    context = CheckContext(certificate, at, production, key, tuple(bundle), target, keyring)
    subject = certificate.subject.rfc4514_string()
    found = []
    for row in CHECKS:
        message = row.find(context)
        if message is not None:
            found.append(CertificateFinding(row.rule, row.severity, subject, message, row.hint))
    return tuple(sorted(found, key=lambda finding: list(Severity).index(finding.severity)))


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """Returns an extension's value, None when the certificate has none or its extensions cannot be read."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _expired(context: CheckContext) -> str | None:
    end = context.certificate.not_valid_after_utc
    return f"expired on {end:%Y-%m-%d %H:%M} UTC" if context.at > end else None


def _not_yet_valid(context: CheckContext) -> str | None:
    start = context.certificate.not_valid_before_utc
    return f"is not valid before {start:%Y-%m-%d %H:%M} UTC" if context.at < start else None


def _expires_soon(context: CheckContext) -> str | None:
    end = context.certificate.not_valid_after_utc
    return f"expires on {end:%Y-%m-%d}, within {_SOON.days} days" if context.at <= end < context.at + _SOON else None


def _test_in_production(context: CheckContext) -> str | None:
    names = (context.certificate.subject, context.certificate.issuer)
    is_test = any(_TEST_WORD.search(name.rfc4514_string()) for name in names)
    return "is a TEST key or issued by one, and the build's profile is production" if context.production and is_test else None


def _unusable_key(context: CheckContext) -> str | None:
    try:
        algorithm_of(public_key_of(context.certificate))
    except SigningKeyError as error:
        return error.message
    return None


def _kernel_cannot_check(context: CheckContext) -> str | None:
    try:
        algorithm = algorithm_of(public_key_of(context.certificate))
    except SigningKeyError:
        return None
    return why_refused(algorithm, algorithm.digests[0], context.target)


def _rsa_bits(context: CheckContext) -> int | None:
    try:
        key = public_key_of(context.certificate)
    except SigningKeyError:
        return None
    return key.key_size if isinstance(key, rsa.RSAPublicKey) else None


def _weak_key(context: CheckContext) -> str | None:
    bits = _rsa_bits(context)
    return f"has an RSA key of {bits} bits, under 2048" if bits is not None and bits < 2048 else None


def _short_key(context: CheckContext) -> str | None:
    bits = _rsa_bits(context)
    return f"has an RSA key of {bits} bits, under the 3072 wanted after 2030" if bits is not None and 2048 <= bits < 3072 else None


def _weak_hash(context: CheckContext) -> str | None:
    try:
        used = context.certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return "is signed with an algorithm that nobody here knows"
    weak = isinstance(used, hashes.SHA1 | hashes.MD5 | hashes.SHA224)
    return f"is signed with {used.name}, which is too weak" if used is not None and weak else None


def _key_mismatch(context: CheckContext) -> str | None:
    if context.key is None or public_bytes(context.key) == public_bytes(public_key_of(context.certificate)):
        return None
    return "the key given does not belong to this certificate"


def _no_digital_signature(context: CheckContext) -> str | None:
    usage = _extension(context.certificate, x509.KeyUsage)
    if context.is_authority or (usage is not None and usage.digital_signature):
        return None
    return "key usage lacks digitalSignature" if usage is not None else "has no key usage extension"


def _authority_cannot_sign(context: CheckContext) -> str | None:
    usage = _extension(context.certificate, x509.KeyUsage)
    if not context.is_authority or (usage is not None and usage.key_cert_sign):
        return None
    return "says CA:TRUE but its key usage lacks keyCertSign"


def _no_code_signing(context: CheckContext) -> str | None:
    usage = _extension(context.certificate, x509.ExtendedKeyUsage)
    if context.is_authority or (usage is not None and ExtendedKeyUsageOID.CODE_SIGNING in usage):
        return None
    return "extended key usage lacks codeSigning"


def _no_constraints(context: CheckContext) -> str | None:
    return "has no basic constraints extension" if _extension(context.certificate, x509.BasicConstraints) is None else None


def _no_subject_key_id(context: CheckContext) -> str | None:
    return "has no subject key identifier" if _extension(context.certificate, x509.SubjectKeyIdentifier) is None else None


def _no_authority_key_id(context: CheckContext) -> str | None:
    self_issued = context.certificate.subject == context.certificate.issuer
    missing = _extension(context.certificate, x509.AuthorityKeyIdentifier) is None
    return "has no authority key identifier" if missing and not self_issued else None


def _not_trusted(context: CheckContext) -> str | None:
    if not context.bundle or context.certificate in context.bundle:
        return None
    if any(issued_by(context.certificate, issuer) for issuer in context.bundle):
        return None
    return f"is not in the bundle of {len(context.bundle)} trusted certificates and not issued by one of them"


def _kept_out_of_keyring(context: CheckContext) -> str | None:
    """Source: security/integrity/digsig.c, crypto/asymmetric_keys/restrict.c (restrict_link_by_digsig, restrict_link_by_signature)."""
    if not context.keyring:
        return None
    usage = _extension(context.certificate, x509.KeyUsage)
    if context.keyring in DIGSIG_KEYRINGS:
        if usage is None or not usage.digital_signature:
            return f"{context.keyring} takes only certificates with key usage digitalSignature"
        if context.is_authority or usage.key_cert_sign:
            return f"{context.keyring} takes no CA certificates"
    if not any(issued_by(context.certificate, issuer) for issuer in context.bundle):
        return f"{context.keyring} takes only certificates that a built-in one has issued, and none of the {len(context.bundle)} has"
    return None


def _only_through_issuer(context: CheckContext) -> str | None:
    if context.keyring or not context.bundle or context.certificate in context.bundle or _not_trusted(context) is not None:
        return None
    return "is not in the bundle itself, only its issuer is: root hash and module signatures carry no certificate and will be refused"


def _duplicate_key_ids(context: CheckContext) -> str | None:
    ids = Counter(
        value.digest
        for item in dict.fromkeys((*context.bundle, context.certificate))
        if (value := _extension(item, x509.SubjectKeyIdentifier)) is not None
    )
    twice = [digest.hex() for digest, count in ids.items() if count > 1]
    return f"subject key identifier {twice[0]} belongs to more than one certificate" if twice else None


CHECKS: tuple[CheckRow, ...] = (
    CheckRow("test-key-in-production", Severity.ERROR, _test_in_production, "make production keys: ipe-build keys create --production"),
    CheckRow("expired", Severity.ERROR, _expired, "issue a new certificate; `keys check --at TIME` judges by another time"),
    CheckRow("not-yet-valid", Severity.ERROR, _not_yet_valid, "check the clock of this machine and of the one that issued it"),
    CheckRow("unusable-key", Severity.ERROR, _unusable_key, "make a key that the kernel takes: ipe-build keys create"),
    CheckRow("kernel-cannot-check", Severity.ERROR, _kernel_cannot_check, "use a key that the kernel takes, RSA for any"),
    CheckRow("weak-key", Severity.ERROR, _weak_key, "use RSA-3072 or more"),
    CheckRow("weak-hash", Severity.ERROR, _weak_hash, "issue the certificate with SHA-256 or stronger"),
    CheckRow("key-mismatch", Severity.ERROR, _key_mismatch, "give the certificate that was issued for this key"),
    CheckRow("no-digital-signature", Severity.ERROR, _no_digital_signature, "issue it with keyUsage=critical,digitalSignature"),
    CheckRow("authority-cannot-sign", Severity.ERROR, _authority_cannot_sign, "issue it with keyUsage=critical,keyCertSign"),
    CheckRow(
        "no-subject-key-id", Severity.ERROR, _no_subject_key_id, "issue it with subjectKeyIdentifier=hash: the kernel finds keys by it"
    ),
    CheckRow(
        "duplicate-key-id", Severity.ERROR, _duplicate_key_ids, "one key, one certificate in a bundle: the kernel takes the first it finds"
    ),
    CheckRow("not-trusted", Severity.ERROR, _not_trusted, "add its root to the kernel's bundle"),
    CheckRow("kept-out-of-keyring", Severity.ERROR, _kept_out_of_keyring, "issue it with the root that is built into the kernel"),
    CheckRow("no-authority-key-id", Severity.WARNING, _no_authority_key_id, "issue it with authorityKeyIdentifier=keyid"),
    CheckRow("no-code-signing", Severity.WARNING, _no_code_signing, "issue it with extendedKeyUsage=codeSigning"),
    CheckRow(
        "no-basic-constraints", Severity.WARNING, _no_constraints, "issue it with basicConstraints=critical,CA:FALSE: .ima may demand it"
    ),
    CheckRow("only-through-issuer", Severity.WARNING, _only_through_issuer, "put the signing certificate itself into the bundle"),
    CheckRow("short-key", Severity.WARNING, _short_key, "use RSA-3072 or more for a device that lives longer"),
    CheckRow("expires-soon", Severity.WARNING, _expires_soon, "plan the rotation: a bundle with the old and the new certificate"),
)
