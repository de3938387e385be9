"""Two kernel images compared as somebody does who has built the kernel again: same file, same kernel, or where it differs."""

from __future__ import annotations

import io
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from ipe_build.errors import InputError
from ipe_build.formats.kernel_image import KernelImage, open_kernel
from ipe_build.kernel.slot import find_slot

_MOST = 16
_SHOWN = 16
_STEP = 1 << 16


@dataclass(frozen=True, slots=True)
class Difference:
    """A run of bytes that differ, in the kernels unpacked. `section` is the ELF section that it lies in, empty where that is not known."""

    offset: int
    section: str
    one: bytes
    other: bytes


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it. `same_file`: byte for byte; `same_kernel`: unpacked. `differences` are those outside the reserved boot policy.

    `same_policy` is whether the reserved boot policies are equal; None where a kernel has none.
    """

    same_file: bool
    same_kernel: bool
    same_policy: bool | None
    differences: tuple[Difference, ...]


def compare_kernels(one: bytes, other: bytes) -> Comparison:
    """Returns how two kernel images differ; at most 16 places. Raises: FormatError when one is no kernel image."""
    if one == other:
        return Comparison(same_file=True, same_kernel=True, same_policy=None, differences=())
    left, right = open_kernel(one), open_kernel(other)
    if left.kernel == right.kernel:
        return Comparison(same_file=False, same_kernel=True, same_policy=None, differences=())
    slots = (_slot(left), _slot(right))
    same_policy = None
    kernels = (left.kernel, right.kernel)
    if slots[0] is not None and slots[0] == slots[1]:
        start, end = slots[0]
        same_policy = kernels[0][start:end] == kernels[1][start:end]
        kernels = (
            left.kernel[:start] + bytes(end - start) + left.kernel[end:],
            right.kernel[:start] + bytes(end - start) + right.kernel[end:],
        )
    sections = _sections(left.kernel) if left.is_elf else ()
    return Comparison(
        same_file=False,
        same_kernel=False,
        same_policy=same_policy,
        differences=tuple(Difference(at, _section(sections, at), a, b) for at, a, b in _runs(*kernels)),
    )


def _slot(image: KernelImage) -> tuple[int, int] | None:
    """Returns where the reserved boot policy begins and ends; None without one."""
    try:
        slot = find_slot(image.kernel)
    except InputError:
        return None
    return slot.offset, slot.offset + slot.size


def _runs(one: bytes, other: bytes) -> list[tuple[int, bytes, bytes]]:
    """Returns offset and bytes of the first runs that differ; a run ends at 16 equal bytes, and its first 16 bytes are given."""
    found: list[tuple[int, bytes, bytes]] = []
    end, at = max(len(one), len(other)), 0
    while at < end and len(found) < _MOST:
        if one[at : at + _STEP] == other[at : at + _STEP]:
            at += _STEP
            continue
        while one[at : at + 1] == other[at : at + 1]:
            at += 1
        found.append((at, one[at : at + _SHOWN], other[at : at + _SHOWN]))
        while at < end and one[at : at + _SHOWN] != other[at : at + _SHOWN]:
            at += _SHOWN
    return found


def _sections(kernel: bytes) -> tuple[tuple[int, int, str], ...]:
    """Returns offset, size and name of the sections that have bytes in the file."""
    try:
        elf = ELFFile(io.BytesIO(kernel))
        return tuple((int(s["sh_offset"]), int(s["sh_size"]), str(s.name)) for s in elf.iter_sections() if s["sh_type"] != "SHT_NOBITS")
    except (ELFError, ValueError, KeyError, UnicodeDecodeError):
        return ()


def _section(sections: tuple[tuple[int, int, str], ...], offset: int) -> str:
    return next((name for start, size, name in sections if start <= offset < start + size), "")
