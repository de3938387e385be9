"""THE table of destructive boots: one row each, with what is changed in a copy of the image and how far the boot may come.

Sources of the messages: drivers/md/dm-verity-target.c (verity_handle_err), drivers/md/dm-verity-verify-sig.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.boot import layout
from ipe_build.boot.entry import find_partition, read_table
from ipe_build.boot.locate import stored_at
from ipe_build.boot.qemu import Patch
from ipe_build.errors import InputError
from ipe_build.formats.gpt import Partition
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.formats.verity import SUPERBLOCK_SIZE, parse_superblock
from ipe_build.formats.verity_sig import VeritySignature, parse_verity_signature
from ipe_build.signing.certificates import fingerprint
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host

_ROOT = tuple(row.root for row in PARTITION_TYPES.values())
_TREE = tuple(row.root_verity for row in PARTITION_TYPES.values())
_SIGNATURE = tuple(row.root_verity_sig for row in PARTITION_TYPES.values())
_FLIP_AT = 64
"""Which byte of a block gets its lowest bit flipped: any does, dm-verity judges whole blocks."""


@dataclass(frozen=True, slots=True)
class Target:
    """The image that is damaged (in overlays only): its partitions, the filesystem copied out, and a signer that nobody trusts.

    `signature` is None where the image has none: its root hash is pinned.
    """

    disk: Path
    root: Partition
    tree: Partition
    signature: Partition | None
    filesystem: Path
    foreign: Signer | None


@dataclass(frozen=True, slots=True)
class Damage:
    """A row. `proof` is a regular expression that a console line must match, `never` one that none may match.

    `patch` says what changes, None for nothing. With `runs_application` the probe program starts and must see its application fail;
    otherwise it must not start at all. With `firmware` the machine starts as a device does: no command line of ours, its own init.
    """

    id: str
    what: str
    expected: str
    why: str
    patch: Callable[[Target, Host], Patch] | None
    proof: str
    never: str = ""
    runs_application: bool = False
    needs_foreign: bool = False
    needs_signature: bool = False
    firmware: bool = False


def open_target(disk: Path, folder: Path, foreign: Signer | None) -> Target:
    """Returns what the damages need of an image; its root filesystem is copied into `folder`. Raises: InputError, FormatError."""
    table = read_table(disk)
    root = find_partition(table, _ROOT, "root", disk)
    filesystem = folder / "root-filesystem"
    with disk.open("rb") as source, filesystem.open("wb") as out:
        source.seek(root.offset_bytes)
        left = root.size_bytes
        while left and (piece := source.read(min(left, 1 << 20))):
            out.write(piece) if piece.strip(b"\0") else out.seek(len(piece), 1)
            left -= len(piece)
        out.truncate(root.size_bytes)
    tree = find_partition(table, _TREE, "root-verity", disk)
    signature = next((partition for partition in table.partitions if partition.type_uuid in _SIGNATURE), None)
    return Target(disk, root, tree, signature, filesystem, foreign)


def _flip(target: Target, offset: int) -> Patch:
    """Returns the patch that flips the lowest bit of the disk's byte at `offset`."""
    return Patch(offset, bytes([_read(target.disk, offset, 1)[0] ^ 1]))


def _flip_file(path: str) -> Callable[[Target, Host], Patch]:
    def flip(target: Target, host: Host) -> Patch:
        return _flip(target, target.root.offset_bytes + stored_at(target.filesystem, path, host) + _FLIP_AT)

    return flip


def _flip_tree(target: Target, host: Host) -> Patch:
    """Flips a bit of the tree's top block, the first one after the superblock's block."""
    head = _read(target.disk, target.tree.offset_bytes, SUPERBLOCK_SIZE)
    superblock = parse_superblock(head, where=str(target.disk), offset=target.tree.offset_bytes)
    return _flip(target, target.tree.offset_bytes + superblock.hash_block_size)


def _flip_signature(target: Target, host: Host) -> Patch:
    """Flips the last bit of the signature itself, which ends the PKCS#7; the JSON around it stays well formed."""
    found = _signature(target)
    broken = found.signature[:-1] + bytes([found.signature[-1] ^ 1])
    return _replace_signature(target, VeritySignature(found.root_hash, found.certificate_fingerprint, broken))


