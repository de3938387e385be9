"""Checks of the disk: partition table, hash tree, signed root hash, and what must not be in the root filesystem."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.audit.facts import ImageFacts, Region
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.errors import IpeBuildError
from ipe_build.formats.filesystem import HEAD_BYTES, filesystem_bytes
from ipe_build.formats.gpt import ATTRIBUTE_READ_ONLY, Partition
from ipe_build.formats.partition_types import EFI_SYSTEM
from ipe_build.formats.verity_sig import VeritySignature, parse_verity_signature
from ipe_build.policy.facts import Digest, Facts
from ipe_build.signing.profiles import PROFILES, root_hash_payload
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

WEAK_HASHES = frozenset({"md5", "sha1"})
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
    from ipe_build.audit.sealed import sealed_by

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


def stored_root_hash(facts: ImageFacts) -> VeritySignature | None:
    """Returns what the signature partition says, None when it is missing or unreadable (its own check says so)."""
    if facts.root is None or facts.root.signature_bytes is None:
        return None
    try:
        return parse_verity_signature(facts.root.signature_bytes)
    except IpeBuildError:
        return None


class RootHash(NamedTuple):
    """The root hash of an image: its value, and what names it."""

    value: bytes
    source: str


def root_hash_of(facts: ImageFacts) -> RootHash | None:
    """Returns the root hash: of the signature partition, of a file given with the image, else what the initramfs will open."""
    stored = stored_root_hash(facts)
    if stored is not None:
        return RootHash(stored.root_hash, "the signature partition")
    if facts.root is not None and facts.root.named_hash:
        return RootHash(facts.root.named_hash, "a file given with the image")
    settings = facts.initramfs_config() or {}
    named = (settings.get("root_hash") or ("",))[-1]
    words = facts.boot_entry.command_line.split() if facts.boot_entry is not None else []
    of_words = next((word.partition("=")[2] for word in reversed(words) if word.startswith("roothash=")), "")
    for text, source in ((named, "the initramfs"), (of_words, "the command line")):
        try:
            if text and text != "cmdline" and (value := bytes.fromhex(text)):
                return RootHash(value, source)
        except ValueError:
            continue
    return None


def hash_name_of(facts: ImageFacts, root_hash: bytes) -> str:
    """Returns the name of the tree's hash algorithm; by the length of the root hash where there is no superblock."""
    return facts.superblock.algorithm if facts.superblock is not None else {48: "sha384", 64: "sha512"}.get(len(root_hash), "sha256")


def root_facts(facts: ImageFacts, *, trusted: bool = False) -> Facts | None:
    """Returns what this kernel will know of every file of the root; None when there is no root hash.

    Its signature counts when the initramfs (as far as it can be read) hands it to the kernel, and the kernel trusts who made it. With
    `trusted` that is taken for granted: the check of the signature itself says otherwise, and once is enough.
    """
    found = root_hash_of(facts)
    if found is None:
        return None
    digest = Digest(hash_name_of(facts, found.value).encode(), found.value)
    return Facts(root_hash=digest, root_hash_signed=_signature_problem(facts, trusted) is None)


def _signature_problem(facts: ImageFacts, trusted: bool) -> str | None:
    """Returns why the kernel will not count the root hash as signed, None when it will."""
    stored = stored_root_hash(facts)
    if stored is None or facts.kernel is None:
        return "there is no signature"
    if (facts.initramfs_config() or {}).get("signature", ("partition",))[-1] == "none":
        return "the initramfs does not hand it to the kernel"
    if trusted:
        return None
    try:
        verify_signature(PROFILES["dm-verity-root-hash"], root_hash_payload(stored.root_hash), stored.signature, facts.kernel.certificates)
    except IpeBuildError as error:
        return error.message
    return None


