"""Checks of the two policies: the one in the kernel and the signed one on the verity root."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.looks import Look
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.policies import POLICY_FOLDERS, SignedPolicy, boot_policy_in, signed_policies
from ipe_build.audit.root_hash import root_facts
from ipe_build.audit.sealed import enabled_in, is_frozen, sealed_by
from ipe_build.errors import IpeBuildError
from ipe_build.policy.evaluate import evaluate
from ipe_build.policy.facts import NO_FILE, Facts
from ipe_build.policy.findings import Severity, Target
from ipe_build.policy.lint import check
from ipe_build.policy.model import Policy
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Action, Operation
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

_INITRAMFS = Facts(boot_verified=True)
_STRANGER = Facts()
"""A file of the initramfs, and a file that nothing vouches for (a tmpfs, say)."""


def boot_policy_parses(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether this kernel would take its own boot policy: otherwise nothing is enforced until another is loaded."""
    if facts.kernel is None:
        yield unknown("boot policy", "the kernel could not be read")
        return
    uki = facts.boot_entry.uki if facts.boot_entry is not None else None
    if facts.kernel.boot_policy is None and facts.kernel.enrolled and uki is not None and uki.signed and not uki.problem:
        text = "the kernel carries none; what runs before the device policy is in force is covered by the signature of the UKI"
        yield good("boot policy", text)
        return
    if facts.kernel.boot_policy is None:
        yield bad("boot policy", "the kernel carries none: nothing is enforced until a policy is loaded")
        return
    result = parse(facts.kernel.boot_policy, facts.kernel.version, Role.BOOT)
    if result.accepted and result.policy is not None:
        yield good("boot policy", f"{result.policy.display_name} {result.policy.version}, accepted by {facts.kernel.version}")
    elif result.problem is not None:
        yield bad("boot policy", f"line {result.problem.line}: {result.problem.message} ({result.errno})")
    else:
        yield bad("boot policy", f"refused ({result.errno})")


