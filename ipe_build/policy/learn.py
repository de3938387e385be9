"""From audit records to sentences and rules: what was denied, why, what to do, and what to allow, best trusted first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from ipe_build.formats.audit_record import Access, AuditRecord, EnforceChange, PolicyActivation, PolicyLoad
from ipe_build.policy.evaluate import audit_text
from ipe_build.policy.facts import Digest
from ipe_build.policy.model import Condition, Default, Policy, Rule
from ipe_build.policy.properties import PROPERTY_OF_NAME, Action, Operation


class Trust(IntEnum):
    """What a proposed rule rests on; lower is better."""

    SIGNATURE = 1
    ROOT_HASH = 2
    DIGEST = 3
    UNVERIFIED = 4


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rule that would allow what was denied, and what it rests on."""

    rule: Rule
    trust: Trust


@dataclass(frozen=True, slots=True)
class Denial:
    """Equal denials taken together: the first one, how many, what happened and what to do in words, and rules, best first."""

    access: Access
    count: int
    sentence: str
    fix: str
    proposals: tuple[Proposal, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a log teaches: denials, other events in words, and the rules to add (each once, best first)."""

    denials: tuple[Denial, ...]
    events: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known beside the log: the policy in force, root hashes of the device's volumes, fs-verity digests of files by path.

    `last_resort` also proposes rules that let unverified things through (=FALSE).
    """

    policy: Policy | None = None
    root_hashes: tuple[Digest, ...] = ()
    file_digest: Callable[[str], Digest | None] = lambda _path: None
    last_resort: bool = False


class Place(IntEnum):
    """Where a file was, as far as a record says."""

    NO_FILE = 0
    INITRAMFS = 1
    MAPPED = 2
    MEMORY = 3
    DISK = 4
    OTHER = 5


_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "mqueue", "hugetlbfs", "memfd")
_OTHER = ("overlay", "btrfs", "fuse", "9p", "nfs", "proc", "sysfs")
_HOOKS = {
    "BPRM_CHECK": "running it",
    "BPRM_CREDS_FOR_EXEC": "an interpreter asked whether it may run it (AT_EXECVE_CHECK)",
    "MMAP": "mapping it executable (a library, or an interpreter's load)",
    "MPROTECT": "making a mapping executable",
    "KERNEL_READ": "the kernel read it",
    "KERNEL_LOAD": "it was handed to the kernel in memory",
}
_THINGS = {
    Operation.EXECUTE: "program or library",
    Operation.FIRMWARE: "firmware",
    Operation.KMODULE: "kernel module",
    Operation.KEXEC_IMAGE: "kernel for kexec",
    Operation.KEXEC_INITRAMFS: "initramfs for kexec",
    Operation.POLICY: "IMA policy",
    Operation.X509_CERT: "certificate",
}


def learn(records: Iterable[AuditRecord], knowledge: Knowledge | None = None) -> Lesson:
    """Returns what a log's records teach.

    A decision counts as denied when a rule denies it, also while nothing is enforced; one that only `DEFAULT action=ALLOW` allows
    counts as well, as a policy that denies by default would deny it.
    """
    knowledge = knowledge or Knowledge()
    seen: dict[tuple[str, str, str | None, str | None, str], list[Access]] = {}
    events: list[str] = []
    for record in records:
        event = record.event
        if isinstance(event, Access):
            if event.action == Action.DENY or event.rule == "DEFAULT action=ALLOW":
                seen.setdefault((event.op, event.hook, event.path, event.dev, event.rule), []).append(event)
        else:
            events.append(_event_sentence(event))
    denials = tuple(_denial(group[0], len(group), knowledge) for group in seen.values())
    best = {proposal.rule: proposal.trust for denial in denials for proposal in denial.proposals[:1]}
    rules = tuple(sorted(best, key=lambda rule: (best[rule], list(Operation).index(rule.op), str(rule))))
    return Lesson(denials, tuple(events), rules)


