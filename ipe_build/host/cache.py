"""The user's cache: expensive things, each in a folder named by a digest of all it depends on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


def cache_key(*parts: str | bytes) -> str:
    """Returns 32 hex digits of SHA-256 over the parts, each preceded by its length (so no two lists of parts collide)."""
    import hashlib

    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of `kind/key/` entries. Safe between processes: a lock per entry; an entry is whole or absent."""

    root: Path

    @classmethod
    def of_environment(cls, env: Mapping[str, str]) -> Cache:
        """Returns the cache at `$IPE_BUILD_CACHE`, else `$XDG_CACHE_HOME/ipe-build`, else `~/.cache/ipe-build`."""
        named = env.get("IPE_BUILD_CACHE")
        if named:
            return cls(Path(named))
        base = env.get("XDG_CACHE_HOME")
        return cls((Path(base) if base else Path(env.get("HOME", "/root")) / ".cache") / "ipe-build")

    def entry(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """Returns the folder `kind/key`, which `make` fills (given an empty folder beside it) if it is not there yet."""
        place = self.root / kind / key
        with self.lock(kind, key):
            if not place.is_dir():
                temporary = place.with_name(f".{key}.{os.urandom(4).hex()}.tmp")
                temporary.mkdir()
                try:
                    make(temporary)
                    os.rename(temporary, place)
                finally:
                    import shutil

                    shutil.rmtree(temporary, ignore_errors=True)
        return place

    @contextmanager
    def lock(self, kind: str, key: str) -> Iterator[Path]:
        """Yields the path of entry `kind/key` (it may not exist) while no other process holds the same lock."""
        folder = self.root / kind
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{key}.lock").open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield folder / key
