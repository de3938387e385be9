"""THE table of the policy language: operations, actions and properties. One row a property; everything else reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.versions import FIRST_KERNEL, KernelVersion

Value = bool | Digest


class Operation(StrEnum):
    """What the kernel asks about, in the order of the kernel's enum ipe_op_type."""

    EXECUTE = "EXECUTE"
    FIRMWARE = "FIRMWARE"
    KMODULE = "KMODULE"
    KEXEC_IMAGE = "KEXEC_IMAGE"
    KEXEC_INITRAMFS = "KEXEC_INITRAMFS"
    POLICY = "POLICY"
    X509_CERT = "X509_CERT"


class Action(StrEnum):
    """What a rule says."""

    ALLOW = "ALLOW"
    DENY = "DENY"


class OperationRow(NamedTuple):
    """A row: an operation, the Kconfig symbols of which one must be on for the kernel ever to ask, and what it is in words."""

    operation: Operation
    asked_if_any: tuple[str, ...]
    from_buffer: bool
    """Whether the kernel can also take the thing from memory, with no file: then only rules that need no file match."""
    meaning: str


OPERATIONS: tuple[OperationRow, ...] = (
    OperationRow(Operation.EXECUTE, (), True, "a program is run, or a file or anonymous memory is made executable"),
    OperationRow(Operation.FIRMWARE, ("FW_LOADER",), True, "firmware is loaded"),
    OperationRow(Operation.KMODULE, ("MODULES",), True, "a kernel module is loaded"),
    OperationRow(Operation.KEXEC_IMAGE, ("KEXEC_FILE", "KEXEC"), True, "a kernel is loaded with kexec"),
    OperationRow(Operation.KEXEC_INITRAMFS, ("KEXEC_FILE",), False, "an initramfs is loaded with kexec"),
    OperationRow(Operation.POLICY, ("IMA_WRITE_POLICY", "IMA_READ_POLICY", "IMA"), False, "an IMA policy is loaded by its path"),
    OperationRow(Operation.X509_CERT, ("IMA_LOAD_X509", "EVM_LOAD_X509"), False, "an IMA or EVM certificate is loaded by its path"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Property:
    """A row: the word before `=`, how its value is written, and when a file has it.

    `takes_digest` says the value is ALGORITHM:HEX; otherwise it is TRUE or FALSE. `matches` is the kernel's own evaluation, given
    that `kconfig` (None: always built) is on; with it off neither value ever matches. `of_file` says whether a match of TRUE, or
    of a digest, needs a file. `algorithms` are the names that the kernel can have in that place.
    """

    name: str
    takes_digest: bool
    kconfig: str | None
    since: KernelVersion
    matches: Callable[[Facts, Value], bool]
    meaning: str
    algorithms: frozenset[str] = frozenset()


DIGEST_SIZES: dict[str, int] = {
    "md5": 16,
    "sha1": 20,
    "rmd160": 20,
    "sha224": 28,
    "sha256": 32,
    "sm3": 32,
    "sha3-224": 28,
    "sha3-256": 32,
    "blake2s-256": 32,
    "blake2b-256": 32,
    "streebog256": 32,
    "sha384": 48,
    "sha3-384": 48,
    "blake2b-384": 48,
    "wp384": 48,
    "sha512": 64,
    "sha3-512": 64,
    "blake2b-512": 64,
    "streebog512": 64,
    "wp512": 64,
}
"""Bytes of a digest, by the crypto API's name, which is what dm-verity hands to IPE (crypto_shash_alg_name)."""

FSVERITY_ALGORITHMS = frozenset({"sha256", "sha512"})
"""Source: fs/verity/hash_algs.c."""


def _boot_verified(facts: Facts, value: Value) -> bool:
    return (facts.has_file and facts.boot_verified) is value


def _dmverity_signature(facts: Facts, value: Value) -> bool:
    return (facts.has_file and facts.root_hash_signed) is value


def _dmverity_roothash(facts: Facts, value: Value) -> bool:
    return facts.has_file and facts.root_hash is not None and facts.root_hash == value


def _fsverity_signature(facts: Facts, value: Value) -> bool:
    return (facts.has_file and facts.fsverity_digest is not None and facts.fsverity_signed) is value


def _fsverity_digest(facts: Facts, value: Value) -> bool:
    return facts.has_file and facts.fsverity_digest is not None and facts.fsverity_digest == value


PROPERTIES: tuple[Property, ...] = (
    Property("boot_verified", False, None, FIRST_KERNEL, _boot_verified, "the file is in the initramfs's root filesystem"),
    Property(
        "dmverity_roothash",
        True,
        "IPE_PROP_DM_VERITY",
        FIRST_KERNEL,
        _dmverity_roothash,
        "the file is on a dm-verity volume with this root hash",
        frozenset(DIGEST_SIZES),
    ),
    Property(
        "dmverity_signature",
        False,
        "IPE_PROP_DM_VERITY_SIGNATURE",
        FIRST_KERNEL,
        _dmverity_signature,
        "the file is on a dm-verity volume whose root hash came with a signature that the kernel checked",
    ),
    Property(
        "fsverity_digest",
        True,
        "IPE_PROP_FS_VERITY",
        FIRST_KERNEL,
        _fsverity_digest,
        "the file has fs-verity enabled and this digest",
        FSVERITY_ALGORITHMS,
    ),
    Property(
        "fsverity_signature",
        False,
        "IPE_PROP_FS_VERITY_BUILTIN_SIG",
        FIRST_KERNEL,
        _fsverity_signature,
        "the file has fs-verity enabled and a built-in signature that the kernel checked",
    ),
)

PROPERTY_OF_NAME: dict[str, Property] = {row.name: row for row in PROPERTIES}
