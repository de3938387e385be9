"""Checks of kernel options that make IPE's promise hold or hollow: ways around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.checks_policy import device_policies
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.looks import of_config, off, on
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.sealed import enabled_in
from ipe_build.policy.evaluate import evaluate
from ipe_build.policy.facts import NO_FILE
from ipe_build.policy.properties import Action, Operation

if TYPE_CHECKING:
    from ipe_build.host import Host


def kexec_unsigned(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether kexec_load is there, and allowed: IPE judges it as KEXEC_IMAGE without a file, so that a property never vouches.

    Source: kernel/kexec.c (kexec_load_check), security/ipe/hooks.c (ipe_kernel_load_data).
    """
    config = facts.kernel_config
    if config is None:
        yield unknown("CONFIG_KEXEC", "the kernel does not carry its configuration (IKCONFIG)")
        return
    if not config.enabled("KEXEC"):
        yield good("CONFIG_KEXEC", "is off: only kexec_file_load is there, if at all")
        return
    policies = device_policies(facts)
    decisions = [(one, evaluate(one, Operation.KEXEC_IMAGE, NO_FILE, enabled_in(facts))) for one in policies]
    for policy, decision in decisions:
        if decision.action is Action.ALLOW:
            yield bad("CONFIG_KEXEC", f"is on, and {policy.display_name} allows kexec_load: any kernel is started ({decision.audit_rule})")
        else:
            yield good("CONFIG_KEXEC", f"is on, and {policy.display_name} denies kexec_load by {decision.audit_rule}")
    if not decisions:
        yield bad("CONFIG_KEXEC", "is on, and there is no policy that denies kexec_load: any kernel is started")


dev_mem = off("DEVMEM", "/dev/mem writes kernel memory")
proc_kcore = off("PROC_KCORE", "root reads kernel memory, keys included")
debug_fs = off("DEBUG_FS", "debugfs changes kernel state")
bpf_syscall = of_config(
    "CONFIG_BPF_SYSCALL",
    lambda config: not config.enabled("BPF_SYSCALL") or config.enabled("BPF_UNPRIV_DEFAULT_OFF"),
    "is off, or for root alone",
    "is on for everybody: code is loaded into the kernel that no policy judges",
    "Looks whether everybody may load BPF programs.",
)
hibernation = off("HIBERNATION", "the kernel resumes into a memory image that nobody checks")
firmware_helper = off("FW_LOADER_USER_HELPER", "firmware comes from a buffer without a file, so no property can hold")
yama = on(
    "SECURITY_YAMA",
    "ptrace between processes is not restricted",
    "is on: kernel.yama.ptrace_scope restricts ptrace where it is not 0 (a kernel of Debian's source begins with 0)",
)
lockdown = on("SECURITY_LOCKDOWN_LSM", "lockdown= cannot be asked for")
kaslr = on("RANDOMIZE_BASE", "the kernel's address is known to an exploit")
stack_protector = on("STACKPROTECTOR_STRONG", "stack overflows in the kernel are not found")
usercopy = on("HARDENED_USERCOPY", "copies to and from the kernel are not bounded")
strict_rwx = on("STRICT_KERNEL_RWX", "kernel code is writable")
proc_mem = of_config(
    "CONFIG_PROC_MEM",
    lambda config: config.enabled("PROC_MEM_NO_FORCE") or config.enabled("PROC_MEM_FORCE_PTRACE"),
    "/proc/PID/mem does not change code that was judged",
    "/proc/PID/mem writes into mapped code after IPE judged it",
    "Looks whether a process may change its own mapped code through /proc/PID/mem.",
)
