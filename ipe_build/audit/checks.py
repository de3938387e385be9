"""THE table of audit checks: one row a check. A check looks at the facts and says pass, fail or unknown, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.audit import checks_disk, checks_kernel, checks_policy
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.findings import AuditReport, Finding, Severity
from ipe_build.audit.outcome import Outcome

if TYPE_CHECKING:
    from ipe_build.host import Host


class Check(NamedTuple):
    """A row: the stable id, how bad a failure is, what a person does about it, and the function that looks."""

    id: str
    severity: Severity
    hint: str
    look: Callable[[ImageFacts, Host], Iterator[Outcome]]


ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

CHECKS: tuple[Check, ...] = (
    Check("image-readable", ERROR, "the part named is damaged or of a kind that is not read yet", checks_disk.readable),
    Check("gpt-intact", ERROR, "write the image anew; a wrong backup table breaks on the first repair", checks_disk.gpt_intact),
    Check(
        "root-partitions", ERROR, "an image needs one root, one root-verity and one root-verity-sig partition", checks_disk.root_partitions
    ),
    Check("partition-uuids", ERROR, "discoverable partitions take their UUIDs from the root hash", checks_disk.partition_uuids),
    Check("signature-partition", ERROR, "write the partition from the signed root hash (.verity-sig)", checks_disk.signature_partition),
    Check("hash-tree", ERROR, "make the hash tree from exactly this data: ipe-build verity format", checks_disk.hash_tree),
    Check(
        "root-hash-signature", ERROR, "sign the root hash with a key whose certificate is in the kernel", checks_disk.root_hash_signature
    ),
    Check(
        "boot-entry", ERROR, "the EFI system partition needs loader/entries/*.conf with linux, initrd and options", checks_kernel.boot_entry
    ),
    Check("command-line", ERROR, "take the word off the command line: it weakens or switches off enforcement", checks_kernel.command_line),
    Check("initramfs-init", ERROR, "build the initramfs with ipe-build image initramfs", checks_kernel.initramfs_init),
    Check("initramfs-root-hash", ERROR, "build initramfs and disk from the same root hash", checks_kernel.initramfs_root_hash),
    Check("kernel-ipe", ERROR, "build the kernel with the fragment of ipe-build kernel fragment", checks_kernel.kernel_ipe),
    Check(
        "module-signatures",
        WARNING,
        "set CONFIG_MODULE_SIG_FORCE, or module.sig_enforce=1 on the command line",
        checks_kernel.kernel_modules,
    ),
    Check(
        "kernel-certificates", ERROR, "give the certificates to the kernel build (CONFIG_SYSTEM_TRUSTED_KEYS)", checks_kernel.certificates
    ),
    Check("test-keys", WARNING, "production devices need keys of their own: [keys] in the configuration", checks_kernel.test_keys),
    Check("certificate-validity", WARNING, "renew the certificate before the next build", checks_kernel.certificate_validity),
    Check("boot-policy-parses", ERROR, "with this policy the device would boot with nothing enforced", checks_policy.boot_policy_parses),
    Check("boot-policy-denies", ERROR, "a boot policy ends in DEFAULT action=DENY", checks_policy.boot_policy_denies),
    Check("boot-policy-initramfs", ERROR, "add op=EXECUTE boot_verified=TRUE action=ALLOW", checks_policy.boot_policy_initramfs),
    Check(
        "device-policy-signature",
        ERROR,
        "sign the policy with a key whose certificate is in the kernel",
        checks_policy.device_policy_signature,
    ),
    Check("device-policy-parses", ERROR, "the kernel would refuse it and the initramfs would stop", checks_policy.device_policy_parses),
    Check(
        "device-policy-denies",
        ERROR,
        "a device policy ends in DEFAULT action=DENY for EXECUTE and KMODULE",
        checks_policy.device_policy_denies,
    ),
    Check(
        "device-policy-init", ERROR, "let the policy allow the verity root, or nothing of it can start", checks_policy.device_policy_root
    ),
    Check("device-policy-initramfs", WARNING, "whatever is written into the initramfs counts as boot_verified", checks_policy.final_policy),
    Check("private-keys", ERROR, "take the key out of the root filesystem, and treat it as lost", checks_disk.private_keys),
)


def checks_table() -> str:
    """Returns the table of checks as Markdown, for docs/audit.md: id, severity, what is looked at, what to do."""
    rows = ["| check | severity | what is looked at | when it fails |", "|---|---|---|---|"]
    for check in CHECKS:
        looks = (check.look.__doc__ or "").split("\n")[0].rstrip(".").removeprefix("Looks ")
        rows.append(f"| `{check.id}` | {check.severity} | {looks} | {check.hint} |")
    return "\n".join(rows) + "\n"


def audit(facts: ImageFacts, host: Host) -> AuditReport:
    """Returns the report: every check of the table on these facts, in the table's order."""
    findings = [
        Finding(check.id, check.severity, outcome.verdict, outcome.subject, outcome.why, check.hint)
        for check in CHECKS
        for outcome in check.look(facts, host)
    ]
    return AuditReport(facts.image.name, tuple(findings))
