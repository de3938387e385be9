"""The root hash of an image, who names it, and what the kernel will know of each file of the root by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ipe_build.audit.command_line import word_of
from ipe_build.audit.facts import ImageFacts, KernelView
from ipe_build.errors import IpeBuildError
from ipe_build.formats.verity_sig import VeritySignature, parse_verity_signature
from ipe_build.policy.facts import Digest, Facts
from ipe_build.signing.profiles import PROFILES, root_hash_payload
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from cryptography import x509


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
    of_words = word_of(facts, "roothash") or ""
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
        root_hash_signer(stored.root_hash, stored.signature, facts.kernel)
    except IpeBuildError as error:
        return error.message
    return None


def root_hash_signer(root_hash: bytes, signature: bytes, kernel: KernelView) -> x509.Certificate:
    """Returns the certificate by which this kernel takes a root hash as signed. Raises: SignatureError with the kernel's answer."""
    profile = PROFILES["dm-verity-root-hash"]
    return verify_signature(profile, root_hash_payload(root_hash), signature, kernel.certificates, kernel.revoked)


def disk_root_hash(facts: ImageFacts) -> bytes | None:
    """Returns the root hash that the disk itself says: in its signature partition, else the one whose halves are its partitions' UUIDs."""
    stored = stored_root_hash(facts)
    if stored is not None:
        return stored.root_hash
    named = root_hash_of(facts)
    if named is None or facts.root is None or facts.root.data is None or facts.root.hash is None:
        return named.value if named is not None else None
    halves = facts.root.data.uuid.bytes + facts.root.hash.uuid.bytes
    return named.value if halves == named.value[:16] + named.value[-16:] else halves
