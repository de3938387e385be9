"""A disk for wic (Yocto, Isar) to put together: kickstart lines for the partitions of a request, instead of the disk itself.

wic cannot know a partition's UUID that follows from a root hash, so the lines say it; everything else of the disk is its kickstart file's.
Source: OE-core's wic, ksparser.py (the language), plugins/source/rawcopy.py (`file=` is relative to the folder of `-k`, DEPLOY_DIR_IMAGE).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError
from ipe_build.formats.gpt import ALIGNMENT_BYTES
from ipe_build.image.disk import DiskRequest, check_request, disk_contents
from ipe_build.image.slots import Content, role_of

if TYPE_CHECKING:
    from ipe_build.host import Host

ESP_FILE = "esp.wks"
ROOT_FILE = "root.wks"
_PLAIN = re.compile(r"[A-Za-z0-9_.+-]+")
"""What neither wic's `${NAME}`, nor its split at spaces, commas and `=`, takes for something else."""
_KIB = 1024


def make_wks(request: DiskRequest, folder: Path, host: Host) -> tuple[Path, ...]:
    """Returns the files made in `folder`: `esp.wks` (no line in it without an EFI system partition), `root.wks`, partitions they name.

    Root and hash area are named where they are, by their file name; so `folder` goes beside them, and wic's `-k` names that place.
    An earlier output is replaced. Raises: InputError for a name that wic would take apart, OutputError.
    """
    check_request(request)
    for path in (request.filesystem, request.hash_area, folder):
        if not _PLAIN.fullmatch(path.name):
            raise InputError(f"wanted letters, digits and _.+- in a name that wic reads, got {path.name!r}", where=str(path))
    with host.scratch() as scratch, host.output_directory(folder, marker=ROOT_FILE) as temporary:
        lines: dict[str, list[str]] = {ESP_FILE: [], ROOT_FILE: []}
        for content in disk_contents(request, scratch, host):
            name = _name(content, request, folder.name, temporary)
            lines[ESP_FILE if role_of(content.partition) == "esp" else ROOT_FILE].append(_line(content, name))
        for name, rows in lines.items():
            (temporary / name).write_text("".join(f"{row}\n" for row in ("# made by ipe-build, for `include`", *rows)))
        names = sorted(path.name for path in temporary.iterdir())
    return tuple(folder / name for name in names)


def _name(content: Content, request: DiskRequest, folder: str, temporary: Path) -> str:
    """Returns what `file=` says, "" for an empty partition. What is in no file of the request becomes one in `temporary`."""
    if content.source in (request.filesystem, request.hash_area):
        return Path(str(content.source)).name
    if not content.size_bytes:
        return ""
    file = temporary / f"{content.partition.name}.img"
    if isinstance(content.source, bytes):
        file.write_bytes(content.source)
    else:
        shutil.copyfile(content.source, file)
    return f"{folder}/{file.name}"


def _line(content: Content, name: str) -> str:
    """Returns the partition's `part` line; wic counts sizes in KiB, and our partitions begin at whole MiB."""
    partition = content.partition
    words = ["part", f'--source rawcopy --sourceparams="file={name}"' if name else "--fstype none"]
    words += [f"--part-name {partition.name}", f"--part-type {partition.type_uuid}", f"--uuid {partition.uuid}"]
    words += [f"--align {ALIGNMENT_BYTES // _KIB}", f"--fixed-size {-(-partition.size_bytes // _KIB)}K"]
    return " ".join(words)