def _event_sentence(event: PolicyLoad | PolicyActivation | EnforceChange) -> str:
    """Returns one of the other records in words."""
    if isinstance(event, EnforceChange):
        return "enforcement was switched on" if event.enforcing else "enforcement was switched off: denials are recorded only"
    if isinstance(event, PolicyActivation):
        old = f"{event.old.name} {event.old.version}" if event.old else "none"
        return f"policy {event.new.name} {event.new.version} was activated (before: {old})"
    if event.policy is None or not event.success:
        return f"a policy was refused with errno {event.errno}"
    return f"policy {event.policy.name} {event.policy.version} was loaded (signed file sha256:{event.policy.digest.hex()})"


def place_of(access: Access) -> Place:
    """Returns where the file was, from the record's path and dev (the file system's s_id)."""
    dev = access.dev or ""
    if access.path is None and access.dev is None:
        return Place.NO_FILE
    if dev == "rootfs":
        return Place.INITRAMFS
    if re.fullmatch(r"dm-\d+", dev):
        return Place.MAPPED
    if dev in _MEMORY:
        return Place.MEMORY
    return Place.OTHER if dev in _OTHER or not re.fullmatch(r"[a-z]+[a-z0-9]*", dev) else Place.DISK


def _denial(access: Access, count: int, knowledge: Knowledge) -> Denial:
    """Returns the explanation of one group."""
    op = Operation(access.op) if access.op in Operation.__members__ else None
    place = place_of(access)
    fix, proposals = _advice(op, access, place, knowledge) if op else ("the kernel knows an operation that this program does not", ())
    proposals = tuple(sorted(proposals, key=lambda proposal: proposal.trust))
    return Denial(access, count, _sentence(access, op, count, knowledge.policy), fix, proposals)


def _sentence(access: Access, op: Operation | None, count: int, policy: Policy | None) -> str:
    """Returns what happened."""
    thing = _THINGS.get(op, "file") if op else "file"
    what = f"the {thing} {_printable(access.path)} on {access.dev or '?'}" if access.path else f"a {thing} without a file behind it"
    how = _HOOKS.get(access.hook, access.hook)
    times = f", {count} times" if count > 1 else ""
    if access.action == Action.ALLOW:
        verb = "was let through by the global default only"
    else:
        verb = "was denied" if access.enforcing else "would have been denied (nothing was enforced)"
    line = _line_of(access.rule, policy)
    return f'{what} {verb}{times}, for {_printable(access.comm)} ({how}): "{_printable(access.rule)}"{line} decided {access.op}'


def _line_of(rule: str, policy: Policy | None) -> str:
    """Returns where the policy says so."""
    rows: tuple[Rule | Default, ...] = (*policy.rules, *policy.defaults) if policy is not None else ()
    found = next((row for row in rows if audit_text(row) == rule), None)
    return f" (line {found.line})" if found is not None and found.line else ""


