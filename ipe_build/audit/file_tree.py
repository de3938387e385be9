"""The files of a root filesystem as the checks see them, wherever they were read from: an image in place, or files copied out of one."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

_MAX_LINKS = 40
_NOTHING: Mapping[str, bytes] = {}

Read = Callable[[int, int], bytes]
"""`read(offset, length)` returns that many bytes of a file, fewer only at its end."""


@dataclass(frozen=True, slots=True)
class VerityOfFile:
    """What fs-verity says of a file: the file's digest and its algorithm, and the builtin signature (DER, empty without one).

    `matches` says whether the file's content has this digest; None where it was not hashed again.
    """

    hash_name: str
    digest: bytes
    signature: bytes
    matches: bool | None = None


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file: `path` without a slash in front (bytes that are not UTF-8 as surrogate escapes), `mode` with its type.

    `target` is a symbolic link's. `identity` is the same for hard links of one file. `starts_at` is where in the filesystem image its
    first byte lies, `mtime` when it was written (seconds since 1970); None where that is not known.
    """

    path: str
    mode: int
    size_bytes: int = 0
    uid: int = 0
    gid: int = 0
    target: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=lambda: _NOTHING, hash=False)
    verity: VerityOfFile | None = None
    read_at: Read = lambda _offset, _length: b""
    identity: int = 0
    starts_at: int | None = None
    mtime: int | None = None

    @property
    def is_file(self) -> bool:
        """Returns whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_executable(self) -> bool:
        """Returns whether somebody may execute it."""
        return self.is_file and bool(self.mode & 0o111)

    def read(self, max_bytes: int) -> bytes:
        """Returns the first bytes of its content, at most `max_bytes`."""
        return self.read_at(0, min(max_bytes, self.size_bytes))


def file_of(path: str, data: bytes, *, mode: int = 0o644) -> TreeFile:
    """Returns a regular file with this content."""
    return TreeFile(path, stat.S_IFREG | mode, len(data), read_at=lambda offset, length: data[offset : offset + length])


@dataclass(frozen=True, slots=True)
class FileTree:
    """All files, folders and links below a root, by path, in the order of their paths."""

    by_path: Mapping[str, TreeFile]

    @classmethod
    def of(cls, files: Iterator[TreeFile]) -> FileTree:
        """Returns the tree of some files."""
        return cls({one.path: one for one in sorted(files, key=lambda one: one.path.split("/"))})

    def __iter__(self) -> Iterator[TreeFile]:
        return iter(self.by_path.values())

    def find(self, path: str) -> TreeFile | None:
        """Returns what a path leads to from the root, symbolic links followed as the kernel does; None where it leads nowhere."""
        done: list[str] = []
        todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        links = 0
        while todo:
            part = todo.pop()
            if part == "..":
                done = done[:-1]
                continue
            there = self.by_path.get("/".join([*done, part]))
            if there is None:
                return None
            if not stat.S_ISLNK(there.mode):
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS or len(todo) > 4096:
                return None
            if there.target.startswith("/"):
                done = []
            todo += [step for step in reversed(there.target.split("/")) if step not in ("", ".")]
        return self.by_path.get("/".join(done)) if done else TreeFile("", stat.S_IFDIR | 0o755)

    def below(self, folder: str, suffix: str) -> tuple[TreeFile, ...]:
        """Returns the regular files directly in a folder (links to it followed) whose names end so."""
        place = self.find(folder)
        if place is None:
            return ()
        prefix = f"{place.path}/" if place.path else ""
        found = (one for path, one in self.by_path.items() if path.startswith(prefix) and "/" not in path[len(prefix) :])
        return tuple(one for one in found if one.is_file and one.path.endswith(suffix))

    def with_files(self, *files: TreeFile, without: tuple[str, ...] = ()) -> FileTree:
        """Returns a tree with some files in the place of those that were there, and some taken out."""
        changed = {**{path: one for path, one in self.by_path.items() if path not in without}, **{one.path: one for one in files}}
        return FileTree.of(iter(changed.values()))
