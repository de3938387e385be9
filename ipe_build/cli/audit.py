"""`ipe-build audit`: would this image boot, would it enforce, and why. Nothing is run."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.errors import ExitStatus, UsageError
from ipe_build.host import Host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipe_build.audit.findings import AuditReport
    from ipe_build.audit.portrait import Portrait
    from ipe_build.policy.ledger import Ledger


def configure(parser: ArgumentParser) -> None:
    """Adds the verb's words to its parser."""
    parser.add_argument(
        "image",
        nargs="*",
        type=Path,
        metavar="IMAGE|PART",
        help="a disk image, or its parts: root, hash tree, signature, ESP, kernel, initramfs, UKI",
    )
    parser.add_argument("--kernel", type=Path, help="the kernel that will start it, instead of the one that its boot entry names")
    parser.add_argument("--initramfs", type=Path, action="append", default=[], help="likewise the initramfs; several follow each other")
    parser.add_argument("--command-line", metavar="WORDS", help="likewise the kernel's command line")
    parser.add_argument("--db", type=Path, action="append", default=[], metavar="CERT", help="certificates in firmware's db (PEM, DER)")
    parser.add_argument("--kernel-config", type=Path, metavar="FILE", help="the .config of a kernel that does not carry it")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="versions of policies that went out: none may come again or be older")
    parser.add_argument("--html", type=Path, metavar="REPORT", help="also write one page for people that needs no network")
    parser.add_argument("--sarif", type=Path, metavar="OUT", help="also write what did not pass as SARIF 2.1.0, for CI systems")
    parser.add_argument("--findings", type=Path, metavar="FILE", help="also write what --json prints")
    parser.add_argument("--force", action="store_true", help="replace REPORT, OUT and FILE when they exist")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of what --json prints, and audit nothing")


def run(arguments: Namespace, host: Host) -> Outcome:
    """Audits, writes the reports asked for, and returns the findings; status 1 when one of severity error failed."""
    import json

    from ipe_build.audit.report import render_text

    if arguments.schema:
        from ipe_build.audit.schema import report_schema

        schema = report_schema()
        return Outcome(schema, json.dumps(schema, indent=2))
    if not arguments.image and arguments.kernel is None:
        raise UsageError("wanted an IMAGE to audit, or --schema", where="ipe-build audit")
    images = arguments.image or [arguments.kernel]
    outputs = [path for path in (arguments.html, arguments.sarif, arguments.findings) if path is not None]
    with host.outputs(*outputs, force=arguments.force) as temporaries:
        report, portrait = _audited(images, arguments, host)
        texts = []
        if arguments.html is not None:
            from ipe_build.audit.html import render_html

            with host.progress.step("draw the report"):
                texts.append(render_html(report, portrait))
        if arguments.sarif is not None:
            from ipe_build.audit.sarif import sarif_value

            texts.append(json.dumps(sarif_value(report, images[0]), indent=2) + "\n")
        if arguments.findings is not None:
            texts.append(json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
        for temporary, text in zip(temporaries, texts, strict=True):
            temporary.write_text(text, encoding="utf-8")
    return Outcome(report.to_json(), render_text(report), ExitStatus.FINDING if report.failed else ExitStatus.OK)


def _audited(images: Sequence[Path], arguments: Namespace, host: Host) -> tuple[AuditReport, Portrait]:
    """Returns the report on the images that the options describe, and what the map in it is drawn from."""
    from ipe_build.formats.dotconfig import parse_dotconfig
    from ipe_build.pipeline import audit_image
    from ipe_build.signing.loading import load_certificates

    config = arguments.kernel_config
    return audit_image(
        images,
        host,
        kernel=arguments.kernel,
        initramfs=arguments.initramfs,
        command_line=arguments.command_line,
        db=tuple(one for path in arguments.db for one in load_certificates(path)),
        config=parse_dotconfig(config.read_bytes(), where=str(config)) if config is not None else None,
        ledger=_ledger(arguments.ledger),
    )


def _ledger(path: Path | None) -> Ledger | None:
    """Returns the ledger named; a file that is not there is no empty ledger. Raises: InputError."""
    from ipe_build.cli.policy_common import existing_ledger

    return existing_ledger(path) if path is not None else None
