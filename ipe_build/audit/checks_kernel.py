"""Checks of the kernel: IPE, and what the image needs of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.checks_policy import all_policies
from ipe_build.audit.facts import ImageFacts, KernelView
from ipe_build.audit.looks import of_config, of_kernel, on
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.sealed import sealed_by
from ipe_build.formats.dotconfig import DotConfig
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.policy.properties import PROPERTIES
from ipe_build.policy.versions import FIRST_KERNEL

if TYPE_CHECKING:
    from ipe_build.host import Host

FILESYSTEM_SYMBOLS = {"erofs": "EROFS_FS", "squashfs": "SQUASHFS", "ext4": "EXT4_FS"}
HASH_SYMBOLS = {
    "sha1": "CRYPTO_SHA1",
    "sha256": "CRYPTO_SHA256",
    "sha224": "CRYPTO_SHA256",
    "sha384": "CRYPTO_SHA512",
    "sha512": "CRYPTO_SHA512",
}
_MODULE_SYMBOLS = {name: f"MODULE_COMPRESS_{name.upper()}" for name in ("gzip", "xz", "zstd")}


@of_kernel
def kernel_ipe(kernel: KernelView) -> Iterator[Outcome]:
    """Looks whether IPE is built in."""
    if kernel.ipe:
        yield good("kernel", f"{kernel.release} has IPE")
    else:
        older = "was built without it" if kernel.version >= FIRST_KERNEL else f"{FIRST_KERNEL} is the first that has it"
        yield bad("kernel", f"{kernel.release} has no IPE: {older}")


@of_kernel
def lsm_order(kernel: KernelView) -> Iterator[Outcome]:
    """Looks whether ipe is in the kernel's order of security modules (CONFIG_LSM)."""
    if kernel.lsms is None:
        yield unknown("security modules", "their order was not found in the kernel")
    elif "ipe" in kernel.lsms:
        yield good("security modules", ",".join(kernel.lsms))
    else:
        yield bad("security modules", f"CONFIG_LSM has no ipe: {','.join(kernel.lsms)}")


def architecture(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether kernel and root partition are for the same architecture."""
    if facts.kernel is None or facts.root is None:
        yield unknown("architecture", "the kernel or the root partition could not be read")
        return
    if facts.root.data is None:
        yield good("architecture", f"{facts.kernel.architecture}; a root filesystem in a file names none")
        return
    kind = facts.root.data.type_uuid
    said = facts.root.data.name.removeprefix("root-")
    named = said if said in PARTITION_TYPES else next((name for name, row in PARTITION_TYPES.items() if row.root == kind), "")
    if named and named != facts.kernel.architecture:
        yield bad("architecture", f"the kernel is for {facts.kernel.architecture}, the root partition for {named}")
    else:
        yield good("architecture", facts.kernel.architecture)


def root_filesystem_driver(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel can mount the root's filesystem: its driver is built in, or ipe-init loads it."""
    symbol = FILESYSTEM_SYMBOLS.get(facts.files.filesystem, "") if facts.files is not None else ""
    there = facts.has_driver(symbol)
    if facts.kernel is None or facts.files is None or there is None:
        yield unknown("filesystem driver", "the root filesystem could not be read, or the kernel does not show its drivers")
    elif not there:
        yield bad(f"CONFIG_{symbol}", f"is {_value(facts.kernel.config, symbol)}: the root cannot be mounted")
    else:
        yield good(f"CONFIG_{symbol}", "is built in" if facts.kernel.built_in(symbol) else "is a module that ipe-init loads")


def verity_hash_driver(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel has the hash tree's algorithm."""
    if facts.kernel is None or facts.superblock is None:
        yield unknown("hash algorithm", "the kernel or the superblock could not be read")
        return
    symbol = HASH_SYMBOLS.get(facts.superblock.algorithm)
    there = facts.has_driver(symbol) if symbol is not None else None
    if symbol is None:
        yield unknown("hash algorithm", f"which symbol {facts.superblock.algorithm} needs is not known")
    elif there is None:
        yield unknown("hash algorithm", f"the kernel does not show whether it has CONFIG_{symbol}")
    elif there:
        yield good(f"CONFIG_{symbol}", "is built in")
    else:
        yield bad(f"CONFIG_{symbol}", f"is {_value(facts.kernel.config, symbol)}: the volume cannot be opened")


def _value(config: DotConfig | None, symbol: str) -> str:
    return config.get(symbol) if config is not None else "not there"


def module_compression(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether compressed modules can be unpacked by the kernel: else they are loaded from a buffer, which no property allows."""
    config = facts.kernel_config
    if config is None or facts.files is None:
        yield unknown("compressed modules", "the kernel's configuration or the root filesystem could not be read")
        return
    kinds = sorted({one.compression for one in facts.files.modules} - {"", "none"})
    found = False
    for kind in kinds:
        symbol = _MODULE_SYMBOLS.get(kind, "")
        if not config.enabled("MODULE_DECOMPRESS") or not config.enabled(symbol):
            found = True
            yield bad(f"{kind} modules", f"needs CONFIG_MODULE_DECOMPRESS and CONFIG_{symbol}")
    if not found:
        yield good("compressed modules", "the kernel unpacks them" if kinds else "there are none")


verity_signatures = on("DM_VERITY_VERIFY_ROOTHASH_SIG", "without it the root hash's signature is not looked at")
_forced_signatures = of_config(
    "CONFIG_MODULE_SIG_FORCE",
    lambda config: not config.enabled("MODULES") or config.enabled("MODULE_SIG_FORCE"),
    "an unsigned module is refused, or none can be loaded",
    "is off: unsigned modules of the verity root are loaded",
    "Looks whether the kernel forces module signatures, where it can load modules at all.",
)


def module_signatures(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel forces module signatures, where it can load modules at all."""
    if sealed_by(facts) and facts.kernel is not None and not facts.kernel.certificates:
        yield good("CONFIG_MODULE_SIG_FORCE", "no key exists that could sign: the boot policy alone says which modules are loaded")
    else:
        yield from _forced_signatures(facts, host)


@of_kernel
def ikconfig(kernel: KernelView) -> Iterator[Outcome]:
    """Looks whether the kernel carries its configuration (IKCONFIG), which other checks need."""
    yield good("IKCONFIG", "is there") if kernel.config is not None else bad("IKCONFIG", "is not there: much cannot be looked at")


def properties_enabled(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether every property that the image's policies use is built into the kernel: a rule with it never matches otherwise."""
    config = facts.kernel_config
    if config is None:
        yield unknown("properties", "the kernel does not carry its configuration (IKCONFIG)")
        return
    used = {condition.property.name for policy in all_policies(facts) for rule in policy.rules for condition in rule.conditions}
    for row in PROPERTIES:
        if row.name in used and row.kconfig is not None:
            on = config.enabled(row.kconfig)
            yield (good if on else bad)(row.name, f"CONFIG_{row.kconfig} is {'on' if on else 'off: neither TRUE nor FALSE ever matches'}")
    if not used:
        yield unknown("properties", "no policy could be read")
