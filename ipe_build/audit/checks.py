"""THE table of audit checks: one row a check. A check looks at the facts and says pass, fail or unknown, each with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.audit import (
    checks_boot,
    checks_certificates,
    checks_command_line,
    checks_disk,
    checks_fec,
    checks_foreseen,
    checks_hardening,
    checks_hidden,
    checks_initramfs,
    checks_kernel,
    checks_ledger,
    checks_loader,
    checks_policy,
    checks_reproducible,
    checks_root,
    checks_tree,
    checks_uki,
    checks_writable,
)
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.findings import Severity
from ipe_build.audit.outcome import Outcome

if TYPE_CHECKING:
    from ipe_build.host import Host


class Scope(StrEnum):
    """What a check is about: the image whatever starts, or what a boot entry makes of it."""

    IMAGE = "image"
    ENTRY = "boot entry"


class Needs(StrEnum):
    """What a check would have no sense without."""

    NOTHING = ""
    KEYS = "keys"
    """Signatures and the keys that make them: a sealed image has neither."""


class Check(NamedTuple):
    """A row: the stable id, how bad a failure is, what a person does about it, the function that looks, what it is about and needs."""

    id: str
    severity: Severity
    hint: str
    look: Callable[[ImageFacts, Host], Iterator[Outcome]]
    scope: Scope = Scope.ENTRY
    needs: Needs = Needs.NOTHING


IMAGE, KEYS = Scope.IMAGE, Needs.KEYS
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

CHECKS: tuple[Check, ...] = (
    Check("image-readable", ERROR, "the part named is damaged or of a kind that is not read yet", checks_disk.readable, IMAGE),
    Check("gpt-intact", ERROR, "write the image anew; a wrong backup table breaks on the first repair", checks_disk.gpt_intact, IMAGE),
    Check(
        "root-partitions", ERROR, "an image needs one root, one root-verity and one root-verity-sig partition", checks_disk.root_partitions
    ),
    Check("root-unique", WARNING, "leave one set, or name the root hash in the initramfs", checks_disk.root_is_unique, IMAGE),
    Check("partition-read-only", NOTE, "set attribute bit 60, so that tools mount it read-only", checks_disk.read_only_flags, IMAGE),
    Check("partition-uuids", ERROR, "discoverable partitions take their UUIDs from the root hash", checks_tree.partition_uuids),
    Check("other-partitions", NOTE, "mount them noexec; IPE denies code from there in any case", checks_disk.other_partitions, IMAGE),
    Check(
        "signature-partition",
        ERROR,
        "write the partition from the signed root hash (.verity-sig)",
        checks_tree.signature_partition,
        needs=KEYS,
    ),
    Check(
        "signature-fingerprint",
        WARNING,
        "write the partition anew with the signer's certificate",
        checks_tree.signature_fingerprint,
        needs=KEYS,
    ),
    Check("verity-superblock", ERROR, "make the hash tree from exactly this data: ipe-build verity format", checks_tree.superblock, IMAGE),
    Check("verity-hash", ERROR, "use sha256 or stronger", checks_tree.hash_strength, IMAGE),
    Check("verity-salt", NOTE, "give a salt: [verity] salt", checks_tree.salt, IMAGE),
    Check("verity-fec", WARNING, "make parity and tree anew: ipe-build verity format --fec-device", checks_fec.error_correction),
    Check("hash-tree", ERROR, "make the hash tree from exactly this data: ipe-build verity format", checks_tree.hash_tree),
    Check(
        "root-hash-signature",
        ERROR,
        "sign the root hash with a key whose certificate is in the kernel",
        checks_tree.root_hash_signature,
        needs=KEYS,
    ),
    Check(
        "boot-entry", ERROR, "the EFI system partition needs loader/entries/*.conf with linux, initrd and options", checks_boot.boot_entry
    ),
    Check("boot-entry-unique", NOTE, "leave one entry, or keep each as good as the first", checks_boot.one_boot_entry, IMAGE),
    Check("boot-loader", NOTE, "[disk] boot_loader = true puts systemd-boot there", checks_boot.boot_loader, IMAGE),
    Check("boot-partitions", WARNING, "leave one boot loader, in the EFI system partition", checks_boot.boot_partitions, IMAGE),
    Check("boot-loader-editor", WARNING, "write `editor no` into loader/loader.conf", checks_boot.boot_loader_editor, IMAGE),
    Check("command-line-signed", NOTE, "use a signed UKI with Secure Boot, or measure it", checks_boot.unsigned_command_line),
    Check(
        "command-line-fixed",
        NOTE,
        "CONFIG_CMDLINE_OVERRIDE (arm64: CMDLINE_FORCE), or Secure Boot with a signed UKI",
        checks_uki.command_line_fixed,
    ),
    Check("uki-signed", WARNING, "ipe-build sign efi IMAGE", checks_uki.uki_signed),
    Check("uki-sections", ERROR, "leave one section of each name: ipe-build image uki", checks_uki.uki_sections),
    Check("uki-extras", WARNING, "take them out of the EFI system partition", checks_uki.uki_extras),
    Check("uki-credentials", WARNING, "require PCR 12 = 0 when the device is attested", checks_uki.uki_credentials),
    Check("command-line-enforce", ERROR, "take ipe.enforce=0 off the command line", checks_command_line.command_line_enforce),
    Check("command-line-lsm", ERROR, "add ipe to lsm=, or take lsm= off", checks_command_line.command_line_lsm),
    Check("command-line-security", NOTE, "take security= off the command line", checks_command_line.command_line_security),
    Check("command-line-init", ERROR, "take it off the command line", checks_command_line.command_line_init),
    Check("command-line-modules", WARNING, "take it off the command line", checks_command_line.command_line_modules),
    Check("command-line-verity", ERROR, "take it off the command line", checks_command_line.command_line_verity),
    Check("command-line-debug", WARNING, "take it off the command line of a device", checks_command_line.command_line_debug),
    Check("command-line-mitigations", WARNING, "take it off the command line of a device", checks_command_line.command_line_mitigations),
    Check("command-line-memory", WARNING, "take it off the command line of a device", checks_command_line.command_line_memory),
    Check("command-line-initcalls", WARNING, "take it off the command line of a device", checks_command_line.command_line_initcalls),
    Check("command-line-length", ERROR, "make it shorter: what is cut off is not there", checks_command_line.command_line_length),
    Check("command-line-root-hash", ERROR, "name this disk's root hash", checks_command_line.command_line_root_hash),
    Check("initramfs-init", ERROR, "build the initramfs with ipe-build image initramfs", checks_initramfs.initramfs_init),
    Check("initramfs-config", ERROR, "make it with ipe-build image initramfs", checks_initramfs.initramfs_config),
    Check("initramfs-intact", ERROR, "build the initramfs anew", checks_initramfs.initramfs_intact),
    Check("initramfs-replaced", WARNING, "leave one file of each path", checks_initramfs.initramfs_replaced),
    Check("initramfs-unpacks", ERROR, "choose another [initramfs] compression, or enable the symbol", checks_initramfs.initramfs_unpacks),
    Check("initramfs-programs", WARNING, "leave out what ipe-init does not need", checks_initramfs.initramfs_programs),
    Check(
        "initramfs-modules-load",
        ERROR,
        "sign the module for this kernel: ipe-build modules sign",
        checks_initramfs.initramfs_modules,
        needs=KEYS,
    ),
    Check("initramfs-root-hash", ERROR, "build initramfs and disk from the same root hash", checks_initramfs.initramfs_root_hash),
    Check("initramfs-filesystem", ERROR, "build initramfs and disk from the same configuration", checks_initramfs.initramfs_filesystem),
    Check("initramfs-signature", WARNING, "let ipe-init hand the signature to the kernel", checks_initramfs.initramfs_signature),
    Check("initramfs-corruption", NOTE, '[initramfs] on_corruption = "panic" or "restart"', checks_uki.corruption),
    Check("policy-loader", ERROR, "let ipe-init, or systemd 257 or newer, load the signed policy", checks_loader.policy_loader),
    Check("initramfs-policy", ERROR, "put the signed policy where ipe-init looks for it", checks_initramfs.initramfs_policy),
    Check(
        "initramfs-failure", NOTE, "a recovery program runs without a verity root: know what it does", checks_initramfs.initramfs_failure
    ),
    Check("initramfs-override", NOTE, "[initramfs] init_override = false on a device", checks_initramfs.initramfs_override),
    Check("initramfs-mac-admin", NOTE, '[initramfs] drop_capabilities = ["CAP_MAC_ADMIN"]', checks_initramfs.mac_admin),
    Check("init-program", ERROR, "name the first program of the root: [initramfs] init", checks_initramfs.init_program),
    Check("kernel-ipe", ERROR, "build the kernel with the fragment of ipe-build kernel fragment", checks_kernel.kernel_ipe),
    Check("kernel-lsm", ERROR, "add ipe to CONFIG_LSM", checks_kernel.lsm_order),
    Check("kernel-architecture", ERROR, "put the kernel for this root into the EFI system partition", checks_kernel.architecture),
    Check("kernel-boot-config", ERROR, "leave it out, or CONFIG_BOOT_CONFIG off", checks_hidden.kernel_boot_config),
    Check("kernel-initramfs", ERROR, 'CONFIG_INITRAMFS_SOURCE="": the initramfs is a file of its own', checks_hidden.kernel_initramfs),
    Check("kernel-config", NOTE, "enable CONFIG_IKCONFIG, so that a finished image can be audited in full", checks_kernel.ikconfig),
    Check("kernel-properties", ERROR, "enable the symbol, or use another property", checks_kernel.properties_enabled),
    Check("kernel-verity-signatures", ERROR, "enable CONFIG_DM_VERITY_VERIFY_ROOTHASH_SIG", checks_kernel.verity_signatures, needs=KEYS),
    Check("kernel-filesystem", ERROR, "build the filesystem in: =y", checks_kernel.root_filesystem_driver),
    Check("kernel-hash", ERROR, "build the algorithm in: =y", checks_kernel.verity_hash_driver),
    Check(
        "kernel-certificates",
        ERROR,
        "give the certificates to the kernel build (CONFIG_SYSTEM_TRUSTED_KEYS)",
        checks_certificates.certificates,
        needs=KEYS,
    ),
    Check("test-keys", WARNING, "production devices need keys of their own: [keys] in the configuration", checks_certificates.test_keys),
    Check("weak-certificates", ERROR, "make a stronger key", checks_certificates.weak_certificates),
    Check("certificate-validity", WARNING, "renew the certificate before the next build", checks_certificates.certificate_validity),
    Check("revoked-signers", ERROR, "sign anew with a key that is not revoked", checks_certificates.revoked_signers),
    Check(
        "autogenerated-key",
        WARNING,
        'set CONFIG_MODULE_SIG_KEY="" and sign with ipe-build modules sign',
        checks_certificates.autogenerated_key,
    ),
    Check("module-signatures", WARNING, "set CONFIG_MODULE_SIG_FORCE", checks_kernel.module_signatures),
    Check("module-compression", ERROR, "compress modules as the kernel unpacks them", checks_kernel.module_compression),
    Check("kernel-kexec", WARNING, "disable CONFIG_KEXEC; kexec_file_load is judged by op=KEXEC_IMAGE", checks_hardening.kexec_unsigned),
    Check("kernel-devmem", WARNING, "disable CONFIG_DEVMEM", checks_hardening.dev_mem),
    Check("kernel-kcore", NOTE, "disable CONFIG_PROC_KCORE", checks_hardening.proc_kcore),
    Check("kernel-debugfs", NOTE, "disable CONFIG_DEBUG_FS", checks_hardening.debug_fs),
    Check("kernel-bpf", WARNING, "disable CONFIG_BPF_SYSCALL, or enable CONFIG_BPF_UNPRIV_DEFAULT_OFF", checks_hardening.bpf_syscall),
    Check("kernel-hibernation", WARNING, "disable CONFIG_HIBERNATION", checks_hardening.hibernation),
    Check("kernel-firmware-helper", NOTE, "disable CONFIG_FW_LOADER_USER_HELPER", checks_hardening.firmware_helper),
    Check("kernel-ptrace", NOTE, "enable CONFIG_SECURITY_YAMA", checks_hardening.yama),
    Check("kernel-lockdown", NOTE, "enable CONFIG_SECURITY_LOCKDOWN_LSM", checks_hardening.lockdown),
    Check("kernel-kaslr", NOTE, "enable CONFIG_RANDOMIZE_BASE", checks_hardening.kaslr),
    Check("kernel-stack", NOTE, "enable CONFIG_STACKPROTECTOR_STRONG", checks_hardening.stack_protector),
    Check("kernel-usercopy", NOTE, "enable CONFIG_HARDENED_USERCOPY", checks_hardening.usercopy),
    Check("kernel-rwx", WARNING, "enable CONFIG_STRICT_KERNEL_RWX", checks_hardening.strict_rwx),
    Check("kernel-proc-mem", WARNING, "enable CONFIG_PROC_MEM_NO_FORCE", checks_hardening.proc_mem),
    Check(
        "boot-policy-parses",
        ERROR,
        "without it nothing is enforced until the device policy is loaded: ipe-build policy check",
        checks_policy.boot_policy_parses,
    ),
    Check("boot-policy-denies", ERROR, "a boot policy ends in DEFAULT action=DENY", checks_policy.boot_policy_denies),
    Check("boot-policy-initramfs", ERROR, "add op=EXECUTE boot_verified=TRUE action=ALLOW", checks_policy.boot_policy_initramfs),
    Check("boot-policy-lint", WARNING, "ipe-build policy check says more", checks_policy.boot_policy_lint),
    Check("boot-policy-ima", WARNING, "add op=X509_CERT boot_verified=TRUE action=ALLOW", checks_policy.ima_certificate),
    Check(
        "device-policy-signature",
        ERROR,
        "sign the policy with a key whose certificate is in the kernel",
        checks_policy.device_policy_signature,
        needs=KEYS,
    ),
    Check(
        "device-policy-parses",
        ERROR,
        "the kernel would refuse it and the initramfs would stop",
        checks_policy.device_policy_parses,
        needs=KEYS,
    ),
    Check("device-policy-names", ERROR, "give each policy a name of its own", checks_policy.device_policy_names, needs=KEYS),
    Check("device-policy-version", ERROR, "raise its version above the boot policy's", checks_policy.device_policy_version, needs=KEYS),
    Check(
        "device-policy-ledger",
        WARNING,
        "raise policy_version: ipe-build policy record keeps the ledger",
        checks_ledger.policy_ledger,
        needs=KEYS,
    ),
    Check(
        "device-policy-denies",
        ERROR,
        "a device policy ends in DEFAULT action=DENY for EXECUTE and KMODULE",
        checks_policy.device_policy_denies,
    ),
    Check("device-policy-reads", WARNING, "deny by default, or add a rule for the operation", checks_policy.kernel_reads),
    Check("device-policy-memory", WARNING, "deny EXECUTE by default and allow by =TRUE properties only", checks_policy.anonymous_memory),
    Check(
        "device-policy-root", ERROR, "let the policy allow the verity root, or nothing of it can start", checks_policy.device_policy_root
    ),
    Check("device-policy-initramfs", WARNING, "whatever is written into the initramfs counts as boot_verified", checks_policy.final_policy),
    Check("device-policy-lint", WARNING, "ipe-build policy check says more", checks_policy.device_policy_lint),
    Check("root-programs", ERROR, "let the device policy allow it, or take it out", checks_root.programs_admitted),
    Check("root-modules", ERROR, "let the device policy allow it, or take it out", checks_root.modules_admitted),
    Check("root-firmware", WARNING, "let the device policy allow it, or take it out", checks_root.firmware_admitted),
    Check("root-modules-load", ERROR, "sign the module for this kernel: ipe-build modules sign", checks_root.modules_load),
    Check("root-module-loader", WARNING, "use kmod, or a BusyBox that loads with finit_module", checks_root.modules_from_buffer),
    Check("root-probes", NOTE, "[boot] probes = false for images that go into devices", checks_root.probes_absent, IMAGE),
    Check("root-interpreters", NOTE, "leave out interpreters that the device does not need", checks_root.interpreters, IMAGE),
    Check("root-jit", WARNING, "leave it out, or run it without its compiler", checks_root.jits, IMAGE),
    Check("root-packed", WARNING, "unpack it: upx -d", checks_root.packed, IMAGE),
    Check("root-fs-verity", ERROR, "seal the file again: ipe-build fsverity", checks_loader.fsverity_files),
    Check(
        "root-fs-verity-keys",
        WARNING,
        "name digests (fsverity_digest=) instead, or fill the keyring in the initramfs",
        checks_loader.fsverity_keyring,
    ),
    Check("root-ima", WARNING, "sign the file again: ipe-build ima", checks_loader.ima_signatures),
    Check("root-setuid", NOTE, "take the bit away where it is not needed", checks_root.setuid, IMAGE),
    Check("root-overlays", WARNING, "put writable data elsewhere than over the root", checks_root.writable_mounts, IMAGE),
    Check("writable-programs", NOTE, "put programs on the verity root", checks_writable.writable_programs, IMAGE),
    Check("writable-programs-denied", ERROR, "deny by default, allow by =TRUE properties only", checks_writable.writable_programs_denied),
    Check("writable-noexec", NOTE, "add noexec to its options in /etc/fstab", checks_writable.mounted_noexec),
    Check("private-keys", ERROR, "take the key out of the root filesystem, and treat it as lost", checks_disk.private_keys, IMAGE),
    Check(
        "foreseen-boot",
        ERROR,
        "the stage named is where to look; what is wrong may have a check of its own above",
        checks_foreseen.foreseen_boot,
    ),
    Check(
        "foreseen-enforcement",
        ERROR,
        "a kernel with IPE in its order, not switched off, and a policy that denies by default",
        checks_foreseen.foreseen_enforcement,
    ),
    Check("reproducible-initramfs", NOTE, "set SOURCE_DATE_EPOCH, and give each member that time", checks_reproducible.initramfs_times),
    Check("reproducible-root", NOTE, "set SOURCE_DATE_EPOCH: mkfs.erofs -T, mksquashfs -all-time", checks_reproducible.root_times, IMAGE),
    Check("reproducible-esp", NOTE, "copy its files with times of SOURCE_DATE_EPOCH", checks_reproducible.esp_times, IMAGE),
    Check("reproducible-kernel", NOTE, "set KBUILD_BUILD_USER, _HOST and _TIMESTAMP", checks_reproducible.kernel_banner),
    Check("reproducible-uuids", NOTE, "derive UUIDs from what is built: mkfs.erofs -U, sgdisk -U", checks_reproducible.identifiers, IMAGE),
)


def checks_table() -> str:
    """Returns the table of checks as Markdown, for docs/audit.md: id, severity, what is looked at, what to do."""
    rows = ["| check | severity | what is looked at | when it fails |", "|---|---|---|---|"]
    for check in CHECKS:
        looks = (check.look.__doc__ or "").split("\n")[0].rstrip(".").removeprefix("Looks ")
        rows.append(f"| `{check.id}` | {check.severity} | {looks} | {check.hint} |")
    return "\n".join(rows) + "\n"
