"""The policies of an image: the kernel's own, and the signed ones of initramfs and root."""

from __future__ import annotations

from typing import NamedTuple

from ipe_build.audit.facts import ImageFacts
from ipe_build.errors import IpeBuildError
from ipe_build.formats.cms import decode_signed_data
from ipe_build.policy.model import Policy
from ipe_build.policy.parser import Role, parse

POLICY_FOLDERS = ("etc/ipe", "usr/local/lib/ipe", "usr/lib/ipe")
MAX_POLICY_BYTES = 1 << 20


class SignedPolicy(NamedTuple):
    """A signed policy file of the root filesystem and the text inside; None when it holds none."""

    path: str
    signature: bytes
    text: bytes | None


def boot_policy_in(facts: ImageFacts) -> Policy | None:
    """Returns the kernel's own policy, None without one and for one that it refuses."""
    if facts.kernel is None or facts.kernel.boot_policy is None:
        return None
    return parse(facts.kernel.boot_policy, facts.kernel.version, Role.BOOT).policy


def signed_policies(facts: ImageFacts) -> tuple[SignedPolicy, ...]:
    """Returns the signed policies in the initramfs, in the folders of the root that systemd looks into, and where ipe-init is told."""
    found = [opened(f"initramfs: {one.path}", one.data) for one in facts.initramfs or () if one.path.endswith(".p7b")]
    if facts.files is not None:
        for folder in POLICY_FOLDERS:
            found += [opened(one.path, one.read(MAX_POLICY_BYTES)) for one in facts.files.tree.below(folder, ".p7b")]
    known = {one.path for one in found}
    told = (place for place in (facts.initramfs_config() or {}).get("policy", ()) if not place.endswith(".pol"))
    found += [one for place in told if policy_path(place) not in known and (one := named_policy(facts, place)) is not None]
    return tuple(dict.fromkeys(found))


def policy_path(place: str) -> str:
    """Returns how a SignedPolicy says where ipe-init is told to look for a policy."""
    inside = place.startswith("initramfs:")
    return f"initramfs: {place.removeprefix('initramfs:').lstrip('/')}" if inside else place.lstrip("/")


def named_policy(facts: ImageFacts, place: str) -> SignedPolicy | None:
    """Returns the policy that ipe-init is told of, wherever it lies; None where there is no such file."""
    path = place.removeprefix("initramfs:").lstrip("/")
    if place.startswith("initramfs:"):
        found = facts.find_in_initramfs(path)
    else:
        found = facts.files.tree.find(path) if facts.files is not None else None
    return opened(policy_path(place), found.read(MAX_POLICY_BYTES)) if found is not None and found.is_file else None


def opened(path: str, raw: bytes) -> SignedPolicy:
    """Returns a signed policy file with the text inside."""
    try:
        text = decode_signed_data(raw).content
    except IpeBuildError:
        text = None
    return SignedPolicy(path, raw, text)
