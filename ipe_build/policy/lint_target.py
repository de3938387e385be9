"""Lint rules about the target kernel's configuration."""

from __future__ import annotations

from collections.abc import Iterator

from ipe_build.formats.dotconfig import DotConfig
from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import NO_FILE, Facts
from ipe_build.policy.findings import Hit, LintRule, Severity, Subject
from ipe_build.policy.parser import Role
from ipe_build.policy.properties import OPERATIONS, PROPERTIES, Action, Operation

_COMPRESSED_MODULES = ("MODULE_COMPRESS", "MODULE_COMPRESS_GZIP", "MODULE_COMPRESS_XZ", "MODULE_COMPRESS_ZSTD")
_NEEDS = {
    "IPE_PROP_DM_VERITY": "CONFIG_DM_VERITY",
    "IPE_PROP_DM_VERITY_SIGNATURE": "CONFIG_DM_VERITY_VERIFY_ROOTHASH_SIG",
    "IPE_PROP_FS_VERITY": "CONFIG_FS_VERITY",
    "IPE_PROP_FS_VERITY_BUILTIN_SIG": "CONFIG_FS_VERITY_BUILTIN_SIGNATURES",
}


def _config(subject: Subject) -> DotConfig:
    """Returns the target's configuration; these rules run only where there is one."""
    assert subject.target.config is not None
    return subject.target.config


def _no_ipe(subject: Subject) -> Iterator[Hit]:
    config = _config(subject)
    lsm = config.text("LSM")
    if not config.enabled("SECURITY_IPE"):
        yield Hit(0, "CONFIG_SECURITY_IPE is off: this kernel has no IPE")
    elif lsm is not None and "ipe" not in lsm.split(","):
        yield Hit(0, f'CONFIG_LSM="{lsm}" does not name ipe: it is not enabled unless the command line says lsm=…,ipe')


def _property_off(subject: Subject) -> Iterator[Hit]:
    config = _config(subject)
    off = {row.name for row in PROPERTIES if row.kconfig is not None and not config.enabled(row.kconfig)}
    for rule in subject.policy.rules if off else ():
        for condition in rule.conditions:
            row = condition.property
            if row.name in off and row.kconfig is not None and row.name != "fsverity_signature":
                yield Hit(
                    rule.line,
                    f"CONFIG_{row.kconfig} is off: {row.name}= never matches, neither TRUE nor FALSE",
                    str(condition),
                    f"turn on {_NEEDS[row.kconfig]}",
                )


def _fsverity_signatures_off(subject: Subject) -> Iterator[Hit]:
    config = _config(subject)
    if config.enabled("FS_VERITY_BUILTIN_SIGNATURES") and config.enabled("IPE_PROP_FS_VERITY_BUILTIN_SIG"):
        return
    missing = next(s for s in ("FS_VERITY_BUILTIN_SIGNATURES", "IPE_PROP_FS_VERITY_BUILTIN_SIG") if not config.enabled(s))
    for rule in subject.policy.rules:
        for condition in rule.conditions:
            if condition.property.name == "fsverity_signature":
                yield Hit(rule.line, f"CONFIG_{missing} is off: fsverity_signature= never matches, neither TRUE nor FALSE", str(condition))


def _no_initramfs(subject: Subject) -> Iterator[Hit]:
    if _config(subject).enabled("BLK_DEV_INITRD"):
        return
    for rule in subject.policy.rules:
        for condition in rule.conditions:
            if str(condition) == "boot_verified=TRUE":
                yield Hit(rule.line, "CONFIG_BLK_DEV_INITRD is off: nothing is ever boot_verified", str(condition))


def _never_asked(subject: Subject) -> Iterator[Hit]:
    config = _config(subject)
    for row in OPERATIONS:
        if row.asked_if_any and not any(config.enabled(symbol) for symbol in row.asked_if_any):
            for rule in subject.policy.rules_of(row.operation):
                symbols = " and ".join(f"CONFIG_{symbol}" for symbol in row.asked_if_any)
                yield Hit(rule.line, f"the kernel never asks about {row.operation}: off are {symbols}", f"op={row.operation}")


