"""Lint rules about rules and defaults: what never matches, what is hidden, what allows too much or denies too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.findings import Hit, LintRule, Severity, Subject
from ipe_build.policy.logic import contradiction, hidden_rules
from ipe_build.policy.model import Condition, Rule
from ipe_build.policy.parser import Role
from ipe_build.policy.properties import DIGEST_SIZES, PROPERTIES, Action, Operation

_INITRAMFS = Facts(boot_verified=True)
_DANGEROUS = (Operation.EXECUTE, Operation.KMODULE, Operation.KEXEC_IMAGE, Operation.FIRMWARE)


def _digest_conditions(subject: Subject) -> Iterator[tuple[Rule, Condition, Digest, str]]:
    """Yields every condition with a digest: rule, condition, digest, algorithm's name as text."""
    for rule in subject.policy.rules:
        for condition in rule.conditions:
            if isinstance(condition.value, Digest):
                yield rule, condition, condition.value, condition.value.algorithm.decode("latin-1")


def _digest_length(subject: Subject) -> Iterator[Hit]:
    for rule, condition, digest, name in _digest_conditions(subject):
        size = DIGEST_SIZES.get(name.lower())
        if size is not None and len(digest.value) != size:
            got = f"{len(digest.value) * 8} bits" if digest.value else "nothing"
            yield Hit(rule.line, f"a {name} digest has {size * 8} bits, this one has {got}: it loads and never matches", str(condition))


def _algorithm_case(subject: Subject) -> Iterator[Hit]:
    for rule, condition, _digest, name in _digest_conditions(subject):
        if name not in DIGEST_SIZES and name.lower() in DIGEST_SIZES:
            yield Hit(rule.line, f"the kernel compares names exactly and says {name.lower()!r}: {name!r} never matches", str(condition))


def _algorithm_unknown(subject: Subject) -> Iterator[Hit]:
    for rule, condition, _digest, name in _digest_conditions(subject):
        known = condition.property.algorithms
        if name.lower() not in DIGEST_SIZES:
            yield Hit(rule.line, f"{name!r} is no hash of the kernel: the rule loads and never matches", str(condition))
        elif name in DIGEST_SIZES and name not in known:
            words = " and ".join(sorted(known))
            yield Hit(rule.line, f"{condition.property.name} is never {name}: fs-verity has {words} only", str(condition))


def _placeholder(subject: Subject) -> Iterator[Hit]:
    for rule, condition, digest, _name in _digest_conditions(subject):
        if digest.value and len(set(digest.value)) == 1:
            yield Hit(rule.line, f"{str(condition)[:60]}… looks like a placeholder: all its bytes are the same", str(condition))


def _contradictory(subject: Subject) -> Iterator[Hit]:
    for rule in subject.policy.rules:
        pair = contradiction(rule.conditions)
        if pair is not None:
            yield Hit(rule.line, f"no file has both {pair[0]} and {pair[1]}: the rule never matches", str(pair[1]))


def _repeated(subject: Subject) -> Iterator[Hit]:
    for rule in subject.policy.rules:
        if len(set(rule.conditions)) < len(rule.conditions):
            for condition, times in Counter(rule.conditions).items():
                if times > 1:
                    yield Hit(rule.line, f"{condition} stands {times} times", str(condition))


def _hidden(subject: Subject) -> Iterator[Hit]:
    enabled = subject.target.enabled
    off = [row for row in PROPERTIES if row.kconfig is not None and not enabled(row.kconfig)]

    def alive(rule: Rule) -> bool:
        return not any(row.property in off for row in rule.conditions if off) and contradiction(rule.conditions) is None

    for op in Operation:
        rules = subject.policy.rules_of(op)
        for rule, earlier in hidden_rules(rules, alive) if len(rules) > 1 else ():
            worse = "" if rule.action is earlier.action else f", which says {earlier.action}"
            yield Hit(rule.line, f"this rule is never reached: line {earlier.line} matches whenever it would{worse}", f"op={op}")


def _default_allow(subject: Subject) -> Iterator[Hit]:
    default = subject.policy.default_of(Operation.EXECUTE)
    if default.action is Action.ALLOW:
        yield Hit(default.line, "what no rule denies may be executed: DEFAULT action=ALLOW holds for EXECUTE", "DEFAULT")


def _default_allow_others(subject: Subject) -> Iterator[Hit]:
    for op in Operation:
        default = subject.policy.default_of(op)
        if op is not Operation.EXECUTE and default.action is Action.ALLOW and default.op is op:
            yield Hit(default.line, f"what no rule denies is allowed for {op}", f"op={op}")


def _no_module_rule(subject: Subject) -> Iterator[Hit]:
    policy = subject.policy
    default = policy.default_of(Operation.KMODULE)
    if default.op is None and not policy.rules_of(Operation.KMODULE):
        what = "every module may be loaded" if default.action is Action.ALLOW else "no module can be loaded"
        yield Hit(default.line, f"no rule and no default for KMODULE: the global default decides, so {what}", "DEFAULT")


