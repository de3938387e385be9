"""A vmlinux's symbols: where a named object lies in the file and what it holds. Only what is needed to read constants."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

_MAX_STRING = 1 << 20
_MAX_OBJECT = 16 << 20
_MAX_SYMBOLS = 1_000_000
_RELA = struct.Struct("<QQQ")
_WANTED = frozenset(
    {
        "ipe_boot_policy",
        "system_certificate_list",
        "system_certificate_list_size",
        "revocation_certificate_list",
        "revocation_certificate_list_size",
        "builtin_cmdline",
    }
)
"""The symbols that are kept while the table is read; a kernel has 100,000."""
_DAMAGED = (
    ELFError,
    ConstructError,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    AssertionError,
    OSError,
)
"""What pyelftools raises for a damaged file."""


@dataclass(frozen=True, slots=True)
class Pointed:
    """What a pointer leads to. `known` is false when there is no such symbol; `text` is None when the pointer is NULL."""

    known: bool
    text: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Segment:
    """A section with bytes in the file."""

    address: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class KernelElf:
    """The part of an ELF kernel that is needed here. Without symbols all lookups say so; damaged tables count as absent."""

    data: bytes
    symbols: dict[str, int]
    segments: tuple[_Segment, ...]
    addends: dict[int, int]
    """Of relative relocations at the addresses of wanted symbols: arm64's vmlinux keeps pointers there."""

    @property
    def has_symbols(self) -> bool:
        """Returns whether any of the wanted symbols is there."""
        return bool(self.symbols)

    @classmethod
    def of_image(cls, data: bytes) -> KernelElf:
        """Returns the kernel's symbols; none when the file has none or its tables are damaged."""
        symbols: dict[str, int] = {}
        segments: list[_Segment] = []
        addends: dict[int, int] = {}
        try:
            elf = ELFFile(io.BytesIO(data))
            for section in elf.iter_sections():
                if section["sh_type"] == "SHT_PROGBITS" and section["sh_addr"]:
                    segments.append(_Segment(section["sh_addr"], section["sh_offset"], section["sh_size"]))
                elif isinstance(section, SymbolTableSection):
                    symbols.update(_wanted_symbols(section))
            relocations = elf.get_section_by_name(".rela.dyn") if symbols else None
            if relocations is not None and elf.elfclass == 64:
                addends.update(_addends(relocations.data(), set(symbols.values())))
        except _DAMAGED:
            return cls(data, {}, (), {})
        return cls(data, symbols, tuple(segments), addends)

    def string_at_pointer(self, symbol: str) -> Pointed:
        """Returns the C string that the pointer `symbol` points to."""
        address = self.symbols.get(symbol)
        raw = self._at(address, 8) if address is not None else None
        if address is None or raw is None or len(raw) < 8:
            return Pointed(known=False)
        target = int.from_bytes(raw, "little") or self.addends.get(address, 0)
        if target == 0:
            return Pointed(known=True)
        text = self._string(target)
        return Pointed(known=text is not None, text=text)

    def string_in(self, symbol: str) -> str | None:
        """Returns the C string that the array `symbol` holds; None when there is no such symbol."""
        address = self.symbols.get(symbol)
        text = self._string(address) if address is not None else None
        return None if text is None else text.decode("utf-8", "replace")

    def sized(self, symbol: str, size_symbol: str) -> bytes | None:
        """Returns the bytes at `symbol`, as many as the 64-bit number at `size_symbol` says; None when either is not there."""
        start, size_at = self.symbols.get(symbol), self.symbols.get(size_symbol)
        raw = self._at(size_at, 8) if size_at is not None else None
        if start is None or raw is None or len(raw) < 8:
            return None
        size = int.from_bytes(raw, "little")
        found = self._at(start, size) if size <= _MAX_OBJECT else None
        return found if found is not None and len(found) == size else None

    def _string(self, address: int) -> bytes | None:
        found = self._at(address, _MAX_STRING)
        end = found.find(b"\0") if found is not None else -1
        return found[:end] if found is not None and end >= 0 else None

    def _at(self, address: int, size: int) -> bytes | None:
        """Returns up to `size` bytes at a virtual address, not past the end of their section; None outside of all."""
        for segment in self.segments:
            inside = address - segment.address
            if 0 <= inside < segment.size:
                start = segment.offset + inside
                return self.data[start : start + min(size, segment.size - inside)]
        return None


def _addends(relocations: bytes, places: set[int]) -> Iterator[tuple[int, int]]:
    """Yields place and addend of the Elf64_Rela entries (offset, info, addend: 8 bytes each) at these places."""
    whole = len(relocations) // _RELA.size * _RELA.size
    for offset, _, addend in _RELA.iter_unpack(relocations[:whole]):
        if offset in places:
            yield offset, addend


def _wanted_symbols(section: SymbolTableSection) -> Iterator[tuple[str, int]]:
    for number, symbol in enumerate(section.iter_symbols()):
        if number >= _MAX_SYMBOLS:
            return
        if symbol.name in _WANTED and symbol["st_shndx"] != "SHN_UNDEF":
            yield symbol.name, symbol["st_value"]
