"""The unified kernel image: kernel, initramfs and command line in one EFI program, signed for the device's firmware."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from ipe_build.boot.secure_boot_proof import SecureBoot
from ipe_build.config.schema import BootBy, Config, KeyPlace, Profile
from ipe_build.errors import ConfigError, SigningKeyError
from ipe_build.host import Host
from ipe_build.host.cache import cache_key
from ipe_build.image.uki import UkiRequest, build_uki
from ipe_build.kernel.build import Kernel
from ipe_build.signing.backends.plan import PlanSigner
from ipe_build.signing.certificates import create_keys, load_keys
from ipe_build.signing.efi_image import UEFI_ROLE, sign_image
from ipe_build.signing.signer import Signer
from ipe_build.steps.keys import Keys, check_certificates, open_signer_of

_TEST_KEYS_BEGIN, _TEST_KEYS_DAYS = datetime(1970, 1, 1, tzinfo=UTC), 36525
_KEY_TYPE = "rsa2048"
"""What the UEFI specification names; every firmware takes it."""


def check_uki_config(config: Config, config_file: Path) -> None:
    """Raises ConfigError for what does not go together, before anything is built."""
    if config.boot.secure_boot and config.disk.boot is not BootBy.UKI:
        raise ConfigError(
            "wants a unified kernel image, which firmware can judge", where=f"{config_file}: [boot] secure_boot", hint='[disk] boot = "uki"'
        )
    if config.kernel.keys is KeyPlace.FIRMWARE and (config.kernel.image is None or config.disk.boot is not BootBy.UKI):
        raise ConfigError(
            'keys in firmware go with a kernel that is built already, in a unified kernel image: [kernel] image, [disk] boot = "uki"',
            where=f"{config_file}: [kernel] keys",
        )
    if config.initramfs.modules and (config.kernel.image is None or config.kernel.modules is None):
        raise ConfigError(
            "modules in the initramfs are those of a kernel that is built already",
            where=f"{config_file}: [initramfs] modules",
            hint="give [kernel] image and modules; a kernel built from source has these drivers built in",
        )


def make_uki(config: Config, config_file: Path, kernel: Kernel, initramfs: Path, command_line: str, folder: Path, host: Host) -> Path:
    """Step 8. Returns the signed unified kernel image, NAME.efi of the folder. Raises: SigningKeyError, SignaturePendingError."""
    request = UkiRequest(
        kernel=kernel.image,
        initrds=(initramfs,),
        command_line=command_line,
        architecture=config.build.architecture,
        os_release=_os_release(config, kernel.release),
        uname=kernel.release,
    )
    out = folder / f"{config.build.name}.efi"
    out.write_bytes(sign_image(build_uki(request), open_uki_signer(config, config_file, host)))
    return out


def open_uki_signer(config: Config, config_file: Path, host: Host) -> Signer:
    """Returns who signs for the firmware: the key that the configuration names, else a test key. Raises: SigningKeyError."""
    section = config.keys.secure_boot
    if section is not None:
        signer = open_signer_of("secure-boot", section, config_file, host)
    elif config.build.profile is Profile.DEVELOPMENT:
        signer = make_test_uefi_key("ipe-build", host)
    else:
        message = f"a {config.build.profile} build needs a key of its own for firmware"
        raise SigningKeyError(message, where=f"{config_file}: [keys] secure_boot", hint='or [disk] boot = "loader"')
    check_certificates(config, (signer.certificate,), host)
    return signer


def make_test_uefi_key(name: str, host: Host) -> Signer:
    """Returns the user's test key for Secure Boot of a name, made the first time; in the cache folder, as the other test keys are."""

    def make(folder: Path) -> None:
        words = {"key_type": _KEY_TYPE, "organisation": name, "roles": (UEFI_ROLE,)}
        create_keys(folder / "keys", host, not_before=_TEST_KEYS_BEGIN, lifetime_days=_TEST_KEYS_DAYS, **words)  # type: ignore[arg-type]

    key = cache_key(UEFI_ROLE.name, name, _KEY_TYPE, str(_TEST_KEYS_BEGIN), str(_TEST_KEYS_DAYS))
    return load_keys(host.cache.entry("test-keys", key, make) / "keys").pair(UEFI_ROLE.name).signer(host)


def enrolled_certificates(config: Config, keys: Keys | None) -> tuple[x509.Certificate, ...]:
    """Returns the certificates that the kernel takes from firmware's db: none where they are built into it."""
    return keys.trusted if keys is not None and config.kernel.keys is KeyPlace.FIRMWARE else ()


def secure_boot_material(config: Config, config_file: Path, keys: Keys | None, host: Host) -> SecureBoot | None:
    """Returns what the proof under Secure Boot needs, None when it was not asked for and is not needed."""
    enrolled = enrolled_certificates(config, keys)
    if not config.boot.secure_boot and not enrolled:
        return None
    signer = open_uki_signer(config, config_file, host)
    here = None if isinstance(signer, PlanSigner) else signer
    return SecureBoot((signer.certificate, *enrolled), here, make_test_uefi_key("foreign", host), bool(enrolled))


def _os_release(config: Config, release: str) -> bytes:
    """Returns os-release(5) text: a boot menu shows PRETTY_NAME."""
    name = config.build.name
    return f'ID=ipe-build\nNAME="{name}"\nPRETTY_NAME="{name} ({release})"\nIMAGE_ID={name}\n'.encode()