def _allow_everything(subject: Subject) -> Iterator[Hit]:
    for rule in subject.policy.rules:
        if not rule.conditions and rule.action is Action.ALLOW:
            yield Hit(rule.line, f"a rule without properties allows {rule.op} for everything", f"op={rule.op}")


def _allow_unverified(subject: Subject) -> Iterator[Hit]:
    for rule in subject.policy.rules:
        if rule.action is Action.ALLOW and rule.conditions and all(row.value is False for row in rule.conditions):
            yield Hit(rule.line, "this allows what is not verified: all its properties are =FALSE", str(rule.conditions[0]))


def _denies_everything(subject: Subject) -> Iterator[Hit]:
    policy = subject.policy
    rules = policy.rules_of(Operation.EXECUTE)
    if policy.default_of(Operation.EXECUTE).action is Action.DENY and all(rule.action is Action.DENY for rule in rules):
        yield Hit(policy.default_of(Operation.EXECUTE).line, "no program can be run once this is active: nothing allows EXECUTE", "DEFAULT")


def _denies_init(subject: Subject) -> Iterator[Hit]:
    target = subject.target
    if target.role is not Role.BOOT or (target.config is not None and not target.config.enabled("BLK_DEV_INITRD")):
        return
    by = decide(subject.policy, Operation.EXECUTE, _INITRAMFS, target.enabled)
    if by.action is Action.DENY:
        yield Hit(
            by.line, f'the initramfs\'s own init, and the tools that load the next policy, are denied by "{by}": the boot ends in a panic'
        )


def _initramfs_stays(subject: Subject) -> Iterator[Hit]:
    if subject.target.role is not Role.DEVICE:
        return
    for op in _DANGEROUS:
        by = decide(subject.policy, op, _INITRAMFS, subject.target.enabled)
        if isinstance(by, Rule) and by.action is Action.ALLOW and any(str(row) == "boot_verified=TRUE" for row in by.conditions):
            yield Hit(by.line, f"{op} stays allowed for the initramfs's file system, and whatever is written there", "boot_verified=TRUE")


RULE_RULES: tuple[LintRule, ...] = (
    LintRule(
        "digest-length",
        Severity.ERROR,
        "A digest whose length does not fit its algorithm loads and never matches.",
        "write the whole digest, or the algorithm it is of",
        _digest_length,
    ),
    LintRule(
        "algorithm-case",
        Severity.ERROR,
        "An algorithm in upper case never matches.",
        "write it in lower case",
        _algorithm_case,
    ),
    LintRule(
        "algorithm-unknown",
        Severity.ERROR,
        "An algorithm that the kernel does not have in that place never matches.",
        "use sha256 or sha512",
        _algorithm_unknown,
    ),
    LintRule("placeholder-digest", Severity.NOTE, "A digest of equal bytes.", "put the real digest in", _placeholder),
    LintRule(
        "contradictory-properties",
        Severity.WARNING,
        "Properties that no file has together.",
        "split it into two rules, or drop one",
        _contradictory,
    ),
    LintRule("repeated-property", Severity.NOTE, "The same property twice in a rule.", "drop one", _repeated),
    LintRule(
        "shadowed-rule",
        Severity.WARNING,
        "An earlier rule of the same operation always matches first.",
        "the first match decides: put the more exact rule first, or remove it",
        _hidden,
    ),
    LintRule(
        "default-allow-execute",
        Severity.WARNING,
        "DEFAULT ALLOW for EXECUTE.",
        "write DEFAULT action=DENY and rules for what is trusted",
        _default_allow,
    ),
    LintRule(
        "default-allow",
        Severity.WARNING,
        "DEFAULT ALLOW for another operation.",
        "write DENY and rules for what is trusted",
        _default_allow_others,
    ),
    LintRule(
        "no-kmodule-rule",
        Severity.WARNING,
        "Nothing is said about KMODULE.",
        "say it: op=KMODULE dmverity_signature=TRUE action=ALLOW, or DEFAULT op=KMODULE action=DENY",
        _no_module_rule,
    ),
    LintRule(
        "allows-everything",
        Severity.WARNING,
        "A rule without properties that allows.",
        "add the property that makes it trusted",
        _allow_everything,
    ),
    LintRule(
        "allows-unverified",
        Severity.WARNING,
        "A rule that allows what is not verified.",
        "allow by signature, root hash or digest instead",
        _allow_unverified,
    ),
    LintRule(
        "denies-all-execute",
        Severity.ERROR,
        "Nothing can be executed.",
        "allow EXECUTE for the root file system",
        _denies_everything,
    ),
    LintRule(
        "denies-initramfs",
        Severity.ERROR,
        "A boot policy that denies the initramfs's init and the tools that load the next policy.",
        "add: op=EXECUTE boot_verified=TRUE action=ALLOW; without an initramfs (dm-mod.create=) turn off CONFIG_BLK_DEV_INITRD",
        _denies_init,
    ),
    LintRule(
        "initramfs-stays-allowed",
        Severity.NOTE,
        "A device policy that still allows the initramfs.",
        "leave boot_verified to the boot policy; the device policy takes over at the end of the initramfs",
        _initramfs_stays,
    ),
)
