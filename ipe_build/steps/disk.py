"""The initramfs and the disk image."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from ipe_build.config.schema import Config, OnCorruption, PolicyPlace, Profile
from ipe_build.formats.cpio import CpioEntry, regular_file
from ipe_build.host import Host
from ipe_build.image.disk import Disk, DiskRequest, make_disk
from ipe_build.image.esp import BootEntry
from ipe_build.image.initramfs import Compression, InitramfsRequest, OnFailure, make_initramfs
from ipe_build.image.integrity import IntegrityRequest
from ipe_build.image.slots import SlotRoom
from ipe_build.image.uki import uki_file
from ipe_build.kernel.build import Kernel
from ipe_build.steps.keys import Keys
from ipe_build.steps.policies import SignedPolicy, policy_path
from ipe_build.steps.root import SignedRoot, VerityRoot, derived_uuid, signature_partition

_SEALED_DROPS = ("CAP_MAC_ADMIN", "CAP_LINUX_IMMUTABLE")
"""What a sealed image drops in any case: who has the first can switch IPE off, with the second the frozen initramfs could be thawed."""


def dropped_capabilities(config: Config) -> tuple[str, ...]:
    """Returns the capabilities that ipe-init drops."""
    more = _SEALED_DROPS if config.build.profile is Profile.SEALED else ()
    return tuple(dict.fromkeys((*config.initramfs.drop_capabilities, *more)))


def make_init(
    config: Config,
    root: VerityRoot,
    device_policy: SignedPolicy | None,
    out: Path,
    host: Host,
    *,
    plain_policy: bytes | None = None,
    integrity: IntegrityRequest | None = None,
    modules: tuple[Path, ...] = (),
) -> Path:
    """Step 7. Returns the initramfs: ipe-init and its configuration. Without a device policy the image is sealed.

    `plain_policy` is the unsigned policy that takes over from a sealed image's boot policy, in a kernel with our patch; `integrity` what
    is done for IMA and EVM; `modules` are loaded first, in order.
    """
    section = config.initramfs
    carried = device_policy is not None and config.policy.device.place is PolicyPlace.INITRAMFS
    place = f"initramfs:{policy_path(config)}" if carried else policy_path(config)
    extra: tuple[CpioEntry, ...] = ()
    if device_policy is not None and carried:
        extra = (regular_file(policy_path(config).strip("/"), device_policy.signed, mtime=host.source_date_epoch),)
    policies = (place,) if device_policy is not None else ()
    if plain_policy is not None:
        plain = f"{config.rootfs.policies.rstrip('/')}/{config.policy.device.name}.pol"
        policies, extra = (f"initramfs:{plain}",), (regular_file(plain.strip("/"), plain_policy, mtime=host.source_date_epoch),)
    corruption = {OnCorruption.EIO: (), OnCorruption.RESTART: ("restart_on_corruption",), OnCorruption.PANIC: ("panic_on_corruption",)}
    request = InitramfsRequest(
        root_hash=root.tree.root_hash if section.root_hash == "embedded" else None,
        filesystem=root.filesystem.filesystem,
        init=section.init,
        init_from_command_line=section.init_override,
        verity_options=corruption[section.on_corruption],
        signature="none" if device_policy is None else "partition",
        policies=policies,
        extra=extra,
        integrity=integrity,
        modules=modules,
        drop_capabilities=dropped_capabilities(config),
        freeze=device_policy is None,
        on_failure=OnFailure(section.on_failure),
        recovery=section.recovery,
        compression=Compression(section.compression),
    )
    return make_initramfs(request, out, host).path


def command_line(config: Config, root: VerityRoot) -> str:
    """Returns the image's kernel command line."""
    words = config.kernel.command_line.split()
    if config.initramfs.root_hash == "command-line":
        words.append(f"roothash={root.tree.root_hash.hex()}")
    return " ".join(words)


def make_image(
    config: Config, kernel: Kernel, initramfs: Path, uki: Path | None, root: VerityRoot, keys: Keys | None, out: Path, host: Host
) -> Disk:
    """Step 9. Returns the disk image: EFI system partition with the boot entry, root, root-verity, root-verity-sig (when signed).

    A unified kernel image stands for the boot entry and the boot loader: firmware starts it.
    """
    section = config.disk
    entry = BootEntry(config.build.name, f"{config.build.name} ({kernel.release})", kernel.image, initramfs, command_line(config, root))
    request = DiskRequest(
        filesystem=root.filesystem.path,
        hash_area=root.hash_area,
        root_hash=root.tree.root_hash,
        signature=signature_partition(root, keys) if isinstance(root, SignedRoot) and keys is not None else None,
        disk_uuid=UUID(section.uuid) if section.uuid else derived_uuid(config, "disk", host),
        entry=entry if uki is None else None,
        files=(uki_file(uki, config.build.architecture),) if uki is not None else (),
        architecture=config.build.architecture,
        esp_bytes=section.esp_mib << 20,
        boot_loader=section.boot_loader and uki is None,
        slots=SlotRoom(config.update.root_mib << 20) if config.update.slots else None,
    )
    return make_disk(request, out, host)
