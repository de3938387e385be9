"""`ipe-build fsverity`: digests of files as the kernel measures them, manifests of folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.errors import UsageError
from ipe_build.integrity.fsverity import FsVerityFile, FsVerityParameters

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    digest = actions.add_parser("digest", help="print the fs-verity digests of files", description="Print the fs-verity digests of files.")
    digest.add_argument("files", type=Path, nargs="+", metavar="FILE")
    digest.add_argument("--compact", action="store_true", help="only the digests, without algorithm and file name")
    manifest = actions.add_parser(
        "manifest", help="the digests of a whole folder as JSON", description="The digests of all regular files below a folder."
    )
    manifest.add_argument("folder", type=Path, metavar="DIR")
    manifest.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the manifest to FILE")
    manifest.add_argument("--rules", action="store_true", help="print IPE rules (fsverity_digest=) instead")
    manifest.add_argument("--force", action="store_true", help="replace FILE when it exists")
    for sub in (digest, manifest):
        sub.add_argument("--hash-alg", "--hash", dest="hash_name", default="sha256", metavar="NAME", help="sha256 (default) or sha512")
        sub.add_argument("--block-size", type=int, default=4096, metavar="BYTES", help="1024 to 65536 (default: 4096)")
        sub.add_argument("--salt", default="", metavar="HEX", help="salt of up to 32 bytes (default: none)")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns the outcome of the sub-verb."""
    actions = {"digest": _digest, "manifest": _manifest}
    return actions[arguments.action](arguments, host)


def _parameters(arguments: argparse.Namespace) -> FsVerityParameters:
    """Returns what the options say. Raises: UsageError, InputError."""
    try:
        salt = bytes.fromhex(arguments.salt)
    except ValueError:
        raise UsageError(f"wanted an even number of hex digits, got {arguments.salt!r}", where="--salt") from None
    return FsVerityParameters(arguments.hash_name, arguments.block_size, salt)


def _digest(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.integrity.fsverity import measure_all

    files = measure_all(arguments.files, _parameters(arguments), host)
    lines = [file.digest.hex() if arguments.compact else f"{file.parameters.hash_name}:{file.digest.hex()} {file.path}" for file in files]
    return Outcome([_value(file) for file in files], "\n".join(lines))


def _value(file: FsVerityFile) -> dict[str, object]:
    """Returns a measured file for --json."""
    return {
        "file": str(file.path),
        "hash_name": file.parameters.hash_name,
        "digest": file.digest.hex(),
        "size_bytes": file.descriptor.data_size,
    }


def _manifest(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.integrity.manifest import make_manifest

    manifest = make_manifest(arguments.folder, _parameters(arguments), host)
    text = "\n".join(manifest.rules()) if arguments.rules else manifest.to_json()
    if arguments.output is not None:
        with host.output(arguments.output, force=arguments.force) as temporary:
            temporary.write_text(text + "\n", "utf-8")
        return Outcome(manifest.to_value(), f"{arguments.output}: {len(manifest.entries)} files")
    return Outcome(manifest.to_value(), text)
