"""Lint rules about the text, the header and how the policy is handed to the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipe_build.policy.findings import Hit, LintRule, Severity, Subject
from ipe_build.policy.parser import Role
from ipe_build.policy.versions import FIRST_KERNEL

_SIGNED_MAX = 65535
"""Most bytes of a signed policy: asn1_ber_decoder() refuses more with EMSGSIZE. Source: lib/asn1_decoder.c."""
_SIGNATURE_MIN = 400
"""A PKCS#7 around a policy is never smaller: a 256-byte RSA signature (or an EC one with its certificate) and its frame."""
_KMALLOC_MAX = 4 << 20
"""Most bytes that kmalloc() gives in one piece on the usual page size and MAX_PAGE_ORDER; ipe_new_policy() copies the text so."""
_UNPRINTABLE = re.compile(rb"[^\t\r\n\x20-\x7e]")
_BOM = b"\xef\xbb\xbf"


def _rejected(subject: Subject) -> Iterator[Hit]:
    problem = subject.result.problem
    if problem is not None and subject.target.role is Role.DEVICE:
        yield Hit(
            problem.line,
            f"the kernel refuses this policy with {problem.errno}: {problem.message}",
            hint=problem.hint,
            column=problem.column,
        )


def _rejected_boot(subject: Subject) -> Iterator[Hit]:
    problem = subject.result.problem
    if problem is not None and subject.target.role is Role.BOOT:
        why = f"{problem.errno}: {problem.message}; as a boot policy the device would boot with nothing enforced"
        yield Hit(problem.line, why, hint=problem.hint, column=problem.column)


def _boot_name(subject: Subject) -> Iterator[Hit]:
    policy = subject.policy
    bad = b"/" in policy.name or policy.name in (b".", b"..") or len(policy.name) > 255
    if subject.target.role is Role.BOOT and bad:
        why = "the boot policy is enforced, but its name cannot be a folder: securityfs ipe/ will be missing, so no policy can be loaded"
        yield Hit(policy.header_line, why, "policy_name=")


def _too_large(subject: Subject) -> Iterator[Hit]:
    size = len(subject.text)
    if subject.target.role is Role.DEVICE and size + _SIGNATURE_MIN > _SIGNED_MAX:
        why = f"the text has {size} bytes; signed it is more than {_SIGNED_MAX}, which the kernel refuses with EMSGSIZE"
        yield Hit(0, why)


def _boot_too_large(subject: Subject) -> Iterator[Hit]:
    size = len(subject.text)
    if subject.target.role is Role.BOOT and size >= _KMALLOC_MAX:
        yield Hit(0, f"the text has {size} bytes, the kernel cannot copy 4 MiB (ENOMEM): the device would boot with nothing enforced")


def _after_nul(subject: Subject) -> Iterator[Hit]:
    at = subject.text.find(b"\0")
    rest = subject.text[at + 1 :] if at >= 0 else b""
    if rest.strip(b"\0"):
        line = subject.text.count(b"\n", 0, at) + 1
        yield Hit(line, f"the text ends for the kernel at the NUL in line {line}; {len(rest)} bytes after it do nothing")


def _unprintable(subject: Subject) -> Iterator[Hit]:
    for number, row in enumerate(subject.text.split(b"\0", 1)[0].split(b"\n"), 1):
        found = _UNPRINTABLE.search(row.split(b"#", 1)[0])
        if found is not None:
            which = "a UTF-8 byte order mark" if row.startswith(_BOM) else f"the byte 0x{found[0][0]:02x}"
            yield Hit(number, f"{which} at column {found.start() + 1}: to the kernel it is part of the word it stands in")


def _carriage_returns(subject: Subject) -> Iterator[Hit]:
    at = subject.text.find(b"\r")
    if at >= 0:
        yield Hit(subject.text.count(b"\n", 0, at) + 1, "lines end with CR LF; the kernel takes that, the signed bytes contain it")


def _stem(subject: Subject) -> Iterator[Hit]:
    stem = subject.target.stem
    if subject.target.role is Role.DEVICE and stem is not None and stem != subject.policy.display_name:
        why = f"the policy is named {subject.policy.display_name!r}, its file {stem!r}: systemd loads NAME.p7b only if NAME is the policy's"
        yield Hit(subject.policy.header_line, why, "policy_name=")


