"""`ipe-build image flash`: what flashing tools take, from a disk image that anybody made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import in_image
from ipe_build.errors import UsageError
from ipe_build.image.disk import read_disk
from ipe_build.image.flash import FlashRequest, make_flash_files

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("disk", type=Path, metavar="DISK", help="the disk image (GPT)")
    kind_options(parser)
    parser.add_argument("--level", type=int, default=3, choices=range(1, 20), metavar="N", help="of zstd, 1 to 19 (default: 3)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where they go (default: beside DISK)")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.epilog = "Without --bmap, --zstd, --partitions and --sparse: the first two."


def kind_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name files."""
    parser.add_argument("--bmap", action="store_true", help="DISK.bmap, for bmaptool")
    parser.add_argument("--zstd", action="store_true", help="DISK.zst")
    parser.add_argument("--partitions", action="store_true", help="DISK.partitions/: a file for each partition, gpt.img, flash.sh")
    parser.add_argument("--sparse", action="store_true", help="the same with Android sparse files (.simg)")


def kinds_of(arguments: argparse.Namespace) -> dict[str, bool]:
    """Returns which files the options name, as fields of FlashRequest."""
    return {name: getattr(arguments, name) for name in ("bmap", "zstd", "partitions", "sparse")}


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns what was made."""
    wanted = kinds_of(arguments)
    request = FlashRequest(**wanted, level=arguments.level) if any(wanted.values()) else FlashRequest(level=arguments.level)
    folder = arguments.output or arguments.disk.parent
    if not folder.is_dir():
        raise UsageError("wanted a folder, there is none", where=f"--output {folder}", hint=f"mkdir -p {folder}")
    with in_image(arguments.disk):
        disk = read_disk(arguments.disk)
    files = make_flash_files(disk, folder, request, host, force=arguments.force)
    return Outcome({"disk": str(arguments.disk), "files": [str(file) for file in files]}, "\n".join(map(str, files)))
