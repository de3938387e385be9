"""Lint rules about the root filesystem that the policy will judge."""

from __future__ import annotations

from collections.abc import Iterator

from ipe_build.policy.classify import OPERATION_OF_KIND
from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import NO_FILE
from ipe_build.policy.findings import Hit, LintRule, Severity, Subject
from ipe_build.policy.properties import Action, Operation
from ipe_build.policy.survey import Entry, Kind, Survey, Trait
from ipe_build.policy.versions import KernelVersion

_SHOWN = 5
_EXECVE_CHECK = KernelVersion(6, 19)


def _survey(subject: Subject) -> Survey:
    """Returns the survey; these rules run only where there is one."""
    assert subject.target.survey is not None
    return subject.target.survey


def _named(entries: list[Entry]) -> str:
    """Returns the paths of a few files."""
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return ", ".join(f"/{entry.path}" for entry in entries[:_SHOWN]) + more


def _with(subject: Subject, trait: Trait) -> list[Entry]:
    return [entry for entry in _survey(subject).entries if trait in entry.traits]


def _denied(subject: Subject, entry: Entry) -> bool:
    """Returns whether the kernel would refuse the file what it is for."""
    op = OPERATION_OF_KIND[entry.kind]
    return decide(subject.policy, op, entry.facts, subject.target.enabled).action is Action.DENY


def _line(subject: Subject, op: Operation, entry: Entry) -> int:
    return decide(subject.policy, op, entry.facts, subject.target.enabled).line


def _init_denied(subject: Subject) -> Iterator[Hit]:
    denied = [entry for entry in _with(subject, Trait.INIT) if _denied(subject, entry)]
    if denied:
        yield Hit(_line(subject, Operation.EXECUTE, denied[0]), f"the root filesystem's init is denied: {_named(denied)}")


def _loader_denied(subject: Subject) -> Iterator[Hit]:
    denied = [entry for entry in _with(subject, Trait.LOADER) if _denied(subject, entry) and Trait.INIT not in entry.traits]
    if denied:
        yield Hit(_line(subject, Operation.EXECUTE, denied[0]), f"programs that load the next policy are denied: {_named(denied)}")


def _some_denied(subject: Subject) -> Iterator[Hit]:
    for op in Operation:
        entries = [entry for entry in _survey(subject).entries if OPERATION_OF_KIND[entry.kind] is op]
        denied = [entry for entry in entries if _denied(subject, entry)]
        if denied:
            yield Hit(_line(subject, op, denied[0]), f"{op}: {len(denied)} of {len(entries)} files are denied: {_named(denied)}")


def _unjudged_filesystem(subject: Subject) -> Iterator[Hit]:
    if _survey(subject).filesystem == "btrfs":
        yield Hit(0, "the image is btrfs, which names no block device to IPE: dmverity_roothash= and dmverity_signature=TRUE never match")
    for place, kind in _survey(subject).mounts:
        if kind == "btrfs":
            yield Hit(0, f"/etc/fstab mounts btrfs on {place}: no dm-verity property ever matches there")


def _overlay(subject: Subject) -> Iterator[Hit]:
    for place, kind in _survey(subject).mounts:
        if kind in ("overlay", "overlayfs", "aufs"):
            yield Hit(0, f"/etc/fstab mounts an overlay on {place}: files of its writable layer have no property and are denied")


def _memory(subject: Subject, trait: Trait, what: str) -> Iterator[Hit]:
    """Yields a finding where executable memory is denied and files need it."""
    by = decide(subject.policy, Operation.EXECUTE, NO_FILE, subject.target.enabled)
    entries = _with(subject, trait)
    if entries and by.action is Action.DENY:
        yield Hit(by.line, f"{what}, which this policy denies: {_named(entries)}")


def _jit(subject: Subject) -> Iterator[Hit]:
    yield from _memory(subject, Trait.JIT, "a JIT compiler makes memory executable that no file is behind")


def _libffi(subject: Subject) -> Iterator[Hit]:
    yield from _memory(subject, Trait.LIBFFI, "closures of libffi may need executable memory that no file is behind")


