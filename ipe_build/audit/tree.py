"""Every executable of an image, and the rule that admits or refuses it: the data of the report's map.

The policies decide as in the kernel (`policy.evaluate`): files of the initramfs under the boot policy, files of the verity root under the
policy that the initramfs activates last. A kernel module has a second judge, the module loader, who wants a signature.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from ipe_build.audit.checks_root import PROBES, refused_by_loader, with_verity
from ipe_build.audit.facts import ImageFacts, KernelView, ModuleView
from ipe_build.audit.policies import signed_policies
from ipe_build.audit.root_hash import root_facts
from ipe_build.audit.sealed import sealed_by
from ipe_build.policy.classify import OPERATION_OF_KIND, classify
from ipe_build.policy.evaluate import Enabled, all_enabled, decide
from ipe_build.policy.facts import NO_FILE, Facts
from ipe_build.policy.model import Policy
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Action
from ipe_build.policy.survey import Entry, Kind

_LOADER = "kernel module loader"
PROBE_FIXTURE = "probe fixture"
"""Unsigned and foreign modules that lie beside the probe program, so that a boot can show their refusal."""


class Place(StrEnum):
    """Where a file lies."""

    ROOT = "root"
    INITRAMFS = "initramfs"


class Answer(StrEnum):
    """What happens when the device wants to run or load a file. UNJUDGED: there is no policy that could say."""

    ADMITTED = "admitted"
    REFUSED = "refused"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, slots=True)
class Ruling:
    """An answer and who gives it: the policy's name (or the module loader), its rule as text, the rule's line (0: it has none)."""

    answer: Answer
    judge: str
    rule: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """A file that the kernel asks IPE about: an ELF file, a script, a module, firmware, … `path` begins with a slash.

    `note` says what a person would stumble over otherwise.
    """

    place: Place
    path: str
    kind: Kind
    size_bytes: int
    ruling: Ruling
    note: str = ""


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A policy that decides: where it came from, its text, and the parsed form (None when this kernel refuses it)."""

    origin: str
    text: bytes
    policy: Policy | None


def boot_policy_of(facts: ImageFacts) -> PolicyInForce | None:
    """Returns the policy in the kernel, None when there is none to read."""
    if facts.kernel is None or facts.kernel.boot_policy is None:
        return None
    text = facts.kernel.boot_policy
    return PolicyInForce("in the kernel", text, parse(text, facts.kernel.version, Role.BOOT).policy)


def device_policy_of(facts: ImageFacts) -> PolicyInForce | None:
    """Returns the policy that the initramfs activates last; without such a setting the first signed one that there is, else None.

    In a sealed image that is the boot policy.
    """
    if facts.kernel is None:
        return None
    if sealed_by(facts):
        return boot_policy_of(facts)
    by_path = {one.path: one.text for one in signed_policies(facts) if one.text is not None}
    named = ((facts.initramfs_config() or {}).get("policy") or ("",))[-1]
    wanted = f"initramfs: {named.removeprefix('initramfs:').lstrip('/')}" if named.startswith("initramfs:") else named.lstrip("/")
    path = wanted if named else next(iter(by_path), "")
    text = by_path.get(path)
    return None if text is None else PolicyInForce(path, text, parse(text, facts.kernel.version, Role.DEVICE).policy)


def programs_of(facts: ImageFacts) -> tuple[Program, ...]:
    """Returns every file of root filesystem and initramfs that the kernel asks IPE about, sorted by place and path."""
    return tuple(sorted((*_in_root(facts), *_in_initramfs(facts)), key=lambda one: (one.place, one.path)))


def _in_root(facts: ImageFacts) -> Iterator[Program]:
    """Yields the programs of the verity root, judged by the device policy, or by the boot policy where no other is loaded."""
    if facts.files is None:
        return
    policy = device_policy_of(facts) or boot_policy_of(facts)
    sizes = {os.fsencode(one.path).decode("utf-8", "backslashreplace"): one.size_bytes for one in facts.files.tree}
    modules = {module.path: module for module in facts.files.modules}
    of_root = root_facts(facts) or Facts()
    for entry in facts.files.survey.entries:
        ruling = _ruling(policy, replace(entry, facts=with_verity(of_root, entry)), facts.kernel)
        refused = _refused_by_loader(modules.get(entry.path), facts)
        note = PROBE_FIXTURE if entry.path.startswith(PROBES) else ""
        decided = refused if refused and _admits(ruling) else ruling
        yield Program(Place.ROOT, f"/{entry.path}", entry.kind, sizes.get(entry.path, 0), decided, note)


def _in_initramfs(facts: ImageFacts) -> Iterator[Program]:
    """Yields the programs of the initramfs, judged by the boot policy. A path that comes twice is the later file, as in the kernel."""
    policy = boot_policy_of(facts)
    last = {entry.path.lstrip("./"): entry for entry in facts.initramfs or () if stat.S_ISREG(entry.mode)}
    for path, entry in last.items():
        found = classify(path, bool(entry.mode & 0o111), entry.data)
        if found is not None:
            ruling = _ruling(policy, Entry(path, found[0], found[1], Facts(boot_verified=True)), facts.kernel)
            yield Program(Place.INITRAMFS, f"/{path}", found[0], len(entry.data), ruling)


def _ruling(policy: PolicyInForce | None, entry: Entry, kernel: KernelView | None) -> Ruling:
    """Returns what a policy decides about a file."""
    if policy is None or policy.policy is None:
        return Ruling(Answer.UNJUDGED, "", "no policy that this kernel accepts")
    config = kernel.config if kernel is not None else None
    enabled: Enabled = config.enabled if config is not None else all_enabled
    unpacked_first = entry.kind is Kind.COMPRESSED_MODULE and config is not None and not config.enabled("MODULE_DECOMPRESS")
    by = decide(policy.policy, OPERATION_OF_KIND[entry.kind], NO_FILE if unpacked_first else entry.facts, enabled)
    answer = Answer.ADMITTED if by.action is Action.ALLOW else Answer.REFUSED
    return Ruling(answer, policy.policy.display_name, str(by), by.line)


def _admits(ruling: Ruling) -> bool:
    return ruling.answer is Answer.ADMITTED


def _refused_by_loader(module: ModuleView | None, facts: ImageFacts) -> Ruling | None:
    """Returns the module loader's refusal, None when it takes the module (an unsigned one, too, where signatures are not forced)."""
    if module is None or not refused_by_loader(module, facts):
        return None
    return Ruling(Answer.REFUSED, _LOADER, f"{module.errno}: {module.reason}")
