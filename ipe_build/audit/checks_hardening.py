"""Checks of kernel options that make IPE's promise hold or hollow: ways around it that no policy judges."""

from __future__ import annotations

from ipe_build.audit.looks import of_config, off, on

kexec_unsigned = of_config(
    "CONFIG_KEXEC",
    lambda config: not config.enabled("KEXEC"),
    "is off: only kexec_file_load is there, if at all, and IPE judges it",
    "is on: kexec_load starts any kernel, and IPE does not see it",
    "Looks whether kexec_load, which no policy judges, is there.",
)
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
yama = on("SECURITY_YAMA", "ptrace between processes is not restricted")
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
