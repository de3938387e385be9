"""Reference values of a finished image: what a machine that boots it measures, read off the image's own bytes."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Sequence
from hashlib import file_digest
from pathlib import Path

from ipe_build.attest.chain import SETUP_MODE, BootChain, EfiProgram, SecureBoot, uki_command_line
from ipe_build.attest.predict import BANKS, behaviour_of, predict
from ipe_build.attest.reference import ReferenceValues
from ipe_build.errors import InputError
from ipe_build.formats.fat import Fat, FatFile
from ipe_build.formats.loader_entry import entry_fields
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.formats.pe import is_pe, parse_pe
from ipe_build.image.disk import Disk, read_disk

_MAX_FILE_BYTES = 1 << 30
_MEASURED_EXTRAS = ("/loader/credentials/", "/loader/addons/")
_EXTRA_FOLDER = ".extra.d/"
_TESTED_LOADER = 252
FirmwareState = Callable[[Sequence[EfiProgram]], SecureBoot]
"""Gives Secure Boot's state, told the programs that firmware must authorise."""


def measure_image(image: Path, *, firmware: FirmwareState | None = None, entry: str = "", banks: Sequence[str] = BANKS) -> ReferenceValues:
    """Returns the reference values of a disk image, or of a UKI that firmware starts itself.

    Without `firmware` the device has no Secure Boot keys. `entry` is the file name of the boot entry (or UKI) that systemd-boot is told to
    start, of an image with several. Raises: InputError for an image whose boot nobody could foresee (several
    entries, another boot loader, extras that a stub would measure), FormatError, VerificationError (Secure Boot would refuse it).
    """
    chain, boots = read_chain(image, entry)
    programs = tuple(one for one in (chain.loader, chain.image) if one is not None)
    secure_boot = firmware(programs) if firmware else SETUP_MODE
    with image.open("rb") as file:
        digest = file_digest(file, "sha256").digest()
    notes = _notes(chain, given=firmware is not None)
    return ReferenceValues(image.name, digest, boots, secure_boot.is_on, predict(chain, secure_boot, banks), notes, tuple(banks))


def read_chain(image: Path, entry: str = "") -> tuple[BootChain, str]:
    """Returns what a machine loads from an image, and that in words. Raises: InputError, FormatError."""
    try:
        with image.open("rb") as handle:
            head = handle.read(1 << 12)
            if head[:2] == b"MZ" and is_pe(head):
                return _bare_uki(image), "firmware starts this UKI"
        disk = read_disk(image)
        with image.open("rb") as handle:
            return _disk_chain(disk, handle.fileno(), entry)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(image)) from error


def kernel_files(image: Path, folder: Path) -> tuple[Path, Path | None, str]:
    """Returns kernel, initramfs (None: it has none) and command line of an image, the files written into `folder`."""
    chain, _ = read_chain(image)
    data, initrd, options = chain.image.data, chain.initrd[1] if chain.initrd else b"", chain.options or ""
    if chain.is_uki:
        parsed = chain.image.parsed()
        parts = {name: parsed.content(found) for name in (".linux", ".initrd", ".cmdline") if (found := parsed.section(name))}
        data, initrd = parts[".linux"], parts.get(".initrd", b"")
        options = uki_command_line(parts.get(".cmdline", b""), chain.image.name)
    (folder / "kernel").write_bytes(data)
    if initrd:
        (folder / "initrd").write_bytes(initrd)
    return folder / "kernel", folder / "initrd" if initrd else None, options


def _bare_uki(image: Path) -> BootChain:
    program = EfiProgram(image.name, image.read_bytes())
    if not program.parsed().is_uki:
        raise InputError("is an EFI program without a section .linux", where=str(image), hint="give a UKI or a disk image")
    return BootChain(None, program)


def _disk_chain(disk: Disk, descriptor: int, name: str) -> tuple[BootChain, str]:
    """Returns the chain of a disk: what lies where firmware looks first, and what that starts."""
    esp = disk.esp
    if esp is None:
        raise InputError("has no EFI system partition: firmware cannot start it", where=str(disk.path))

    def read_at(offset: int, length: int) -> bytes:
        return os.pread(descriptor, max(0, min(length, esp.size_bytes - offset)), esp.offset_bytes + offset)

    volume = _Volume(Fat(read_at, esp.size_bytes), disk.path)
    volume.refuse_extras()
    first = volume.program(_first_program(volume, disk))
    if first.parsed().is_uki:
        return BootChain(None, first), f"firmware starts the UKI {first.name}"
    info = first.systemd()
    if info is None or info[0] != "systemd-boot":
        raise InputError("is neither a UKI nor systemd-boot: what it measures is not known here", where=f"{disk.path}: {first.name}")
    entry = volume.entry(name)
    if entry.path.lower().endswith(".efi"):
        return BootChain(first, volume.program(entry.path)), f"systemd-boot {info[2]} starts the UKI {entry.path}"
    return _entry_chain(first, entry, volume), f"systemd-boot {info[2]} starts the entry {entry.path}"