def signature_partition(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the signature partition holds the JSON that the specification wants."""
    if facts.root is None or facts.root.signature_bytes is None:
        yield unknown("root-verity-sig", "there is no such partition")
        return
    try:
        stored = parse_verity_signature(facts.root.signature_bytes, where="root-verity-sig")
    except IpeBuildError as error:
        yield bad("root-verity-sig", error.message)
        return
    yield good("root-verity-sig", f"root hash {stored.root_hash.hex()}")


def partition_uuids(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the UUIDs of root and root-verity are the two halves of the root hash."""
    stored = root_hash_of(facts)
    if stored is None or facts.root is None or len(stored.value) < 16:
        yield unknown("partition UUIDs", "nothing names the root hash")
        return
    if facts.root.data is None and facts.root.hash is None:
        yield good("partition UUIDs", "the partitions are files, so there are none")
        return
    halves = (UUID(bytes=stored.value[:16]), UUID(bytes=stored.value[-16:]))
    for name, partition, wanted in zip(("root", "root-verity"), (facts.root.data, facts.root.hash), halves, strict=True):
        if partition is None:
            continue
        if partition.uuid == wanted:
            yield good(name, f"UUID {wanted} is from the root hash")
        else:
            yield bad(name, f"UUID is {partition.uuid}, the root hash makes it {wanted}")


def hash_tree(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Hashes all data again and compares every level of the tree, up to the signed root hash."""
    from ipe_build.audit.tree_check import check_tree

    stored = root_hash_of(facts)
    found = check_tree(facts, host)
    if stored is None or found is None:
        yield unknown("hash tree", "data, tree or root hash are missing")
    elif found.problem:
        yield bad("hash tree", found.problem)
    elif found.data_blocks:
        shown = ", ".join(str(block) for block in found.data_blocks[:8])
        yield bad("hash tree", f"{len(found.data_blocks)} blocks differ from it: {shown}{' …' if len(found.data_blocks) > 8 else ''}")
    else:
        yield good("hash tree", f"data and tree give the root hash {stored.value.hex()}")


def root_hash_signature(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the root hash's signature is by a certificate that this kernel trusts."""
    stored = stored_root_hash(facts)
    if stored is None or facts.kernel is None:
        yield unknown("root hash signature", "the signature or the kernel could not be read")
        return
    try:
        signer = verify_signature(
            PROFILES["dm-verity-root-hash"], root_hash_payload(stored.root_hash), stored.signature, facts.kernel.certificates
        )
    except IpeBuildError as error:
        yield bad("root hash signature", error.message)
        return
    yield good("root hash signature", f"by {signer.subject.rfc4514_string()}, which this kernel trusts")


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


def signature_fingerprint(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the certificate that the signature partition names is one that this kernel trusts."""
    stored = stored_root_hash(facts)
    if stored is None or facts.kernel is None:
        yield unknown("certificateFingerprint", "the signature partition or the kernel could not be read")
    elif not stored.certificate_fingerprint:
        yield unknown("certificateFingerprint", "the signature partition names none")
    else:
        known = {hashlib.sha256(one.public_bytes(Encoding.DER)).digest() for one in facts.kernel.certificates}
        outcome = good if stored.certificate_fingerprint in known else bad
        yield outcome(
            "certificateFingerprint",
            f"{stored.certificate_fingerprint.hex()} {'is' if outcome is good else 'is not'} trusted by this kernel",
        )


def superblock(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the verity superblock fits the partitions: block counts and sizes."""
    if facts.superblock is None or facts.root is None or facts.root.data_region is None:
        yield unknown("superblock", "it could not be read")
        return
    block = facts.superblock
    covered = block.data_blocks * block.data_block_size
    if covered > facts.root.data_region.size_bytes:
        yield bad("superblock", f"says {covered} bytes of data, the root partition has {facts.root.data_region.size_bytes}")
    elif covered < (wanted := _filesystem_bytes(facts.root.data_region)):
        yield bad("superblock", f"covers {covered} bytes, the filesystem has {wanted}: its end is not protected")
    else:
        yield good("superblock", f"{block.data_blocks} blocks of {block.data_block_size} bytes, the whole filesystem")


def _filesystem_bytes(image: Region) -> int:
    """Returns how many bytes the root filesystem says it has; 0 where that is not known."""
    return filesystem_bytes(image.read(0, HEAD_BYTES)) or 0


def hash_strength(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the tree's hash algorithm still resists collisions."""
    if facts.superblock is None:
        yield unknown("hash algorithm", "the superblock could not be read")
        return
    weak = facts.superblock.algorithm in WEAK_HASHES
    yield (bad if weak else good)("hash algorithm", f"{facts.superblock.algorithm}{' can be collided' if weak else ''}")


def salt(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the tree is salted: without a salt, digests of known blocks can be made in advance for all devices."""
    if facts.superblock is None:
        yield unknown("salt", "the superblock could not be read")
    elif facts.superblock.salt:
        yield good("salt", f"{len(facts.superblock.salt)} bytes")
    else:
        yield bad("salt", "there is none")


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
