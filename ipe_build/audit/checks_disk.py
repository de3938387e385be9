"""Checks of the disk: partition table and partitions, and private keys in what is on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.sealed import sealed_by
from ipe_build.errors import IpeBuildError
from ipe_build.formats.gpt import ATTRIBUTE_READ_ONLY, Partition
from ipe_build.formats.partition_types import EFI_SYSTEM

if TYPE_CHECKING:
    from ipe_build.host import Host
_PRIVATE_KEY = b"PRIVATE KEY-----"
_KEY_BEGINS = b"-----BEGIN "
_SCAN_BYTES = 1 << 20


def readable(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether every part of the image could be read."""
    for part, reason in facts.unreadable.items():
        yield bad(part, reason)
    if not facts.unreadable:
        yield good("image", "every part of it could be read")


def _no_table(facts: ImageFacts, subject: str) -> Outcome:
    """Returns what a check of the partition table says without one: nothing is wrong where the partitions are files."""
    if "partition table" not in facts.unreadable:
        return good(subject, "the image is no disk: its parts are files")
    return unknown(subject, "there is no partition table")


def gpt_intact(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks at the partition table's checksums, its copy, and overlaps."""
    if facts.table is None:
        yield _no_table(facts, "partition table")
        return
    for problem in facts.table.problems:
        yield bad("partition table", problem)
    if not facts.table.problems:
        yield good("partition table", f"both copies agree, {len(facts.table.partitions)} partitions")


def root_partitions(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the three partitions of the verity root are there."""
    root = facts.root
    rows = (
        ("root", root.data if root else None, root.data_region if root else None),
        ("root-verity", root.hash if root else None, root.hash_region if root else None),
        ("root-verity-sig", root.signature if root else None, root.signature_bytes if root else None),
    )
    for name, partition, there in rows:
        if partition is not None:
            yield good(name, f"partition {partition.number}, {partition.size_bytes} bytes")
        elif there is not None:
            yield good(name, "is there, as a file or behind the root filesystem")
        elif name == "root-verity-sig" and (reason := sealed_by(facts)):
            yield good(name, f"not needed: sealed ({reason})")
        else:
            yield bad(name, "no partition of this type")


def root_is_unique(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether a second partition has the type of one of the verity root's: who discovers partitions may take either.

    The other slot of an A/B disk (ROLE-a, ROLE-b) is there on purpose: the root hash of the boot entry says which is meant.
    """
    if facts.table is None or facts.root is None:
        yield _no_table(facts, "partition types")
        return
    known = [one for one in (facts.root.data, facts.root.hash, facts.root.signature) if one is not None]
    found = False
    for one in known:
        same = [other for other in facts.table.partitions if other.type_uuid == one.type_uuid and other != one]
        twins = [other.number for other in same if {one.name, other.name} != {f"{one.name[:-2]}-a", f"{one.name[:-2]}-b"}]
        if twins:
            found = True
            yield bad(f"partition {one.number}", f"partitions {', '.join(map(str, twins))} have the same type")
    if not found:
        yield good("partition types", "each type of the verity root is there once (in each slot)")


def read_only_flags(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the partitions of the verity root carry the read-only attribute of the specification (bit 60)."""
    partitions = _partitions(facts)
    if not partitions:
        yield _no_table(facts, "attributes") if facts.table is None else unknown("attributes", "there is no root partition")
    for name, partition in partitions:
        outcome = good if partition.attributes & ATTRIBUTE_READ_ONLY else bad
        yield outcome(name, f"attributes {partition.attributes:#x}")


def _partitions(facts: ImageFacts) -> tuple[tuple[str, Partition], ...]:
    """Returns name and partition of root and root-verity, as far as they are there."""
    if facts.root is None:
        return ()
    return tuple((name, one) for name, one in (("root", facts.root.data), ("root-verity", facts.root.hash)) if one is not None)


def other_partitions(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for partitions besides the verity root and the EFI system partition: what they hold is not protected."""
    if facts.table is None or facts.root is None:
        yield _no_table(facts, "other partitions")
        return
    known = {one.number for one in (facts.root.data, facts.root.hash, facts.root.signature) if one is not None}
    others = [one for one in facts.table.partitions if one.number not in known and one.type_uuid != EFI_SYSTEM]
    for one in others:
        yield bad(f"partition {one.number} {one.name}".strip(), f"{one.size_bytes} bytes that no hash tree covers")
    if not others:
        yield good("other partitions", "there are none")


def private_keys(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for PEM private keys in every file of the root filesystem and the initramfs (first MiB of each)."""
    if facts.files is None:
        yield unknown("private keys", "the root filesystem could not be read")
        return
    found: list[str] = []
    seen: set[int] = set()
    for one in facts.files.tree:
        if not one.is_file or (one.identity and one.identity in seen):
            continue
        seen.add(one.identity)
        try:
            head = one.read(_SCAN_BYTES)
        except IpeBuildError as error:
            yield unknown("private keys", error.message)
            return
        if _has_private_key(head):
            found.append(one.path)
    found += [f"initramfs: {entry.path}" for entry in facts.initramfs or () if _has_private_key(entry.data)]
    for name in found:
        yield bad(name, "holds a private key")
    if not found:
        yield good("root filesystem", "no file holds a PEM private key")


def _has_private_key(data: bytes) -> bool:
    """Returns whether a PEM header of a private key begins a line (a program that merely contains the words has more text there)."""
    start = data.find(_KEY_BEGINS)
    while start >= 0:
        line = data[start : start + 64].split(b"\n", 1)[0]
        if line.rstrip().endswith(_PRIVATE_KEY) and (start == 0 or data[start - 1 : start] == b"\n"):
            return True
        start = data.find(_KEY_BEGINS, start + 1)
    return False
