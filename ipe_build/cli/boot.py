"""`ipe-build boot IMAGE`: boots it in QEMU, probes what runs and what is denied, boots damaged copies."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.boot.evidence import evidence_table, evidence_value
from ipe_build.boot.foreign import make_foreign_signer
from ipe_build.boot.probe_disk import PolicyMaterial
from ipe_build.boot.prove import BootRequest, boot_image
from ipe_build.boot.qemu import ARCHITECTURES, Machine
from ipe_build.boot.secure_boot_proof import SecureBoot
from ipe_build.cli import Outcome
from ipe_build.cli.inputs import in_image, named
from ipe_build.errors import ExitStatus, InputError, UsageError
from ipe_build.policy.ima_policy import appraises_mapped_code, load_ima_policy
from ipe_build.signing.backends import BACKENDS, open_signer
from ipe_build.signing.certificates import fingerprint
from ipe_build.signing.loading import load_certificates
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host

_KEY_HELP = f"who signs its policies, one of {', '.join(row.example for row in BACKENDS)}".replace("%", "%%")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a raw disk image; it is only read")
    parser.add_argument("--evidence", type=Path, metavar="OUT.json", help="write the evidence here too")
    parser.add_argument("--force", action="store_true", help="replace OUT.json when it exists")
    what = parser.add_argument_group("what is booted (default: what the image's boot entry says)")
    what.add_argument("--kernel", type=Path, metavar="K", help="another kernel")
    what.add_argument("--initramfs", "--initrd", type=Path, metavar="I", help="another initramfs")
    what.add_argument("--command-line", metavar="TEXT", help="another kernel command line")
    what.add_argument("--firmware", action="store_true", help="boot the unchanged image from UEFI firmware as well")
    device = parser.add_argument_group("what is known of the device")
    device.add_argument(
        "--policy", type=Path, metavar="FILE", help="text of the policy in force after boot; its probes need --key and --cert"
    )
    device.add_argument("--ima-policy", metavar="NAME|file:PATH", help="the IMA policy in force after boot, as in [ima] policy")
    device.add_argument("--key", metavar="URI", help=_KEY_HELP)
    device.add_argument("--cert", type=Path, metavar="PEM", help="the key's certificate")
    device.add_argument("--application", default="", metavar="COMMAND", help="a program of the root that must run")
    device.add_argument("--interpreter", default="/bin/sh", metavar="COMMAND", help="a shell of the root (default: /bin/sh; '' for none)")
    device.add_argument("--no-modules", action="store_true", help="the image has no module fixtures")
    device.add_argument("--dropped", action="append", default=[], metavar="CAP_NAME", help="a capability that the initramfs drops")
    device.add_argument("--sealed", action="store_true", help="the kernel holds no key, its policy pins the root, the initramfs is frozen")
    device.add_argument("--on-corruption", choices=("eio", "restart", "panic"), default="eio", help="what dm-verity does (default: eio)")
    secure = parser.add_argument_group("Secure Boot (the image boots a unified kernel image)")
    secure.add_argument("--db", action="append", default=[], type=Path, metavar="CERT", help="enrol these certificates, and boot under it")
    secure.add_argument("--uki-key", metavar="URI", help="who signs its unified kernel images, as --key")
    secure.add_argument("--uki-cert", type=Path, metavar="PEM", help="the key's certificate (in db too)")
    secure.add_argument(
        "--keys-in-db", action="store_true", help="the kernel takes the keys of policies and root hashes from db: probe under Secure Boot"
    )
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--no-destructive", action="store_true", help="do not boot damaged copies")
    machine.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="x86-64", help="the image's (default: x86-64)")
    machine.add_argument("--kvm", action="store_true", help="let the processor run the guest instead of emulating it")
    machine.add_argument("--memory", type=int, default=512, metavar="MIB", help="memory (default: 512)")
    machine.add_argument("--timeout", type=float, default=120, metavar="S", help="seconds after which a boot counts as hung (default: 120)")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Boots and judges."""
    if (arguments.policy, arguments.key, arguments.cert) != (None, None, None) and None in (
        arguments.policy,
        arguments.key,
        arguments.cert,
    ):
        raise UsageError("--policy, --key and --cert go together", where="ipe-build boot")
    if (arguments.uki_key is None) != (arguments.uki_cert is None):
        raise UsageError("--uki-key and --uki-cert go together", where="ipe-build boot")
    if arguments.keys_in_db and not (arguments.db and arguments.uki_key):
        raise UsageError("--keys-in-db wants --db, and --uki-key for a kernel command line that starts the probes", where="ipe-build boot")
    if arguments.memory < 1 or arguments.timeout <= 0:
        raise UsageError("--memory and --timeout must be above zero", where="ipe-build boot")
    if not arguments.image.is_file():
        raise InputError("wanted a disk image, there is no such file", where=str(arguments.image))
    with host.outputs(*([arguments.evidence] if arguments.evidence else []), force=arguments.force) as temporaries:
        with host.scratch("ipe-build-foreign-") as folder:
            request = _request(arguments, make_foreign_signer(folder, host), host)
            with in_image(arguments.image), named(arguments.policy or "", "IPE policy"):
                evidence = boot_image(request, host)
        value = evidence_value(evidence)
        for temporary in temporaries:
            temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Outcome(value, evidence_table(evidence), ExitStatus.OK if evidence.as_expected else ExitStatus.FINDING)


def _request(arguments: argparse.Namespace, foreign: Signer, host: Host) -> BootRequest:
    """Returns what the arguments ask for. Raises: InputError, SigningKeyError."""
    policy = None
    if arguments.policy is not None:
        signer = open_signer(arguments.key, arguments.cert, host)
        policy = PolicyMaterial(_read(arguments.policy), signer, foreign)
    for path in (arguments.kernel, arguments.initramfs):
        if path is not None and not path.is_file():
            raise InputError("wanted a file, there is none", where=str(path))
    return BootRequest(
        disk=arguments.image,
        machine=Machine(
            arguments.architecture,
            arguments.memory,
            timeout_s=arguments.timeout,
            time=host.source_date_epoch,
            accelerator="kvm" if arguments.kvm else "tcg",
        ),
        kernel=arguments.kernel,
        initrd=arguments.initramfs,
        command_line=arguments.command_line,
        policy=policy,
        foreign=foreign,
        modules=not arguments.no_modules,
        application=tuple(shlex.split(arguments.application)),
        interpreter=tuple(shlex.split(arguments.interpreter)),
        dropped_capabilities=frozenset(arguments.dropped),
        keyless=arguments.sealed,
        appraised=arguments.ima_policy is not None and appraises_mapped_code(load_ima_policy(arguments.ima_policy)),
        frozen_initramfs=arguments.sealed,
        on_corruption=arguments.on_corruption,
        destructive=not arguments.no_destructive,
        firmware=arguments.firmware,
        secure_boot=_secure_boot(arguments, foreign, host),
    )


def _secure_boot(arguments: argparse.Namespace, foreign: Signer, host: Host) -> SecureBoot | None:
    """Returns what is enrolled and who signs, None when Secure Boot was not asked for."""
    signer = open_signer(arguments.uki_key, arguments.uki_cert, host) if arguments.uki_key is not None else None
    enrolled = [one for path in arguments.db for one in load_certificates(path)]
    if signer is not None:
        enrolled.append(signer.certificate)
    if not enrolled:
        return None
    unique = {fingerprint(one): one for one in enrolled}
    return SecureBoot(tuple(unique.values()), signer, foreign, arguments.keys_in_db)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
