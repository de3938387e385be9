"""How every verb reads and writes what the command line names: root hashes, files that the rooms take as bytes, several outputs at once."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError, IpeBuildError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from ipe_build.host import Host

_ALGORITHMS = ("sha1", "sha224", "sha256", "sha384", "sha512")
_SHOWN = 80
_PARTS = ("GPT", "partition table", "FAT", "boot entry", "EROFS", "SquashFS", "ext4", "ext4 image", "UKI", "PE image", "EFI image", "image")
"""Where errors in the bytes of an image are said to be."""


def root_hash_of(text: str, where: str = "--root-hash") -> bytes:
    """Returns the root hash (20 to 64 bytes) that a word gives: HEX, ALGORITHM:HEX, or a file that holds either.

    Raises: InputError naming `where` or the file.
    """
    path, place, said = Path(text), where, text
    if "/" in text or (len(text) < 256 and path.is_file()):
        place, said = text, path.read_bytes()[:4096].decode("ascii", "backslashreplace").strip()
    name, colon, digits = said.rpartition(":")
    try:
        if colon and name not in _ALGORITHMS:
            raise ValueError
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    if not 20 <= len(value) <= 64:
        shown = said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
        hint = "" if place == text else "there is no file of this name either; `verity format --root-hash-file` and `root` write one"
        raise InputError(f"wanted a root hash (40 to 128 hex digits), or a file that holds one, got {shown!r}", where=place, hint=hint)
    return value


def uuid_of(text: str | None, where: str = "--uuid") -> UUID | None:
    """Returns the UUID of an option, None where it was not given. Raises: UsageError."""
    from uuid import UUID  # a hash tree is quick enough for its import to count

    try:
        return UUID(text) if text is not None else None
    except ValueError:
        raise UsageError(f"wanted a UUID, got {text!r}", where=where) from None


def read_input(path: Path) -> bytes:
    """Returns a file's content. Raises: InputError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def write_all(contents: Sequence[tuple[Path, bytes]], host: Host, *, force: bool) -> None:
    """Writes all of the files or, when one of them cannot be written, none. Raises: OutputError."""
    with host.outputs(*(path for path, _ in contents), force=force) as temporaries:
        for temporary, (_, content) in zip(temporaries, contents, strict=True):
            temporary.write_bytes(content)


def files_below(folder: Path) -> tuple[Path, ...]:
    """Returns the ordinary files below a folder, sorted; links are not followed. Raises: InputError for a folder that cannot be listed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot be listed: {error.strerror}", where=str(error.filename)) from error

    found = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names)
    return tuple(sorted(path for path in found if path.is_file() and not path.is_symlink()))


@contextmanager
def named(path: Path | str, *words: str, keep: bool = False) -> Iterator[None]:
    """Puts the file's name in place of `words` ("EFI image", say) in errors of the block: the rooms judge bytes and do not know it.

    With `keep` the name comes before them: "disk.raw: GPT: offset 0x200".
    """
    try:
        yield
    except IpeBuildError as error:
        for word in words:
            if error.where == word or error.where.startswith(f"{word}:"):
                error.where = f"{path}: {error.where}" if keep else f"{path}{error.where[len(word) :]}"
                break
        raise


def in_image(path: Path) -> AbstractContextManager[None]:
    """Puts an image's name before the part of it in which an error of the block is: "disk.raw: GPT: offset 0x200"."""
    return named(path, *_PARTS, keep=True)
