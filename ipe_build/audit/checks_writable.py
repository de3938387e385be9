"""Checks of what is not under a hash tree: programs on partitions that somebody can write, and how the root mounts them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.audit.checks_policy import device_policies
from ipe_build.audit.checks_root import with_verity
from ipe_build.audit.facts import ImageFacts, OtherPartition
from ipe_build.audit.file_tree import TreeFile
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.policies import boot_policy_in
from ipe_build.audit.sealed import enabled_in
from ipe_build.errors import IpeBuildError
from ipe_build.policy.classify import OPERATION_OF_KIND, classify
from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.properties import Action, Operation
from ipe_build.policy.survey import Entry, Kind

if TYPE_CHECKING:
    from ipe_build.host import Host

_SHOWN = 20
_HEAD_BYTES = 4096
_KINDS = frozenset({Kind.ELF, Kind.SCRIPT, Kind.MODULE, Kind.COMPRESSED_MODULE})
_MAX_FSTAB_BYTES = 1 << 20
_PSEUDO = frozenset({"proc", "sysfs", "devtmpfs", "devpts", "securityfs", "cgroup", "cgroup2", "debugfs", "tracefs", "swap", "none"})
"""What fstab may name that is no filesystem of files, or none that somebody can put a program on."""
_READ_ONLY = frozenset({"erofs", "squashfs", "iso9660", "cramfs", "romfs"})


class _Program(NamedTuple):
    """A program on a partition without a hash tree: where it is, what it is, and what the kernel would know of it."""

    place: str
    entry: Entry


def _programs(partition: OtherPartition) -> Iterator[_Program]:
    """Yields programs, libraries, scripts and modules of a partition. Raises: FormatError where a file cannot be read."""
    for one in partition.tree or ():
        found = _kind(one) if one.is_file else None
        if found in _KINDS:
            assert found is not None
            verity = one.verity
            known = Facts()
            if verity is not None and verity.digest and verity.matches is not False:
                known = Facts(fsverity_digest=Digest(verity.hash_name.encode(), verity.digest))
            yield _Program(f"{partition.name}: {one.path}", Entry(one.path, found, frozenset(), known))


def _kind(one: TreeFile) -> Kind | None:
    found = classify(one.path, one.is_executable, one.read(_HEAD_BYTES))
    return found[0] if found is not None else None


def _all(facts: ImageFacts) -> list[_Program]:
    return [program for partition in facts.partitions for program in _programs(partition)]


def _no_disk(facts: ImageFacts) -> Outcome | None:
    """Returns what is said where there is no partition table: only a disk has other partitions."""
    if facts.table is not None:
        return None
    if "partition table" in facts.unreadable:
        return unknown("other partitions", "there is no partition table")
    return good("other partitions", "the image is no disk: its parts are files")


def writable_programs(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for programs, scripts and modules on partitions that no hash tree covers: somebody may think that they run."""
    if (nothing := _no_disk(facts)) is not None:
        yield nothing
        return
    for one in facts.partitions:
        if one.tree is None and (one.problem or one.filesystem):
            yield unknown(one.name, one.problem or f"{one.filesystem} is not looked into")
    found = _all(facts)
    for program in found[:_SHOWN]:
        yield bad(program.place, f"{program.entry.kind}: nothing vouches for its bytes, so IPE denies it where the policy does")
    if len(found) > _SHOWN:
        yield bad(f"{len(found) - _SHOWN} more", "are on partitions that no hash tree covers")
    if not found:
        yield good("other partitions", f"{sum(one.tree is not None for one in facts.partitions)} with files, no program among them")


def writable_programs_denied(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the policy in force denies each program on a partition that no hash tree covers (fs-verity may vouch for one)."""
    if (nothing := _no_disk(facts)) is not None:
        yield nothing
        return
    boot = boot_policy_in(facts)
    policies = device_policies(facts) or ((boot,) if boot is not None else ())
    if not policies:
        yield unknown("other partitions", "there is no policy that this kernel accepts")
        return
    found, admitted = _all(facts), []
    for program in found:
        known = with_verity(Facts(), program.entry)
        for policy in policies:
            by = decide(policy, OPERATION_OF_KIND[program.entry.kind], known, enabled_in(facts))
            # What only the file's own digest lets through is vouched for: the digest is in the signed policy.
            stranger = decide(policy, OPERATION_OF_KIND[program.entry.kind], Facts(), enabled_in(facts))
            if by.action is Action.ALLOW and stranger.action is Action.ALLOW:
                admitted.append((program.place, str(by)))
                break
    for place, rule in admitted[:_SHOWN]:
        yield bad(place, f"may run, whoever wrote it: {rule}")
    if len(admitted) > _SHOWN:
        yield bad(f"{len(admitted) - _SHOWN} more", "may run, whoever wrote them")
    if not admitted:
        yield good("other partitions", f"none of {len(found)} programs there may run without something that vouches for it")


def mounted_noexec(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether /etc/fstab mounts what is writable with noexec: a second line behind IPE, which it is not in place of."""
    if facts.files is None:
        yield unknown("/etc/fstab", "the root filesystem could not be read")
        return
    fstab = facts.files.tree.find("etc/fstab")
    try:
        text = fstab.read(_MAX_FSTAB_BYTES) if fstab is not None and fstab.is_file else b""
    except IpeBuildError as error:
        yield unknown("/etc/fstab", error.message)
        return
    rows = [line.split() for line in text.decode("utf-8", "replace").splitlines() if not line.lstrip().startswith("#")]
    found = [(row[1], row[2]) for row in rows if len(row) >= 3 and _takes_programs(row[1], row[2], row[3] if len(row) > 3 else "")]
    policies = device_policies(facts)
    denied = bool(policies) and all(decide(one, Operation.EXECUTE, Facts(), enabled_in(facts)).action is Action.DENY for one in policies)
    told = "the policy denies programs there" if denied else "the policy does not deny programs there either"
    for place, kind in found[:_SHOWN]:
        yield bad(place, f"{kind} is mounted writable, without noexec; {told}")
    if not found:
        yield good("/etc/fstab", "mounts nothing writable without noexec" if rows else "mounts nothing")


def _takes_programs(place: str, kind: str, options: str) -> bool:
    words = options.split(",")
    return place != "/" and kind not in _PSEUDO | _READ_ONLY and "noexec" not in words and "ro" not in words
