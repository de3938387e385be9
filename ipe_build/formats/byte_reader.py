"""Takes numbers and pieces from the front of bytes that nobody vouches for."""

from __future__ import annotations

from typing import Literal

from ipe_build.errors import FormatError


class ByteReader:
    """Reads `data` from its first byte on; every shortage is a FormatError that names the offset."""

    def __init__(self, data: bytes, where: str, byteorder: Literal["little", "big"], *, shortage: str = "") -> None:
        """`shortage` is added to the error when bytes are missing: what that says of the whole."""
        self._data = data
        self._where = where
        self._byteorder: Literal["little", "big"] = byteorder
        self._shortage = shortage
        self._offset = 0

    @property
    def at_end(self) -> bool:
        """Returns whether nothing is left."""
        return self._offset >= len(self._data)

    def take(self, size: int, what: str) -> bytes:
        """Returns the next `size` bytes."""
        raw = self._data[self._offset : self._offset + size]
        if len(raw) < size:
            raise self.error(f"wanted {size} bytes of {what}, got {len(raw)}{self._shortage}")
        self._offset += size
        return raw

    def number(self, size: int, what: str) -> int:
        """Returns the number in the next `size` bytes."""
        return int.from_bytes(self.take(size, what), self._byteorder)

    def sized(self, what: str) -> bytes:
        """Returns the piece that follows its size, a number of 16 bits."""
        return self.take(self.number(2, f"size of {what}"), what)

    def end(self) -> None:
        """Raises FormatError when something is left."""
        left = len(self._data) - self._offset
        if left:
            raise self.error(f"{left} bytes follow its end")

    def error(self, message: str, *, hint: str = "") -> FormatError:
        """Returns the error for what stands, or should stand, here."""
        return FormatError(f"offset {self._offset:#x}: {message}", where=self._where, hint=hint)
