"""`ipe-build image uki`: kernel, initramfs and command line in one EFI program, signed where a key is given."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.errors import InputError, UsageError
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.formats.pe import PeImage, authenticode_digest, parse_pe
from ipe_build.image.uki import UkiRequest, build_uki
from ipe_build.signing.algorithms import HASHES
from ipe_build.signing.backends import BACKENDS, open_signer
from ipe_build.signing.efi_image import sign_image

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--kernel", type=Path, required=True, metavar="FILE", help="a kernel with an EFI stub: bzImage, arm64 Image")
    parser.add_argument("--initramfs", type=Path, action="append", default=[], metavar="FILE", help="several are joined in this order")
    parser.add_argument("--command-line", default="", metavar="TEXT", help="the kernel's command line; nothing else may be added at boot")
    parser.add_argument("--os-release", type=Path, metavar="FILE", help="what the system is (section .osrel)")
    parser.add_argument("--uname", metavar="RELEASE", help="default: what the kernel's own header says (bzImage)")
    parser.add_argument("--sbat", type=Path, metavar="FILE", help="SBAT lines that are added to the stub's")
    parser.add_argument("--dtb", type=Path, metavar="FILE", help="a device tree")
    parser.add_argument("--splash", type=Path, metavar="BMP", help="a picture")
    parser.add_argument("--pcr-public-key", type=Path, metavar="PEM", help="section .pcrpkey")
    parser.add_argument("--pcr-signature", type=Path, metavar="JSON", help="section .pcrsig")
    parser.add_argument("--section", action="append", default=[], metavar="NAME=FILE", help="one more section")
    parser.add_argument("--stub", type=Path, metavar="FILE", help="default: the one that systemd-boot-efi installs")
    parser.add_argument("--architecture", choices=list(PARTITION_TYPES), default="x86-64", help="default: x86-64")
    keys = ", ".join(row.example for row in BACKENDS).replace("%", "%%")
    parser.add_argument("--key", metavar="URI", help=f"sign it for Secure Boot: one of {keys}")
    parser.add_argument("--cert", type=Path, metavar="PEM", help="the key's certificate")
    parser.add_argument("--digest", choices=list(HASHES), help="default: what suits the key")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns what was made."""
    if (arguments.key is None) != (arguments.cert is None):
        raise UsageError("--key and --cert belong together", where="image uki")
    made = build_uki(
        UkiRequest(
            kernel=arguments.kernel,
            initrds=tuple(arguments.initramfs),
            command_line=arguments.command_line,
            architecture=arguments.architecture,
            stub=arguments.stub,
            os_release=_read(arguments.os_release),
            uname=arguments.uname,
            sbat=_read(arguments.sbat).decode("utf-8", "replace"),
            dtb=arguments.dtb,
            splash=arguments.splash,
            pcr_public_key=arguments.pcr_public_key,
            pcr_signature=arguments.pcr_signature,
            extra=tuple(_section(text) for text in arguments.section),
        )
    )
    if arguments.key is not None:
        made = sign_image(made, open_signer(arguments.key, arguments.cert, host), arguments.digest)
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_bytes(made)
    image = parse_pe(made, str(arguments.output))
    return Outcome(_value(arguments.output, image), _text(arguments.output, image))


def _value(path: Path, image: PeImage) -> dict[str, object]:
    """Returns the image's facts for --json."""
    return {
        "path": str(path),
        "size_bytes": len(image.data),
        "architecture": image.architecture,
        "signed": image.is_signed,
        "authenticode_sha256": authenticode_digest(image.data).hex(),
        "sections": [
            {
                "name": section.name,
                "address": section.virtual_address,
                "size_bytes": section.virtual_size,
                "offset_bytes": section.raw_offset,
            }
            for section in image.sections
        ],
    }


def _text(path: Path, image: PeImage) -> str:
    """Returns the image's facts as a table."""
    lines = [f"{path}: {len(image.data)} bytes, {'signed' if image.is_signed else 'not signed'}"]
    rows = [f"  {section.virtual_address:>#12x} {section.virtual_size:>12}  {section.name}" for section in image.sections]
    return "\n".join([*lines, *rows])


def _section(text: str) -> tuple[str, Path]:
    """Returns the section that `NAME=FILE` adds. Raises: UsageError."""
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise UsageError(f"wanted NAME=FILE, got {text!r}", where="--section")
    return name, Path(file)


def _read(path: Path | None) -> bytes:
    """Returns a file's content, nothing for None. Raises: InputError."""
    try:
        return path.read_bytes() if path is not None else b""
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
