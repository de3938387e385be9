"""A unified kernel image taken apart: what it boots; and the same image with another command line.

Source: UAPI group, "Unified Kernel Image".
"""

from __future__ import annotations

from dataclasses import dataclass

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.pe import is_pe, parse_pe
from ipe_build.formats.pe_write import with_sections


@dataclass(frozen=True, slots=True)
class UkiParts:
    """What a UKI boots. `initrd` is empty where it has none."""

    kernel: bytes
    initrd: bytes
    command_line: str


def is_uki(data: bytes) -> bool:
    """Returns whether bytes are a PE image with a section .linux; one that is damaged is none."""
    if not is_pe(data):
        return False
    try:
        return parse_pe(data).is_uki
    except FormatError:
        return False


def uki_parts(data: bytes, where: str = "UKI") -> UkiParts:
    """Returns what a UKI boots, read from its sections. Raises: FormatError, InputError when it is none."""
    image = parse_pe(data, where)
    found = {section.name: image.content(section) for section in image.uki_sections}
    if ".linux" not in found:
        raise InputError("is no unified kernel image: it has no section .linux", where=where)
    text = found.get(".cmdline", b"").rstrip(b"\n\0")
    return UkiParts(found[".linux"], found.get(".initrd", b""), text.decode("utf-8", "replace"))


def with_command_line(data: bytes, command_line: str, where: str = "UKI") -> bytes:
    """Returns the image with another command line and without its signatures, all other sections as they are.

    Raises: FormatError, InputError when it has no command line of its own.
    """
    return with_sections(parse_pe(data, where), (), replaced={".cmdline": command_line.encode()})
