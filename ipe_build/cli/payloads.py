"""What the `sign` verbs sign, read from what the command line names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli.inputs import named, root_hash_of
from ipe_build.errors import InputError, UsageError
from ipe_build.formats.ima_signature import parse_ima_signature
from ipe_build.integrity.fsverity import FsVerityParameters, measure
from ipe_build.policy.parser import parse
from ipe_build.signing.ima import evm_payload
from ipe_build.signing.profiles import PROFILES, root_hash_payload
from ipe_build.signing.target import KernelTarget, read_target

if TYPE_CHECKING:
    from ipe_build.host import Host

TRUSTED_HELP = "what the kernel trusts: certificates (PEM, DER), a kernel image, a .config, or a UEFI db (.esl, .auth)"


def policy_payload(text: str) -> bytes:
    """Returns the policy's text, which the kernel must be able to load. Raises: InputError."""
    payload = Path(text).read_bytes()
    with named(text, "ipe-policy payload"):
        PROFILES["ipe-policy"].check(payload)
    result = parse(payload)
    if result.problem is not None:
        problem = result.problem
        raise InputError(
            f"the kernel would refuse this policy ({problem.errno}): {problem.message}", where=f"{text}:{problem.line}", hint=problem.hint
        )
    return payload


def root_hash_text(text: str) -> bytes:
    """Returns the payload of a root hash given as hex, or in a file as hex. Raises: InputError."""
    return root_hash_payload(root_hash_of(text, "HEX|FILE"))


def fsverity_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how a file is measured."""
    parser.add_argument("--hash-alg", "--hash", dest="hash_name", default="sha256", metavar="NAME", help="sha256 (default) or sha512")
    parser.add_argument("--block-size", type=int, default=4096, metavar="BYTES", help="1024 to 65536 (default: 4096)")
    parser.add_argument("--salt", default="", metavar="HEX", help="salt of up to 32 bytes (default: none)")


def fsverity_payload(arguments: argparse.Namespace, host: Host, path: Path | None = None) -> bytes:
    """Returns the payload of a file's fs-verity digest; the file is the sub-verb's input unless `path` is given."""
    try:
        salt = bytes.fromhex(arguments.salt)
    except ValueError:
        raise UsageError(f"wanted an even number of hex digits, got {arguments.salt!r}", where="--salt") from None
    parameters = FsVerityParameters(arguments.hash_name, arguments.block_size, salt)
    return measure(path or Path(arguments.input), parameters, host).payload


def evm_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what a file will look like on the device."""
    parser.add_argument("--ima", type=Path, required=True, metavar="SIG", help="the file's security.ima value, as `sign ima` makes it")
    parser.add_argument("--uid", type=int, default=0, help="owner on the device (default: 0)")
    parser.add_argument("--gid", type=int, default=0, help="group on the device (default: 0)")
    parser.add_argument("--mode", required=True, metavar="OCTAL", help="st_mode on the device, type included, for instance 0100755")
    parser.add_argument("--selinux", metavar="LABEL", help="security.selinux on the device; its closing NUL is added")
    parser.add_argument("--caps", metavar="HEX", help="security.capability on the device")
    parser.add_argument("--32-bit", dest="is_32_bit", action="store_true", help="the device's kernel is a 32-bit one")


def evm_attributes(arguments: argparse.Namespace) -> bytes:
    """Returns the payload of a portable EVM signature. Raises: InputError, UsageError."""
    xattrs = {"security.ima": arguments.ima.read_bytes()}
    parse_ima_signature(xattrs["security.ima"], str(arguments.ima))
    if arguments.selinux is not None:
        xattrs["security.selinux"] = arguments.selinux.encode() + b"\0"
    try:
        mode = int(arguments.mode, 8)
        if arguments.caps is not None:
            xattrs["security.capability"] = bytes.fromhex(arguments.caps)
    except ValueError as error:
        raise UsageError(str(error), where="sign evm", hint="--mode is octal, --caps is hex") from None
    return evm_payload(xattrs, uid=arguments.uid, gid=arguments.gid, mode=mode, word_bits=32 if arguments.is_32_bit else 64)


def target_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say which kernel will check the signatures."""
    parser.add_argument("--kernel-version", metavar="VERSION", help="refuse what this kernel cannot check, for instance 6.12")
    parser.add_argument("--kernel-config", type=Path, metavar="FILE", help="… judged by its resolved .config")


def target_of(arguments: argparse.Namespace) -> KernelTarget:
    """Returns the kernel that the options name. Raises: InputError."""
    return read_target(arguments.kernel_version, arguments.kernel_config)
