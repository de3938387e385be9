"""`ipe-build image disk`: the whole disk, or what wic takes to make it, and the files that flashing tools take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from ipe_build.cli import Outcome, image_flash
from ipe_build.cli.inputs import read_input, root_hash_of, uuid_of
from ipe_build.errors import UsageError
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.image.disk import Disk, DiskRequest, make_disk
from ipe_build.image.esp import BootEntry
from ipe_build.image.flash import FlashRequest, make_flash_files
from ipe_build.image.slots import SlotRoom
from ipe_build.image.uki import uki_file
from ipe_build.image.wks import make_wks

if TYPE_CHECKING:
    from ipe_build.host import Host

_MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("filesystem", type=Path, metavar="FILESYSTEM", help="the root filesystem's image")
    parser.add_argument("hash", type=Path, nargs="?", metavar="HASH", help="the hash area (default: FILESYSTEM.verity)")
    parser.add_argument("--root-hash", required=True, metavar="HEX|FILE", help="the root hash in hex, or a file that holds it")
    parser.add_argument("--verity-sig", type=Path, metavar="FILE", help="the signature partition's JSON")
    parser.add_argument(
        "--kernel", type=Path, metavar="FILE", help="kernel for the EFI system partition; without one there is no such partition"
    )
    parser.add_argument("--initramfs", type=Path, metavar="FILE", help="its initramfs")
    parser.add_argument("--command-line", default="", metavar="TEXT", help="its command line")
    parser.add_argument("--name", default="ipe-build", help="name of the boot entry (default: ipe-build)")
    parser.add_argument("--uuid", help="the disk's UUID (default: derived from the root hash)")
    parser.add_argument("--esp-mib", type=int, default=64, metavar="N", help="size of the EFI system partition (default: 64)")
    parser.add_argument("--no-boot-loader", action="store_true", help="leave systemd-boot out")
    parser.add_argument("--slots", action="store_true", help="two slots for A/B updates, this image in the first")
    parser.add_argument("--slot-root-mib", type=int, default=0, metavar="N", help="of a slot's root (default: half more than this one)")
    parser.add_argument("--boot-loader", type=Path, metavar="FILE", help="a boot loader instead of the installed systemd-boot")
    parser.add_argument(
        "--uki", type=Path, metavar="FILE", help="instead of a kernel: a unified kernel image, which firmware starts itself"
    )
    parser.add_argument("--architecture", choices=list(PARTITION_TYPES), default="x86-64", help="default: x86-64")
    image_flash.kind_options(parser)
    parser.add_argument(
        "--wks", action="store_true", help="FILE is a folder: no disk, but esp.wks and root.wks, for a kickstart file of wic to include"
    )


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `image disk`."""
    if arguments.kernel is None and (arguments.initramfs is not None or arguments.command_line):
        raise UsageError("an initramfs or a command line needs a kernel", where="image disk", hint="give --kernel")
    flash = image_flash.kinds_of(arguments)
    if arguments.wks and any(flash.values()):
        raise UsageError(
            "there is no disk yet to make flash files of", where="--wks", hint="`image flash` makes them of the one that wic makes"
        )
    root_hash = root_hash_of(arguments.root_hash)
    entry = None
    if arguments.kernel is not None:
        entry = BootEntry(arguments.name, arguments.name, arguments.kernel, arguments.initramfs, arguments.command_line)
    if arguments.uki is not None and (entry is not None or arguments.boot_loader is not None):
        raise UsageError(
            "a UKI is kernel, initramfs and command line in one, and firmware starts it",
            where="--uki",
            hint="leave --kernel and --boot-loader out",
        )
    for path in (arguments.kernel, arguments.initramfs):
        if path is not None:
            path.open("rb").close()  # mcopy would only say that it failed
    request = DiskRequest(
        filesystem=arguments.filesystem,
        hash_area=arguments.hash or Path(f"{arguments.filesystem}.verity"),
        root_hash=root_hash,
        signature=read_input(arguments.verity_sig) if arguments.verity_sig is not None else None,
        disk_uuid=uuid_of(arguments.uuid) or uuid5(NAMESPACE_URL, f"ipe-build:disk:{root_hash.hex()}"),
        entry=entry,
        files=() if arguments.uki is None else (uki_file(read_input(arguments.uki), arguments.architecture),),
        architecture=arguments.architecture,
        esp_bytes=arguments.esp_mib * _MIB,
        boot_loader=not arguments.no_boot_loader and arguments.uki is None,
        boot_loader_path=arguments.boot_loader,
        slots=SlotRoom(arguments.slot_root_mib * _MIB) if arguments.slots else None,
    )
    if arguments.wks:
        files = [str(file) for file in make_wks(request, arguments.output, host)]
        return Outcome({"folder": str(arguments.output), "files": files}, "\n".join(files))
    disk = make_disk(request, arguments.output, host, force=arguments.force)
    made = make_flash_files(disk, disk.path.parent, FlashRequest(**flash), host, force=arguments.force) if any(flash.values()) else ()
    files = [str(file) for file in made]
    return Outcome(_disk_value(disk) | {"flash_files": files}, "\n".join([_disk_text(disk), *files]))


def _disk_value(disk: Disk) -> dict[str, object]:
    """Returns a disk's facts for --json."""
    partitions = [
        {
            "number": partition.number,
            "name": partition.name,
            "type": str(partition.type_uuid),
            "uuid": str(partition.uuid),
            "offset_bytes": partition.offset_bytes,
            "size_bytes": partition.size_bytes,
        }
        for partition in disk.table.partitions
    ]
    return {
        "path": str(disk.path),
        "uuid": str(disk.table.disk_uuid),
        "size_bytes": disk.table.size_bytes,
        "architecture": disk.architecture,
        "partitions": partitions,
    }


def _disk_text(disk: Disk) -> str:
    """Returns a disk's facts as a table."""
    lines = [f"{disk.path}: {disk.table.size_bytes} bytes, {disk.table.disk_uuid}"]
    for partition in disk.table.partitions:
        lines.append(f"  {partition.number}  {partition.offset_bytes:>12} {partition.size_bytes:>12}  {partition.uuid}  {partition.name}")
    return "\n".join(lines)