def _foreign_signature(target: Target, host: Host) -> Patch:
    """Signs the same root hash with a key that no keyring of the device has."""
    if target.foreign is None:
        raise InputError("no foreign key was given", where="foreign signature")
    found = _signature(target)
    signature = sign_payload(PROFILES["dm-verity-root-hash"], root_hash_payload(found.root_hash), target.foreign)
    print_of_foreign = bytes.fromhex(fingerprint(target.foreign.certificate))
    return _replace_signature(target, VeritySignature(found.root_hash, print_of_foreign, signature))


def _signature(target: Target) -> VeritySignature:
    partition = _signature_partition(target)
    raw = _read(target.disk, partition.offset_bytes, partition.size_bytes)
    return parse_verity_signature(raw, where=f"{target.disk}: {partition.name}")


def _signature_partition(target: Target) -> Partition:
    if target.signature is None:
        raise InputError("has no root-verity-sig partition", where=str(target.disk))
    return target.signature


def _replace_signature(target: Target, changed: VeritySignature) -> Patch:
    """Returns the patch that puts another signature into the partition, padded with NUL to its whole size."""
    data, partition = changed.build(), _signature_partition(target)
    if len(data) > partition.size_bytes:
        raise InputError("the signature does not fit into its partition", where=f"{target.disk}: {partition.name}")
    return Patch(partition.offset_bytes, data.ljust(partition.size_bytes, b"\0"))


def _read(disk: Path, offset: int, length: int) -> bytes:
    with disk.open("rb") as handle:
        handle.seek(offset)
        return handle.read(length)


_NEVER_MOUNTED = "the root is never mounted"
_MOUNTED = r"ipe-init: root: |\(device dm-\d+\): mounted|EXT4-fs \(dm-\d+\): mounted"
"""ipe-init, EROFS and ext4 say so when the verity root is mounted."""
_CORRUPTED = r"device-mapper: verity: \S+: {} block \d+ is corrupted"
_REFUSED = r"device-mapper: table: .*verity: Root hash verification failed"

DAMAGES: tuple[Damage, ...] = (
    Damage(
        "flip-init",
        "one bit of the first program of the root (ipe-probe as init)",
        "userspace of the root is never reached",
        "dm-verity refuses the block, so the program cannot be read",
        _flip_file(layout.PROBE),
        _CORRUPTED.format("data"),
    ),
    Damage(
        "flip-application",
        "one bit of an application",
        "its exec fails with EIO, others run",
        "dm-verity refuses the block, so the program cannot be read",
        _flip_file(layout.APPLICATION),
        _CORRUPTED.format("data"),
        runs_application=True,
    ),
    Damage(
        "flip-hash-tree",
        "one bit of the hash tree's top block",
        _NEVER_MOUNTED,
        "the top block does not match the signed root hash",
        _flip_tree,
        _CORRUPTED.format("metadata"),
        never=_MOUNTED,
    ),
    Damage(
        "flip-signature",
        "one bit of the root hash's signature",
        _NEVER_MOUNTED,
        "the kernel refuses the verity table, since the signature is not that of the root hash",
        _flip_signature,
        _REFUSED,
        never=_MOUNTED,
        needs_signature=True,
    ),
    Damage(
        "foreign-signature",
        "the same root hash, signed by a foreign key",
        _NEVER_MOUNTED,
        "the kernel refuses the verity table, since no trusted key made the signature",
        _foreign_signature,
        _REFUSED,
        never=_MOUNTED,
        needs_foreign=True,
        needs_signature=True,
    ),
)

FIRMWARE = Damage(
    "firmware",
    "nothing: UEFI firmware starts the boot loader of the unchanged image",
    "the image's own first program is started",
    "firmware, boot loader, kernel and initramfs find each other on the disk",
    None,
    r"ipe-init: starting /",
    never=r"ipe-init: FATAL|Kernel panic",
    firmware=True,
)
"""The boot that is nothing but a boot; asked for with `BootRequest.firmware`."""
