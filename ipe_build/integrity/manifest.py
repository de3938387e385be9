"""The fs-verity digests of a whole root filesystem: a JSON manifest, and IPE rules made from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.integrity.fsverity import FsVerityParameters, find_files, measure_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ipe_build.host import Host


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """A file: its path as the device sees it (absolute, from the root filesystem's top), size in bytes, digest."""

    path: str
    size_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """All regular files of a folder, sorted by path as bytes."""

    parameters: FsVerityParameters
    entries: tuple[ManifestEntry, ...]

    def to_value(self) -> dict[str, object]:
        """Returns the JSON value: the parameters, then `files` with path, size and digest."""
        parameters = self.parameters
        files = [{"path": entry.path, "size_bytes": entry.size_bytes, "digest": entry.digest.hex()} for entry in self.entries]
        return {"hash_name": parameters.hash_name, "block_size": parameters.block_size, "salt": parameters.salt.hex(), "files": files}

    def to_json(self) -> str:
        """Returns the manifest as text, the same for the same files."""
        import json

        return json.dumps(self.to_value(), indent=2, ensure_ascii=False)

    def rules(self, op: str = "EXECUTE") -> Iterator[str]:
        """Yields an IPE rule for each distinct digest, preceded by a comment that names a file which has it.

        Characters outside printable ASCII are replaced by `?` in the comment: a line break there would begin a rule.
        """
        seen: set[bytes] = set()
        for entry in self.entries:
            if entry.digest in seen:
                continue
            seen.add(entry.digest)
            yield "# " + "".join(letter if " " <= letter <= "~" else "?" for letter in entry.path)
            yield f"op={op} fsverity_digest={self.parameters.hash_name}:{entry.digest.hex()} action=ALLOW"


def make_manifest(folder: Path, parameters: FsVerityParameters, host: Host) -> Manifest:
    """Returns the manifest of the regular files below `folder`; names that are not UTF-8 are escaped with backslashes.

    Raises: InputError when a file cannot be read.
    """
    with host.progress.step(f"fsverity: measure {folder}"):
        paths = tuple(find_files(folder))
        files = measure_all(paths, parameters, host)
    return Manifest(
        parameters,
        tuple(
            ManifestEntry("/" + os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace"), file.size_bytes, file.digest)
            for path, file in zip(paths, files, strict=True)
        ),
    )
