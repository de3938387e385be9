"""What a machine loads until its kernel runs, as values: EFI programs, initramfs, load options, Secure Boot's variables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.pe import PeImage, parse_pe

GLOBAL_VARIABLE = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY_DATABASE = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
SECURE_BOOT_VARIABLES = (
    ("SecureBoot", GLOBAL_VARIABLE),
    ("PK", GLOBAL_VARIABLE),
    ("KEK", GLOBAL_VARIABLE),
    ("db", IMAGE_SECURITY_DATABASE),
    ("dbx", IMAGE_SECURITY_DATABASE),
)
"""What firmware measures into PCR 7, in its order. A variable that is not there is measured with no data."""
_MAGIC = re.compile(rb"#### LoaderInfo: (systemd-boot|systemd-stub) (\d+)([^#]*?) ####")


@dataclass(frozen=True, slots=True)
class EfiProgram:
    """An EFI program: where it lies, for people, and its file's bytes."""

    name: str
    data: bytes

    def parsed(self) -> PeImage:
        """Returns the parsed image. Raises: FormatError naming it."""
        return parse_pe(self.data, self.name)

    def systemd(self) -> tuple[str, int, str] | None:
        """Returns what section .sdmagic says: `systemd-boot` or `systemd-stub`, the version as a number and whole; None without one."""
        image = self.parsed()
        section = image.section(".sdmagic")
        match = _MAGIC.search(image.content(section)) if section else None
        return (match[1].decode(), int(match[2]), (match[2] + match[3]).decode("ascii", "replace")) if match else None


@dataclass(frozen=True, slots=True)
class BootChain:
    """What firmware starts, in order: a boot loader or none, then the kernel or a unified kernel image (UKI).

    `initrd` (the path as the loader writes it, with backslashes, and the bytes) and `options` are those of a boot loader's entry;
    a UKI has its own.
    """

    loader: EfiProgram | None
    image: EfiProgram
    initrd: tuple[str, bytes] | None = None
    options: str | None = None

    @property
    def is_uki(self) -> bool:
        """Returns whether the image is a UKI."""
        return self.image.parsed().is_uki


@dataclass(frozen=True, slots=True)
class Variable:
    """A firmware variable: its name, its namespace, its data as GetVariable returns it (no attributes in front)."""

    name: str
    guid: UUID
    data: bytes

    def measured(self) -> bytes:
        """Returns UEFI_VARIABLE_DATA, the bytes that are hashed: GUID, u64 name length, u64 data length, name (UTF-16, no NUL), data."""
        return (
            self.guid.bytes_le + len(self.name).to_bytes(8, "little") + len(self.data).to_bytes(8, "little") + _utf16(self.name) + self.data
        )


@dataclass(frozen=True, slots=True)
class SecureBoot:
    """Secure Boot as the device has it: the five variables, and the db entries (EFI_SIGNATURE_DATA) that authorise what is loaded."""

    variables: tuple[Variable, ...]
    authorities: tuple[bytes, ...] = ()

    @property
    def is_on(self) -> bool:
        """Returns whether firmware refuses what it does not trust."""
        return any(one.name == "SecureBoot" and one.data == b"\1" for one in self.variables)


SETUP_MODE = SecureBoot(tuple(Variable(name, guid, b"\0" if name == "SecureBoot" else b"") for name, guid in SECURE_BOOT_VARIABLES))
"""Firmware without any key: Secure Boot is off."""


def load_options(text: str) -> bytes:
    """Returns a command line as EFI programs hand it on: UTF-16LE with a NUL at its end."""
    return _utf16(text + "\0")


def uki_command_line(section: bytes, where: str) -> str:
    """Returns what a stub makes of section .cmdline.

    Raises: FormatError when it is not plain text; InputError for white space or control characters that versions of the stub treat
    differently, so that nobody could say what is measured.
    """
    try:
        text = section.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise FormatError("section .cmdline is not UTF-8", where=where) from error
    if text != text.strip() or any(ord(character) < 32 for character in text):
        raise InputError(
            "section .cmdline begins or ends with white space, or has control characters: what is measured depends on the stub",
            where=where,
            hint="make it one line without white space around it",
        )
    return text


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le")
