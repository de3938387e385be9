"""Unified kernel images: kernel, initramfs and command line in one EFI program, so that one signature covers all of them.

Source: UAPI group, "Unified Kernel Image"; systemd-stub(7). The stub is systemd's; everything around it is put together here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import FormatError, InputError, ToolMissingError
from ipe_build.formats.kernel_image import release_of
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.formats.pe import UKI_SECTIONS, PeImage, parse_pe
from ipe_build.formats.pe_write import CODE, READ_ONLY_DATA, NewSection, with_sections
from ipe_build.image.esp import SYSTEMD_BOOT_FOLDER, EspFile
from ipe_build.signing.authenticode import with_checksum

if TYPE_CHECKING:
    from ipe_build.host import Host

MAX_COMMAND_LINE_BYTES = 2047
"""The kernel keeps 2048 with the NUL on x86 and arm64, and cuts off what is longer."""
SECTION_ORDER = (".osrel", ".cmdline", ".uname", ".sbat", ".dtb", ".splash", ".pcrpkey", ".pcrsig", ".initrd", ".linux")
"""How the sections are laid out. The kernel is last, as in ukify's images: nothing lies behind it that it could overwrite."""
_EFI_APPLICATION = 10
_SBAT_HEADER = "sbat,1,"


@dataclass(frozen=True, slots=True)
class UkiRequest:
    """What goes into the image. `initrds` are joined, each padded to a multiple of 4 bytes but the last.

    `stub` None is the installed systemd stub for `architecture`; `uname` None is read from the kernel where it says it (bzImage).
    `sbat` is added to the stub's own. `extra` are more sections, laid out before the initramfs.
    """

    kernel: Path
    initrds: tuple[Path, ...] = ()
    command_line: str = ""
    architecture: str = "x86-64"
    stub: Path | None = None
    os_release: bytes = b""
    uname: str | None = None
    sbat: str = ""
    dtb: Path | None = None
    splash: Path | None = None
    pcr_public_key: Path | None = None
    pcr_signature: Path | None = None
    extra: tuple[tuple[str, Path], ...] = ()


def stub_path(architecture: str) -> Path:
    """Returns where Debian's systemd-boot-efi puts the stub. Raises: InputError for an architecture without one."""
    row = PARTITION_TYPES.get(architecture)
    if row is None:
        raise InputError(f"unknown architecture {architecture!r}", where="UKI", hint=f"one of {', '.join(PARTITION_TYPES)}")
    return SYSTEMD_BOOT_FOLDER / f"linux{row.efi_name.lower()}.efi.stub"


