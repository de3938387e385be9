"""Kernel images opened down to the kernel itself: bzImage, arm64 and riscv Image, EFI zboot, UKI, vmlinux; compressed or not.

Nothing in the file is trusted: every offset and length is checked against the file, and the layers are at most four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dissect.cstruct import cstruct

from ipe_build.errors import FormatError
from ipe_build.formats.c_kernel_image import C_KERNEL_IMAGE
from ipe_build.formats.kernel_compression import compression_of, unpack
from ipe_build.formats.pe import parse_pe
from ipe_build.formats.uki import is_uki

MAX_LAYERS = 4
MAX_IMAGE_BYTES = 1 << 30
_WHERE = "kernel image"
_SETUP_AT = 0x1F1
_FIRST_WITH_PAYLOAD = 0x208
_XLF_KERNEL_64 = 1
_MAX_RELEASE = 256
_MACHINES = {3: "i386", 40: "arm", 62: "x86-64", 183: "arm64", 243: "riscv", 258: "loongarch"}

_C = cstruct(endian="<")
_C.load(C_KERNEL_IMAGE)


class ImageFormat(StrEnum):
    """What a layer of an image is."""

    BZIMAGE = "bzImage"
    ARM64 = "arm64 Image"
    RISCV = "riscv Image"
    ZBOOT = "EFI zboot"
    UKI = "UKI"
    ELF = "ELF"


@dataclass(frozen=True, slots=True)
class KernelImage:
    """An opened image. `layers` are the formats and compressions from outside in; `kernel` is the kernel unpacked: ELF or raw.

    `architecture` is `x86-64`, `arm64`, `riscv`, …, or empty where nothing says it.
    """

    layers: tuple[str, ...]
    architecture: str
    kernel: bytes

    @property
    def is_elf(self) -> bool:
        """Returns whether `kernel` is an ELF file."""
        return self.kernel.startswith(b"\x7fELF")


def open_kernel(data: bytes) -> KernelImage:
    """Returns the kernel inside an image. Raises: FormatError when it is none of the known formats, or is damaged."""
    if len(data) > MAX_IMAGE_BYTES:
        raise FormatError(f"wanted at most {MAX_IMAGE_BYTES} bytes, got {len(data)}", where=_WHERE)
    layers: list[str] = []
    architecture = ""
    while True:
        found = next((reader for is_it, reader in _READERS if is_it(data)), None)
        if found is None:
            compression = compression_of(data)
            if compression is None:
                break
            layers.append(compression.name)
            data = unpack(data, compression)
        else:
            name, said, inner = found(data)
            layers.append(str(name))
            architecture = architecture or said
            if inner is None:
                break
            data = inner
        if len(layers) > MAX_LAYERS:
            raise FormatError(f"it has more than {MAX_LAYERS} layers: {', '.join(layers)}", where=_WHERE)
    if not any(layer in set(ImageFormat) for layer in layers):
        raise FormatError(
            f"offset 0x0: wanted a kernel image, got bytes {data[:8].hex(' ')}",
            where=_WHERE,
            hint="known: bzImage, vmlinux (ELF), arm64 and riscv Image, EFI zboot, UKI; each also compressed",
        )
    return KernelImage(tuple(layers), architecture, data)


_Layer = tuple[str, str, bytes | None]
"""Name, architecture, and what is inside (None: the data is the kernel)."""


def _bzimage(data: bytes) -> _Layer:
    """Reads a bzImage's compressed kernel. Source: Documentation/arch/x86/boot.rst, "Details of Header Fields"."""
    header = _header(_C.x86_setup_header, data, _SETUP_AT)
    if header.version < _FIRST_WITH_PAYLOAD:
        raise FormatError(f"offset 0x206: wanted boot protocol 2.08 or newer, got {header.version:#06x}", where=_WHERE)
    start = ((header.setup_sects or 4) + 1) * 512 + header.payload_offset
    payload = _slice(data, start, header.payload_length, "the compressed kernel (payload_offset at 0x248)")
    architecture = "x86-64" if header.xloadflags & _XLF_KERNEL_64 else "i386"
    compression = compression_of(payload)
    if compression is None:
        raise FormatError(f"offset {start:#x}: wanted a compressed kernel, got bytes {payload[:8].hex(' ')}", where=_WHERE)
    return ImageFormat.BZIMAGE, architecture, payload


def _zboot(data: bytes) -> _Layer:
    header = _header(_C.zboot_header, data, 0)
    return ImageFormat.ZBOOT, "", _slice(data, header.payload_offset, header.payload_size, "the compressed kernel (offset 0x8)")


def _uki(data: bytes) -> _Layer:
    """Reads the section .linux of a unified kernel image."""
    image = parse_pe(data, _WHERE)
    section = image.section(".linux")
    assert section is not None
    return ImageFormat.UKI, "", _slice(data, section.raw_offset, min(section.virtual_size, section.raw_size), "section .linux")


def _elf(data: bytes) -> _Layer:
    little = data[5:6] == b"\1"
    machine = int.from_bytes(data[18:20], "little" if little else "big")
    return ImageFormat.ELF, _MACHINES.get(machine, ""), None


def _header(kind: Any, data: bytes, offset: int) -> Any:
    """Returns the header at `offset`; what a file that is cut short lacks of it is zero, and the checks of its fields then fail."""
    return kind(data[offset : offset + len(kind)].ljust(len(kind), b"\0"))


def _slice(data: bytes, offset: int, length: int, what: str) -> bytes:
    if length == 0 or offset + length > len(data):
        raise FormatError(f"{what} is {length} bytes at {offset:#x}, the file has {len(data)}", where=_WHERE)
    return data[offset : offset + length]


def release_of(data: bytes) -> str:
    """Returns the release that a bzImage's setup header points to (`uname -r`), empty for another format or when it says none."""
    if data[0x202:0x206] != b"HdrS":
        return ""
    at = int(_header(_C.x86_setup_header, data, _SETUP_AT).kernel_version)
    text = data[at + 0x200 : at + 0x200 + _MAX_RELEASE].split(b"\0", 1)[0] if at else b""
    return (text.split(b" ", 1)[0]).decode("ascii", "replace")


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], _Layer]], ...] = (
    (lambda data: data.startswith(b"\x7fELF") and len(data) >= 20, _elf),
    (lambda data: data[0x202:0x206] == b"HdrS", _bzimage),
    (lambda data: data[4:8] == b"zimg" and data[:2] == b"MZ", _zboot),
    (lambda data: data[56:60] == b"ARM\x64", lambda _data: (ImageFormat.ARM64, "arm64", None)),
    (lambda data: data[56:60] == b"RSC\x05", lambda _data: (ImageFormat.RISCV, "riscv", None)),
    (is_uki, _uki),
)
"""How each format is recognised, most exact first: a bzImage and an arm64 Image are PE files too."""