def _needs_file(subject: Subject, op: Operation) -> bool:
    """Returns whether some file is allowed for the operation, and a load without a file is not."""
    allows = any(rule.action is Action.ALLOW for rule in subject.policy.rules_of(op))
    return allows and decide(subject.policy, op, NO_FILE, subject.target.enabled).action is Action.DENY


def _module_buffer(subject: Subject) -> Iterator[Hit]:
    config = _config(subject)
    if not any(config.enabled(symbol) for symbol in _COMPRESSED_MODULES) or config.enabled("MODULE_DECOMPRESS"):
        return
    if config.enabled("MODULES") and _needs_file(subject, Operation.KMODULE):
        rule = subject.policy.rules_of(Operation.KMODULE)[0]
        why = (
            "modules are compressed and CONFIG_MODULE_DECOMPRESS is off: user space decompresses them and loads them from memory, which no"
        )
        yield Hit(rule.line, f"{why} KMODULE rule here allows", "op=KMODULE")


def _firmware_buffer(subject: Subject) -> Iterator[Hit]:
    if _config(subject).enabled("FW_LOADER_USER_HELPER") and _needs_file(subject, Operation.FIRMWARE):
        rule = subject.policy.rules_of(Operation.FIRMWARE)[0]
        yield Hit(rule.line, "firmware that user space hands over (CONFIG_FW_LOADER_USER_HELPER) comes without a file", "op=FIRMWARE")


def _certificate_path(subject: Subject) -> Iterator[Hit]:
    """The kernel loads these certificates before init starts, so it is the boot policy that is asked."""
    if subject.target.role is not Role.BOOT:
        return
    config = _config(subject)
    initramfs = Facts(boot_verified=True)
    for symbol in ("IMA_LOAD_X509", "EVM_LOAD_X509"):
        if config.enabled(symbol) and decide(subject.policy, Operation.X509_CERT, initramfs, config.enabled).action is Action.DENY:
            yield Hit(0, f"CONFIG_{symbol} is on, and this policy denies X509_CERT in the initramfs: the key silently stays out of .ima")


def _no_audit(subject: Subject) -> Iterator[Hit]:
    if not _config(subject).enabled("AUDIT"):
        yield Hit(0, "CONFIG_AUDIT is off: denials leave no record")


TARGET_RULES: tuple[LintRule, ...] = (
    LintRule("target-without-ipe", Severity.ERROR, "The target kernel has no IPE.", "see ipe-build kernel fragment", _no_ipe, False),
    LintRule("property-off", Severity.ERROR, "A property whose Kconfig symbol is off never matches, nor does =FALSE.", "", _property_off),
    LintRule(
        "fsverity-signatures-off",
        Severity.ERROR,
        "fsverity_signature without built-in signatures.",
        "turn on CONFIG_FS_VERITY_BUILTIN_SIGNATURES",
        _fsverity_signatures_off,
    ),
    LintRule(
        "no-initramfs",
        Severity.ERROR,
        "boot_verified without an initramfs.",
        "turn on CONFIG_BLK_DEV_INITRD",
        _no_initramfs,
    ),
    LintRule(
        "operation-never-asked",
        Severity.NOTE,
        "A rule for an operation that the target kernel never asks about.",
        "drop the rule, or turn the feature on",
        _never_asked,
    ),
    LintRule(
        "modules-from-buffer",
        Severity.ERROR,
        "KMODULE rules that need a file while modules are loaded from memory.",
        "turn on CONFIG_MODULE_DECOMPRESS, or install the modules uncompressed",
        _module_buffer,
    ),
    LintRule(
        "firmware-from-buffer",
        Severity.NOTE,
        "FIRMWARE rules that need a file while user space may hand firmware over.",
        "let the kernel read firmware from the verity root (the usual path)",
        _firmware_buffer,
    ),
    LintRule(
        "certificate-path-denied",
        Severity.WARNING,
        "IMA or EVM certificates that the policy denies.",
        "add: op=X509_CERT boot_verified=TRUE action=ALLOW",
        _certificate_path,
    ),
    LintRule("audit-off", Severity.WARNING, "A kernel without audit.", "turn on CONFIG_AUDIT", _no_audit, False),
)
