"""What a disk image boots: kernel, initramfs and command line, read out of its own EFI system partition.

Source: UAPI group, "Boot Loader Specification", type 1 entries (`/loader/entries/*.conf`) and type 2 (`/EFI/Linux/*.efi`); UEFI
specification 2.10, section 3.5.1.1 (`/EFI/BOOT/BOOTX64.EFI` and the like).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from ipe_build.errors import InputError, ToolFailedError
from ipe_build.formats.gpt import Partition, PartitionTable, read_gpt
from ipe_build.formats.loader_entry import entry_fields
from ipe_build.formats.partition_types import EFI_SYSTEM
from ipe_build.formats.uki import is_uki, uki_parts

if TYPE_CHECKING:
    from ipe_build.host import Host

_ENTRY = re.compile(r"/loader/entries/([^/]+\.conf)", re.IGNORECASE)
_DEFAULT = re.compile(r"/EFI/BOOT/BOOT(?:X64|AA64|ARM|IA32|RISCV64)\.EFI", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BootEntry:
    """A boot entry, its files copied out. `initrd` is all its initramfs files, one after the other, or None.

    Where the entry is a unified kernel image, `uki` is that file, `name` its path; the others are what is inside.
    """

    name: str
    kernel: Path
    initrd: Path | None
    options: str
    uki: Path | None = None


def read_table(disk: Path) -> PartitionTable:
    """Returns the image's partition table. Raises: InputError, FormatError."""
    if not disk.is_file():
        raise InputError("wanted a disk image, there is no such file", where=str(disk))
    with disk.open("rb") as handle:

        def read_at(offset: int, length: int) -> bytes:
            handle.seek(offset)
            return handle.read(length)

        return read_gpt(read_at, disk.stat().st_size)


def find_partition(table: PartitionTable, types: tuple[UUID, ...], what: str, disk: Path) -> Partition:
    """Returns the first partition of one of the types. Raises: InputError when there is none."""
    for partition in table.partitions:
        if partition.type_uuid in types:
            return partition
    raise InputError(f"has no {what} partition", where=str(disk), hint="sfdisk --json shows which partitions it has")


def read_entry(disk: Path, folder: Path, host: Host) -> BootEntry:
    """Returns the image's default boot entry (the first by name), its files copied into `folder`.

    Raises: InputError when there is no EFI system partition, no entry, or a file that an entry names is missing.
    """
    partition = find_partition(read_table(disk), (EFI_SYSTEM,), "EFI system", disk)
    names = _entries(disk, partition, host)
    unified = _unified(disk, partition, folder, host) if not names else None
    if unified is not None:
        return unified
    if not names:
        raise InputError(
            "its EFI system partition holds no /loader/entries/*.conf and no unified kernel image",
            where=str(disk),
            hint="give kernel, initramfs and command line: --kernel, --initrd, --command-line",
        )
    text = _read(disk, partition, f"/loader/entries/{names[0]}", host).decode("utf-8", "replace")
    fields = entry_fields(text)
    where = f"{disk}: /loader/entries/{names[0]}"
    if len(fields.get("linux", ())) != 1:
        raise InputError("wanted one line `linux`", where=where)
    kernel, initrd = folder / "kernel", folder / "initrd"
    kernel.write_bytes(_read(disk, partition, fields["linux"][0], host))
    archives = fields.get("initrd", ())
    if archives:
        initrd.write_bytes(b"".join(_read(disk, partition, path, host) for path in archives))
    return BootEntry(names[0], kernel, initrd if archives else None, " ".join(fields.get("options", ())))


def with_options(options: str, *more: str) -> str:
    """Returns a command line with options added; one with the same name before `=` is taken out, as is `quiet`.

    `console=` stays, since it may be given more than once.
    """
    replaced = {word.partition("=")[0] for word in more} | {"quiet"}
    kept, _, rest = options.partition(" -- ")
    words = [word for word in kept.split() if word.partition("=")[0] not in replaced]
    return " ".join([*words, *more, *(("--", rest) if rest else ())])


def _entries(disk: Path, partition: Partition, host: Host) -> list[str]:
    """Returns the names of the entries, in order."""
    listing = _list(disk, partition, "/loader/entries", host)
    return sorted(match[1] for path in listing if (match := _ENTRY.fullmatch(path)))


def _unified(disk: Path, partition: Partition, folder: Path, host: Host) -> BootEntry | None:
    """Returns the unified kernel image that is started without a boot entry: the firmware's default program, else the last of EFI/Linux."""
    found = [path for path in _list(disk, partition, "/EFI/BOOT", host) if _DEFAULT.fullmatch(path)]
    found += sorted((path for path in _list(disk, partition, "/EFI/Linux", host) if path.lower().endswith(".efi")), reverse=True)
    for path in found:
        data = _read(disk, partition, path, host)
        if is_uki(data):
            parts = uki_parts(data, f"{disk}: {path}")
            kernel, initrd, uki = folder / "kernel", folder / "initrd", folder / "uki.efi"
            kernel.write_bytes(parts.kernel)
            initrd.write_bytes(parts.initrd)
            uki.write_bytes(data)
            return BootEntry(path, kernel, initrd if parts.initrd else None, parts.command_line, uki)
    return None


def _list(disk: Path, partition: Partition, folder: str, host: Host) -> list[str]:
    """Returns the paths in a folder of the EFI system partition; none when there is no such folder."""
    image = f"{disk.resolve()}@@{partition.offset_bytes}"
    try:
        listing = host.run(["mdir", "-i", image, "-b", f"::{folder}"], env={"MTOOLS_SKIP_CHECK": "1"}).text
    except ToolFailedError:
        return []
    return [line.strip().removeprefix("::") for line in listing.splitlines() if line.strip().startswith("::")]


def _read(disk: Path, partition: Partition, path: str, host: Host) -> bytes:
    """Returns a file of the EFI system partition."""
    image = f"{disk.resolve()}@@{partition.offset_bytes}"
    try:
        return host.run(["mcopy", "-i", image, f"::{path}", "-"], env={"MTOOLS_SKIP_CHECK": "1"}).stdout
    except ToolFailedError as error:
        raise InputError(f"its EFI system partition has no readable {path}", where=str(disk), hint=error.message) from error
