"""`ipe-build audit`: would this image boot, would it enforce, and why. Nothing is run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.cli import Outcome
from ipe_build.errors import ExitStatus
from ipe_build.host import Host


def configure(parser: ArgumentParser) -> None:
    """Adds the verb's words to its parser."""
    parser.add_argument("image", type=Path, help="a disk image")
    parser.add_argument("--kernel", type=Path, help="the kernel that will start it, instead of the one that its boot entry names")


def run(arguments: Namespace, host: Host) -> Outcome:
    """Audits, and returns the findings; status 1 when one of severity error failed."""
    from ipe_build.audit.report import render_text
    from ipe_build.pipeline import audit_image

    report = audit_image(arguments.image, host, kernel=arguments.kernel)
    return Outcome(report.to_json(), render_text(report), ExitStatus.FINDING if report.failed else ExitStatus.OK)