def _hidden_name(subject: Subject) -> Iterator[Hit]:
    if subject.target.role is Role.DEVICE and subject.policy.name.startswith(b"."):
        yield Hit(subject.policy.header_line, "systemd skips files whose name begins with a dot, so it never loads it", "policy_name=")


def _version(subject: Subject) -> Iterator[Hit]:
    recorded = subject.target.recorded
    if recorded is not None and subject.policy.version <= recorded[0]:
        which = "the same as" if subject.policy.version == recorded[0] else "lower than"
        why = f"version {subject.policy.version} is {which} the recorded {recorded[0]}: the kernel refuses it as an update with ESTALE"
        yield Hit(subject.policy.header_line, why, "policy_version=")


def _below_active(subject: Subject) -> Iterator[Hit]:
    active, policy = subject.target.active, subject.policy
    if active is None or subject.target.role is Role.BOOT:
        return
    same = active.name == policy.name
    if same and policy.version <= active.version:
        why = f"version {policy.version} is not higher than {active.version}, which is in force: the update is refused with ESTALE"
        yield Hit(policy.header_line, why, "policy_version=")
    if not same and policy.version < active.version:
        why = f"version {policy.version} is lower than the active {active.display_name} {active.version}: it cannot be activated (EINVAL)"
        yield Hit(policy.header_line, why, "policy_version=")


def _old_kernel(subject: Subject) -> Iterator[Hit]:
    if subject.target.kernel < FIRST_KERNEL:
        yield Hit(0, f"Linux {subject.target.kernel} has no IPE")


TEXT_RULES: tuple[LintRule, ...] = (
    LintRule(
        "rejected", Severity.ERROR, "The kernel refuses the policy.", "see the errno in docs/policy.md", _rejected, needs_policy=False
    ),
    LintRule(
        "boot-policy-rejected",
        Severity.ERROR,
        "A boot policy that the kernel refuses: ipe_init() fails and the device would boot with nothing enforced.",
        "repair it before the kernel is built",
        _rejected_boot,
        needs_policy=False,
    ),
    LintRule(
        "boot-policy-name",
        Severity.ERROR,
        "A boot policy whose name cannot be a folder: securityfs ipe/ is not made at all.",
        "use a name without / that has at most 255 bytes",
        _boot_name,
    ),
    LintRule(
        "signed-too-large",
        Severity.ERROR,
        "A signed policy of more than 65535 bytes is refused (EMSGSIZE).",
        "use signatures or root hashes instead of digests of single files, or split the text over fewer rules",
        _too_large,
    ),
    LintRule(
        "boot-policy-too-large",
        Severity.ERROR,
        "A boot policy of 4 MiB or more cannot be copied (ENOMEM).",
        "use signatures or root hashes instead of digests of single files",
        _boot_too_large,
    ),
    LintRule("text-after-nul", Severity.WARNING, "Text after a NUL is ignored.", "remove the NUL", _after_nul, needs_policy=False),
    LintRule(
        "unprintable",
        Severity.WARNING,
        "Bytes outside printable ASCII.",
        "use printable ASCII and spaces",
        _unprintable,
        needs_policy=False,
    ),
    LintRule("crlf", Severity.NOTE, "Carriage returns.", "save the file with LF line ends", _carriage_returns, needs_policy=False),
    LintRule(
        "name-differs-from-file",
        Severity.WARNING,
        "systemd loads a policy only from a file that is named like it.",
        "name the file (and the .p7b) like the policy, or the policy like the file",
        _stem,
    ),
    LintRule("name-hidden", Severity.WARNING, "systemd skips names that begin with a dot.", "drop the dot", _hidden_name),
    LintRule(
        "version-not-higher",
        Severity.ERROR,
        "The version is not higher than the ledger's.",
        "raise policy_version",
        _version,
    ),
    LintRule(
        "version-below-active",
        Severity.ERROR,
        "The version is too low for the policy that is in force.",
        "raise policy_version: an update must be higher, another policy not lower than the active one",
        _below_active,
    ),
    LintRule(
        "kernel-without-ipe",
        Severity.ERROR,
        "The target kernel is older than IPE.",
        "use Linux 6.12 or later",
        _old_kernel,
        needs_policy=False,
    ),
)
