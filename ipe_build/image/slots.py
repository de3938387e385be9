"""A/B slots: each slot is an EFI system partition, a root, its hash tree and its signature, all written raw and never resized.

Partitions are named ROLE-a and ROLE-b; that is what updaters know them by. Which root is booted is said by its root hash alone: its UUIDs
are in the partition table, the root hash in the boot entry (or the initramfs) of the slot's own EFI system partition. Slot b is empty at
first; after a slot was written, `ipe-slot adopt` gives its partitions the UUIDs of the new root hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid5

from ipe_build.errors import InputError
from ipe_build.formats.gpt import Partition
from ipe_build.formats.partition_types import EFI_SYSTEM, PARTITION_TYPES

SLOTS = ("a", "b")
_MIB = 1 << 20
_SIGNATURE_BYTES = 64 << 10
"""As much as ipe-init reads of a signature partition (guest/verity.c, SIGNATURE_PARTITION_BYTES)."""


class Content(NamedTuple):
    """A partition without its place, what is written to it, and how many bytes that are (at most the partition's)."""

    partition: Partition
    source: Path | bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SlotRoom:
    """How large the slots are. `root_bytes` 0: half more than the root of this build needs, for those that come after it."""

    root_bytes: int = 0


def role_of(partition: Partition) -> str:
    """Returns `esp`, `root`, `root-verity` or `root-verity-sig`, by the partition's type. Raises: InputError for another type."""
    if partition.type_uuid == EFI_SYSTEM:
        return "esp"
    for row in PARTITION_TYPES.values():
        roles = {row.root: "root", row.root_verity: "root-verity", row.root_verity_sig: "root-verity-sig"}
        if partition.type_uuid in roles:
            return roles[partition.type_uuid]
    raise InputError(f"is of type {partition.type_uuid}, which no slot has", where=f"partition {partition.name}")


def two_slots(contents: Sequence[Content], disk_uuid: UUID, room: SlotRoom) -> list[Content]:
    """Returns the contents as slot a with room to grow, and slot b of the same sizes, empty.

    Raises: InputError when a slot would be smaller than what is in it.
    """
    root = next(one.size_bytes for one in contents if role_of(one.partition) == "root")
    grown = _round_up(room.root_bytes or root + root // 2)
    if grown < root:
        raise InputError(f"wanted at least {root} bytes for this root, got {room.root_bytes}", where="slots: root", hint="make them larger")
    slots: list[Content] = []
    for slot in SLOTS:
        for one in contents:
            role = role_of(one.partition)
            named = replace(one.partition, name=f"{role}-{slot}", size_bytes=_slot_bytes(role, one, root, grown))
            if role == "esp" or slot != SLOTS[0]:
                named = replace(named, uuid=uuid5(disk_uuid, named.name))
            slots.append(Content(named, one.source, one.size_bytes) if slot == SLOTS[0] else Content(named, b"", 0))
    return slots


def _slot_bytes(role: str, content: Content, root: int, grown: int) -> int:
    """Returns the size of a slot's partition: the tree grows with the root, and there is room for a longer signature."""
    sizes = {
        "esp": content.size_bytes,
        "root": grown,
        "root-verity": _round_up(content.size_bytes * -(-grown // root)) + _MIB,
        "root-verity-sig": max(_SIGNATURE_BYTES, content.size_bytes),
    }
    return sizes[role]


def _round_up(size: int) -> int:
    """Returns the next whole MiB."""
    return -(-size // _MIB) * _MIB
