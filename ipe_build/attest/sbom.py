"""A bill of materials of an output folder: CycloneDX 1.6 with every file's digest, the kernel, and the root filesystem's packages.

Source: CycloneDX specification 1.6 (ECMA-424), bom-1.6.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from uuid import NAMESPACE_URL, uuid5

from ipe_build.attest.manifest import Artefact
from ipe_build.attest.provenance import Material

FILE_NAME = "sbom.cdx.json"


@dataclass(frozen=True, slots=True)
class Package:
    """A package of the root filesystem. `kind` is the package URL's type, `vendor` its namespace (the distribution's ID in os-release)."""

    kind: str
    vendor: str
    name: str
    version: str
    architecture: str

    @property
    def url(self) -> str:
        """Returns the package URL (purl)."""
        arch = f"?arch={_quoted(self.architecture)}" if self.architecture else ""
        return f"pkg:{self.kind}/{_quoted(self.vendor)}/{_quoted(self.name)}@{_quoted(self.version)}{arch}"


def make_sbom(
    name: str,
    tool_version: str,
    source_date_epoch: int,
    kernel_release: str,
    artefacts: Sequence[Artefact],
    materials: Sequence[Material],
    packages: Iterable[Package] = (),
) -> bytes:
    """Returns the bill of materials: indented UTF-8 JSON and a newline. Its serial number follows from what is in it."""
    components = [*_kernel(kernel_release, artefacts), *(_file(one) for one in artefacts), *(_material(one) for one in materials)]
    components += [_package(one) for one in sorted(set(packages), key=lambda one: one.url)]
    serial = uuid5(NAMESPACE_URL, json.dumps([name, source_date_epoch, components], sort_keys=True))
    metadata: dict[str, object] = {
        "tools": {"components": [{"type": "application", "name": "ipe-build", "version": tool_version}]},
        "component": {"type": "firmware", "bom-ref": "image", "name": name},
    }
    if source_date_epoch:
        metadata = {"timestamp": datetime.fromtimestamp(source_date_epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")} | metadata
    value = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": [{"ref": "image", "dependsOn": [str(one["bom-ref"]) for one in components]}],
    }
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


DATABASES = {"var/lib/dpkg/status": "deb", "lib/apk/db/installed": "apk", "var/lib/opkg/status": "opkg", "usr/lib/opkg/status": "opkg"}
"""Where package managers keep what is installed, below the root; and whose it is."""
OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
_FIELDS = {"Package": "name", "P": "name", "Version": "version", "V": "version", "Architecture": "arch", "A": "arch", "Status": "status"}


def read_packages(files: dict[str, bytes]) -> tuple[Package, ...]:
    """Returns the packages that a root filesystem names. `files` are those of `DATABASES` and `OS_RELEASE` that are there, by path."""
    release = next((files[path] for path in OS_RELEASE if path in files), b"").decode("utf-8", "replace")
    ids = [line.removeprefix("ID=").strip("\"' ") for line in release.splitlines() if line.startswith("ID=")]
    found: list[Package] = []
    for path, kind in DATABASES.items():
        if path in files:
            found += _paragraphs(files[path], kind, ids[0] if ids and ids[0] else "unknown")
    return tuple(found)


def _paragraphs(data: bytes, kind: str, vendor: str) -> Iterator[Package]:
    """Yields the packages of a database: paragraphs of `Field: value` lines. Removed ones whose configuration is left do not count."""
    for paragraph in data.decode("utf-8", "replace").split("\n\n"):
        fields: dict[str, str] = {}
        for line in paragraph.splitlines():
            key, colon, value = line.partition(":")
            if colon and key in _FIELDS and not line.startswith((" ", "\t")):
                fields.setdefault(_FIELDS[key], value.strip())
        installed = kind == "apk" or fields.get("status", "installed").split()[-1:] == ["installed"]
        if installed and fields.get("name") and fields.get("version"):
            yield Package(kind, vendor, fields["name"], fields["version"], fields.get("arch", ""))


def _kernel(release: str, artefacts: Sequence[Artefact]) -> list[dict[str, object]]:
    """Returns the kernel as a component; its file's digest when the folder has it."""
    kernel = next((one for one in artefacts if one.path == "vmlinuz"), None)
    hashed = {"hashes": _hashes(kernel.sha256)} if kernel is not None else {}
    return [{"type": "operating-system", "bom-ref": "kernel", "name": "linux", "version": release, **hashed}]


def _file(one: Artefact) -> dict[str, object]:
    return {"type": "file", "bom-ref": f"file:{one.path}", "name": one.path, "hashes": _hashes(one.sha256)}


def _material(one: Material) -> dict[str, object]:
    kind = "file" if PurePosixPath(one.uri).suffix else "data"
    return {"type": kind, "bom-ref": f"material:{one.name}", "name": one.name, "description": one.uri, "hashes": _hashes(one.sha256)}


def _package(one: Package) -> dict[str, object]:
    return {"type": "library", "bom-ref": one.url, "name": one.name, "version": one.version, "purl": one.url}


def _hashes(sha256: bytes) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256.hex()}]


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")
