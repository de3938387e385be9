"""`ipe-build build`: the whole flow, from a root filesystem to an image that was booted and proven."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.cli import Outcome
from ipe_build.config import load_config
from ipe_build.errors import ExitStatus
from ipe_build.host import Host


def configure(parser: ArgumentParser) -> None:
    """Adds the verb's words to its parser."""
    parser.add_argument("-c", "--config", type=Path, default=Path("ipe-build.toml"), help="the configuration (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/image"), help="output folder (default: %(default)s)")
    parser.add_argument("--no-boot", action="store_true", help="stop before the boots: nothing is proven by running it")


def run(arguments: Namespace, host: Host) -> Outcome:
    """Builds, and returns where everything is, the audit's summary and the table of probes."""
    from ipe_build.pipeline import build

    result = build(load_config(arguments.config), arguments.config, arguments.output, host, prove_it=not arguments.no_boot)
    return Outcome(result.to_json(), result.to_text(), ExitStatus.OK if result.ok else ExitStatus.FINDING)
