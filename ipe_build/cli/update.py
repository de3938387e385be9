"""`ipe-build update make | config | rauc | swupdate | device | policy`: A/B updates of verity slots."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import in_image, write_all
from ipe_build.cli.policy_common import begin_option, digest_word, ledger_to_enter
from ipe_build.errors import UsageError
from ipe_build.host.output import existing_folder
from ipe_build.image.disk import Disk, read_disk
from ipe_build.image.update import (
    BOOTLOADERS,
    UpdateSettings,
    device_files,
    make_rauc_bundle,
    make_swupdate_image,
    slot_program,
    system_conf,
    write_update_folder,
)
from ipe_build.policy.ledger import render_ledger
from ipe_build.policy.transition import TEMPLATE, transition
from ipe_build.signing.backends import BACKENDS, open_signer
from ipe_build.signing.loading import load_certificate
from ipe_build.signing.profiles import PROFILES, sign_payload

if TYPE_CHECKING:
    from ipe_build.host import Host

_MARKER = "manifest.raucm"
_SUFFIXES = {"rauc": ".raucb", "swupdate": ".swu"}
_KEY_HELP = "one of " + ", ".join(row.example for row in BACKENDS).replace("%", "%%")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = actions.add_parser("make", help="all that updaters take of a disk image's slot: OUT.update (see config), OUT.raucb, OUT.swu")
    config = actions.add_parser("config", help="write system.conf, ipe-slot, the slot's images, manifest.raucm and sw-description")
    rauc = actions.add_parser("rauc", help="make a RAUC bundle of a disk image's slot")
    swupdate = actions.add_parser("swupdate", help="make a SWUpdate image (.swu) of a disk image's slot")
    device = actions.add_parser("device", help="put ipe-slot, RAUC's system.conf and SWUpdate's hwrevision into a root filesystem's folder")
    for sub in (make, config, rauc, swupdate):
        sub.add_argument("disk", type=Path, metavar="DISK", help="the disk image")
    for sub in (make, config, rauc, swupdate, device):
        _slot_options(sub)
    for sub in (make, rauc, swupdate):
        sub.add_argument("--key", required=sub is not make, metavar="URI", help=_KEY_HELP)
        sub.add_argument("--cert", required=sub is not make, type=Path, metavar="PEM", help="its certificate")
    make.add_argument("--updater", action="append", default=[], choices=list(_SUFFIXES), help="what signed updates are for; repeatable")
    policy = actions.add_parser("policy", help="the policies of an update: old and new root hash, then the new alone; versions rise")
    policy.add_argument("--name", default="ipe-policy", help="policy_name (default: %(default)s)")
    policy.add_argument("--old", action="append", required=True, type=digest_word, metavar="ALG:HEX|FILE", help="repeatable")
    policy.add_argument("--new", required=True, type=digest_word, metavar="ALG:HEX|FILE", help="a root hash, or a .roothash file")
    policy.add_argument("--ledger", required=True, type=Path, metavar="FILE", help="versions that went out; both are entered")
    begin_option(policy)
    policy.add_argument("--template", default=TEMPLATE, help="a profile or a jinja2 file that uses root_hashes (default: %(default)s)")
    policy.add_argument("--key", metavar="URI", help=f"signs both: {_KEY_HELP}")
    policy.add_argument("--cert", type=Path, metavar="PEM", help="its certificate")
    policy.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="in-flight/NAME.pol and final/NAME.pol (.p7b)")
    for sub in (make, config, rauc, swupdate, device, policy):
        sub.add_argument("--force", action="store_true", help="replace what exists")


def _slot_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compatible", required=True, metavar="WORD", help="what devices the update is for")
    parser.add_argument("--update-version", required=True, metavar="TEXT", help="the update's version")
    parser.add_argument("--bootloader", choices=BOOTLOADERS, default="efi", help="what RAUC switches slots with (default: %(default)s)")
    parser.add_argument("--devices", default="/dev/disk/by-partlabel", metavar="FOLDER", help="the device's partitions by name")
    parser.add_argument("--state", default="/var/lib/rauc", metavar="FOLDER", help="where RAUC keeps its status")
    parser.add_argument("--keyring", default="/etc/rauc/keyring.pem", metavar="FILE", help="what the device trusts for bundles")
    parser.add_argument(
        "--hardware", action="append", default=[], metavar="REVISION", help="SWUpdate's hardware-compatibility (default: 1.0)"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the file or folder to write")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns the outcome of the sub-verb."""
    actions = {"make": _make, "config": _config, "rauc": _rauc, "swupdate": _swupdate, "device": _device, "policy": _policy}
    return actions[arguments.action](arguments, host)


