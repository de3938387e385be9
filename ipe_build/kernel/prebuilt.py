"""A kernel that somebody else built: taken as it is, after a look at whether it can do what is needed and trusts whom it must."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError
from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig, render_dotconfig
from ipe_build.kernel.build import Kernel
from ipe_build.kernel.check import compare, require
from ipe_build.kernel.fragment import fragment
from ipe_build.kernel.inspect import KernelFacts, inspect_kernel
from ipe_build.kernel.needs import Need
from ipe_build.kernel.profiles import KernelRequest
from ipe_build.kernel.source import cache_key
from ipe_build.kernel.trust import KernelTrust, certificates_der

if TYPE_CHECKING:
    from ipe_build.host import Host

_ADVICE = frozenset({Need.HARDENING, Need.INSPECTION, Need.PROBES, Need.QEMU_X86_64})
"""Needs whose absence is worth a warning, not a refusal: how hard a kernel is, and what it runs on, is its owner's affair."""
_STOCK = frozenset({"DM_INIT", "MODULE_SIG_FORCE", "MODULE_SIG_KEY", "MODULE_SIG_SHA512"})
"""What a distribution's kernel may do without where keys are in firmware: Secure Boot locks it down, then no unsigned module is loaded."""
_MODULES = ("*.ko", "*.ko.gz", "*.ko.xz", "*.ko.zst")


def take_kernel(
    image: Path,
    config: Path | None,
    modules: Path | None,
    request: KernelRequest,
    trust: KernelTrust,
    host: Host,
    *,
    keys_in_firmware: bool = False,
    loads_modules: bool = False,
) -> Kernel:
    """Returns a kernel that is built already; `config` may be None when the image holds its own (IKCONFIG).

    `request` says what it must be able to do (its source is not used), `trust` whose signatures it will have to accept. `modules` is
    its `lib/modules/RELEASE`, or a folder that has it. The boot policy in it stays; another one than `trust` has gives a warning.
    With `keys_in_firmware` the certificates are enrolled there, not in the kernel, which needs a platform keyring then; with
    `loads_modules` the initramfs loads what the configuration has as a module.
    Raises: InputError when it lacks IPE, a symbol or a certificate that is needed, or nothing says what its configuration is.
    """
    facts = inspect_kernel(image)
    if not facts.ipe:
        raise InputError("this kernel was built without IPE", where=str(image), hint="CONFIG_SECURITY_IPE=y, in Linux 6.12 or newer")
    resolved = _configuration(image, config, facts)
    needs = [need for need in request.needs if need not in _ADVICE]
    hard = fragment(
        [*needs, Need.PLATFORM_KEYRING] if keys_in_firmware and Need.PLATFORM_KEYRING not in needs else needs, request.properties
    )
    lacking = [row for row in compare(hard, resolved) if not (loads_modules and row.got == "m" and row.wanted == "y")]
    borne = [row for row in lacking if keys_in_firmware and row.symbol in _STOCK]
    require(tuple(row for row in lacking if row not in borne), where=str(config or image))
    for row in borne:
        host.progress.warn(f"{image}: {row}")
    for row in compare(fragment([need for need in request.needs if need in _ADVICE]), resolved):
        host.progress.warn(f"{image}: {row}")
    if not keys_in_firmware:
        _check_trust(image, facts, resolved, trust, host)
    folder = None if modules is None else _modules_folder(modules, facts.version)
    return Kernel(
        image=image,
        config=config if config is not None else _written(resolved, host),
        modules=() if folder is None else tuple(sorted({path for pattern in _MODULES for path in folder.rglob(pattern)})),
        release=facts.version,
        modules_folder=folder,
    )


def _configuration(image: Path, config: Path | None, facts: KernelFacts) -> DotConfig:
    """Returns the kernel's configuration: the file's, which must agree with the image's own where that has one."""
    if config is None:
        if facts.config is None:
            raise InputError("nothing says how this kernel was configured", where=str(image), hint="give its .config too ([kernel] config)")
        return facts.config
    try:
        given = parse_dotconfig(config.read_bytes(), where=str(config))
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(config)) from error
    if facts.config is not None and facts.config.values != given.values:
        differ = sorted(name for name in {*given.values, *facts.config.values} if given.get(name) != facts.config.get(name))
        if differ:
            raise InputError(
                f"is not the configuration that {image.name} holds: they differ in {', '.join(differ[:5])}",
                where=str(config),
                hint="give the .config of the same build, or none",
            )
    return given


def _written(resolved: DotConfig, host: Host) -> Path:
    """Returns a file in the cache with the configuration that the image holds."""
    text = render_dotconfig(resolved.values.items())
    folder = host.cache.entry("kernel-config-of-image", cache_key(text), lambda place: _write(place / "kernel.config", text))
    return folder / "kernel.config"


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _check_trust(image: Path, facts: KernelFacts, resolved: DotConfig, trust: KernelTrust, host: Host) -> None:
    if facts.boot_policy != (trust.boot_policy or None):
        got = "none" if facts.boot_policy is None else "another one"
        host.progress.warn(f"{image}: wanted the boot policy of the configuration, it has {got}, which stays in force")
    missing = len({*certificates_der(trust.certificates)} - {*facts.certificates})
    if missing:
        text = f"{missing} of the signing certificates are not built into it: it would refuse what they sign"
        if not resolved.enabled("IPE_POLICY_SIG_PLATFORM_KEYRING"):
            raise InputError(text, where=str(image), hint="sign with keys that this kernel trusts ([keys]), or build one from source")
        host.progress.warn(f"{image}: {text}, unless the firmware's db or MOK has them")


def _modules_folder(modules: Path, release: str) -> Path:
    """Returns the folder with this release's modules: the one named, or below it."""
    if not modules.is_dir():
        raise InputError("wanted the folder with the kernel's modules", where=str(modules))
    return next((folder for folder in (modules / "lib/modules" / release, modules / release) if folder.is_dir()), modules)