def _printable(text: str | None) -> str:
    """Returns text that a terminal can show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogateescape").decode("ascii", "replace") for c in text or "?")


def _rule(op: Operation, name: str, value: bool | Digest) -> Rule:
    return Rule(op, (Condition(PROPERTY_OF_NAME[name], value),), Action.ALLOW)


def _advice(op: Operation, access: Access, place: Place, knowledge: Knowledge) -> tuple[str, tuple[Proposal, ...]]:
    """Returns what to do, and rules."""
    return _ADVICE[place](op, access, knowledge)


def _no_file(op: Operation, access: Access, knowledge: Knowledge) -> tuple[str, tuple[Proposal, ...]]:
    """Advice for memory and buffers: only a rule without trust could match, so the cause is what to change."""
    fixes = {
        Operation.EXECUTE: "it makes anonymous memory executable (JIT, libffi, UPX): switch its JIT off or use a build without",
        Operation.KMODULE: "it was loaded with init_module: turn on CONFIG_MODULE_DECOMPRESS or install modules uncompressed, so that "
        "finit_module is used and the file is judged",
        Operation.FIRMWARE: "let the kernel read firmware itself, from the verified root file system",
    }
    fix = fixes.get(op, "use the system call that takes a file (kexec_file_load), so that the file is judged")
    last = Rule(op, tuple(Condition(PROPERTY_OF_NAME[name], False) for name in ("boot_verified", "dmverity_signature")), Action.ALLOW)
    return fix, (Proposal(last, Trust.UNVERIFIED),) if knowledge.last_resort else ()


def _initramfs(op: Operation, _access: Access, _knowledge: Knowledge) -> tuple[str, tuple[Proposal, ...]]:
    return (
        "it is in the initramfs: activate the policy that leaves boot_verified out as the last step before switching root, "
        "or allow the initramfs in the boot policy",
        (Proposal(_rule(op, "boot_verified", True), Trust.SIGNATURE),),
    )


def _mapped(op: Operation, _access: Access, knowledge: Knowledge) -> tuple[str, tuple[Proposal, ...]]:
    """Advice for a device-mapper volume, presumably dm-verity."""
    pinned = tuple(Proposal(_rule(op, "dmverity_roothash", digest), Trust.ROOT_HASH) for digest in knowledge.root_hashes)
    signature = _rule(op, "dmverity_signature", True)
    if knowledge.policy is not None and signature in knowledge.policy.rules:
        fix = (
            "the policy allows signed dm-verity volumes and this one was not taken for one: it was opened without its root hash's "
            "signature (veritysetup open --root-hash-signature=…), or is not dm-verity; otherwise pin its root hash"
        )
        return fix, pinned
    fix = "if the volume is dm-verity, sign its root hash and open it with the signature, and allow signed volumes (or pin its root hash)"
    return fix, (Proposal(signature, Trust.SIGNATURE), *pinned)


def _memory(_op: Operation, access: Access, _knowledge: Knowledge) -> tuple[str, tuple[Proposal, ...]]:
    return (
        f"{access.dev} is memory that anybody may have written, so nothing there can be trusted: put the file into the verified image "
        "and use it from there",
        (),
    )


def _disk(op: Operation, access: Access, knowledge: Knowledge) -> tuple[str, tuple[Proposal, ...]]:
    """Advice for a plain writable disk: move it, or give the file fs-verity."""
    digest = knowledge.file_digest(access.path or "")
    exact = (Proposal(_rule(op, "fsverity_digest", digest), Trust.DIGEST),) if digest is not None else ()
    fix = (
        f"{access.dev} is not verified: put the file into the dm-verity image, or enable fs-verity on it with a signature "
        "(ipe-build fsverity sign) and allow that"
    )
    return fix, (Proposal(_rule(op, "fsverity_signature", True), Trust.SIGNATURE), *exact)


def _other(op: Operation, access: Access, knowledge: Knowledge) -> tuple[str, tuple[Proposal, ...]]:
    """Advice for stacked and remote file systems."""
    if access.dev == "overlay":
        digest = knowledge.file_digest(access.path or "")
        exact = (Proposal(_rule(op, "fsverity_digest", digest), Trust.DIGEST),) if digest is not None else ()
        fix = "a file of an overlay counts as the layer it is really on: this one was changed or added in the writable layer; build it in"
        return fix, exact
    return f"files on {access.dev or '?'} have no property IPE could trust: put the file into the verified image", ()


_ADVICE: dict[Place, Callable[[Operation, Access, Knowledge], tuple[str, tuple[Proposal, ...]]]] = {
    Place.NO_FILE: _no_file,
    Place.INITRAMFS: _initramfs,
    Place.MAPPED: _mapped,
    Place.MEMORY: _memory,
    Place.DISK: _disk,
    Place.OTHER: _other,
}