def _first_program(volume: _Volume, disk: Disk) -> str:
    """Returns the path that firmware looks for on a disk without a boot option of its own. Raises: InputError."""
    names = [PARTITION_TYPES[disk.architecture].efi_name] if disk.architecture else [row.efi_name for row in PARTITION_TYPES.values()]
    found = [path for name in names if (path := volume.find(f"/EFI/BOOT/BOOT{name}.EFI"))]
    if len(found) != 1:
        wanted = " or ".join(f"/EFI/BOOT/BOOT{name}.EFI" for name in names)
        raise InputError(f"wanted {wanted}, found {len(found)} of them", where=str(disk.path))
    return found[0].path


def _entry_chain(loader: EfiProgram, entry: FatFile, volume: _Volume) -> BootChain:
    """Returns the chain of a boot loader entry (type 1). Raises: InputError for keys whose measurement is not known here."""
    fields = entry_fields(volume.text(entry.path))
    kernels, initrds = fields.get("linux", ()), fields.get("initrd", ())
    strange = sorted(set(fields) & {"efi", "devicetree", "devicetree-overlay"})
    if len(kernels) != 1 or len(initrds) > 1 or strange:
        found = f"{len(kernels)} and {len(initrds)}" + (f" and {', '.join(strange)}" if strange else "")
        raise InputError(f"wanted one line linux, at most one line initrd, got {found}", where=f"{volume.image}: {entry.path}")
    options = " ".join(fields.get("options", ()))
    if not initrds and any(word.startswith("initrd=") for word in options.split()):
        raise InputError(
            "its options name an initramfs (initrd=): which are then measured is not known here", where=f"{volume.image}: {entry.path}"
        )
    initrd = None
    if initrds:
        initrd = ("\\" + initrds[0].replace("/", "\\").lstrip("\\"), volume.content(initrds[0]))
    return BootChain(loader, volume.program(kernels[0]), initrd, options)


class _Volume:
    """The EFI system partition: files by path, in any case of letters, as FAT has it."""

    def __init__(self, fat: Fat, image: Path) -> None:
        self.image = image
        self._fat = fat
        self._files = {file.path.lower(): file for file in fat.files()}

    def find(self, path: str) -> FatFile | None:
        """Returns a file, None when it is not there."""
        return self._files.get("/" + path.strip("/").replace("\\", "/").lower())

    def content(self, path: str) -> bytes:
        """Returns a file's content. Raises: InputError."""
        file = self.find(path)
        if file is None:
            raise InputError(f"its EFI system partition has no {path}", where=str(self.image))
        return self._fat.read(file, _MAX_FILE_BYTES)

    def text(self, path: str) -> str:
        """Returns a file as UTF-8 text."""
        return self.content(path).decode("utf-8", "replace")

    def program(self, path: str) -> EfiProgram:
        """Returns an EFI program, named by its path. Raises: FormatError when it is none."""
        data = self.content(path)
        parse_pe(data, f"{self.image}: {path}")
        return EfiProgram(path, data)

    def refuse_extras(self) -> None:
        """Raises InputError for files that a stub would measure into PCR 12 and hand to the initramfs."""
        for path in self._files:
            if path.startswith(_MEASURED_EXTRAS) or _EXTRA_FOLDER in path:
                raise InputError(
                    f"its EFI system partition holds {path}: the stub would take it in, and PCR 12 would not be what it must be",
                    where=str(self.image),
                    hint="take credentials, extensions and addons out; what the kernel runs is in the UKI alone",
                )

    def entry(self, name: str) -> FatFile:
        """Returns the entry of that file name; without one, what systemd-boot starts when nobody touches a key.

        Raises: InputError when there is none, or it is not certain which.
        """
        entries = [file for path, file in self._files.items() if fnmatch.fnmatchcase(path, "/loader/entries/*.conf")]
        entries += [file for path, file in self._files.items() if fnmatch.fnmatchcase(path, "/efi/linux/*.efi")]
        pattern = glob.escape(name.lower())
        if not pattern and self.find("/loader/loader.conf"):
            lines = [line.split(None, 1) for line in self.text("/loader/loader.conf").splitlines()]
            pattern = next((words[1].strip().lower() for words in lines if len(words) == 2 and words[0] == "default"), "")
        chosen = [one for one in entries if fnmatch.fnmatchcase(one.path.lower().rsplit("/", 1)[1], pattern)] if pattern else entries
        if len(chosen) != 1:
            names = ", ".join(sorted(one.path for one in entries)) or "none"
            raise InputError(
                f"wanted one boot entry{f' {name}' if name else ', or a line `default` in loader.conf that names one'}; there are: {names}",
                where=str(self.image),
                hint="which one is started decides what is measured: attest measure --entry NAME",
            )
        return chosen[0]


def _notes(chain: BootChain, *, given: bool) -> tuple[str, ...]:
    """Returns what was assumed."""
    notes = ["The firmware starts this disk's boot option first, and no other before it: one that fails is measured into PCR 4 too."]
    if not given:
        notes.append("PCR 7: no Secure Boot keys are enrolled (give --variables or --reference-log for a device that has some).")
    loader = chain.loader.systemd() if chain.loader else None
    if loader is not None and loader[1] > _TESTED_LOADER:
        notes.append(f"The boot loader is newer than the one ({_TESTED_LOADER}) whose measurements our tests check by booting it.")
    if chain.is_uki and not behaviour_of(chain.image).verified:
        notes.append("The UKI's stub is newer than the one (252) whose measurements our tests check by booting it.")
    return tuple(notes)