def boot_policy_denies(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the boot policy denies a program and a module that nothing vouches for."""
    yield from _denies(facts, boot_policy_in(facts), "boot policy")


def boot_policy_initramfs(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the boot policy lets the initramfs's init start: the kernel could not run anything otherwise."""
    policy = boot_policy_in(facts)
    if policy is None:
        yield unknown("boot policy", "there is none to look at")
        return
    decision = evaluate(policy, Operation.EXECUTE, _INITRAMFS, enabled_in(facts))
    outcome = good if decision.action is Action.ALLOW else bad
    yield outcome("initramfs /init", f"{decision.action} by {decision.audit_rule}")


def _each(facts: ImageFacts) -> Iterator[SignedPolicy | Outcome]:
    """Yields the signed policies, or the one outcome that there is none to look at."""
    if facts.files is None or facts.kernel is None:
        yield unknown("device policy", "the root filesystem or the kernel could not be read")
        return
    policies = signed_policies(facts)
    if not policies:
        yield bad("device policy", f"no .p7b in any of {', '.join('/' + folder for folder in POLICY_FOLDERS)}")
    yield from policies


def _each_parsed(facts: ImageFacts) -> Iterator[tuple[str, Policy] | Outcome]:
    """Yields path and parsed policy of those that parse; the others are the parse check's business.

    In a sealed image the boot policy stays in force, so it is the one.
    """
    if sealed_by(facts):
        boot = boot_policy_in(facts)
        if boot is not None:
            yield "boot policy", boot
        return
    for one in _each(facts):
        if isinstance(one, Outcome):
            yield one
        elif one.text is not None and facts.kernel is not None:
            policy = parse(one.text, facts.kernel.version, Role.DEVICE).policy
            if policy is not None:
                yield one.path, policy


def _of_each_policy(look: Callable[[ImageFacts, str, Policy], Iterator[Outcome]]) -> Look:
    """Returns a check that looks at each device policy that parses, named by its path; its summary is `look`'s."""

    def checked(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
        for one in _each_parsed(facts):
            if isinstance(one, Outcome):
                yield one
            else:
                yield from look(facts, *one)

    checked.__doc__ = look.__doc__
    return checked


def device_policy_signature(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether each signed policy of the root is by a certificate that this kernel trusts."""
    for one in _each(facts):
        if isinstance(one, Outcome):
            yield one
            continue
        if one.text is None or facts.kernel is None:
            yield bad(one.path, "is not PKCS#7 with a policy inside")
            continue
        try:
            signer = verify_signature(PROFILES["ipe-policy"], one.text, one.signature, facts.kernel.certificates, facts.kernel.revoked)
        except IpeBuildError as error:
            yield bad(one.path, error.message)
            continue
        yield good(one.path, f"by {signer.subject.rfc4514_string()}, which this kernel trusts")


def device_policy_parses(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether this kernel accepts each signed policy, under the name that its file has."""
    for one in _each(facts):
        if isinstance(one, Outcome):
            yield one
            continue
        if one.text is None or facts.kernel is None:
            continue
        result = parse(one.text, facts.kernel.version, Role.DEVICE)
        if not result.accepted or result.policy is None:
            reason = f"line {result.problem.line}: {result.problem.message}" if result.problem else "refused"
            yield bad(one.path, f"{reason} ({result.errno})")
        elif Path(one.path).stem != result.policy.display_name:
            yield bad(one.path, f"is named {result.policy.display_name}: systemd and ipe-init want the file's stem to be the policy_name")
        else:
            yield good(one.path, f"{result.policy.display_name} {result.policy.version}, accepted by {facts.kernel.version}")


@_of_each_policy
def device_policy_denies(facts: ImageFacts, path: str, policy: Policy) -> Iterator[Outcome]:
    """Looks whether each device policy denies a program and a module that nothing vouches for."""
    yield from _denies(facts, policy, path)


def device_policy_root(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether each device policy lets programs of the verity root run."""
    on_root = root_facts(facts, trusted=True)
    if on_root is None:
        yield unknown("device policy", "nothing names the root hash")
        return
    for one in _each_parsed(facts):
        if isinstance(one, Outcome):
            yield one
            continue
        decision = evaluate(one[1], Operation.EXECUTE, on_root, enabled_in(facts))
        outcome = good if decision.action is Action.ALLOW else bad
        yield outcome(f"{one[0]}: a program of the root", f"{decision.action} by {decision.audit_rule}")


@_of_each_policy
def final_policy(facts: ImageFacts, path: str, policy: Policy) -> Iterator[Outcome]:
    """Looks whether the policy in force still lets files of the initramfs run, and whether anything can be written there."""
    decision = evaluate(policy, Operation.EXECUTE, _INITRAMFS, enabled_in(facts))
    outcome, why = bad if decision.action is Action.ALLOW else good, f"{decision.action} by {decision.audit_rule}"
    if outcome is bad and is_frozen(facts):
        outcome, why = good, f"{why}; none is left and none can be written: ipe-init freezes the initramfs"
    yield outcome(f"{path}: a program of the initramfs", why)


def _denies(facts: ImageFacts, policy: Policy | None, subject: str) -> Iterator[Outcome]:
    """Yields, for EXECUTE and KMODULE, whether a file that nothing vouches for is denied."""
    if policy is None:
        yield unknown(subject, "there is none to look at")
        return
    for op in (Operation.EXECUTE, Operation.KMODULE):
        decision = evaluate(policy, op, _STRANGER, enabled_in(facts))
        outcome = good if decision.action is Action.DENY else bad
        yield outcome(f"{subject}: {op} of a stranger's file", f"{decision.action} by {decision.audit_rule}")


def all_policies(facts: ImageFacts) -> tuple[Policy, ...]:
    """Returns the boot policy and every device policy that parses."""
    boot = boot_policy_in(facts)
    return (*((boot,) if boot is not None else ()), *device_policies(facts))


def device_policies(facts: ImageFacts) -> tuple[Policy, ...]:
    """Returns every device policy that parses."""
    return tuple(one[1] for one in _each_parsed(facts) if not isinstance(one, Outcome))


def _lint(subject: str, text: bytes, target: Target) -> Iterator[Outcome]:
    """Yields each error and warning of the linter; a pass when there is none."""
    found = [one for one in check(text, target).findings if one.severity is not Severity.NOTE]
    for one in found:
        yield bad(f"{subject}:{one.line}", f"{one.rule}: {one.message}")
    if not found:
        yield good(subject, "the linter has nothing to say")


def boot_policy_lint(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks what the linter says of the boot policy, for this very kernel."""
    if facts.kernel is None or facts.kernel.boot_policy is None:
        yield unknown("boot policy", "there is none to look at")
        return
    yield from _lint("boot policy", facts.kernel.boot_policy, Target(facts.kernel.version, Role.BOOT, facts.kernel.config))


def device_policy_lint(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks what the linter says of each device policy, for this very kernel, after the boot policy."""
    if sealed_by(facts):
        yield good("device policy", "not needed: sealed, the boot policy stays in force")
        return
    for one in _each(facts):
        if isinstance(one, Outcome):
            yield one
        elif one.text is not None and facts.kernel is not None:
            target = Target(facts.kernel.version, Role.DEVICE, facts.kernel.config, stem=Path(one.path).stem, active=boot_policy_in(facts))
            yield from _lint(one.path, one.text, target)


def device_policy_names(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether two different policies of the image have the same name: the second is then an update, which needs a higher version."""
    if facts.kernel is None:
        yield unknown("policy names", "the kernel could not be read")
        return
    texts = {one.text for one in signed_policies(facts) if one.text is not None}
    device = (parse(text, facts.kernel.version, Role.DEVICE).policy for text in sorted(texts))
    names = [policy.display_name for policy in (boot_policy_in(facts), *device) if policy is not None]
    twice = sorted({name for name in names if names.count(name) > 1})
    for name in twice:
        yield bad(name, "is the name of more than one policy")
    if not twice:
        yield good("policy names", ", ".join(names) or "there are none")


def device_policy_version(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether each device policy's version is not lower than the boot policy's: it could not be activated (EINVAL)."""
    boot = boot_policy_in(facts)
    for one in _each_parsed(facts):
        if isinstance(one, Outcome):
            yield one
        elif boot is None:
            yield unknown(one[0], "there is no boot policy to compare with")
        else:
            lower = one[1].version < boot.version
            yield (bad if lower else good)(one[0], f"{one[1].version}, the boot policy has {boot.version}")


@_of_each_policy
def kernel_reads(facts: ImageFacts, path: str, policy: Policy) -> Iterator[Outcome]:
    """Looks whether firmware, kexec images, IMA policies and certificates that nothing vouches for are denied too."""
    for op in (Operation.FIRMWARE, Operation.KEXEC_IMAGE, Operation.KEXEC_INITRAMFS, Operation.POLICY, Operation.X509_CERT):
        decision = evaluate(policy, op, _STRANGER, enabled_in(facts))
        outcome = good if decision.action is Action.DENY else bad
        yield outcome(f"{path}: {op} of a stranger's file", f"{decision.action} by {decision.audit_rule}")


@_of_each_policy
def anonymous_memory(facts: ImageFacts, path: str, policy: Policy) -> Iterator[Outcome]:
    """Looks whether executable memory without a file (a JIT) is denied."""
    decision = evaluate(policy, Operation.EXECUTE, NO_FILE, enabled_in(facts))
    outcome = good if decision.action is Action.DENY else bad
    yield outcome(f"{path}: anonymous executable memory", f"{decision.action} by {decision.audit_rule}")


def ima_certificate(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the boot policy lets IMA load its certificate (CONFIG_IMA_X509_PATH): it fails silently otherwise."""
    config = facts.kernel_config
    boot = boot_policy_in(facts)
    if config is None or boot is None:
        yield unknown("IMA certificate", "the kernel's configuration or the boot policy could not be read")
    elif not (config.enabled("IMA_LOAD_X509") or config.enabled("EVM_LOAD_X509")):
        yield good("IMA certificate", "the kernel loads none")
    else:
        decision = evaluate(boot, Operation.X509_CERT, _INITRAMFS, enabled_in(facts))
        outcome = good if decision.action is Action.ALLOW else bad
        yield outcome("IMA certificate", f"X509_CERT of the initramfs: {decision.action} by {decision.audit_rule}")
