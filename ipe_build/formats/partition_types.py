"""GPT partition types of the discoverable partitions, per architecture.

Source: UAPI group, "Discoverable Partitions Specification".
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

EFI_SYSTEM = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
EXTENDED_BOOT_LOADER = UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172")


class RootTypes(NamedTuple):
    """A row: the types of an architecture's root partitions, its name in EFI file names, and systemd-boot's file."""

    root: UUID
    root_verity: UUID
    root_verity_sig: UUID
    efi_name: str
    boot_loader: str


def _row(root: str, verity: str, signature: str, efi_name: str, boot_loader: str) -> RootTypes:
    return RootTypes(UUID(root), UUID(verity), UUID(signature), efi_name, boot_loader)


PARTITION_TYPES: dict[str, RootTypes] = {
    "x86-64": _row(
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
        "41092b05-9fc8-4523-994f-2def0408b176",
        "X64",
        "systemd-bootx64.efi",
    ),
    "arm64": _row(
        "b921b045-1df0-41c3-af44-4c6f280d3fae",
        "df3300ce-d69f-4c92-978c-9bfb0f38d820",
        "6db69de6-29f4-4758-a7a5-962190f00ce3",
        "AA64",
        "systemd-bootaa64.efi",
    ),
    "arm": _row(
        "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
        "7386cdf2-203c-47a9-a498-f2ecce45a2d6",
        "42b0455f-eb11-491d-98d3-56145ba9d037",
        "ARM",
        "systemd-bootarm.efi",
    ),
    "riscv64": _row(
        "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
        "b6ed5582-440b-4209-b8da-5ff7c419ea3d",
        "efe0f087-ea8d-4469-821a-4c2a96a8386a",
        "RISCV64",
        "systemd-bootriscv64.efi",
    ),
}
"""By the architecture's name in the specification."""
