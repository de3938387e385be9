"""The keys that a kernel trusts, from whatever says them: certificates, a UEFI db, a `.config` with its PEM bundle, a kernel image.

Source: certs/Makefile (CONFIG_SYSTEM_TRUSTED_KEYS), certs/system_keyring.c (verify_pkcs7_message_sig: revocation comes before trust),
security/integrity/platform_certs/load_uefi.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from ipe_build.errors import FormatError, InputError, SigningKeyError
from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig
from ipe_build.formats.efi_signature_list import parse_signature_list, starts_like_signature_list
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.signing.loading import load_certificates, parse_certificates
from ipe_build.signing.profiles import Profile
from ipe_build.signing.verify import verify_signature

BUILTIN = ".builtin_trusted_keys"
PLATFORM = ".platform"


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """What signatures are checked against. `keyring` is the kernel's name for it, empty for certificates that were just given.

    `release` and `config` are the kernel's, where the source says them.
    """

    certificates: tuple[x509.Certificate, ...]
    revoked: tuple[x509.Certificate, ...] = ()
    keyring: str = ""
    release: str | None = None
    config: DotConfig | None = None

    def verify(self, profile: Profile, payload: bytes, signature: bytes) -> x509.Certificate:
        """Returns the certificate that signed; see `verify_signature`.

        Raises: SignatureError, FormatError; InputError when the kernel does not look into this keyring for such a signature.
        """
        if self.keyring and self.keyring not in profile.keyrings:
            raise InputError(
                f"the kernel does not look into {self.keyring} for {profile.what}, only into {', '.join(profile.keyrings)}",
                where=profile.name,
                hint="give the certificates that are put into that keyring (PEM)",
            )
        return verify_signature(profile, payload, signature, self.certificates, self.revoked)


class _Source(NamedTuple):
    """A row: what a file is, how it is told by its bytes, how its keys are read."""

    what: str
    fits: Callable[[bytes], bool]
    read: Callable[[Path, bytes], TrustedKeys]


def read_trusted(path: Path) -> TrustedKeys:
    """Returns the keys that a file says are trusted, whichever kind of file it is; told by its content.

    Raises: InputError, FormatError, SigningKeyError.
    """
    data = path.read_bytes()
    source = next(row for row in _SOURCES if row.fits(data))
    try:
        return source.read(path, data)
    except FormatError as error:
        hint = error.hint or f"wanted one of: {', '.join(row.what for row in _SOURCES)}"
        raise FormatError(error.message, where=error.where or str(path), hint=hint) from None


def _of_certificates(path: Path, _data: bytes) -> TrustedKeys:
    return TrustedKeys(load_certificates(path))


def _of_database(path: Path, data: bytes) -> TrustedKeys:
    """Returns a UEFI db's certificates, which the kernel puts into .platform."""
    found = parse_signature_list(data, str(path))
    return TrustedKeys(_parsed(found, str(path)), keyring=PLATFORM)


def _of_config(path: Path, data: bytes) -> TrustedKeys:
    """Returns what a resolved .config builds in. Relative paths are below the build folder, where the .config is."""
    config = parse_dotconfig(data, where=str(path))
    bundles = []
    for symbol in ("SYSTEM_TRUSTED_KEYS", "SYSTEM_REVOCATION_KEYS"):
        name = config.text(symbol) or ""
        bundle = path.parent / name
        if name and not bundle.is_file():
            raise InputError(f"CONFIG_{symbol} names {name!r}, which is not there", where=str(path), hint=f"looked for {bundle}")
        bundles.append(load_certificates(bundle) if name else ())
    return TrustedKeys(bundles[0], bundles[1], BUILTIN, config=config)


def _of_kernel(path: Path, _data: bytes) -> TrustedKeys:
    """Returns the certificates inside a kernel image."""
    facts = inspect_kernel(path)
    trusted, revoked = _parsed(facts.certificates, str(path)), _parsed(facts.revoked, str(path))
    return TrustedKeys(trusted, revoked, BUILTIN, facts.version, facts.config)


def _parsed(items: tuple[bytes, ...], where: str) -> tuple[x509.Certificate, ...]:
    """Returns DER certificates as objects; one that cannot be read is an error, for nobody could tell what it vouches for."""
    try:
        return tuple(certificate for item in items for certificate in parse_certificates(item, where))
    except SigningKeyError as error:
        raise FormatError(f"holds a damaged certificate: {error.message}", where=where) from error


def _is_config(data: bytes) -> bool:
    head = data[:65536]
    return b"\nCONFIG_" in b"\n" + head and b"\0" not in head


def _is_certificate(data: bytes) -> bool:
    """PEM, or a DER SEQUENCE as long as the file."""
    if b"-----BEGIN CERTIFICATE-----" in data[:65536] and b"\0" not in data[:65536]:
        return True
    return data[:2] == b"\x30\x82" and len(data) == 4 + int.from_bytes(data[2:4], "big")


def _is_anything(_data: bytes) -> bool:
    """What is none of the others is taken for a kernel image, whose reader says what it misses."""
    return True


_SOURCES: tuple[_Source, ...] = (
    _Source("certificates (PEM or DER)", _is_certificate, _of_certificates),
    _Source("a UEFI signature database", starts_like_signature_list, _of_database),
    _Source("a kernel's .config", _is_config, _of_config),
    _Source("a kernel image", _is_anything, _of_kernel),
)
