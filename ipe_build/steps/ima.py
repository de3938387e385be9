"""IMA and EVM in a build: who signs files, what goes into the root and the initramfs, and whether kernel and IPE policies let it work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.config.schema import Config, Profile, SignedFiles
from ipe_build.errors import ConfigError, SigningKeyError
from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig
from ipe_build.host import Host
from ipe_build.image.filesystem import Change
from ipe_build.image.ima import ImaFiles, ImaRequest, sign_rootfs
from ipe_build.image.integrity import EVM_CERTIFICATE_PATH, IMA_CERTIFICATE_PATH, IntegrityRequest, TrustedSource
from ipe_build.image.rootfs import Entry
from ipe_build.integrity.hashes import find_hash
from ipe_build.kernel.build import Kernel
from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.ima_policy import load_ima_policy
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Action, Operation
from ipe_build.signing.certificate_checks import Severity, check_certificate
from ipe_build.signing.certificates import fingerprint
from ipe_build.signing.signer import Signer
from ipe_build.steps.keys import Keys, make_ima_test_keys, open_signer_of

POLICY_PATH = "/etc/ima/ima-policy"
"""Where systemd and ipe-init look for the IMA policy."""


@dataclass(frozen=True, slots=True)
class Ima:
    """What signs the files of this build, and its certificate (DER), which the kernel reads at boot. `policy` is the IMA policy's text."""

    signer: Signer
    certificate: bytes
    policy: bytes


def open_ima(config: Config, config_file: Path, keys: Keys, host: Host) -> Ima | None:
    """Step 1. Returns what [ima] asks for, None when no file is to be signed.

    Raises: SigningKeyError for a certificate that .ima would refuse; InputError for an IMA policy that no kernel takes.
    """
    if config.ima.files is SignedFiles.NONE:
        return None
    section = config.keys.ima
    signer = make_ima_test_keys(host).pair("ima").signer(host) if section is None else open_signer_of("ima", section, config_file, host)
    production = config.build.profile is Profile.PRODUCTION
    if section is None and production:
        raise SigningKeyError("a production build needs a key of its own", where=f"{config_file}: [keys] ima")
    at = datetime.fromtimestamp(host.source_date_epoch, UTC) if host.source_date_epoch else datetime.now(UTC)
    for finding in check_certificate(signer.certificate, at=at, production=production, bundle=keys.trusted, keyring=".ima"):
        if finding.severity is Severity.ERROR:
            raise SigningKeyError(finding.message, where=f"{config_file}: [keys] ima", hint=finding.hint)
    policy = config.ima.policy
    if policy.startswith("file:") and not policy.startswith("file:/"):
        policy = f"file:{config_file.absolute().parent}/{policy.removeprefix('file:')}"
    return Ima(signer, signer.certificate.public_bytes(Encoding.DER), load_ima_policy(policy))


def check_ima(config: Config, config_file: Path, boot_policy: bytes, device_policy: bytes, kernel: Kernel, host: Host) -> None:
    """Step 2. Looks whether this kernel can do what [ima] asks for, and whether IPE lets it read certificate and policy.

    Raises: ConfigError, with the line to write, for what would otherwise fail on the device.
    """
    resolved = parse_dotconfig(kernel.config.read_bytes(), where=str(kernel.config))
    for feature, symbol in _needed(config):
        if not resolved.enabled(symbol):
            hint = f'add "{feature}" to [kernel] features'
            raise ConfigError(f"[ima] needs CONFIG_{symbol}, which this kernel has not", where=f"{config_file}: [kernel]", hint=hint)
    _check_paths(config, config_file, resolved)
    if resolved.enabled("IMA_APPRAISE_BOOTPARAM"):
        host.progress.warn('ima_appraise=off on the command line would switch appraisal off: add "ima-enforced" to [kernel] features')
    load_ima_policy(config.ima.policy if not config.ima.policy.startswith("file:") else "code", resolved.enabled)
    if not _allows(boot_policy, Role.BOOT, Operation.X509_CERT, Facts(boot_verified=True)):
        raise ConfigError(
            "the boot policy denies op=X509_CERT, and .ima would stay empty",
            where=f"{config_file}: [policy.boot]",
            hint='variables = { allow_certificates = "true" }',
        )
    algorithm = find_hash(config.verity.hash)
    root = Facts(root_hash=Digest(algorithm.name.encode(), bytes(algorithm.digest_size)), root_hash_signed=True)
    if not _allows(device_policy, Role.DEVICE, Operation.POLICY, root):
        raise ConfigError(
            f"the device policy denies op=POLICY, and {POLICY_PATH} could not be loaded",
            where=f"{config_file}: [policy.device]",
            hint='variables = { allow_ima_policy = "true" }',
        )


