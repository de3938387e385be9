"""The way through a filesystem image's folders that all readers take: each folder once, so many names and so deep at most."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from ipe_build.errors import FormatError

MAX_NAMES = 1_000_000
MAX_DEPTH = 128


class _Inode(Protocol):
    """What the walk looks at."""

    @property
    def number(self) -> int: ...

    @property
    def mode(self) -> int: ...


InodeT = TypeVar("InodeT", bound=_Inode)
KeyT = TypeVar("KeyT")


def walk(
    root: KeyT, inode: Callable[[KeyT], InodeT], names: Callable[[InodeT], Iterable[tuple[bytes, KeyT]]], where: str
) -> Iterator[tuple[bytes, InodeT]]:
    """Yields path (without a slash in front) and inode of everything below the folder `root`, folders before what is in them.

    `inode` reads what a key (an inode's number or place) stands for, `names` lists a folder; `where` names the filesystem in errors.
    Raises: FormatError for a folder that lies in itself, for more than MAX_NAMES names or MAX_DEPTH folders in each other.
    """
    seen = {root}
    folders = [(b"", inode(root), 0)]
    count = 0
    while folders:
        folder, parent, depth = folders.pop()
        for name, key in names(parent):
            count += 1
            if count > MAX_NAMES:
                raise FormatError(f"more than {MAX_NAMES} names", where=where)
            path = folder + b"/" + name if folder else name
            child = inode(key)
            yield path, child
            if stat.S_ISDIR(child.mode):
                if key in seen or depth >= MAX_DEPTH:
                    raise FormatError(f"a folder lies in itself, or deeper than {MAX_DEPTH}", where=f"{where}: inode {child.number}")
                seen.add(key)
                folders.append((path, child, depth + 1))
