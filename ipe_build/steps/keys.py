"""Step 1: who signs, and whom the kernel trusts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.config.schema import Config, KeySection, Profile, SignedFiles
from ipe_build.errors import SigningKeyError
from ipe_build.host import Host
from ipe_build.host.cache import cache_key
from ipe_build.signing.backends import open_signer
from ipe_build.signing.backends.plan import PlanSigner
from ipe_build.signing.certificate_checks import Severity, check_certificate
from ipe_build.signing.certificates import IMA_ROLE, KeySet, create_keys, load_keys
from ipe_build.signing.loading import load_certificates
from ipe_build.signing.signer import Signer

_TEST_KEYS_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)
"""Before any SOURCE_DATE_EPOCH."""
_TEST_KEYS_DAYS = 36525


@dataclass(frozen=True, slots=True)
class Keys:
    """Who signs what, and the certificates that go into the kernel (the signers' own included: most signatures carry none)."""

    policy: Signer
    verity: Signer
    module: Signer
    trusted: tuple[x509.Certificate, ...]


def make_test_keys(name: str, host: Host) -> KeySet:
    """Returns the user's test keys of a name, made the first time: from the cache folder, so that a second build is signed by the same."""

    def make(folder: Path) -> None:
        create_keys(folder / "keys", host, not_before=_TEST_KEYS_BEGIN, lifetime_days=_TEST_KEYS_DAYS, organisation=name)

    return load_keys(host.cache.entry("test-keys", cache_key(name, str(_TEST_KEYS_BEGIN), str(_TEST_KEYS_DAYS)), make) / "keys")


def make_ima_test_keys(host: Host) -> KeySet:
    """Returns the user's test key for IMA and EVM, with a root of its own, so that builds without IMA do not trust it."""

    def make(folder: Path) -> None:
        create_keys(
            folder / "keys",
            host,
            not_before=_TEST_KEYS_BEGIN,
            lifetime_days=_TEST_KEYS_DAYS,
            organisation="ipe-build IMA",
            roles=(IMA_ROLE,),
        )

    key = cache_key("ipe-build IMA", str(_TEST_KEYS_BEGIN), str(_TEST_KEYS_DAYS))
    return load_keys(host.cache.entry("test-keys", key, make) / "keys")


def open_keys(config: Config, config_file: Path, host: Host) -> Keys:
    """Step 1. Returns the signers that the configuration names, test keys for the others, and the trusted certificates.

    Raises: SigningKeyError, also where profile = production meets a TEST, weak or expired certificate or a purpose without a key.
    """
    named = {"policy": config.keys.policy, "verity": config.keys.verity, "module": config.keys.module}
    trusted = [one for path in config.keys.trusted for one in load_certificates(path)]
    test = None
    if None in named.values():
        if config.build.profile is Profile.PRODUCTION:
            missing = next(role for role, section in named.items() if section is None)
            raise SigningKeyError("a production build needs a key of its own", where=f"{config_file}: [keys] {missing}")
        test = make_test_keys("ipe-build", host)
        trusted += load_certificates(test.root.certificate)
    if config.ima.files is not SignedFiles.NONE and config.keys.ima is None:
        trusted += load_certificates(make_ima_test_keys(host).root.certificate)
    signers = {role: _open_signer(role, section, test, config_file, host) for role, section in named.items()}
    everyone = _unique([*trusted, *(signer.certificate for signer in signers.values())])
    check_certificates(config, everyone, host)
    return Keys(signers["policy"], signers["verity"], signers["module"], everyone)


def _open_signer(role: str, section: KeySection | None, test: KeySet | None, config_file: Path, host: Host) -> Signer:
    """Returns the signer of a role: the named one, else the test key."""
    if section is None:
        assert test is not None
        return test.pair(role).signer(host)
    return open_signer_of(role, section, config_file, host)


def open_signer_of(role: str, section: KeySection, config_file: Path, host: Host) -> Signer:
    """Returns the signer that a section names. A relative `file:` counts from the configuration's folder. Raises: SigningKeyError."""
    uri = section.key
    if uri.startswith("file:") and not uri.startswith("file:/"):
        uri = f"file:{config_file.absolute().parent}/{uri.removeprefix('file:')}"
    signer = open_signer(uri, section.certificate, host)
    return replace(signer, purpose=role) if isinstance(signer, PlanSigner) else signer


def _unique(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Returns each certificate once, in order."""
    return tuple({one.public_bytes(Encoding.DER): one for one in certificates}.values())


def check_certificates(config: Config, certificates: tuple[x509.Certificate, ...], host: Host) -> None:
    """Raises SigningKeyError for a certificate that must not go into a device; warns of the rest."""
    production = config.build.profile is Profile.PRODUCTION
    at = datetime.fromtimestamp(host.source_date_epoch, UTC) if host.source_date_epoch else datetime.now(UTC)
    for certificate in certificates:
        for finding in check_certificate(certificate, at=at, production=production):
            if finding.severity is Severity.ERROR:
                raise SigningKeyError(finding.message, where=finding.subject, hint=finding.hint)
            if finding.severity is Severity.WARNING and production:
                host.progress.warn(f"{finding.subject}: {finding.message}")
