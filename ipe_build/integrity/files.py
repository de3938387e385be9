"""Reading files that must hold still: opened once, checked to be regular, checked again at the end to be the same."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ipe_build.errors import InputError

_COPY = 1 << 20


class Input(NamedTuple):
    """An open regular file: its descriptor (for pread) and what it was when opened."""

    path: Path
    descriptor: int
    before: os.stat_result

    @property
    def size(self) -> int:
        """Returns the size in bytes when it was opened."""
        return self.before.st_size

    def read(self, offset: int, length: int) -> bytes:
        """Returns up to `length` bytes from `offset`; fewer only at the end of the file."""
        pieces = []
        while length and (piece := os.pread(self.descriptor, length, offset)):
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return b"".join(pieces)

    def check_unchanged(self) -> None:
        """Raises: InputError when the file's size or modification time is no longer what it was when it was opened."""
        now = os.fstat(self.descriptor)
        if (now.st_size, now.st_mtime_ns) != (self.before.st_size, self.before.st_mtime_ns):
            raise InputError("changed while it was read", where=str(self.path), hint="let nothing write to it meanwhile, then run again")


@contextmanager
def open_input(path: Path, *, writable: bool = False) -> Iterator[Input]:
    """Yields the open file. Raises: InputError when it is missing, unreadable, a folder, a device or anything else but a file."""
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer; it has no effect on regular files.
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", where=str(path)) from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise InputError(f"wanted a regular file, this is {_kind(before.st_mode)}", where=str(path), hint="work on an image file")
        yield Input(path, descriptor, before)
    finally:
        os.close(descriptor)


def _kind(mode: int) -> str:
    """Returns what a file that is not regular is, for a message."""
    tests = ((stat.S_ISDIR, "a folder"), (stat.S_ISBLK, "a block device"), (stat.S_ISCHR, "a character device"), (stat.S_ISFIFO, "a FIFO"))
    return next((name for test, name in tests if test(mode)), "a special file")


def copy_file(source: Input, target: Path) -> None:
    """Writes a new file with the same bytes and permission bits; what is in holes or zeros stays in holes."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, stat.S_IMODE(source.before.st_mode))
        os.ftruncate(descriptor, source.size)
        offset = 0
        while piece := source.read(offset, _COPY):
            if piece.count(0) != len(piece):
                os.pwrite(descriptor, piece, offset)
            offset += len(piece)
    finally:
        os.close(descriptor)


def is_same_file(one: Path, other: Path) -> bool:
    """Returns whether two paths name one file; a path that names nothing yet is compared as text."""
    try:
        return one.samefile(other)
    except OSError:
        return one.absolute() == other.absolute()