def check_no_ima(config: Config, config_file: Path) -> None:
    """Raises ConfigError when a sealed image, in which there are no keys, asks for signed files."""
    if config.ima.files is not SignedFiles.NONE:
        raise ConfigError("a sealed image has no keys, so nothing could check signatures on files", where=f"{config_file}: [ima] files")


def _needed(config: Config) -> tuple[tuple[str, str], ...]:
    """Returns (feature, symbol) of all that the kernel must have."""
    sealed = "TRUSTED_KEYS_TPM" if config.ima.trusted_source == "tpm" else "TRUSTED_KEYS_TEE"
    return (
        ("ima", "IMA_APPRAISE"),
        ("ima", "IMA_LOAD_X509"),
        *((("evm", "EVM_LOAD_X509"),) if config.ima.evm else ()),
        *((("evm", "EVM"), (f"trusted-keys-{config.ima.trusted_source}", sealed)) if config.ima.evm_key is not None else ()),
    )


def _check_paths(config: Config, config_file: Path, resolved: DotConfig) -> None:
    """Raises ConfigError when the kernel reads its certificates from somewhere else than we put them."""
    rows = (("IMA_X509_PATH", IMA_CERTIFICATE_PATH, True), ("EVM_X509_PATH", EVM_CERTIFICATE_PATH, config.ima.evm))
    for symbol, path, wanted in rows:
        if wanted and resolved.text(symbol) != f"/{path}":
            message = f"wanted CONFIG_{symbol}=/{path}, got {resolved.text(symbol) or 'nothing'}"
            raise ConfigError(message, where=f"{config_file}: [kernel]", hint="the features ima and evm set it")


def _allows(text: bytes, role: Role, operation: Operation, facts: Facts) -> bool:
    """Returns whether an IPE policy allows the operation for a file that the kernel knows this of."""
    policy = parse(text, role=role).policy
    return policy is not None and decide(policy, operation, facts).action is Action.ALLOW


def ima_entries(ima: Ima | None) -> tuple[Entry, ...]:
    """Step 4. Returns the IMA policy as a file of the root."""
    return (Entry.file(POLICY_PATH.strip("/"), ima.policy),) if ima is not None else ()


def ima_finish(config: Config, ima: Ima | None, host: Host) -> Change | None:
    """Step 4. Returns what signs the root's files when all of them are there, None when nothing does."""
    if ima is None:
        return None
    request = ImaRequest(
        ima.signer,
        ImaFiles(config.ima.files),
        ima.signer if config.ima.evm else None,
        config.ima.digest,
    )
    return lambda rootfs: sign_rootfs(rootfs, request, host)


def ima_root_key(config: Config, ima: Ima | None) -> tuple[str, ...]:
    """Returns what a signed root depends on besides its files, for those who keep it."""
    return (repr(config.ima), fingerprint(ima.signer.certificate)) if ima is not None else ()


def ima_integrity(config: Config, ima: Ima | None) -> IntegrityRequest | None:
    """Step 7. Returns what ipe-init does for IMA and EVM, None for nothing."""
    section = config.ima
    if ima is None:
        return None
    return IntegrityRequest(
        ima.certificate,
        ima.certificate if section.evm else None,
        POLICY_PATH,
        UUID(section.evm_key) if section.evm_key is not None else None,
        section.evm_provision,
        TrustedSource(section.trusted_source),
        section.evm_pcrs,
    )
