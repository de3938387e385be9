"""Sealed images: the kernel's own policy pins the root hash, so that no key, signature or further policy is needed."""

from __future__ import annotations

from ipe_build.audit.command_line import word_of, words_of
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.policies import signed_policies
from ipe_build.audit.root_hash import hash_name_of, root_hash_of
from ipe_build.formats.command_line import kernel_bool
from ipe_build.policy.evaluate import Enabled, all_enabled, decide
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.model import Rule
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Action, Operation


def sealed_by(facts: ImageFacts) -> str:
    """Returns the rule of the boot policy that admits programs of the root by its root hash alone, where no other policy is loaded.

    Empty for an image that is not sealed: it loads a signed policy, or its root is admitted by a signature or not at all.
    """
    if facts.kernel is None or facts.kernel.boot_policy is None or loads_policies(facts):
        return ""
    policy, named = parse(facts.kernel.boot_policy, facts.kernel.version, Role.BOOT).policy, root_hash_of(facts)
    if policy is None:
        return ""
    pinned = [row for row in policy.rules if any(one.property.name == "dmverity_roothash" for one in row.conditions)]
    if not pinned:
        return ""
    if named is None:
        return str(pinned[0])
    known = Facts(root_hash=Digest(hash_name_of(facts, named.value).encode(), named.value))
    by = decide(policy, Operation.EXECUTE, known, enabled_in(facts))
    # A root hash that no rule names is still a sealed image, with the wrong root: its own check says so.
    return str(by) if isinstance(by, Rule) and by.action is Action.ALLOW else str(pinned[0])


def loads_policies(facts: ImageFacts) -> bool:
    """Returns whether the image holds a signed policy or its initramfs is told to load one; a plain text (`.pol`) is no signed one."""
    told = (facts.initramfs_config() or {}).get("policy", ())
    return any(not place.endswith(".pol") for place in told) or bool(signed_policies(facts))


def is_frozen(facts: ImageFacts) -> bool:
    """Returns whether ipe-init makes the emptied initramfs immutable and drops what could undo that: nothing is boot_verified then."""
    settings = facts.initramfs_config() or {}
    return settings.get("freeze_initramfs") == ("yes",) and "CAP_LINUX_IMMUTABLE" in settings.get("drop_capability", ())


def takes_unsigned_modules(facts: ImageFacts) -> bool:
    """Returns whether the kernel loads modules that no key of it signed, where IPE allows them.

    Source: kernel/module/signing.c (module_sig_check): no signature and an unknown key are passed on unless signatures are forced.
    """
    config = facts.kernel_config
    if config is None or not config.enabled("MODULES") or config.enabled("MODULE_SIG_FORCE"):
        return False
    wanted = any(word.name == "module.sig_enforce" and kernel_bool(word.value or "1") for word in words_of(facts))
    return not wanted and word_of(facts, "lockdown") is None


def enabled_in(facts: ImageFacts) -> Enabled:
    """Returns which Kconfig symbols are on in the image's kernel; all, where it does not say."""
    config = facts.kernel_config
    return config.enabled if config is not None else all_enabled
