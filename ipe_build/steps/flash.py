"""What flashing tools and updaters take, made from the finished disk image, and what the device needs for updates."""

from __future__ import annotations

from pathlib import Path

from ipe_build.config.schema import Config
from ipe_build.host import Host
from ipe_build.image.disk import Disk
from ipe_build.image.flash import FlashRequest, make_flash_files
from ipe_build.image.rootfs import Entry
from ipe_build.image.update import UpdateSettings, device_files, write_update_folder

_KEYRING = "/etc/rauc/keyring.pem"


def update_settings(config: Config) -> UpdateSettings:
    """Returns what the device and its bundles agree on."""
    section = config.update
    return UpdateSettings(
        section.compatible or config.build.name, section.version, section.bootloader, section.devices, section.state, _KEYRING
    )


def make_update_entries(config: Config) -> tuple[Entry, ...]:
    """Step 4. Returns what the root needs for A/B updates: ipe-slot, RAUC's and SWUpdate's files. Nothing without [update] slots."""
    section = config.update
    if not section.slots:
        return ()
    entries = [Entry.file(file.path, file.text.encode(), mode=file.mode) for file in device_files(update_settings(config))]
    if section.keyring is not None:
        entries.append(Entry.file(_KEYRING.strip("/"), section.keyring))
    return tuple(entries)


def make_flash_outputs(config: Config, disk: Disk, host: Host) -> tuple[Path, ...]:
    """Step 8. Returns the files that [flash] asks for, beside the disk image; with [update] slots also NAME.raw.update/."""
    section = config.flash
    request = FlashRequest(section.bmap, section.zstd, section.partitions, section.sparse)
    files = make_flash_files(disk, disk.path.parent, request, host)
    if config.update.slots:
        folder = disk.path.with_name(f"{disk.path.name}.update")
        folder.mkdir()
        write_update_folder(disk, update_settings(config), folder)
        files += tuple(sorted(folder.iterdir()))
    return files