def _upx(subject: Subject) -> Iterator[Hit]:
    yield from _memory(subject, Trait.UPX, "a program that UPX packed unpacks itself into executable memory")


def _memfd(subject: Subject) -> Iterator[Hit]:
    entries = _with(subject, Trait.MEMFD)
    if entries:
        yield Hit(0, f"these can run programs out of memory (memfd_create), which is a file on tmpfs to IPE: {_named(entries)}")


def _interpreters(subject: Subject) -> Iterator[Hit]:
    entries = [entry for entry in _with(subject, Trait.INTERPRETER) if not _denied(subject, entry)]
    if entries:
        asks = " unless they ask the kernel first (AT_EXECVE_CHECK)" if subject.target.kernel >= _EXECVE_CHECK else ""
        yield Hit(0, f"these allowed interpreters run any script they are handed (sh FILE, -c, stdin){asks}: {_named(entries)}")


def _buffered_modules(subject: Subject) -> tuple[int, int]:
    """Returns how many compressed modules there are, and the line that denies modules from memory (0: they are allowed)."""
    modules = sum(entry.kind is Kind.COMPRESSED_MODULE for entry in _survey(subject).entries)
    by = decide(subject.policy, Operation.KMODULE, NO_FILE, subject.target.enabled)
    return modules, by.line if by.action is Action.DENY else 0


def _compressed_modules(subject: Subject) -> Iterator[Hit]:
    config = subject.target.config
    count, line = _buffered_modules(subject)
    if count and line and config is not None and not config.enabled("MODULE_DECOMPRESS"):
        yield Hit(line, f"{count} modules are compressed and CONFIG_MODULE_DECOMPRESS is off: user space loads them from memory, denied")


def _maybe_compressed_modules(subject: Subject) -> Iterator[Hit]:
    count, line = _buffered_modules(subject)
    if count and line and subject.target.config is None:
        yield Hit(line, f"{count} modules are compressed: without CONFIG_MODULE_DECOMPRESS they are loaded from memory, and denied")


IMAGE_RULES: tuple[LintRule, ...] = (
    LintRule(
        "image-init-denied",
        Severity.ERROR,
        "The policy denies the root filesystem's init.",
        "allow EXECUTE for the volume it is on",
        _init_denied,
    ),
    LintRule(
        "image-loader-denied",
        Severity.ERROR,
        "The policy denies the programs that load the next one.",
        "allow EXECUTE for the volume they are on",
        _loader_denied,
    ),
    LintRule("image-files-denied", Severity.WARNING, "Files of the image are denied.", "see policy evaluate --image", _some_denied),
    LintRule(
        "image-filesystem",
        Severity.ERROR,
        "A filesystem on which dm-verity properties never match.",
        "use EROFS, SquashFS or ext4",
        _unjudged_filesystem,
    ),
    LintRule("image-overlay", Severity.WARNING, "An overlay in /etc/fstab.", "keep programs out of the writable layer", _overlay),
    LintRule("image-jit", Severity.WARNING, "JIT compilers under a policy that denies executable memory.", "switch the JIT off", _jit),
    LintRule("image-libffi", Severity.WARNING, "Users of libffi.", "build libffi with static trampolines (3.4 and later)", _libffi),
    LintRule("image-upx", Severity.WARNING, "Programs packed with UPX.", "install them unpacked", _upx),
    LintRule("image-memfd", Severity.NOTE, "Users of memfd_create.", "allow nothing on tmpfs", _memfd),
    LintRule(
        "image-interpreters",
        Severity.NOTE,
        "Interpreters.",
        "remove those that are not needed; from Linux 6.19 on, ones that ask with AT_EXECVE_CHECK are judged per script",
        _interpreters,
    ),
    LintRule(
        "image-compressed-modules",
        Severity.ERROR,
        "Compressed modules that reach the kernel without a file.",
        "turn on CONFIG_MODULE_DECOMPRESS, or install the modules uncompressed",
        _compressed_modules,
    ),
    LintRule(
        "image-compressed-modules-unknown",
        Severity.NOTE,
        "Compressed modules, and the kernel's configuration is not known.",
        "say --kernel-config .config",
        _maybe_compressed_modules,
    ),
)
