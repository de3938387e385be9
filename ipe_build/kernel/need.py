"""A kernel's need, and a row of the table of needs (`needs.py`, `needs_boards.py`)."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Need(StrEnum):
    """Something the kernel must be able to do."""

    IPE = "ipe"
    DM_VERITY = "dm-verity"
    DM_VERITY_SIGNATURE = "dm-verity-signature"
    FS_VERITY = "fs-verity"
    FS_VERITY_SIGNATURE = "fs-verity-signature"
    SECONDARY_KEYRING = "secondary-keyring"
    PLATFORM_KEYRING = "platform-keyring"
    REVOCATION = "revocation"
    EROFS = "erofs"
    SQUASHFS = "squashfs"
    EXT4 = "ext4"
    MODULES = "modules"
    MODULES_GZIP = "modules-gzip"
    MODULES_XZ = "modules-xz"
    MODULES_ZSTD = "modules-zstd"
    FIRMWARE = "firmware"
    HARDENING = "hardening"
    INITRAMFS = "initramfs"
    USERSPACE = "userspace"
    QEMU_X86_64 = "qemu-x86_64"
    EFI = "efi"
    INSPECTION = "inspection"
    PROBES = "probes"
    IMA = "ima"
    KEXEC = "kexec"
    SEALED = "sealed"
    QEMU_ARM64 = "qemu-arm64"
    TPM = "tpm"
    IMA_ENFORCED = "ima-enforced"
    EVM = "evm"
    TRUSTED_KEYS_TPM = "trusted-keys-tpm"
    TRUSTED_KEYS_TEE = "trusted-keys-tee"


class Row(NamedTuple):
    """One symbol (without `CONFIG_`) that one need asks for, and why."""

    need: Need
    symbol: str
    value: str
    why: str


def rows(need: Need, *wanted: tuple[str, str, str]) -> tuple[Row, ...]:
    """Returns the rows of one need, each given as symbol, value and why."""
    return tuple(Row(need, *row) for row in wanted)
