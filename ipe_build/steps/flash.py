"""What flashing tools take, made from the finished disk image."""

from __future__ import annotations

from pathlib import Path

from ipe_build.config.schema import Config
from ipe_build.host import Host
from ipe_build.image.disk import Disk
from ipe_build.image.flash import FlashRequest, make_flash_files


def make_flash_outputs(config: Config, disk: Disk, host: Host) -> tuple[Path, ...]:
    """Step 8. Returns the flash files that [flash] asks for, beside the disk image."""
    section = config.flash
    request = FlashRequest(section.bmap, section.zstd, section.partitions, section.sparse)
    return make_flash_files(disk, disk.path.parent, request, host)
