"""The manifest: one JSON that binds every file of a build by its digest, and says what was built from what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipe_build.errors import FormatError, VerificationError

SCHEMA = "ipe-build/manifest/1"
FILE_NAME = "manifest.json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Artefact:
    """One file of the output folder: path relative to it, size, SHA-256 (32 bytes)."""

    path: str
    size_bytes: int
    sha256: bytes

    def to_json(self) -> dict[str, object]:
        """Returns JSON's values."""
        return {"path": self.path, "size": self.size_bytes, "sha256": self.sha256.hex()}


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """A policy of the image. `role` is boot or device; `signer` the SHA-256 of the certificate, None for the one in the kernel."""

    role: str
    name: str
    version: str
    sha256: bytes
    signer: bytes | None


@dataclass(frozen=True, slots=True)
class CertificateEntry:
    """A certificate that the kernel trusts, and what this build signed with its key (nothing for roots and spare keys)."""

    subject: str
    sha256: bytes
    signs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerityEntry:
    """The verity root: hash algorithm, root hash, salt, block sizes in bytes, how many data blocks."""

    algorithm: str
    root_hash: bytes
    salt: bytes
    data_block_size: int
    hash_block_size: int
    data_blocks: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that one build is."""

    name: str
    tool_version: str
    source_date_epoch: int
    configuration_sha256: bytes
    kernel_release: str
    verity: VerityEntry
    policies: tuple[PolicyEntry, ...]
    certificates: tuple[CertificateEntry, ...]
    artefacts: tuple[Artefact, ...]

    def to_json(self) -> dict[str, object]:
        """Returns JSON's values, keys in a fixed order; digests are lower-case hex."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "tool": {"name": "ipe-build", "version": self.tool_version},
            "source_date_epoch": self.source_date_epoch,
            "configuration": {"sha256": self.configuration_sha256.hex()},
            "kernel": {"release": self.kernel_release},
            "verity": {
                "algorithm": self.verity.algorithm,
                "root_hash": self.verity.root_hash.hex(),
                "salt": self.verity.salt.hex(),
                "data_block_size": self.verity.data_block_size,
                "hash_block_size": self.verity.hash_block_size,
                "data_blocks": self.verity.data_blocks,
            },
            "policies": [
                {
                    "role": one.role,
                    "name": one.name,
                    "version": one.version,
                    "sha256": one.sha256.hex(),
                    "signer": one.signer.hex() if one.signer else None,
                }
                for one in self.policies
            ],
            "certificates": [{"subject": one.subject, "sha256": one.sha256.hex(), "signs": list(one.signs)} for one in self.certificates],
            "artefacts": [one.to_json() for one in self.artefacts],
        }

    def to_bytes(self) -> bytes:
        """Returns the file's bytes: indented UTF-8 JSON and a newline."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False).encode() + b"\n"


def measure_folder(folder: Path, leave_out: Sequence[str] = (FILE_NAME,), known: Sequence[Artefact] = ()) -> tuple[Artefact, ...]:
    """Returns all ordinary files below `folder` in the order of their paths, except those left out.

    What is `known` (and has not changed since it was measured) is not read again.
    """
    before = {one.path: one for one in known}
    return tuple(
        before.get(name) or Artefact(name, path.stat().st_size, file_sha256(path))
        for name, path in sorted(files_below(folder))
        if name not in leave_out
    )


def verify_folder(folder: Path) -> None:
    """Compares every file that the folder's manifest names with its digest.

    Raises: FormatError when there is no manifest of ours; VerificationError naming the first file that is missing or differs.
    """
    place = folder / FILE_NAME
    try:
        value = json.loads(place.read_bytes())
        wanted = [(str(one["path"]), bytes.fromhex(one["sha256"])) for one in value["artefacts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"wanted a manifest of ipe-build: {error}", where=str(place)) from error
    for name, digest in wanted:
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise VerificationError("is named by the manifest and missing", where=str(path))
        got = file_sha256(path)
        if got != digest:
            raise VerificationError(f"wanted SHA-256 {digest.hex()}, got {got.hex()}", where=str(path), hint="the file was changed")


def file_sha256(path: Path) -> bytes:
    """Returns SHA-256 of a file's content (32 bytes), read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.digest()


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields name (relative, with slashes) and path of each ordinary file below a folder."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(folder).as_posix(), path
