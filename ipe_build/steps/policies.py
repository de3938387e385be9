"""The boot policy and the device policy: rendered, looked at for this very kernel, signed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ipe_build.config.schema import Config, PolicyPlace, PolicySection
from ipe_build.errors import InputError
from ipe_build.formats.dotconfig import parse_dotconfig
from ipe_build.host import Host
from ipe_build.integrity.hashes import find_hash
from ipe_build.kernel.build import Kernel
from ipe_build.policy.findings import Severity as LintSeverity
from ipe_build.policy.findings import Target
from ipe_build.policy.ledger import Ledger, read_ledger
from ipe_build.policy.lint import check
from ipe_build.policy.model import Policy
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.render import render
from ipe_build.policy.versions import KernelVersion
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.steps.keys import Keys


@dataclass(frozen=True, slots=True)
class SignedPolicy:
    """A device policy: parsed, its text, and the text inside its signature."""

    policy: Policy
    text: bytes
    signed: bytes


def render_policy(section: PolicySection, role: Role, config_file: Path, root_hash: tuple[str, bytes] | None = None) -> bytes:
    """Step 6. Returns the text of the boot or the device policy, checked as the kernel would.

    `root_hash` (algorithm, digest) becomes the template's `root_hashes`, unless [policy] variables names them.
    """
    template: str | Path = section.template
    if section.template.startswith("file:"):
        template = config_file.absolute().parent / section.template.removeprefix("file:")
    variables: dict[str, object] = {"role": str(role)}
    if root_hash is not None:
        variables["root_hashes"] = ((root_hash[0], root_hash[1].hex()),)
    return render(template, {**variables, **section.variables, "name": section.name, "version": section.version})


def policy_ledger(config: Config, config_file: Path) -> Ledger | None:
    """Returns the ledger of versions that went out, None where none is named. Raises: InputError when it is not there or is no ledger."""
    path = config.policy.device.ledger
    if path is None:
        return None
    if not path.is_file():
        raise InputError(
            f"wanted a ledger, there is no file {path}",
            where=f"{config_file}: [policy.device] ledger",
            hint=f"ipe-build policy record POLICY --ledger {path} --begin makes one; leave the key out before anything went out",
        )
    return read_ledger(path)


def foreseen_device_policy(config: Config, config_file: Path) -> bytes:
    """Returns the device policy as it will be but for the root hash: what the kernel must be able to judge, and a check before the work."""
    section = config.policy.device
    if section.place is PolicyPlace.ROOT:
        return render_policy(section, Role.DEVICE, config_file)
    algorithm = config.verity.hash
    return render_policy(section, Role.DEVICE, config_file, (algorithm, bytes(find_hash(algorithm).digest_size)))


def sign_device_policy(text: bytes, keys: Keys) -> SignedPolicy:
    """Step 6. Returns the device policy with its signature (attached PKCS#7)."""
    policy = parse(text, role=Role.DEVICE).policy
    assert policy is not None
    return SignedPolicy(policy, text, sign_payload(PROFILES["ipe-policy"], text, keys.policy))


def lint_policies(config: Config, boot_policy: bytes, device_policy: bytes, kernel: Kernel, host: Host) -> None:
    """Step 6. Looks at both policies for this very kernel: warnings are printed, a policy that cannot do what it says ends the build.

    Raises: InputError for the first error of the linter.
    """
    resolved = parse_dotconfig(kernel.config.read_bytes(), where=str(kernel.config))
    version = KernelVersion.of_text(kernel.release)
    boot = Target(version, Role.BOOT, resolved)
    device = Target(version, Role.DEVICE, resolved, stem=config.policy.device.name, active=parse(boot_policy, version, Role.BOOT).policy)
    for name, text, target in ((config.policy.boot.name, boot_policy, boot), (config.policy.device.name, device_policy, device)):
        lint_policy(name, text, target, host)


def lint_policy(name: str, text: bytes, target: Target, host: Host) -> None:
    """Prints the linter's warnings of one policy for a kernel. Raises: InputError for its first error."""
    for finding in check(text, target).findings:
        where = f"{name}.pol:{finding.line}"
        if finding.severity is LintSeverity.ERROR:
            raise InputError(f"{finding.message} ({finding.rule})", where=where, hint=finding.hint)
        if finding.severity is LintSeverity.WARNING:
            host.progress.warn(f"{where}: {finding.message} ({finding.rule})")


def properties_of(text: bytes, role: Role) -> frozenset[str]:
    """Returns the names of the IPE properties that a policy uses."""
    policy = parse(text, role=role).policy
    assert policy is not None
    return frozenset(condition.property.name for rule in policy.rules for condition in rule.conditions)


def policy_path(config: Config) -> str:
    """Returns the device's path of the signed policy: in [rootfs] policies, named as systemd and ipe-init want it."""
    return f"{config.rootfs.policies.rstrip('/')}/{config.policy.device.name}.p7b"
