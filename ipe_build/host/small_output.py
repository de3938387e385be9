"""Small outputs by the thousand: whole or not there, as in `host.output`, with as few steps as that takes."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from ipe_build.errors import OutputError
from ipe_build.host.output import existing_folder, explained


def write_small(path: Path, parts: Sequence[bytes], mode: int) -> None:
    """Writes a file of these parts with exactly these permissions; see `Host.write_small`."""
    text = str(path)
    try:
        status = os.stat(text)  # noqa: PTH116 - thousands of them
    except OSError:
        existing_folder(path.parent, of=path)
    else:
        if not stat.S_ISREG(status.st_mode):
            raise OutputError("is a folder, a device or another special file, not replaced", where=str(path), hint="write to a file")
    folder, slash, name = text.rpartition("/")
    temporary = f"{folder}{slash}.{name}.{os.urandom(4).hex()}.tmp"
    try:
        _write(temporary, parts, mode)
        os.replace(temporary, text)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        with explained(path):
            raise error


def _write(path: str, parts: Sequence[bytes], mode: int) -> None:
    """Writes a new file. Raises: OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)  # what the umask took away
        written = os.writev(descriptor, parts)
        if written < sum(map(len, parts)):  # no space is left, or there is more than one call writes
            left = memoryview(b"".join(parts))[written:]
            while left:
                left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)