def build_uki(request: UkiRequest) -> bytes:
    """Returns the unsigned image: a multiple of 8 bytes, the same for the same inputs.

    Raises: InputError, FormatError, ToolMissingError (no stub).
    """
    stub_file = request.stub or stub_path(request.architecture)
    if request.stub is None and not stub_file.is_file():
        raise ToolMissingError(f"the stub {stub_file} is needed and was not found", hint="on Debian: apt-get install systemd-boot-efi")
    stub = _checked(parse_pe(_read(stub_file), str(stub_file)), request.architecture, stub_file)
    kernel = _read(request.kernel)
    _checked(_parse_kernel(kernel, request.kernel), request.architecture, request.kernel)
    contents = _contents(request, kernel, stub)
    extra = [NewSection(name, _read(path)) for name, path in request.extra]
    ordered = [NewSection(name, contents[name], CODE if name == ".linux" else READ_ONLY_DATA) for name in SECTION_ORDER if name in contents]
    at = next((number for number, section in enumerate(ordered) if section.name in (".initrd", ".linux")), len(ordered))
    made = with_sections(stub, [*ordered[:at], *extra, *ordered[at:]], without=(".sbat",) if ".sbat" in contents else ())
    made = made.ljust(-(-len(made) // 8) * 8, b"\0")
    return with_checksum(made, stub.checksum_offset)


def make_uki(request: UkiRequest, out: Path, host: Host, *, force: bool = False) -> PeImage:
    """Writes the unsigned image to `out` and returns it parsed. Raises: as `build_uki`, OutputError."""
    made = build_uki(request)
    with host.output(out, force=force) as temporary:
        temporary.write_bytes(made)
    return parse_pe(made, str(out))


def uki_file(image: bytes | Path, architecture: str) -> EspFile:
    """Returns the image where firmware looks for a boot loader without being told: `EFI/BOOT/BOOTX64.EFI` and the like."""
    return EspFile(f"EFI/BOOT/BOOT{PARTITION_TYPES[architecture].efi_name}.EFI", image)


def _contents(request: UkiRequest, kernel: bytes, stub: PeImage) -> dict[str, bytes]:
    """Returns the sections' contents by name; those that are not wanted are not there."""
    if any(name in UKI_SECTIONS for name, _ in request.extra):
        name = next(name for name, _ in request.extra if name in UKI_SECTIONS)
        raise InputError(f"the section {name} has an option of its own", where="UKI: --section")
    uname = request.uname if request.uname is not None else release_of(kernel)
    files = {".dtb": request.dtb, ".splash": request.splash, ".pcrpkey": request.pcr_public_key, ".pcrsig": request.pcr_signature}
    contents = {
        ".osrel": request.os_release,
        ".cmdline": _command_line(request.command_line),
        ".uname": uname.encode(),
        ".sbat": _sbat(request.sbat, stub),
        ".initrd": _joined([_read(path) for path in request.initrds]),
        ".linux": kernel,
    } | {name: _read(path) for name, path in files.items() if path is not None}
    return {name: content for name, content in contents.items() if content}


def _command_line(text: str) -> bytes:
    """Returns the command line's bytes, without a line end. Raises: InputError for what the kernel would cut or read otherwise."""
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InputError(f"wanted one line, got {text!r}", where="UKI: command line")
    raw = text.strip().encode()
    if len(raw) > MAX_COMMAND_LINE_BYTES:
        raise InputError(f"wanted at most {MAX_COMMAND_LINE_BYTES} bytes, got {len(raw)}", where="UKI: command line")
    return raw


def _sbat(added: str, stub: PeImage) -> bytes:
    """Returns the stub's SBAT lines with those added, empty when none are. Raises: InputError for a line that is none."""
    lines = [line for line in added.splitlines() if line.strip() and not line.startswith(_SBAT_HEADER)]
    if not lines:
        return b""
    for line in lines:
        words = line.split(",")
        if len(words) < 2 or not words[0] or not words[1].isdigit():
            raise InputError(f"wanted component,generation,…, got {line!r}", where="UKI: SBAT")
    own = stub.section(".sbat")
    text = stub.content(own).rstrip(b"\0").decode("ascii", "replace") if own is not None else ""
    head = (
        text if text.startswith(_SBAT_HEADER) else f"{_SBAT_HEADER}SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n"
    )
    return (head.rstrip("\n") + "\n" + "".join(f"{line}\n" for line in lines)).encode()


def _joined(archives: list[bytes]) -> bytes:
    """Returns initramfs archives one behind the other, each but the last padded to a multiple of 4 bytes, as the kernel wants them."""
    return b"".join(archive.ljust(-(-len(archive) // 4) * 4, b"\0") for archive in archives[:-1]) + (archives[-1] if archives else b"")


def _parse_kernel(data: bytes, path: Path) -> PeImage:
    """Returns the kernel as a PE image. Raises: FormatError when it has no EFI stub."""
    try:
        return parse_pe(data, str(path))
    except FormatError as error:
        hint = "the kernel needs CONFIG_EFI_STUB=y; a compressed Image must be unpacked first"
        raise FormatError(f"is no EFI program: {error.message}", where=error.where, hint=hint) from error


def _checked(image: PeImage, architecture: str, path: Path) -> PeImage:
    """Returns the image when it is an EFI program of the architecture and no UKI yet. Raises: InputError."""
    if image.architecture != architecture:
        raise InputError(f"is for {image.architecture or hex(image.machine)}, wanted {architecture}", where=str(path))
    if image.subsystem != _EFI_APPLICATION:
        raise InputError(f"wanted an EFI application (subsystem 10), got subsystem {image.subsystem}", where=str(path))
    if image.is_uki:
        raise InputError("is a unified kernel image already: it has a section .linux", where=str(path))
    return image


def _read(path: Path) -> bytes:
    """Returns a file's content. Raises: InputError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
