"""Checks of the hash tree, and of the signed root hash above it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.audit.facts import ImageFacts, Region
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.root_hash import root_hash_of, root_hash_signer, stored_root_hash
from ipe_build.errors import IpeBuildError
from ipe_build.formats.filesystem import HEAD_BYTES, filesystem_bytes
from ipe_build.formats.verity_sig import parse_verity_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

WEAK_HASHES = frozenset({"md5", "sha1"})


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
        signer = root_hash_signer(stored.root_hash, stored.signature, facts.kernel)
    except IpeBuildError as error:
        yield bad("root hash signature", error.message)
        return
    yield good("root hash signature", f"by {signer.subject.rfc4514_string()}, which this kernel trusts")


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
