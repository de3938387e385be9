"""Named IMA policies, for appraisal (what is run or loaded must be signed) and measurement, and policies of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ipe_build.errors import InputError
from ipe_build.policy.ima_rules import Enabled, all_on, check_policy


class PolicyTemplate(NamedTuple):
    """A row: a named policy. `needs` are Kconfig symbols beyond IMA_APPRAISE."""

    name: str
    what: str
    lines: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _signed(*hooks: str, kind: str = "imasig") -> tuple[str, ...]:
    return tuple(f"appraise func={hook} appraise_type={kind}" for hook in hooks)


_KERNEL_READS = ("FIRMWARE_CHECK", "KEXEC_KERNEL_CHECK", "KEXEC_INITRAMFS_CHECK", "POLICY_CHECK")
_MEASURED = tuple(f"measure func={hook}" for hook in ("BPRM_CHECK", "MMAP_CHECK", "MODULE_CHECK", "FIRMWARE_CHECK", "POLICY_CHECK"))
_PSEUDO = {
    "proc": 0x9FA0,
    "sysfs": 0x62656572,
    "tmpfs": 0x01021994,
    "devpts": 0x1CD1,
    "securityfs": 0x73636673,
    "cgroup2": 0x63677270,
    "debugfs": 0x64626720,
    "tracefs": 0x74726163,
    "nsfs": 0x6E736673,
    "efivarfs": 0xDE5E81E4,
}
"""Filesystems without files of their own on a disk. Source: include/uapi/linux/magic.h."""

TEMPLATES: Mapping[str, PolicyTemplate] = {
    row.name: row
    for row in (
        PolicyTemplate(
            "code",
            "all that is run or loaded into the kernel is signed",
            (*_signed("BPRM_CHECK", "MMAP_CHECK", "MODULE_CHECK"), *_signed(*_KERNEL_READS)),
        ),
        PolicyTemplate(
            "code-modsig",
            "the same, and a module's own appended signature counts, by a key in .ima",
            (*_signed("BPRM_CHECK", "MMAP_CHECK"), *_signed("MODULE_CHECK", kind="imasig|modsig"), *_signed(*_KERNEL_READS)),
            ("IMA_APPRAISE_MODSIG",),
        ),
        PolicyTemplate(
            "kernel", "what is loaded into the kernel is signed; programs are not looked at", _signed("MODULE_CHECK", *_KERNEL_READS)
        ),
        PolicyTemplate(
            "code-and-data",
            "also each file of root's that is read, but for those of filesystems in memory",
            (
                *(f"dont_appraise func=FILE_CHECK fsmagic={magic:#x}" for magic in _PSEUDO.values()),
                *_signed("BPRM_CHECK", "MMAP_CHECK", "MODULE_CHECK", *_KERNEL_READS),
                "appraise func=FILE_CHECK mask=MAY_READ fowner=0 appraise_type=imasig",
            ),
        ),
        PolicyTemplate("measure", "nothing is refused; what is run or loaded is measured for a remote verifier", _MEASURED),
        PolicyTemplate(
            "code-measured",
            "`code`, and what is run or loaded is measured too",
            (*_MEASURED, *_signed("BPRM_CHECK", "MMAP_CHECK", "MODULE_CHECK", *_KERNEL_READS)),
        ),
    )
}


def render_ima_policy(name: str) -> bytes:
    """Returns the text of a named policy, a comment first. Raises: InputError naming the templates there are."""
    row = TEMPLATES.get(name)
    if row is None:
        raise InputError(f"there is no IMA policy {name!r}", where="IMA policy", hint=f"known are {', '.join(TEMPLATES)}")
    return "".join(f"{line}\n" for line in (f"# {row.name}: {row.what}", *row.lines)).encode()


def load_ima_policy(text: str, enabled: Enabled = all_on) -> bytes:
    """Returns the policy that a word names: a template, or `file:PATH`. Raises: InputError with the first line that the kernel refuses."""
    if not text.startswith("file:"):
        data, where = render_ima_policy(text), f"IMA policy {text}"
    else:
        path = Path(text.removeprefix("file:"))
        try:
            data, where = path.read_bytes(), str(path)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    refusal = check_policy(data, enabled)
    if refusal is not None:
        raise InputError(f"the kernel would refuse this policy ({refusal.errno}): {refusal.message}", where=f"{where}:{refusal.line}")
    return data


def appraises_mapped_code(policy: bytes) -> bool:
    """Returns whether an IMA policy has a rule for MMAP_CHECK, by which IMA also refuses mprotect(PROT_EXEC) of what is mapped."""
    rules = (line.split() for line in policy.decode("utf-8", "replace").splitlines())
    return any(words[:1] == ["appraise"] and {"func=MMAP_CHECK", "func=FILE_MMAP"} & {*words} for words in rules)
