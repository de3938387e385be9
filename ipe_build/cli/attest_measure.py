"""`ipe-build attest measure`: what a machine that boots an image measures."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import in_image, write_all
from ipe_build.errors import UsageError
from ipe_build.formats.tpm_event_log import parse_event_log
from ipe_build.steps.attest import FirmwareState, measure_image

if TYPE_CHECKING:
    from ipe_build.attest.reference import ReferenceValues
    from ipe_build.host import Host


def configure(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the sub-verb."""
    measure = verbs.add_parser("measure", help="the PCRs and events that a boot of an image must lead to (reference values)")
    measure.add_argument("image", type=Path, metavar="IMAGE", help="a disk image, or a UKI that firmware starts itself")
    state = measure.add_mutually_exclusive_group()
    state.add_argument("--variables", type=Path, metavar="FILE", help="the firmware's variables (OVMF_VARS.fd): Secure Boot's keys")
    state.add_argument("--reference-log", type=Path, metavar="LOG", help="event log of a device known to be good, for PCR 7")
    measure.add_argument("--entry", default="", metavar="NAME", help="the boot entry's file name, of an image with several")
    measure.add_argument("-o", "--output", type=Path, metavar="OUT.json", help="write the reference values")
    measure.add_argument("--pcrlock", type=Path, metavar="OUT", help="write them for systemd-pcrlock")
    measure.add_argument("--corim", type=Path, metavar="OUT", help="write them as CoRIM (experimental: a draft)")
    measure.add_argument("--force", action="store_true", help="replace outputs that exist")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns the reference values, and writes the files that were asked for."""
    with in_image(arguments.image):
        values = measure_image(arguments.image, firmware=_firmware(arguments), entry=arguments.entry)
    wanted = ((arguments.output, values.to_bytes), (arguments.pcrlock, values.to_pcrlock), (arguments.corim, partial(_corim, values)))
    write_all([(path, content()) for path, content in wanted if path is not None], host, force=arguments.force)
    return Outcome(values.to_json(), _text(values))


def _firmware(arguments: argparse.Namespace) -> FirmwareState | None:
    """Returns what gives Secure Boot's state; None when nothing was said of it."""
    from ipe_build.attest.secure_boot import of_event_log, read_variable_store

    if arguments.variables is not None:
        return partial(read_variable_store, arguments.variables)
    if arguments.reference_log is not None:
        state = of_event_log(parse_event_log(arguments.reference_log.read_bytes(), str(arguments.reference_log)))
        return lambda _programs: state
    return None


def _corim(values: ReferenceValues) -> bytes:
    """Returns the CoRIM; its identity is made of the image's digest."""
    from ipe_build.formats.corim import encode_corim

    if not values.image_sha256:
        raise UsageError("a CoRIM needs the image's digest")
    return encode_corim(f"ipe-build:sha256:{values.image_sha256.hex()}", "ipe-build", values.image, values.pcrs)


def _text(values: ReferenceValues) -> str:
    """Returns what a person reads: how it boots, the PCRs, the events."""
    lines = [f"{values.image}: {values.boots}; Secure Boot is {'on' if values.secure_boot else 'off'}", ""]
    for bank, pcrs in values.pcrs.items():
        lines += [f"{bank}  PCR {pcr:>2}  {digest.hex()}{'' if any(digest) else '  (must stay zero)'}" for pcr, digest in pcrs.items()]
    lines += ["", *(f"PCR {event.pcr:>2}  {event.what}" for event in values.events), "", *(f"note: {note}" for note in values.notes)]
    return "\n".join(lines)
