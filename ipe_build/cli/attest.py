"""`ipe-build attest manifest`: does an output folder still hold exactly what its manifest says."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.attest.manifest import FILE_NAME, verify_folder
from ipe_build.cli import Outcome
from ipe_build.host import Host


def configure(parser: ArgumentParser) -> None:
    """Adds the sub-verbs."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    manifest = verbs.add_parser("manifest", help="compare every file of a build's output with its manifest")
    manifest.add_argument("folder", type=Path, metavar="DIR", help="the output folder of ipe-build build")


def run(arguments: Namespace, host: Host) -> Outcome:
    """Verifies; raises VerificationError (status 1) for the first file that is missing or differs."""
    verify_folder(arguments.folder)
    value = json.loads((arguments.folder / FILE_NAME).read_bytes())
    return Outcome(
        value, f"{arguments.folder}: {len(value['artefacts'])} files are what the manifest says, root hash {value['verity']['root_hash']}"
    )
