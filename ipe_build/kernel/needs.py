"""What a kernel is needed for, and the Kconfig symbols that each need asks for: one row a symbol.

Values are Kconfig's own: `y`, `m`, `n`, a number, or a string without its quotes. A symbol that several needs ask for
stands in each of them. What an IPE property needs is in `policy.properties` (its Kconfig symbol) and here (what that symbol depends on).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Need(StrEnum):
    """Something the kernel must be able to do."""

    IPE = "ipe"
    DM_VERITY = "dm-verity"
    DM_VERITY_SIGNATURE = "dm-verity-signature"
    FS_VERITY = "fs-verity"
    FS_VERITY_SIGNATURE = "fs-verity-signature"
    SECONDARY_KEYRING = "secondary-keyring"
    PLATFORM_KEYRING = "platform-keyring"
    REVOCATION = "revocation"
    EROFS = "erofs"
    SQUASHFS = "squashfs"
    EXT4 = "ext4"
    MODULES = "modules"
    MODULES_GZIP = "modules-gzip"
    MODULES_XZ = "modules-xz"
    MODULES_ZSTD = "modules-zstd"
    FIRMWARE = "firmware"
    HARDENING = "hardening"
    INITRAMFS = "initramfs"
    USERSPACE = "userspace"
    QEMU_X86_64 = "qemu-x86_64"
    EFI = "efi"
    INSPECTION = "inspection"
    PROBES = "probes"
    IMA = "ima"
    KEXEC = "kexec"
    SEALED = "sealed"
    QEMU_ARM64 = "qemu-arm64"
    TPM = "tpm"
    IMA_ENFORCED = "ima-enforced"
    EVM = "evm"
    TRUSTED_KEYS_TPM = "trusted-keys-tpm"
    TRUSTED_KEYS_TEE = "trusted-keys-tee"


class Row(NamedTuple):
    """One symbol (without `CONFIG_`) that one need asks for, and why."""

    need: Need
    symbol: str
    value: str
    why: str


def _rows(need: Need, *rows: tuple[str, str, str]) -> tuple[Row, ...]:
    return tuple(Row(need, *row) for row in rows)


ROWS: tuple[Row, ...] = (
    *_rows(
        Need.IPE,
        ("EXPERT", "y", "several symbols below can be set only with it"),
        ("MULTIUSER", "y", "SECURITY depends on it"),
        ("SYSFS", "y", "SECURITY depends on it"),
        ("NET", "y", "AUDIT depends on it"),
        ("AUDIT", "y", "IPE depends on it: every denial is an audit record"),
        ("AUDITSYSCALL", "y", "IPE depends on it; the record names the system call"),
        ("SECURITY", "y", "IPE is a Linux security module"),
        ("SECURITYFS", "y", "policies are loaded and activated below securityfs/ipe"),
        ("SECURITY_IPE", "y", "Integrity Policy Enforcement itself"),
        ("KEYS", "y", "the trusted keyrings"),
        ("ASYMMETRIC_KEY_TYPE", "y", "certificates in keyrings"),
        ("ASYMMETRIC_PUBLIC_KEY_SUBTYPE", "y", "checks signatures against certificates"),
        ("X509_CERTIFICATE_PARSER", "y", "reads the built-in certificates"),
        ("PKCS7_MESSAGE_PARSER", "y", "signed policies are PKCS#7"),
        ("SYSTEM_TRUSTED_KEYRING", "y", "the certificates that policies are checked against"),
        ("CRYPTO_RSA", "y", "RSA signatures"),
        ("CRYPTO_ECDSA", "y", "ECDSA signatures"),
        ("CRYPTO_SHA256", "y", "SHA-256 digests in signatures and hash trees"),
        ("CRYPTO_SHA512", "y", "SHA-384 and SHA-512 digests in signatures and hash trees"),
    ),
    *_rows(
        Need.DM_VERITY,
        ("BLOCK", "y", "block devices"),
        ("MD", "y", "the menu of device mapper"),
        ("BLK_DEV_DM", "y", "device mapper"),
        ("DM_INIT", "y", "a verity root without an initramfs: dm-mod.create="),
        ("DM_VERITY", "y", "the root filesystem's blocks are checked against a hash tree"),
        ("DM_VERITY_FEC", "y", "verity devices with forward error correction"),
    ),
    *_rows(
        Need.DM_VERITY_SIGNATURE,
        ("DM_VERITY_VERIFY_ROOTHASH_SIG", "y", "dmverity_signature= needs a signed root hash"),
    ),
    *_rows(Need.FS_VERITY, ("FS_VERITY", "y", "files that carry a hash tree of their own")),
    *_rows(
        Need.FS_VERITY_SIGNATURE,
        ("FS_VERITY_BUILTIN_SIGNATURES", "y", "fsverity_signature= needs signatures that the kernel checks"),
    ),
    *_rows(
        Need.SECONDARY_KEYRING,
        ("SECONDARY_TRUSTED_KEYRING", "y", "certificates that a built-in one vouches for can be added at run time"),
        ("SECONDARY_TRUSTED_KEYRING_SIGNED_BY_BUILTIN", "y", "only built-in certificates may vouch"),
        ("IPE_POLICY_SIG_SECONDARY_KEYRING", "y", "policies signed by an added certificate"),
        ("DM_VERITY_VERIFY_ROOTHASH_SIG_SECONDARY_KEYRING", "y", "root hashes signed by an added certificate"),
    ),
    *_rows(
        Need.PLATFORM_KEYRING,
        ("SYSTEM_BLACKLIST_KEYRING", "y", "INTEGRITY_PLATFORM_KEYRING depends on it: the firmware's dbx"),
        ("INTEGRITY", "y", "the menu of integrity keyrings"),
        ("INTEGRITY_SIGNATURE", "y", "integrity keyrings"),
        ("INTEGRITY_ASYMMETRIC_KEYS", "y", "certificates in integrity keyrings"),
        ("INTEGRITY_PLATFORM_KEYRING", "y", "certificates of the firmware (UEFI db)"),
        ("LOAD_UEFI_KEYS", "y", "reads the UEFI db"),
        ("IPE_POLICY_SIG_PLATFORM_KEYRING", "y", "policies signed by a certificate of the firmware"),
        ("DM_VERITY_VERIFY_ROOTHASH_SIG_PLATFORM_KEYRING", "y", "root hashes signed by a certificate of the firmware"),
    ),
    *_rows(
        Need.REVOCATION,
        ("SYSTEM_BLACKLIST_KEYRING", "y", "revoked keys and hashes"),
        ("SYSTEM_REVOCATION_LIST", "y", "revoked certificates"),
    ),
    *_rows(
        Need.EROFS,
        ("BLOCK", "y", "block devices"),
        ("MISC_FILESYSTEMS", "y", "EROFS_FS is dropped silently without it"),
        ("EROFS_FS", "y", "the root filesystem"),
        ("EROFS_FS_XATTR", "y", "extended attributes (capabilities, security.ima)"),
        ("EROFS_FS_SECURITY", "y", "security.* attributes"),
        ("EROFS_FS_ZIP", "y", "compressed images"),
        ("EROFS_FS_ZIP_LZMA", "y", "images compressed with lzma"),
        ("EROFS_FS_ZIP_DEFLATE", "y", "images compressed with deflate"),
        ("EROFS_FS_ZIP_ZSTD", "y", "images compressed with zstd"),
    ),
    *_rows(
        Need.SQUASHFS,
        ("BLOCK", "y", "block devices"),
        ("MISC_FILESYSTEMS", "y", "SQUASHFS is dropped silently without it"),
        ("SQUASHFS", "y", "the root filesystem"),
        ("SQUASHFS_XATTR", "y", "extended attributes (capabilities, security.ima)"),
        ("SQUASHFS_ZLIB", "y", "images compressed with gzip"),
        ("SQUASHFS_LZ4", "y", "images compressed with lz4"),
        ("SQUASHFS_XZ", "y", "images compressed with xz"),
        ("SQUASHFS_ZSTD", "y", "images compressed with zstd"),
    ),
    *_rows(
        Need.EXT4,
        ("BLOCK", "y", "block devices"),
        ("EXT4_FS", "y", "the root filesystem, or fs-verity files"),
        ("EXT4_FS_SECURITY", "y", "security.* attributes"),
    ),
    *_rows(
        Need.MODULES,
        ("MODULES", "y", "loadable modules"),
        ("MODULE_UNLOAD", "y", "modules can be removed again"),
        ("MODULE_SIG", "y", "module signatures"),
        ("MODULE_SIG_FORCE", "y", "an unsigned module is refused, also where IPE does not look"),
        ("MODULE_SIG_ALL", "n", "modules are signed by `ipe-build modules sign`: the kernel build sees no private key"),
        ("MODULE_SIG_KEY", "", "the kernel build must not make a key of its own"),
        ("MODULE_SIG_SHA512", "y", "a strong digest is built in"),
    ),
    *_rows(
        Need.MODULES_GZIP,
        ("MODULE_COMPRESS", "y", "compressed modules"),
        ("MODULE_COMPRESS_GZIP", "y", ".ko.gz"),
        ("MODULE_COMPRESS_ALL", "n", "compressed after signing, by `ipe-build modules sign`"),
        ("MODULE_DECOMPRESS", "y", "finit_module takes the compressed file, so IPE judges the file on disk"),
    ),
    *_rows(
        Need.MODULES_XZ,
        ("MODULE_COMPRESS", "y", "compressed modules"),
        ("MODULE_COMPRESS_XZ", "y", ".ko.xz"),
        ("MODULE_COMPRESS_ALL", "n", "compressed after signing, by `ipe-build modules sign`"),
        ("MODULE_DECOMPRESS", "y", "finit_module takes the compressed file, so IPE judges the file on disk"),
    ),
    *_rows(
        Need.MODULES_ZSTD,
        ("MODULE_COMPRESS", "y", "compressed modules"),
        ("MODULE_COMPRESS_ZSTD", "y", ".ko.zst"),
        ("MODULE_COMPRESS_ALL", "n", "compressed after signing, by `ipe-build modules sign`"),
        ("MODULE_DECOMPRESS", "y", "finit_module takes the compressed file, so IPE judges the file on disk"),
    ),
    *_rows(
        Need.FIRMWARE,
        ("FW_LOADER", "y", "drivers load firmware files, which IPE judges (op=FIRMWARE)"),
        ("FW_LOADER_USER_HELPER", "n", "firmware from a helper is a buffer without a file: no property can hold"),
    ),
    *_rows(
        Need.HARDENING,
        ("DEVMEM", "n", "/dev/mem writes kernel memory"),
        ("DEVPORT", "n", "/dev/port talks to devices directly"),
        ("PROC_KCORE", "n", "reads kernel memory"),
        ("KEXEC", "n", "starts an unsigned kernel"),
        ("HIBERNATION", "n", "resumes into an unchecked memory image"),
        ("DEBUG_FS", "n", "debugfs changes kernel state"),
        ("BPF_SYSCALL", "n", "loads code into the kernel that no policy judges"),
        ("USERFAULTFD", "n", "helps to win races in the kernel"),
        ("IO_URING", "n", "a large interface that the device does not need"),
        ("BINFMT_MISC", "n", "registers interpreters at run time"),
        ("USER_NS", "n", "mounts and capabilities for everyone"),
        ("MAGIC_SYSRQ", "n", "kernel commands from the console"),
        ("LEGACY_VSYSCALL_NONE", "y", "no code at a fixed address"),
        ("PROC_MEM_NO_FORCE", "y", "/proc/PID/mem must not change mapped code that IPE has judged"),
        ("SECURITY_DMESG_RESTRICT", "y", "kernel addresses in the log are for root"),
        ("SECURITY_YAMA", "y", "ptrace of other processes is restricted"),
        ("SECURITY_LOCKDOWN_LSM", "y", "lockdown=integrity can be asked for"),
        ("STACKPROTECTOR", "y", "stack overflows are found"),
        ("STACKPROTECTOR_STRONG", "y", "stack overflows are found"),
        ("FORTIFY_SOURCE", "y", "string overflows are found"),
        ("HARDENED_USERCOPY", "y", "copies to and from userspace stay inside their object"),
        ("INIT_ON_ALLOC_DEFAULT_ON", "y", "no stale memory is handed out"),
        ("SLUB_TINY", "n", "SLAB_FREELIST_HARDENED depends on it being off"),
        ("SLAB_FREELIST_HARDENED", "y", "heap metadata is checked"),
        ("SLAB_FREELIST_RANDOM", "y", "heap layout is random"),
        ("VMAP_STACK", "y", "a stack overflow hits a guard page"),
        ("RELOCATABLE", "y", "RANDOMIZE_BASE depends on it"),
        ("RANDOMIZE_BASE", "y", "the kernel's address is random"),
        ("BUG", "y", "broken kernel state is noticed"),
        ("BUG_ON_DATA_CORRUPTION", "y", "broken kernel state stops the task"),
        ("PANIC_ON_OOPS", "y", "a kernel that went wrong does not go on"),
    ),
    *_rows(
        Need.INITRAMFS,
        ("BLK_DEV_INITRD", "y", "the initramfs opens the verity root"),
        ("RD_GZIP", "y", "initramfs compressed with gzip"),
        ("RD_XZ", "y", "initramfs compressed with xz"),
        ("RD_ZSTD", "y", "initramfs compressed with zstd"),
    ),
    *_rows(
        Need.USERSPACE,
        ("MULTIUSER", "y", "users, groups and capabilities"),
        ("BINFMT_ELF", "y", "programs and shared libraries"),
        ("BINFMT_SCRIPT", "y", "#! scripts"),
        ("PRINTK", "y", "messages"),
        ("FUTEX", "y", "threads of the C library"),
        ("EPOLL", "y", "event loops"),
        ("SIGNALFD", "y", "event loops"),
        ("TIMERFD", "y", "event loops"),
        ("EVENTFD", "y", "event loops"),
        ("INOTIFY_USER", "y", "programs that watch files"),
        ("POSIX_TIMERS", "y", "timers of the C library"),
        ("HIGH_RES_TIMERS", "y", "exact timers"),
        ("FILE_LOCKING", "y", "flock and fcntl locks"),
        ("MEMBARRIER", "y", "the C library uses it"),
        ("ADVISE_SYSCALLS", "y", "madvise, used by allocators"),
        ("SHMEM", "y", "tmpfs and shared memory"),
        ("TMPFS", "y", "writable places of the device"),
        ("TMPFS_XATTR", "y", "attributes on tmpfs"),
        ("PROC_FS", "y", "/proc"),
        ("PROC_SYSCTL", "y", "/proc/sys"),
        ("SYSFS", "y", "/sys"),
        ("DEVTMPFS", "y", "/dev without a device manager"),
        ("UNIX", "y", "local sockets"),
        ("TTY", "y", "UNIX98_PTYS depends on it"),
        ("UNIX98_PTYS", "y", "pseudo terminals"),
    ),
    *_rows(
        Need.QEMU_X86_64,
        ("64BIT", "y", "x86-64"),
        ("BLOCK", "y", "block devices"),
        ("CC_OPTIMIZE_FOR_PERFORMANCE", "y", "emulated code runs no faster for being small"),
        ("KERNEL_GZIP", "y", "unpacks fast under emulation, and relinks fast"),
        ("PCI", "y", "the bus of the board"),
        ("PCI_MSI", "y", "interrupts of virtio devices"),
        ("ACPI", "y", "devices of the board, and power off"),
        ("TTY", "y", "the console"),
        ("SERIAL_8250", "y", "the serial console"),
        ("SERIAL_8250_CONSOLE", "y", "messages on the serial console"),
        ("EARLY_PRINTK", "y", "messages of a boot that dies early"),
        ("BLK_DEV", "y", "the menu of block devices"),
        ("VIRTIO_MENU", "y", "the menu of virtio devices"),
        ("VIRTIO_PCI", "y", "virtio devices"),
        ("VIRTIO_BLK", "y", "the disk"),
        ("VIRTIO_CONSOLE", "y", "a second channel beside the console"),
        ("HW_RANDOM", "y", "random numbers of the host"),
        ("HW_RANDOM_VIRTIO", "y", "random numbers of the host"),
        ("BLK_DEV_LOOP", "y", "image files in the guest"),
        ("PARTITION_ADVANCED", "y", "the menu of partition tables"),
        ("EFI_PARTITION", "y", "GPT"),
        ("NO_HZ_IDLE", "y", "an idle guest costs the host nothing"),
        ("VT", "n", "the console is serial"),
        ("INPUT", "n", "probing for a keyboard and a mouse takes long under emulation"),
        ("SERIO", "n", "probing for a keyboard and a mouse takes long under emulation"),
        ("HID_SUPPORT", "n", "the board has no such devices"),
        ("ETHERNET", "n", "the board has no such devices"),
        ("WLAN", "n", "the board has no such devices"),
        ("INTEL_MEI", "n", "the board has no such devices"),
        ("X86_PKG_TEMP_THERMAL", "n", "the board has no such devices"),
        ("ACPI_AC", "n", "the board has no such devices"),
        ("ACPI_BATTERY", "n", "the board has no such devices"),
        ("ACPI_FAN", "n", "the board has no such devices"),
        ("CRYPTO_HW", "n", "the board has no such devices"),
        ("NETWORK_FILESYSTEMS", "n", "the device mounts its own disk only"),
        ("SWAP", "n", "the device has no swap"),
        ("LEGACY_PTYS", "n", "not used by any current C library"),
        ("PANIC_TIMEOUT", "-1", "a stopped boot ends the machine instead of hanging"),
    ),
    *_rows(
        Need.EFI,
        ("ACPI", "y", "EFI depends on it"),
        ("RELOCATABLE", "y", "EFI_STUB depends on it"),
        ("EFI", "y", "boots from UEFI firmware"),
        ("EFI_STUB", "y", "the kernel is an EFI program; takes its initrd through LoadFile2"),
        ("EFIVAR_FS", "y", "EFI variables"),
        ("NLS", "y", "EFIVAR_FS depends on it"),
    ),
    *_rows(
        Need.INSPECTION,
        ("PROC_FS", "y", "IKCONFIG_PROC depends on it"),
        ("IKCONFIG", "y", "the audit reads the configuration out of the image"),
        ("IKCONFIG_PROC", "y", "/proc/config.gz"),
    ),
    *_rows(
        Need.PROBES,
        ("NETDEVICES", "y", "the menu of network devices"),
        ("NET_CORE", "y", "the menu that DUMMY is in"),
        ("DUMMY", "m", "a real driver that needs no hardware: loaded, dummy0 appears in /sys/class/net"),
        ("CRYPTO_MICHAEL_MIC", "m", "a second small module that needs nothing else"),
        ("RUNTIME_TESTING_MENU", "y", "the menu that TEST_FIRMWARE is in"),
        ("TEST_FIRMWARE", "m", "asks for a firmware file when told to: op=FIRMWARE can be probed"),
        ("FW_LOADER", "y", "TEST_FIRMWARE depends on it"),
        ("COREDUMP", "n", "a denied probe leaves no file behind"),
    ),
    *_rows(
        Need.IMA,
        ("INTEGRITY", "y", "the menu of integrity modules"),
        ("INTEGRITY_SIGNATURE", "y", "signatures in security.ima"),
        ("INTEGRITY_ASYMMETRIC_KEYS", "y", "certificates in the .ima keyring"),
        ("INTEGRITY_TRUSTED_KEYRING", "y", ".ima takes only certificates that a built-in one vouches for"),
        ("IMA", "y", "its policy and certificate loaders are judged by IPE (op=POLICY, op=X509_CERT)"),
        ("IMA_WRITE_POLICY", "y", "an IMA policy can be loaded by path, more than once"),
        ("IMA_READ_POLICY", "y", "the loaded policy can be read back"),
        ("IMA_DEFAULT_HASH_SHA256", "y", "measured with SHA-256"),
        ("IMA_APPRAISE", "y", "checks security.ima"),
        ("IMA_KEYRINGS_PERMIT_SIGNED_BY_BUILTIN_OR_SECONDARY", "y", "who may vouch for an IMA certificate"),
        ("IMA_LOAD_X509", "y", "loads a certificate at boot"),
        ("IMA_X509_PATH", "/etc/keys/x509_ima.der", "where that certificate is"),
    ),
    *_rows(
        Need.KEXEC,
        ("CRASH_DUMP", "n", "a dump kernel is not part of the device"),
        ("KEXEC_FILE", "y", "kexec of a file, which IPE judges (op=KEXEC_IMAGE, op=KEXEC_INITRAMFS)"),
        ("KEXEC_SIG", "y", "kernel images are checked"),
        ("KEXEC_SIG_FORCE", "y", "an unsigned kernel image is refused"),
        ("SIGNED_PE_FILE_VERIFICATION", "y", "KEXEC_BZIMAGE_VERIFY_SIG depends on it: Authenticode signatures"),
        ("KEXEC_BZIMAGE_VERIFY_SIG", "y", "without it KEXEC_SIG_FORCE refuses signed kernel images too"),
    ),
    *_rows(
        Need.TPM,
        ("ACPI", "y", "the TPM and the firmware's event log are found through it"),
        ("SECURITYFS", "y", "the event log is read at securityfs/tpm0/binary_bios_measurements"),
        ("TCG_TPM", "y", "TPM 2.0: measured boot, and what a remote verifier asks it"),
        ("TCG_TIS", "y", "TPMs behind the FIFO interface"),
        ("TCG_CRB", "y", "TPMs behind the CRB interface"),
    ),
    *_rows(
        Need.IMA_ENFORCED,
        ("IMA_APPRAISE_BOOTPARAM", "n", "ima_appraise=off, fix or log on the command line would switch appraisal off"),
        ("IMA_APPRAISE_MODSIG", "y", "policies may accept the signature appended to a module: appraise_type=imasig|modsig"),
    ),
    *_rows(
        Need.EVM,
        ("INTEGRITY", "y", "the menu of integrity modules"),
        ("INTEGRITY_SIGNATURE", "y", "portable signatures in security.evm"),
        ("INTEGRITY_ASYMMETRIC_KEYS", "y", "certificates in the .evm keyring"),
        ("INTEGRITY_TRUSTED_KEYRING", "y", ".evm takes only certificates that a built-in one vouches for"),
        ("ENCRYPTED_KEYS", "y", "EVM depends on it: the HMAC key is an encrypted key"),
        ("EVM", "y", "checks security.evm: owner, mode and the other security attributes cannot be changed offline"),
        ("EVM_ATTR_FSUUID", "y", "an HMAC of one filesystem is not valid on another"),
        ("EVM_LOAD_X509", "y", "loads a certificate at boot"),
        ("EVM_X509_PATH", "/etc/keys/x509_evm.der", "where that certificate is"),
    ),
    *_rows(
        Need.TRUSTED_KEYS_TPM,
        ("ENCRYPTED_KEYS", "y", "keys that lie on disk encrypted under a trusted key"),
        ("TRUSTED_KEYS", "y", "keys that only this device can unseal"),
        ("TRUSTED_KEYS_TPM", "y", "trusted.source=tpm: the TPM seals them"),
    ),
    *_rows(
        Need.TRUSTED_KEYS_TEE,
        ("ENCRYPTED_KEYS", "y", "keys that lie on disk encrypted under a trusted key"),
        ("TEE", "y", "trusted execution environments"),
        ("OPTEE", "y", "OP-TEE (Arm: depends on HAVE_ARM_SMCCC)"),
        ("TRUSTED_KEYS", "y", "keys that only this device can unseal"),
        ("TRUSTED_KEYS_TEE", "y", "trusted.source=tee: OP-TEE's trusted application seals them"),
    ),
    *_rows(
        Need.QEMU_ARM64,
        ("BLOCK", "y", "block devices"),
        ("CC_OPTIMIZE_FOR_PERFORMANCE", "y", "emulated code runs no faster for being small"),
        ("PCI", "y", "the bus of the board"),
        ("PCI_HOST_GENERIC", "y", "the board's PCI host"),
        ("TTY", "y", "the console"),
        ("SERIAL_AMBA_PL011", "y", "the serial console"),
        ("SERIAL_AMBA_PL011_CONSOLE", "y", "messages on the serial console"),
        ("BLK_DEV", "y", "the menu of block devices"),
        ("VIRTIO_MENU", "y", "the menu of virtio devices"),
        ("VIRTIO_PCI", "y", "virtio devices"),
        ("VIRTIO_BLK", "y", "the disk"),
        ("PARTITION_ADVANCED", "y", "the menu of partition tables"),
        ("EFI_PARTITION", "y", "GPT"),
        ("NO_HZ_IDLE", "y", "an idle guest costs the host nothing"),
        ("VT", "n", "the console is serial"),
        ("INPUT", "n", "the board has no such devices"),
        ("HID_SUPPORT", "n", "the board has no such devices"),
        ("ETHERNET", "n", "the board has no such devices"),
        ("WLAN", "n", "the board has no such devices"),
        ("CRYPTO_HW", "n", "the board has no such devices"),
        ("NETWORK_FILESYSTEMS", "n", "the device mounts its own disk only"),
        ("SWAP", "n", "the device has no swap"),
        ("LEGACY_PTYS", "n", "not used by any current C library"),
        ("PANIC_TIMEOUT", "-1", "a stopped boot ends the machine instead of hanging"),
    ),
    *_rows(
        Need.SEALED,
        ("MODULES", "y", "loadable modules, from the pinned root alone"),
        ("MODULE_UNLOAD", "y", "modules can be removed again"),
        ("MODULE_SIG", "y", "SECURITY_LOCKDOWN_LSM selects it; no key is there, so that no signature can fit"),
        ("MODULE_SIG_FORCE", "n", "no key exists that could sign: op=KMODULE dmverity_roothash= alone decides"),
        ("MODULE_SIG_ALL", "n", "no key exists that could sign"),
        ("MODULE_SIG_KEY", "", "the kernel build must not make a key of its own"),
        ("SYSTEM_TRUSTED_KEYS", "", "no certificate is built in"),
        ("SYSTEM_EXTRA_CERTIFICATE", "n", "none can be put into the image afterwards"),
        ("SECONDARY_TRUSTED_KEYRING", "n", "no keyring that takes certificates at run time"),
        ("SYSTEM_BLACKLIST_KEYRING", "n", "where nothing is trusted, nothing is revoked; INTEGRITY_PLATFORM_KEYRING depends on it"),
        ("INTEGRITY", "n", "no keyrings of IMA, EVM or the firmware"),
        ("DM_VERITY_VERIFY_ROOTHASH_SIG", "n", "the root hash is pinned, not signed"),
        ("FS_VERITY_BUILTIN_SIGNATURES", "n", "no key exists that could sign"),
        ("KEXEC_FILE", "n", "no other kernel is started"),
    ),
)

_TAKES_KEYS = frozenset(
    {
        Need.MODULES,
        Need.DM_VERITY_SIGNATURE,
        Need.FS_VERITY_SIGNATURE,
        Need.SECONDARY_KEYRING,
        Need.PLATFORM_KEYRING,
        Need.REVOCATION,
        Need.IMA,
        Need.IMA_ENFORCED,
        Need.EVM,
        Need.KEXEC,
    }
)
"""What `sealed` leaves out wherever it comes from, since it takes keys; modules are there, judged by IPE alone."""


def without_keys(needs: Iterable[Need]) -> frozenset[Need]:
    """Returns the needs; where `sealed` is among them, without those that take keys."""
    chosen = frozenset(needs)
    return chosen - _TAKES_KEYS if Need.SEALED in chosen else chosen