def _settings(arguments: argparse.Namespace) -> UpdateSettings:
    """Returns the settings that the options say."""
    return UpdateSettings(
        arguments.compatible,
        arguments.update_version,
        arguments.bootloader,
        arguments.devices,
        arguments.state,
        arguments.keyring,
        tuple(arguments.hardware) or ("1.0",),
    )


def _make(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `update make`: the folder, and the signed updates that are asked for."""
    makers = {"rauc": _rauc, "swupdate": _swupdate}
    if arguments.updater and (arguments.key is None or arguments.cert is None):
        raise UsageError("signed updates need --key and --cert", where="update make: --updater")
    out: Path = arguments.output
    made = [_config(argparse.Namespace(**vars(arguments) | {"output": out.with_name(f"{out.name}.update")}), host)]
    for updater in arguments.updater:
        place = out.with_name(f"{out.name}{_SUFFIXES[updater]}")
        made.append(makers[updater](argparse.Namespace(**vars(arguments) | {"output": place}), host))
    return Outcome([one.value for one in made], "\n".join(one.text for one in made))


def _config(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `update config`."""
    out: Path = arguments.output
    settings = _settings(arguments)
    if out.exists() and any(out.iterdir()) and not arguments.force:
        raise UsageError("exists already and is left as it is", where=str(out), hint="remove it, or say --force")
    with host.output_directory(out, marker=_MARKER) as folder:
        images = write_update_folder(_disk(arguments.disk), settings, folder)
        (folder / "system.conf").write_text(system_conf(settings), encoding="utf-8")
        (folder / "ipe-slot").write_text(slot_program(), encoding="utf-8")
        (folder / "ipe-slot").chmod(0o755)
        names = sorted(path.name for path in folder.iterdir())
    value = {"folder": str(out), "files": names, "images": [one._asdict() for one in images]}
    return Outcome(value, "\n".join(f"{out}/{name}" for name in names))


def _device(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `update device`."""
    files = device_files(_settings(arguments))
    existing_folder(arguments.output, of=arguments.output)
    places = [arguments.output / file.path for file in files]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    with host.outputs(*places, force=arguments.force) as temporaries:
        for temporary, file in zip(temporaries, files, strict=True):
            temporary.write_text(file.text, encoding="utf-8")
            temporary.chmod(file.mode)
    return Outcome([file.path for file in files], "\n".join(f"/{file.path}" for file in files))


def _rauc(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `update rauc`. RAUC signs by itself; a key file is looked at before, since we say more about a wrong one."""
    if arguments.key.startswith("file:") and "?" not in arguments.key:
        open_signer(arguments.key, arguments.cert, host)
    else:
        load_certificate(arguments.cert)
    disk = _disk(arguments.disk)
    make_rauc_bundle(disk, _settings(arguments), arguments.key, arguments.cert, arguments.output, host, force=arguments.force)
    return _made(arguments.output)


def _swupdate(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `update swupdate`."""
    signer = open_signer(arguments.key, arguments.cert, host)
    make_swupdate_image(_disk(arguments.disk), _settings(arguments), signer, arguments.output, host, force=arguments.force)
    return _made(arguments.output)


def _disk(path: Path) -> Disk:
    """Returns the disk image. Raises: InputError naming it."""
    with in_image(path):
        return read_disk(path)


def _made(path: Path) -> Outcome:
    """Returns the outcome for a file that was made."""
    size = path.stat().st_size
    return Outcome({"file": str(path), "size_bytes": size}, f"{path}: {size} bytes")


def _policy(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `update policy`."""
    if (arguments.key is None) != (arguments.cert is None):
        raise UsageError("--key and --cert belong together", where="update policy")
    signer = open_signer(arguments.key, arguments.cert, host) if arguments.key is not None else None
    before = ledger_to_enter(arguments.ledger, (os.fsencode(arguments.name),), begin=arguments.begin)
    made = transition(arguments.name, tuple(map(str, arguments.old)), str(arguments.new), before, template=arguments.template)
    contents: list[tuple[Path, bytes]] = []
    for state, text in (("in-flight", made.in_flight), ("final", made.final)):
        folder: Path = arguments.output / state
        contents.append((folder / f"{arguments.name}.pol", text))
        if signer is not None:
            contents.append((folder / f"{arguments.name}.p7b", sign_payload(PROFILES["ipe-policy"], text, signer)))
    existing_folder(arguments.output.parent, of=arguments.output)
    with host.output(arguments.ledger, force=True) as ledger:  # what is not in the ledger must not go out, and the reverse
        ledger.write_bytes(render_ledger(made.ledger))
        for path, _ in contents:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_all(contents, host, force=arguments.force)
    files = [str(path) for path, _ in contents]
    return Outcome({"files": files, "ledger": str(arguments.ledger)}, "\n".join(files))
