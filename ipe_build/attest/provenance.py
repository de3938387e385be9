"""How an output folder was made: an in-toto statement with SLSA provenance over every file of it.

The statement says what a person may believe if they believe its signer: these bytes came from these inputs. It holds no time but
SOURCE_DATE_EPOCH, so the same build gives the same statement.

Source: in-toto Attestation Framework, spec/v1 (Statement); SLSA v1.0, Provenance (slsa.dev/provenance/v1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ipe_build.attest.manifest import Artefact, file_sha256, files_below, measure_folder
from ipe_build.errors import FormatError, InputError, VerificationError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:ipe-build:build:v1"
FILES_TYPE = "urn:ipe-build:files:v1"
"""The build type of a statement over named files, which another program (BitBake, say) put together."""
BUILDER = "urn:ipe-build:local"
FILE_NAME = "provenance.dsse.json"
NOT_SUBJECTS = (FILE_NAME, "evidence.json")
"""Files of an output folder that the statement does not name: itself, and what boots showed (times differ from run to run)."""


@dataclass(frozen=True, slots=True)
class Material:
    """Something that the build was made from: a name, where it lay (a URI, never a private key's), its SHA-256."""

    name: str
    uri: str
    sha256: bytes

    def to_json(self) -> dict[str, object]:
        """Returns an in-toto ResourceDescriptor."""
        return {"name": self.name, "uri": self.uri, "digest": {"sha256": self.sha256.hex()}}


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that took part: its name and the first line of what it says of its version."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """The statement's content. `kernel_release` may be empty: not known."""

    name: str
    tool_version: str
    source_date_epoch: int
    kernel_release: str
    subjects: tuple[Artefact, ...]
    materials: tuple[Material, ...]
    tools: tuple[Tool, ...]
    build_type: str = BUILD_TYPE
    builder: str = BUILDER

    def to_bytes(self) -> bytes:
        """Returns the statement: compact UTF-8 JSON with keys in a fixed order. These bytes are what the envelope signs."""
        return json.dumps(self._to_json(), separators=(",", ":"), ensure_ascii=False).encode()

    def _to_json(self) -> dict[str, object]:
        metadata = {}
        if self.source_date_epoch:
            metadata["finishedOn"] = datetime.fromtimestamp(self.source_date_epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        builder = {"id": self.builder, "version": {"ipe-build": self.tool_version} | {one.name: one.version for one in self.tools}}
        return {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": one.path, "digest": {"sha256": one.sha256.hex()}} for one in self.subjects],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {
                    "buildType": self.build_type,
                    "externalParameters": {"name": self.name, "source_date_epoch": self.source_date_epoch},
                    "internalParameters": {"kernel_release": self.kernel_release} if self.kernel_release else {},
                    "resolvedDependencies": [one.to_json() for one in self.materials],
                },
                "runDetails": {"builder": builder, "metadata": metadata},
            },
        }


def subjects_of(folder: Path, known: Sequence[Artefact] = ()) -> tuple[Artefact, ...]:
    """Returns every file of an output folder, except `NOT_SUBJECTS`; what is `known` is not read again."""
    return measure_folder(folder, NOT_SUBJECTS, known)


def named_subjects(folder: Path, names: Sequence[str]) -> tuple[Artefact, ...]:
    """Returns the named files of a folder (of a folder in it, every file), in the order of their names. Links count by what they lead to.

    Raises: InputError for a name that is neither, or leads out of the folder.
    """
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError("leads out of the folder", where=str(path))
        if path.is_dir():
            found.update((f"{Path(name).as_posix()}/{below}", file) for below, file in files_below(path))
        elif path.is_file():
            found[Path(name).as_posix()] = path
        else:
            raise InputError("is neither a file nor a folder", where=str(path))
    return tuple(Artefact(name, path.stat().st_size, file_sha256(path)) for name, path in sorted(found.items()))


def check_subjects(statement: bytes, folder: Path, where: str, *, others: bool = False) -> int:
    """Returns how many files the statement names; each lies in the folder with the digest it says. With `others` more may lie there.

    Raises: FormatError for another kind of statement; VerificationError naming every file that differs, is missing, or is not named.
    """
    wanted = _subjects(statement, where)
    problems = []
    for name, digest in wanted.items():
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{name} is missing")
        elif (got := file_sha256(path)) != digest:
            problems.append(f"{name} has SHA-256 {got.hex()}, the statement says {digest.hex()}")
    if not others:
        known = {*wanted, *NOT_SUBJECTS}
        problems += [f"{name} is not named by the statement" for name, _ in sorted(files_below(folder)) if name not in known]
    if problems:
        more = f", and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise VerificationError("; ".join(problems[:8]) + more, where=str(folder), hint="the folder is not what was signed")
    return len(wanted)


def _subjects(statement: bytes, where: str) -> dict[str, bytes]:
    """Returns the statement's subjects: name and SHA-256. Raises: FormatError."""
    try:
        value = json.loads(statement)
        if (value["_type"], value["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError(f"{value['_type']}, {value['predicateType']}")
        found = {str(one["name"]): bytes.fromhex(one["digest"]["sha256"]) for one in value["subject"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"wanted an in-toto statement with SLSA provenance: {error}", where=where) from error
    if not found:
        raise FormatError("names no files", where=where)
    return found


def describe_statement(statement: bytes) -> Sequence[str]:
    """Returns what a statement says of its materials, a line each, for people."""
    value = json.loads(statement)
    materials = value["predicate"]["buildDefinition"]["resolvedDependencies"]
    return tuple(f"{one['name']}: sha256:{one['digest']['sha256']}" for one in materials)
