"""What the report shows of an image besides the findings: its parts in words, its policies, certificates, partitions, programs."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.root_hash import root_hash_of
from ipe_build.audit.sealed import sealed_by
from ipe_build.audit.tree import PolicyInForce, Program, boot_policy_of, device_policy_of, programs_of


@dataclass(frozen=True, slots=True)
class PolicyText:
    """A policy as people read it: its role in the chain, name and version ("" when this kernel refuses it), origin and lines."""

    role: str
    name: str
    version: str
    origin: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """A certificate of the kernel's: whom it names, its key's kind, the last day it is valid (ISO date), whether the kernel revokes it."""

    subject: str
    key: str
    valid_until: str
    revoked: bool


@dataclass(frozen=True, slots=True)
class PartitionRow:
    """A partition of the disk."""

    number: int
    name: str
    uuid: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A boot entry: what it is of, and names and values about it."""

    name: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Portrait:
    """An image in words. `captions` has one short line for each node of chain.NODES; None: the part could not be read.

    `entries` are the boot entries, the default one first, as the report's predictions are.
    """

    captions: tuple[str | None, ...]
    kernel: tuple[tuple[str, str], ...]
    policies: tuple[PolicyText, ...]
    certificates: tuple[CertificateRow, ...]
    partitions: tuple[PartitionRow, ...]
    programs: tuple[Program, ...]
    entries: tuple[EntryRow, ...] = ()


def portrait_of(facts: ImageFacts) -> Portrait:
    """Returns what the report shows; to be made while the facts' scratch files are there."""
    programs = programs_of(facts)
    boot, device = boot_policy_of(facts), device_policy_of(facts)
    roles = (("boot policy", boot), ("device policy", None if sealed_by(facts) else device))
    policies = tuple(_policy(role, one) for role, one in roles if one is not None)
    kernel = facts.kernel
    certificates = () if kernel is None else (*((one, False) for one in kernel.certificates), *((one, True) for one in kernel.revoked))
    return Portrait(
        captions=_captions(facts, boot, device, programs),
        kernel=_kernel(facts),
        policies=policies,
        certificates=tuple(_certificate(one, revoked) for one, revoked in certificates),
        partitions=tuple(
            PartitionRow(one.number, one.name, str(one.uuid), one.size_bytes) for one in (facts.table.partitions if facts.table else ())
        ),
        programs=programs,
        entries=tuple(_entry(view) for view in facts.views() if view.boot_entry is not None),
    )


def _entry(view: ImageFacts) -> EntryRow:
    """Returns a boot entry in words."""
    entry = view.boot_entry
    assert entry is not None
    rows = [("Kernel", f"{view.kernel.release} {view.kernel.architecture}" if view.kernel is not None else "could not be read")]
    if view.archive is not None:
        parts = ", ".join(f"{part.kind} ({_plural(part.members, 'member')})" for part in view.archive.parts)
        rows.append(("Initramfs", f"{parts or 'empty'}{'; damaged' if view.archive.error else ''}"))
    else:
        rows.append(("Initramfs", "none"))
    rows.append(("Command line", entry.command_line or "empty"))
    if entry.uki is not None:
        rows.append(("Signed by", ", ".join(entry.uki.signers) or entry.uki.problem or "nobody"))
        rows.append(("Sections", " ".join(entry.uki.sections)))
        rows.append(("Authenticode SHA-256", entry.uki.digest.hex()))
    return EntryRow(entry.name, tuple(rows))


def _captions(
    facts: ImageFacts, boot: PolicyInForce | None, device: PolicyInForce | None, programs: tuple[Program, ...]
) -> tuple[str | None, ...]:
    """Returns the line below each node of the chain."""
    kernel, stored = facts.kernel, root_hash_of(facts)
    sealed = bool(sealed_by(facts))
    return (
        None if kernel is None else "none needed: sealed" if sealed else _plural(len(kernel.certificates), "certificate"),
        None if kernel is None else f"{kernel.version} {kernel.architecture}",
        _title(boot),
        None if facts.initramfs is None else _plural(len(facts.initramfs), "entry", "entries"),
        "none: the boot policy stays" if sealed else _title(device),
        None if stored is None else f"{stored.value.hex()[:12]}…",
        None if facts.files is None else _plural(len(programs), "executable"),
    )


def _plural(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _title(policy: PolicyInForce | None) -> str | None:
    """Returns a policy's name and version."""
    if policy is None:
        return None
    return "refused by the kernel" if policy.policy is None else f"{policy.policy.display_name} {policy.policy.version}"


def _kernel(facts: ImageFacts) -> tuple[tuple[str, str], ...]:
    """Returns names and values about what starts and what is protected."""
    rows: list[tuple[str, str]] = []
    kernel, stored = facts.kernel, root_hash_of(facts)
    if kernel is not None:
        rows.append(("Kernel", f"{kernel.release} {kernel.architecture}"))
        rows.append(("Security modules", ", ".join(kernel.lsms) if kernel.lsms is not None else "their order was not found"))
    if facts.boot_entry is not None:
        rows.append(("Command line", facts.boot_entry.command_line or "empty"))
    if stored is not None:
        rows.append(("Root hash", f"{stored.value.hex()} (named by {stored.source})"))
    if facts.superblock is not None:
        superblock = facts.superblock
        rows.append(("Hash tree", f"{superblock.algorithm}, {superblock.data_blocks} blocks of {superblock.data_block_size} bytes"))
    if facts.files is not None:
        rows.append(("Root filesystem", facts.files.filesystem))
    return tuple(rows)


def _policy(role: str, one: PolicyInForce) -> PolicyText:
    """Returns a policy as people read it."""
    name, version = (one.policy.display_name, str(one.policy.version)) if one.policy is not None else ("", "")
    return PolicyText(role, name, version, one.origin, tuple(one.text.decode("utf-8", "backslashreplace").splitlines()))


def _certificate(one: x509.Certificate, revoked: bool) -> CertificateRow:
    """Returns a certificate as a row."""
    return CertificateRow(one.subject.rfc4514_string(), _key(one), f"{one.not_valid_after_utc:%Y-%m-%d}", revoked)


def _key(one: x509.Certificate) -> str:
    """Returns the kind and size of a certificate's key."""
    try:
        key = one.public_key()
    except (ValueError, TypeError, NotImplementedError):
        return "unreadable"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    names = {ed25519.Ed25519PublicKey: "Ed25519", ed448.Ed448PublicKey: "Ed448"}
    return next((name for kind, name in names.items() if isinstance(key, kind)), type(key).__name__.strip("_").removesuffix("PublicKey"))
