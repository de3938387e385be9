"""A build that waits for signatures from elsewhere keeps its root filesystem and hash tree; the next run takes them as they are.

They lie in OUTPUT.unfinished with the key of everything they follow from. When that changed meanwhile, they are made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from ipe_build import __version__
from ipe_build.config.schema import Config
from ipe_build.errors import IpeBuildError
from ipe_build.host import Host
from ipe_build.host.cache import cache_key
from ipe_build.image.filesystem import FilesystemImage, FilesystemType
from ipe_build.image.rootfs import Entry
from ipe_build.integrity.verity import VerityTree, read_superblock
from ipe_build.steps.root import VerityRoot

MARKER = "unfinished.json"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The place beside an output folder where an unfinished build's root lies."""

    folder: Path

    @classmethod
    def of(cls, output: Path) -> Unfinished:
        """Returns the place for an output folder."""
        return cls(output.with_name(f"{output.name}.unfinished"))

    def keep(self, key: str, root: VerityRoot, host: Host) -> None:
        """Moves the root's image and hash tree here, in place of what was here. Raises: OutputError."""
        state = {
            "key": key,
            "image": root.filesystem.path.name,
            "filesystem": root.filesystem.filesystem.value,
            "size_bytes": root.filesystem.size_bytes,
            "entries": root.filesystem.entries,
            "hash_area": root.hash_area.name,
            "root_hash": root.tree.root_hash.hex(),
        }
        with host.output_directory(self.folder, marker=MARKER) as folder:
            for path in (root.filesystem.path, root.hash_area):
                shutil.move(path, folder / path.name)
            (folder / MARKER).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")

    def take(self, key: str, image: Path) -> VerityRoot | None:
        """Returns the root that was kept under this key, moved to `image`; None when there is none or it follows from something else."""
        try:
            state = json.loads((self.folder / MARKER).read_text(encoding="utf-8"))
            if state["key"] != key or state["image"] != image.name or (self.folder / image.name).stat().st_size != state["size_bytes"]:
                return None
            filesystem = FilesystemImage(image, FilesystemType(state["filesystem"]), state["size_bytes"], state["entries"])
            hash_area = image.with_name(state["hash_area"])
            tree: VerityTree = replace(read_superblock(self.folder / hash_area.name), root_hash=bytes.fromhex(state["root_hash"]))
        except (OSError, ValueError, KeyError, TypeError, IpeBuildError):
            return None
        for path in (image, hash_area):
            os.replace(self.folder / path.name, path)
        (self.folder / MARKER).unlink()
        return VerityRoot(filesystem, hash_area, tree)

    def forget(self) -> None:
        """Removes what was kept: the build is finished."""
        if (self.folder / MARKER).is_file() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            shutil.rmtree(self.folder)


def root_key(config: Config, more: Iterable[Entry], host: Host, signed_by: tuple[str, ...] = ()) -> str:
    """Returns a digest of all that the root filesystem and its tree follow from.

    That is the configuration, the source's files as their status says (size, times, mode, owner), the content of what is added, and
    who signs the files.
    """
    section = config.rootfs
    parts = [__version__, config.build.name, str(host.source_date_epoch), repr(section), repr(config.verity), *signed_by]
    parts += [_status(path) for place in (section.source, *(one.source for one in section.file)) for path in _walk(place.resolve())]
    for entry in more:
        content = entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content
        assert isinstance(content, bytes)
        parts.append(repr(replace(entry, content=sha256(content).digest())))
    return cache_key(*parts)


def _walk(place: Path) -> Iterator[Path]:
    """Yields the path and everything below it, sorted; symbolic links are not followed."""
    yield place
    if place.is_dir() and not place.is_symlink():
        for child in sorted(place.iterdir()):
            yield from _walk(child)


def _status(path: Path) -> str:
    """Returns what changes when a file does."""
    status = path.lstat()
    return f"{path} {status.st_mode} {status.st_uid} {status.st_gid} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
