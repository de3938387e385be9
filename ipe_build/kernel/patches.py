"""Patches of the kernel's source: applied to a copy of the tree. Those that touch security/ipe alone need no whole compilation."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ipe_build.errors import InputError, ToolFailedError
from ipe_build.kernel.source import SourceTree, cache_key

if TYPE_CHECKING:
    from ipe_build.host import Host

_TOUCHED = re.compile(r"^(?:---|\+\+\+) (?:[ab]/(?P<path>[^\t\n]+)|(?P<none>/dev/null))", re.MULTILINE)
_LATE = ("security/ipe",)
"""Folders whose C files and headers are used nowhere else: with only these changed, a link compiles them and nothing more."""
_LATE_SUFFIXES = (".c", ".h")


def touched(patches: tuple[Path, ...]) -> tuple[str, ...]:
    """Returns the files that patches change, below the top of the tree, sorted.

    Raises: InputError when one cannot be read, changes nothing, or names a file outside the tree.
    """
    found: set[str] = set()
    for patch in patches:
        names = {row["path"] for row in _TOUCHED.finditer(_text(patch)) if row["path"]}
        if not names:
            raise InputError("changes no file: wanted a unified diff with a/ and b/ before the paths", where=str(patch))
        if any(".." in PurePosixPath(name).parts for name in names):
            raise InputError("names a file outside the tree", where=str(patch))
        found |= names
    return tuple(sorted(found))


def are_late(patches: tuple[Path, ...]) -> bool:
    """Returns whether these patches may be applied when the kernel is linked: no new or removed file, nothing outside security/ipe."""
    inside = all(str(PurePosixPath(name).parent) in _LATE and name.endswith(_LATE_SUFFIXES) for name in touched(patches))
    return inside and not any(row["none"] for patch in patches for row in _TOUCHED.finditer(_text(patch)))


def patches_digest(patches: tuple[Path, ...]) -> str:
    """Returns hex that changes when a patch or their order changes; empty without patches."""
    return cache_key(*(_text(patch) for patch in patches)) if patches else ""


def patched_tree(tree: SourceTree, patches: tuple[Path, ...], host: Host) -> SourceTree:
    """Returns the tree with the patches applied in order, exactly as they are (no fuzz): a copy in the cache; times of files stay.

    Raises: InputError when one does not apply.
    """
    names = touched(patches)
    digest = cache_key(tree.digest, patches_digest(patches))

    def make(folder: Path) -> None:
        with host.progress.step(f"kernel: patch the source ({', '.join(patch.name for patch in patches)})"):
            copy = folder / "tree"
            ours = host.cache.root in tree.folder.parents
            shutil.copytree(tree.folder, copy, symlinks=True, copy_function=_link_or_copy if ours else shutil.copy2)
            for name in names:
                _own(copy / name)
            for patch in patches:
                _apply(patch, copy, host)

    return replace(tree, folder=host.cache.entry("kernel-source-patched", digest, make) / "tree", digest=digest)


def _apply(patch: Path, tree: Path, host: Host) -> None:
    words: list[str | Path] = [
        "patch",
        "-p1",
        "--forward",
        "--fuzz=0",
        "--batch",
        "--no-backup-if-mismatch",
        "-d",
        tree,
        "-i",
        patch.absolute(),
    ]
    try:
        host.run(words)
    except ToolFailedError as error:
        raise InputError("does not apply to this kernel", where=str(patch), hint=f"{error.message}; is it for another version?") from None


def _link_or_copy(source: str, target: str) -> str:
    """Links a file of a tree in the cache, which nobody writes to (a user may edit a tree of their own); copies where links fail."""
    with contextlib.suppress(OSError):
        os.link(source, target, follow_symlinks=False)
        return target
    return shutil.copy2(source, target, follow_symlinks=False)


def _own(path: Path) -> None:
    """Gives the copy its own file in place of the link, so that the original stays as it is."""
    if path.is_file():
        data, status = path.read_bytes(), path.stat()
        path.unlink()
        path.write_bytes(data)
        path.chmod(status.st_mode)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _text(patch: Path) -> str:
    try:
        return patch.read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(patch), hint="[kernel] patches") from error
