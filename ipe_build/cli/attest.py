"""`ipe-build attest measure | verify | statement | snp | manifest`: what a build consists of, for somebody who verifies it."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.attest.manifest import FILE_NAME, verify_folder
from ipe_build.cli import Outcome, attest_measure, attest_snp, attest_statement, attest_verify
from ipe_build.host import Host

_ACTIONS = {"measure": attest_measure, "verify": attest_verify, "statement": attest_statement, "snp": attest_snp}


def configure(parser: ArgumentParser) -> None:
    """Adds the sub-verbs."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for module in _ACTIONS.values():
        module.configure(verbs)
    manifest = verbs.add_parser("manifest", help="compare every file of a build's output with its manifest")
    manifest.add_argument("folder", type=Path, metavar="DIR", help="the output folder of ipe-build build")


def run(arguments: Namespace, host: Host) -> Outcome:
    """Runs the sub-verb."""
    module = _ACTIONS.get(arguments.action)
    return module.run(arguments, host) if module is not None else _manifest(arguments)


def _manifest(arguments: Namespace) -> Outcome:
    """Verifies; raises VerificationError (status 1) for the first file that is missing or differs."""
    verify_folder(arguments.folder)
    value = json.loads((arguments.folder / FILE_NAME).read_bytes())
    return Outcome(
        value, f"{arguments.folder}: {len(value['artefacts'])} files are what the manifest says, root hash {value['verity']['root_hash']}"
    )
