"""A kernel source tree to build from: a tarball unpacked once into the cache, or a tree as it is."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError, ToolFailedError
from ipe_build.policy.versions import KernelVersion

if TYPE_CHECKING:
    from ipe_build.host import Host

_NEEDED = ("Makefile", "Kconfig", "scripts/kconfig/Makefile")
_UNPACKERS = {".xz": "xz", ".zst": "zstd"}
_CHUNK = 1 << 20
_UNPACK = ("tar", "--extract", "--strip-components=1", "--no-same-owner", "--no-same-permissions")


@dataclass(frozen=True, slots=True)
class SourceTree:
    """A clean kernel tree. `digest` changes when its files do: of a tarball its SHA-256, of a tree that of names, sizes and mtimes."""

    folder: Path
    digest: str
    version: KernelVersion


def source_tree(source: Path, host: Host) -> SourceTree:
    """Returns the tree at `source` (a folder, or a tarball: .tar, .tar.xz, .tar.gz, .tar.bz2, .tar.zst).

    Raises: InputError when it is not there, is no kernel source, or is a tree that was built in.
    """
    source = source.absolute()
    if source.is_dir():
        source = source.resolve()
        _check_tree(source, str(source))
        if (source / ".config").exists() or (source / "include/config").exists():
            raise InputError(
                "somebody built in this tree, so it cannot be built from elsewhere",
                where=str(source),
                hint=f"make -C {source} mrproper (removes its .config: keep a copy), or give the tarball",
            )
        return SourceTree(source, _tree_digest(source), kernel_version(source))
    if not source.is_file():
        raise InputError(
            "no such kernel source",
            where=str(source),
            hint="on Debian: apt-get install linux-source-6.12; or name another tree or tarball ([kernel] source)",
        )
    digest = _file_digest(source)
    if source.suffix in _UNPACKERS:
        host.tool(_UNPACKERS[source.suffix])

    def unpack(folder: Path) -> None:
        with host.progress.step(f"kernel: unpack {source.name}"):
            try:
                host.run([*_UNPACK, "--file", source, "--directory", folder])
            except ToolFailedError as error:
                said = error.message.splitlines()
                reason = said[min(1, len(said) - 1)].strip(" |")
                raise InputError(f"cannot be unpacked: {reason}", where=str(source), hint=error.hint) from error
        _check_tree(folder, str(source))

    folder = host.cache.entry("kernel-source", digest[:32], unpack).resolve()
    return SourceTree(folder, digest, kernel_version(folder))


def cache_key(*parts: str | bytes) -> str:
    """Returns 32 hex digits of SHA-256 over the parts, each preceded by its length (8 bytes, little-endian)."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


def kernel_version(tree: Path) -> KernelVersion:
    """Returns the version that the tree's Makefile says. Raises: InputError."""
    text = (tree / "Makefile").read_text("utf-8", "replace")[:4096]
    numbers = [re.search(rf"^{name} *= *(\d+)$", text, re.MULTILINE) for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    if numbers[0] is None or numbers[1] is None:
        raise InputError("its Makefile does not say VERSION and PATCHLEVEL", where=str(tree), hint="give the top folder of a kernel tree")
    return KernelVersion(int(numbers[0][1]), int(numbers[1][1]), int(numbers[2][1]) if numbers[2] else 0)


def _check_tree(folder: Path, where: str) -> None:
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise InputError(f"is no kernel source: it lacks {', '.join(missing)}", where=where, hint="give the top folder of a kernel tree")


def _file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _tree_digest(folder: Path) -> str:
    """Returns a digest over each file's name, size and mtime (an edit changes them; reading 80,000 files takes too long)."""
    digest = hashlib.sha256()
    for name, size, mtime in sorted(_files(folder)):
        digest.update(f"{name}\0{size}\0{mtime}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    stack = [str(folder)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != ".git":
                        stack.append(entry.path)
                else:
                    stat = entry.stat(follow_symlinks=False)
                    yield entry.path[len(str(folder)) :], stat.st_size, stat.st_mtime_ns
