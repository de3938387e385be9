"""Every key of ipe-build.toml: its type, its default and one sentence of help. `ipe-build config --schema` prints this."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ipe_build.config.loader import Check, section, setting


class Profile(StrEnum):
    """How strict the build is about its own inputs."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"
    SEALED = "sealed"


class Filesystem(StrEnum):
    """The filesystem of the verity root."""

    EROFS = "erofs"
    SQUASHFS = "squashfs"
    EXT4 = "ext4"


class Compression(StrEnum):
    """How modules or the initramfs are compressed."""

    NONE = "none"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"


class OnFailure(StrEnum):
    """What the initramfs does when a step fails; it never goes on to an unverified root."""

    PANIC = "panic"
    RECOVERY = "recovery"


class OnCorruption(StrEnum):
    """What the kernel does when a block of the verity root does not match its hash."""

    EIO = "eio"
    RESTART = "restart"
    PANIC = "panic"


def _between(low: int, high: int) -> Check:
    return lambda value: None if low <= value <= high else f"wanted {low} to {high}"


def _power_of_two(low: int, high: int, why: str = "") -> Check:
    return lambda value: None if low <= value <= high and value & (value - 1) == 0 else f"wanted a power of two from {low} to {high}{why}"


def _matches(pattern: str, wanted: str) -> Check:
    return lambda value: None if re.fullmatch(pattern, value) else f"wanted {wanted}"


def _absolute(value: str) -> str | None:
    return None if value.startswith("/") and ".." not in value.split("/") else "wanted an absolute path on the device without .."


