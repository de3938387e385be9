"""The EFI system partition: a FAT filesystem made and read without mounting it, the same bytes from the same inputs.

Source: UAPI group, "Boot Loader Specification" (type 1 entries); systemd-boot(7), loader.conf(5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from ipe_build.errors import InputError, ToolFailedError, ToolMissingError
from ipe_build.formats.partition_types import PARTITION_TYPES

if TYPE_CHECKING:
    from ipe_build.host import Host

SYSTEMD_BOOT_FOLDER = Path("/usr/lib/systemd/boot/efi")
_MIB = 1 << 20
_FAT32_MIN_BYTES = 34 * _MIB
_DOS_EPOCH = 315532800
"""1980-01-01, the earliest time FAT can say."""
_LOADER_CONF = "timeout 0\ndefault {name}.conf\neditor no\nauto-entries no\nauto-firmware no\nsecure-boot-enroll off\n"


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One way to boot: a kernel, its initramfs, its command line. `name` names the entry's file, `title` is for people."""

    name: str
    title: str
    kernel: Path
    initramfs: Path | None
    command_line: str


@dataclass(frozen=True, slots=True)
class EspFile:
    """A file of the partition: `path` like `EFI/BOOT/BOOTX64.EFI`."""

    path: str
    content: bytes | Path

    @property
    def size_bytes(self) -> int:
        """Returns the content's length."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def entry_files(entry: BootEntry) -> tuple[EspFile, ...]:
    """Returns the files of a boot entry: kernel, initramfs, `loader/entries/NAME.conf`, `loader/loader.conf`.

    The editor is off and nothing else is offered, so who has a keyboard cannot change the command line.
    Raises: InputError for a name or command line that such an entry cannot hold.
    """
    if not entry.name or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in entry.name):
        raise InputError(f"wanted letters, digits, '-', '_' and '.', got {entry.name!r}", where="boot entry: name")
    for what, text in (("command line", entry.command_line), ("title", entry.title)):
        if any(ord(character) < 32 for character in text):
            raise InputError(f"wanted one line, got {text!r}", where=f"boot entry: {what}")
    folder = "ipe-build"
    files = [EspFile(f"{folder}/linux", entry.kernel)]
    lines = [f"title {entry.title}", f"linux /{folder}/linux"]
    if entry.initramfs is not None:
        files.append(EspFile(f"{folder}/initrd", entry.initramfs))
        lines.append(f"initrd /{folder}/initrd")
    lines.append(f"options {entry.command_line}")
    text = "".join(f"{line}\n" for line in lines)
    files.append(EspFile(f"loader/entries/{entry.name}.conf", text.encode()))
    files.append(EspFile("loader/loader.conf", _LOADER_CONF.format(name=entry.name).encode()))
    return tuple(files)


def boot_loader_file(architecture: str, boot_loader: Path | None = None) -> EspFile:
    """Returns systemd-boot where firmware looks for it without being told: `EFI/BOOT/BOOTX64.EFI` and the like.

    Raises: ToolMissingError naming the Debian package when it is not installed and none is given.
    """
    row = PARTITION_TYPES[architecture]
    source = boot_loader or SYSTEMD_BOOT_FOLDER / row.boot_loader
    if not source.is_file():
        raise ToolMissingError(
            f"the boot loader {source} is needed and was not found",
            hint="on Debian: apt-get install systemd-boot-efi; or name another, or leave the boot loader out",
        )
    return EspFile(f"EFI/BOOT/BOOT{row.efi_name}.EFI", source)


def make_esp(files: Sequence[EspFile], out: Path, minimum_bytes: int, uuid: UUID, host: Host) -> int:
    """Writes the FAT image to `out` and returns its size: `minimum_bytes`, or as many MiB more as the files need.

    `uuid` gives the volume its serial number. Times are SOURCE_DATE_EPOCH (1980 at the earliest).
    """
    for file in files:
        if isinstance(file.content, Path) and not file.content.is_file():
            raise InputError("wanted a file for the EFI system partition", where=str(file.content))
    needed = sum(-(-file.size_bytes // 4096) * 4096 for file in files) + 2 * _MIB
    needed += needed // 64
    size = -(-max(minimum_bytes, needed) // _MIB) * _MIB
    with out.open("wb") as handle:
        handle.truncate(size)
    width = ("-F", "32") if size >= _FAT32_MIN_BYTES else ()
    host.run(["mkfs.vfat", *width, "-n", "ESP", "-i", uuid.bytes[:4].hex(), "--invariant", out])
    env = _mtools_env(max(host.source_date_epoch, _DOS_EPOCH))
    folders: list[str] = []
    for file in files:
        parts = file.path.split("/")[:-1]
        folders += [name for depth in range(1, len(parts) + 1) if (name := "/".join(parts[:depth])) not in folders]
    if folders:
        host.run(["mmd", "-i", out, *(f"::/{folder}" for folder in folders)], env=env)
    for file in files:
        if isinstance(file.content, bytes):
            host.run(["mcopy", "-i", out, "-", f"::/{file.path}"], stdin=file.content, env=env)
        else:
            host.run(["mcopy", "-i", out, file.content, f"::/{file.path}"], env=env)
    return size


def read_esp_file(disk: Path, offset_bytes: int, path: str, host: Host) -> bytes:
    """Returns the content of a file of the FAT filesystem at `offset_bytes` of a disk image. Raises: InputError when it is not there."""
    try:
        image = f"{disk.absolute()}@@{offset_bytes}"
        return host.run(["mcopy", "-i", image, f"::/{path.lstrip('/')}", "-"], env=_mtools_env(_DOS_EPOCH)).stdout
    except ToolFailedError as error:
        raise InputError(f"its EFI system partition has no readable {path}", where=str(disk), hint=error.message) from error


def _mtools_env(epoch: int) -> dict[str, str]:
    """Returns what keeps this machine's configuration, time zone and clock out of the image."""
    return {"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(epoch)}