_UUID = _matches(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", "a UUID")
_VERSION = _matches(r"\d{1,5}\.\d{1,5}\.\d{1,5}", "three numbers A.B.C, each at most 65535")


@dataclass(frozen=True, slots=True)
class BuildSection:
    """`[build]`: see the keys."""

    name: str = setting(
        "Name of the image: its files are called NAME.raw and so on.", check=_matches(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a file name")
    )
    profile: Profile = setting(
        "`production` refuses test keys, and expired or weak certificates. `sealed`: no key at all, the kernel's policy pins this root.",
        Profile.DEVELOPMENT,
    )
    architecture: str = setting("The device's architecture.", "x86-64", check=_matches("x86-64", "x86-64 (the only one so far)"))


@dataclass(frozen=True, slots=True)
class KeySection:
    """A key and its certificate."""

    key: str = setting("URI of the private key: `file:key.pem`. Relative files count from this file's folder.")
    certificate: Path = setting("The certificate, PEM or DER.")


@dataclass(frozen=True, slots=True)
class KeysSection:
    """`[keys]`: see the keys."""

    policy: KeySection | None = setting("Signs the device policy. Without it, test keys are made.", None)
    verity: KeySection | None = setting("Signs the root hash. Without it, test keys are made.", None)
    module: KeySection | None = setting("Signs the modules. Without it, test keys are made.", None)
    ima: KeySection | None = setting("Signs files for IMA and EVM, where [ima] files asks for it. Without it, test keys are made.", None)
    attestation: KeySection | None = setting(
        "Signs the statement of how the image was made (provenance.dsse.json); no device trusts it. Without it a development build is "
        "signed by a test key, another one is not.",
        None,
    )
    secure_boot: KeySection | None = setting(
        "Signs the unified kernel image ([disk] boot = `uki`) for Secure Boot: an RSA key. Without it, a development build makes one.",
        None,
    )
    trusted: tuple[Path, ...] = setting("More certificates (PEM) that the kernel trusts, for instance the next signing keys.", ())


class KeyPlace(StrEnum):
    """Who holds the certificates of policies and root hashes."""

    KERNEL = "kernel"
    FIRMWARE = "firmware"


class Seal(StrEnum):
    """How the boot policy of a sealed image gets into its kernel."""

    IN_PLACE = "in-place"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class KernelSection:
    """`[kernel]`: see the keys."""

    source: Path | None = setting("Kernel source: a tree or a tarball (.tar, .tar.xz, .tar.gz, .tar.bz2).", None)
    base: str = setting("Base configuration: `tinyconfig`, `defconfig`, another make target, or `file:PATH`.", "tinyconfig")
    board: str = setting("Which device the kernel is for: adds the symbols that it needs to boot there.", "qemu-x86_64")
    features: tuple[str, ...] = setting(
        "More needs of the fragment table: see `ipe-build kernel fragment --list`.", ("hardening", "probes")
    )
    fragments: tuple[Path, ...] = setting("Configuration fragments of your own, merged after the base and before ours.", ())
    patches: tuple[Path, ...] = setting("Patches for `source`, in order. Ones that touch security/ipe alone cost no new compilation.", ())
    seal: Seal = setting("With profile = sealed, how the boot policy gets into the kernel: `in-place` or `link`.", Seal.IN_PLACE)
    reserve: int = setting("With seal = in-place: bytes kept for the boot policy in the kernel.", 4096, check=_between(512, 1 << 20))
    image: Path | None = setting("A kernel that is built already (bzImage), instead of `source`.", None)
    config: Path | None = setting("The resolved .config of `image`.", None)
    modules: Path | None = setting("The folder with the modules of `image`.", None)
    keys: KeyPlace = setting(
        "Where `image` finds the certificates of policies and root hashes: in itself (`kernel`), or in db (`firmware`), as a stock kernel "
        "does; then [disk] boot = `uki`, and the proof runs under Secure Boot.",
        KeyPlace.KERNEL,
    )
    command_line: str = setting(
        "Kernel command line of the image, without the root hash, which is added.", "console=ttyS0 panic=-1 loglevel=7"
    )


@dataclass(frozen=True, slots=True)
class ModulesSection:
    """`[modules]`: see the keys."""

    compression: Compression = setting("How the signed modules are compressed in the root filesystem.", Compression.NONE)
    digest: str = setting("Digest of the module signatures.", "sha256", check=_matches("sha256|sha384|sha512", "sha256, sha384 or sha512"))


@dataclass(frozen=True, slots=True)
class OwnerSection:
    """An entry of `[[rootfs.owner]]`."""

    path: str = setting("Absolute path on the device; `*` matches any characters, `/` included.", check=_absolute)
    uid: int | None = setting("Numeric owner; as it was when left out.", None, check=_between(0, 2**32 - 2))
    gid: int | None = setting("Numeric group; as it was when left out.", None, check=_between(0, 2**32 - 2))
    mode: str | None = setting(
        "Permissions in octal, for instance `0750`; the source's when left out.", None, check=_matches("[0-7]{3,4}", "3 or 4 octal digits")
    )


@dataclass(frozen=True, slots=True)
class FileSection:
    """An entry of `[[rootfs.file]]`."""

    path: str = setting("Absolute path on the device.", check=_absolute)
    source: Path = setting("The file on this machine.")
    mode: str = setting("Permissions in octal.", "0644", check=_matches("[0-7]{3,4}", "3 or 4 octal digits"))
    uid: int = setting("Numeric owner.", 0, check=_between(0, 2**32 - 2))
    gid: int = setting("Numeric group.", 0, check=_between(0, 2**32 - 2))


@dataclass(frozen=True, slots=True)
class RootfsSection:
    """`[rootfs]`: see the keys."""

    source: Path = setting("The root filesystem: a folder, a tar, or a finished image of type `filesystem`.")
    filesystem: Filesystem = setting("Filesystem to make.", Filesystem.EROFS)
    compression: str | None = setting(
        "Compression of the filesystem. EROFS: lz4, lz4hc, none when left out. SquashFS: gzip (when left out), xz, zstd, lz4.", None
    )
    keep_owners: bool | None = setting("Whether the source's owners count. Left out: a tar's do, a folder's become root:root.", None)
    uuid: str | None = setting("Filesystem UUID; derived from [build] name and SOURCE_DATE_EPOCH when left out.", None, check=_UUID)
    owner: tuple[OwnerSection, ...] = setting("Owners and modes that differ from the source's.", ())
    file: tuple[FileSection, ...] = setting("Files to add.", ())
    modules: str | None = setting(
        "Where the modules go; nowhere when empty.", "/usr/lib/modules", check=lambda v: None if not v else _absolute(v)
    )
    policies: str = setting("Where the signed policies go; systemd 257 and later loads them from here.", "/etc/ipe", check=_absolute)


@dataclass(frozen=True, slots=True)
class VeritySection:
    """`[verity]`: see the keys."""

    hash: str = setting("Hash algorithm, as the kernel and veritysetup name it.", "sha256")
    salt: str | None = setting(
        "Salt in hex (up to 256 bytes), or `-` for none; derived from [build] name and SOURCE_DATE_EPOCH when left out.",
        None,
        check=_matches("-|([0-9a-fA-F]{2}){1,256}", "hex digits or -"),
    )
    uuid: str | None = setting("Superblock UUID; derived like the salt when left out.", None, check=_UUID)
    data_block_size: int = setting(
        "Bytes per data block; at most a page.", 4096, check=_power_of_two(512, 4096, ": dm-verity takes no data blocks larger than a page")
    )
    hash_block_size: int = setting("Bytes per hash block.", 4096, check=_power_of_two(512, 512 << 10))


@dataclass(frozen=True, slots=True)
class PolicySection:
    """`[policy.boot]`: see the keys."""

    template: str = setting("A named template (see `ipe-build policy render --list`) or `file:PATH` of a jinja2 template.")
    name: str = setting("policy_name.", check=_matches(r"[^\s/]{1,255}", "up to 255 characters without / and spaces"))
    version: str = setting("policy_version. An update needs a higher one.", "0.0.1", check=_VERSION)
    variables: dict[str, str] = section("More variables for the template.", dict)


class PolicyPlace(StrEnum):
    """Where the initramfs finds the signed device policy."""

    ROOT = "root"
    INITRAMFS = "initramfs"


@dataclass(frozen=True, slots=True)
class DevicePolicySection(PolicySection):
    """`[policy.device]`: see the keys."""

    place: PolicyPlace = setting(
        "`root`: in [rootfs] policies of the verity root. `initramfs`: beside ipe-init; then the template also gets `root_hashes`, "
        "and the root filesystem may be a finished image.",
        PolicyPlace.ROOT,
    )
    signed: bool = setting(
        "With profile = sealed: `false` puts the policy into the initramfs as plain text, and it takes over from the boot policy. "
        "The kernel needs our ipe-policy-by-path.patch.",
        True,
    )
    ledger: Path | None = setting(
        "Versions of policies that went out (`ipe-build policy record`): the build's audit warns of a policy that devices would refuse.",
        None,
    )


@dataclass(frozen=True, slots=True)
class PoliciesSection:
    """`[policy]`: see the keys."""

    boot: PolicySection = section(
        "The policy that is compiled into the kernel and in force until the device policy is activated.",
        lambda: PolicySection(template="allow-initramfs", name="ipe-boot"),
    )
    device: DevicePolicySection = section(
        "The signed policy that the initramfs loads and activates.",
        lambda: DevicePolicySection(template="signed-verity", name="ipe-policy"),
    )


@dataclass(frozen=True, slots=True)
class InitramfsSection:
    """`[initramfs]`: see the keys."""

    init: str = setting("The first program of the verity root.", "/sbin/init", check=_absolute)
    init_override: bool = setting("Whether init= on the command line may name another one (IPE judges it all the same).", True)
    compression: Compression = setting("Compression of the initramfs; the kernel must be able to unpack it.", Compression.GZIP)
    modules: tuple[str, ...] = setting(
        "Kernel modules that are loaded first, by name, after all that they need; from [kernel] modules.", ()
    )
    on_failure: OnFailure = setting("What happens when a step fails.", OnFailure.PANIC)
    recovery: Path | None = setting("With on_failure = recovery: the static program (put into the initramfs) that is run instead.", None)
    on_corruption: OnCorruption = setting("What the kernel does on a corrupted block.", OnCorruption.EIO)
    drop_capabilities: tuple[str, ...] = setting(
        "Capabilities that no process of the device gets; CAP_MAC_ADMIN makes policies and enforcement unchangeable until reboot.", ()
    )
    root_hash: str = setting(
        "`embedded`: the initramfs accepts this image's root hash alone; `command-line`: roothash= names it, the signature decides.",
        "embedded",
        check=_matches("embedded|command-line", "embedded or command-line"),
    )


class BootBy(StrEnum):
    """What the EFI system partition holds for the firmware to start."""

    LOADER = "loader"
    UKI = "uki"


@dataclass(frozen=True, slots=True)
class DiskSection:
    """`[disk]`: see the keys."""

    uuid: str | None = setting("GPT disk UUID; derived from [build] name and SOURCE_DATE_EPOCH when left out.", None, check=_UUID)
    esp_mib: int = setting("Size of the EFI system partition in MiB; it grows if its files need more.", 64, check=_between(1, 65536))
    boot: BootBy = setting(
        "`loader`: kernel, initramfs and boot entry are files. `uki`: one signed unified kernel image, started by firmware.",
        BootBy.LOADER,
    )
    boot_loader: bool = setting("Whether systemd-boot is put into the EFI system partition, so that UEFI firmware boots the disk.", True)


@dataclass(frozen=True, slots=True)
class FlashSection:
    """`[flash]`: see the keys."""

    bmap: bool = setting("NAME.raw.bmap: what bmaptool has to write, with checksums.", True)
    zstd: bool = setting("NAME.raw.zst: the image compressed.", True)
    partitions: bool = setting("NAME.raw.partitions/: a file for each partition and a script for fastboot and cards.", False)
    sparse: bool = setting("Makes the partitions' files Android sparse files.", False)


@dataclass(frozen=True, slots=True)
class UpdateSection:
    """`[update]`: see the keys."""

    slots: bool = setting("Lays the disk out for A/B updates, puts ipe-slot into the root and makes NAME.raw.update/.", False)
    root_mib: int = setting("Size of each slot's root; half more than this root when 0.", 0, check=_between(0, 1 << 20))
    compatible: str | None = setting(
        "What devices an update is for; [build] name when left out.", None, check=_matches(r"[A-Za-z0-9._/:+-]+", "one word")
    )
    version: str = setting("The update's version, for RAUC and SWUpdate.", "1", check=_matches(r"[A-Za-z0-9._/:+-]+", "one word"))
    bootloader: str = setting(
        "What RAUC switches slots with.", "efi", check=_matches("efi|uboot|barebox|grub|noop", "efi, uboot, barebox, grub or noop")
    )
    devices: str = setting("The device's folder with the partitions by their names.", "/dev/disk/by-partlabel", check=_absolute)
    state: str = setting("The device's writable folder for RAUC's status.", "/var/lib/rauc", check=_absolute)
    keyring: Path | None = setting("Certificates (PEM) that the device trusts for RAUC bundles: put into the root.", None)


class SignedFiles(StrEnum):
    """Which files of the root get security.ima."""

    NONE = "none"
    CODE = "code"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class ImaSection:
    """`[ima]`: see the keys."""

    files: SignedFiles = setting(
        "Which files of the root are signed for IMA: none, code (what is run or loaded), or all.", SignedFiles.NONE
    )
    policy: str = setting("The IMA policy that ipe-init loads: a template (`ipe-build ima policy --list`) or `file:PATH`.", "code")
    digest: str | None = setting(
        "Digest of the signatures; what suits the key when left out.",
        None,
        check=_matches("sha256|sha384|sha512", "sha256, sha384 or sha512"),
    )
    evm: bool = setting("Also signs attributes, owner and mode (portable EVM), and gives the kernel a certificate for .evm.", False)
    evm_key: str | None = setting("UUID of the device's partition with EVM's own key, sealed by its TPM or TEE.", None, check=_UUID)
    evm_provision: bool = setting("Whether a device whose key partition is empty makes a new key at that boot.", False)
    evm_pcrs: tuple[int, ...] = setting("PCRs (SHA-256) that must be as they were when EVM's key was made; with `tpm` only.", ())
    trusted_source: str = setting("What seals EVM's key: `tpm` or `tee`.", "tpm", check=_matches("tpm|tee", "tpm or tee"))


class Accelerator(StrEnum):
    """How QEMU runs the guest's code."""

    TCG = "tcg"
    KVM = "kvm"


@dataclass(frozen=True, slots=True)
class BootSection:
    """`[boot]`: see the keys."""

    probes: bool = setting("Puts the probe program and its fixtures into the root and proves enforcement in QEMU after the build.", True)
    destructive: bool = setting("Also boots copies of the image with flipped bits and foreign signatures.", True)
    application: tuple[str, ...] = setting("A program of the root with its arguments, which a probe runs.", ())
    interpreter: tuple[str, ...] = setting("An interpreter of the root, to show what IPE does not cover.", ("/bin/sh",))
    firmware: bool = setting("Also boots the unchanged image from UEFI firmware (OVMF), by the boot loader in it.", False)
    secure_boot: bool = setting(
        "With [disk] boot = `uki`: also boots the image under Secure Boot (OVMF) with its certificate enrolled, and unsigned, foreign and "
        "flipped copies, which firmware must refuse.",
        False,
    )
    accelerator: Accelerator = setting("`kvm` is faster where it works; `tcg` emulates and works everywhere.", Accelerator.TCG)
    memory_mib: int = setting("Memory of the virtual machine.", 512, check=_between(64, 1 << 20))
    timeout_s: int = setting("Seconds after which one boot counts as hung.", 120, check=_between(5, 86400))


@dataclass(frozen=True, slots=True)
class Config:
    """A whole ipe-build.toml."""

    build: BuildSection = setting("What is built.")
    rootfs: RootfsSection = setting("The root filesystem.")
    keys: KeysSection = section("Who signs, and whom the kernel trusts.", KeysSection)
    kernel: KernelSection = section("The kernel.", KernelSection)
    modules: ModulesSection = section("Kernel modules.", ModulesSection)
    verity: VeritySection = section("The hash tree of the root filesystem.", VeritySection)
    policy: PoliciesSection = section("The boot policy and the device policy.", PoliciesSection)
    ima: ImaSection = section("Signatures on files, for IMA and EVM.", ImaSection)
    initramfs: InitramfsSection = section("The program between the kernel and the verity root.", InitramfsSection)
    disk: DiskSection = section("The disk image.", DiskSection)
    flash: FlashSection = section("Files for flashing tools, beside the disk image.", FlashSection)
    update: UpdateSection = section("A/B slots and what updaters take.", UpdateSection)
    boot: BootSection = section("The proof.", BootSection)
