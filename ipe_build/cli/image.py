"""`ipe-build image`: the parts of a device image: filesystem, initramfs, disk, UKI."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.cli import Outcome, image_disk, image_flash, image_uki
from ipe_build.cli.inputs import read_input, root_hash_of, uuid_of
from ipe_build.errors import UsageError
from ipe_build.formats.cpio import CpioEntry, regular_file
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.image.filesystem import MAKERS, FilesystemRequest, FilesystemType, make_filesystem
from ipe_build.image.initramfs import CAPABILITIES, VERITY_OPTIONS, Compression, InitramfsRequest, OnFailure, make_initramfs
from ipe_build.image.integrity import IntegrityRequest, TrustedSource
from ipe_build.image.rootfs import Entry, PathRule
from ipe_build.kernel.module_order import modules_in_order
from ipe_build.signing.loading import load_certificate

if TYPE_CHECKING:
    from ipe_build.host import Host

_MIB = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    rows: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
        ("filesystem", "make an EROFS, SquashFS or ext4 image of a folder or tar, without being root", _configure_filesystem),
        ("initramfs", "make the initramfs that opens the verity root and loads the policies, or stops", _configure_initramfs),
        ("disk", "make a disk image with discoverable partitions", image_disk.configure),
    )
    for name, help_text, add in rows:
        sub = actions.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        add(sub)
        sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
        sub.add_argument("--force", action="store_true", help="replace the output if it exists")
    help_text = "make what flashing tools take: a block map, a compressed image, partition files"
    image_flash.configure(actions.add_parser("flash", help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}."))
    help_text = "put kernel, initramfs and command line into one EFI program, signed for Secure Boot"
    image_uki.configure(actions.add_parser("uki", help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}."))


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns the outcome of the sub-verb."""
    actions = {"filesystem": _filesystem, "initramfs": _initramfs, "disk": image_disk.run, "flash": image_flash.run, "uki": image_uki.run}
    return actions[arguments.action](arguments, host)


def _configure_filesystem(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder, a tar (also .gz, .bz2, .xz, .zst), or a finished image")
    names = ", ".join(f"{row.filesystem}: {', '.join(row.compressions)}" for row in MAKERS)
    parser.add_argument("--filesystem", choices=[str(name) for name in FilesystemType], default="erofs", help="default: erofs")
    parser.add_argument("--compression", default="", metavar="NAME", help=f"the first is the default: {names}")
    parser.add_argument("--uuid", help="the filesystem's UUID (default: derived from SOURCE_DATE_EPOCH)")
    owners = parser.add_mutually_exclusive_group()
    owners.add_argument("--keep-owners", action="store_true", help="keep the source's owners (the default for a tar)")
    owners.add_argument("--root-owned", action="store_true", help="everything belongs to 0:0 (the default for a folder)")
    parser.add_argument(
        "--owner", action="append", default=[], metavar="PATTERN=UID:GID[:MODE]", help="owner and octal mode of the paths that match"
    )
    parser.add_argument("--add", action="append", default=[], metavar="PATH=FILE[:MODE]", help="put a file into the image (mode 0644)")
    parser.add_argument("--size-mib", type=int, default=0, metavar="N", help="size of an ext4 image (default: as small as fits)")
    parser.add_argument("--no-xattrs", action="store_true", help="leave extended attributes out")


def _configure_initramfs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root-hash", required=True, metavar="HEX|FILE|cmdline", help="the root hash; cmdline: roothash= names it")
    parser.add_argument("--filesystem", required=True, choices=[str(name) for name in FilesystemType], help="of the verity root")
    parser.add_argument("--architecture", choices=list(PARTITION_TYPES), default="x86-64", help="default: x86-64")
    parser.add_argument("--signature", default="partition", metavar="WHERE", help="partition (default), partuuid:UUID, file:/PATH or none")
    parser.add_argument(
        "--policy", action="append", default=[], metavar="PATH", help="signed policy on the verity root; its stem is its name"
    )
    parser.add_argument("--delete-policy", action="append", default=[], metavar="NAME", help="policy to delete when the others are active")
    parser.add_argument("--carry", action="append", default=[], metavar="PATH=FILE", help="put FILE into the initramfs (a --policy, say)")
    parser.add_argument("--verity-option", action="append", default=[], choices=sorted(VERITY_OPTIONS), help="passed on to dm-verity")
    parser.add_argument(
        "--drop-capability", action="append", default=[], choices=CAPABILITIES, metavar="CAP_NAME", help="taken from everyone"
    )
    parser.add_argument(
        "--freeze", action="store_true", help="nobody can write to the initramfs any more; wants --drop-capability CAP_LINUX_IMMUTABLE"
    )
    parser.add_argument("--success-audit", choices=("0", "1"), help="what ipe/success_audit is set to")
    parser.add_argument("--init", default="/sbin/init", metavar="PATH", help="default: /sbin/init")
    parser.add_argument("--init-override", action="store_true", help="init= on the command line may name another")
    parser.add_argument("--on-failure", choices=[str(name) for name in OnFailure], default="panic", help="default: panic")
    parser.add_argument("--recovery", type=Path, metavar="FILE", help="static program for --on-failure recovery")
    parser.add_argument("--module", action="append", default=[], type=Path, metavar="FILE", help="kernel module to load first, in order")
    parser.add_argument(
        "--load", action="append", default=[], metavar="NAME", help="kernel module to load first, after all that it needs; wants --modules"
    )
    parser.add_argument("--modules", type=Path, metavar="DIR", help="the kernel's lib/modules/RELEASE, for --load")
    parser.add_argument("--wait", type=int, default=10, metavar="SECONDS", help="how long to wait for a partition (default: 10)")
    parser.add_argument("--compression", choices=[str(name) for name in Compression], default="gzip", help="default: gzip")
    parser.add_argument("--compiler", default="gcc", metavar="PROGRAM", help="the C compiler for the device (default: gcc)")
    parser.add_argument("--ima-certificate", type=Path, metavar="CERT", help="for the kernel's .ima keyring, which must then hold a key")
    parser.add_argument(
        "--evm-certificate", type=Path, metavar="CERT", help="the same for .evm; all that IMA appraises then needs security.evm"
    )
    parser.add_argument("--ima-policy", default="", metavar="PATH", help="IMA policy on the verity root, or initramfs:/PATH (--carry)")
    parser.add_argument("--evm-key", metavar="PARTUUID", help="partition with EVM's HMAC key, sealed for the device")
    parser.add_argument("--evm-provision", action="store_true", help="an empty partition gets a new key at that boot")
    parser.add_argument("--evm-pcr", action="append", type=int, default=[], metavar="N", help="unseal only while this PCR is unchanged")
    parser.add_argument("--trusted-source", choices=[str(name) for name in TrustedSource], default="tpm", help="what seals it (tpm)")


def _filesystem(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `image filesystem`."""
    request = FilesystemRequest(
        arguments.source,
        uuid_of(arguments.uuid) or uuid5(NAMESPACE_URL, f"ipe-build:filesystem:{host.source_date_epoch}"),
        FilesystemType(arguments.filesystem),
        arguments.compression,
        True if arguments.keep_owners else False if arguments.root_owned else None,
        tuple(_addition(text) for text in arguments.add),
        tuple(_rule(text) for text in arguments.owner),
        arguments.size_mib * _MIB,
        not arguments.no_xattrs,
    )
    image = make_filesystem(request, arguments.output, host, force=arguments.force)
    value = {"path": str(image.path), "filesystem": str(image.filesystem), "size_bytes": image.size_bytes, "entries": image.entries}
    return Outcome(value, f"{image.path}: {image.filesystem}, {image.size_bytes} bytes, {image.entries} entries")


def _initramfs(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `image initramfs`."""
    request = InitramfsRequest(
        root_hash=None if arguments.root_hash == "cmdline" else root_hash_of(arguments.root_hash),
        filesystem=arguments.filesystem,
        init=arguments.init,
        init_from_command_line=arguments.init_override,
        signature=arguments.signature,
        signature_type=PARTITION_TYPES[arguments.architecture].root_verity_sig,
        verity_options=tuple(arguments.verity_option),
        wait_s=arguments.wait,
        policies=tuple(arguments.policy),
        delete_policies=tuple(arguments.delete_policy),
        success_audit=None if arguments.success_audit is None else arguments.success_audit == "1",
        drop_capabilities=tuple(arguments.drop_capability),
        freeze=arguments.freeze,
        on_failure=OnFailure(arguments.on_failure),
        recovery=arguments.recovery,
        modules=(*arguments.module, *_loaded(arguments, host)),
        extra=tuple(_carried(text, host) for text in arguments.carry),
        compression=Compression(arguments.compression),
        compiler=arguments.compiler,
        integrity=_integrity(arguments),
    )
    made = make_initramfs(request, arguments.output, host, force=arguments.force)
    value = {"path": str(made.path), "size_bytes": made.size_bytes, "compression": str(made.compression), "entries": made.entries}
    return Outcome(value, f"{made.path}: {made.size_bytes} bytes ({made.compression}), {made.entries} entries")


def _loaded(arguments: argparse.Namespace, host: Host) -> tuple[Path, ...]:
    """Returns the files of the modules that `--load` names, in order. Raises: UsageError, InputError."""
    if not arguments.load:
        return ()
    if arguments.modules is None:
        raise UsageError("wants the folder with the kernel's modules", where="--load", hint="--modules /lib/modules/RELEASE")
    return modules_in_order(arguments.load, arguments.modules, arguments.modules.resolve().name, host)


def _integrity(arguments: argparse.Namespace) -> IntegrityRequest | None:
    """Returns what the options say about IMA and EVM, None for nothing. Raises: UsageError, SigningKeyError."""
    ima, evm = (
        load_certificate(path).public_bytes(Encoding.DER) if path is not None else None
        for path in (arguments.ima_certificate, arguments.evm_certificate)
    )
    if arguments.evm_provision and arguments.evm_key is None:
        raise UsageError("wants a partition for the key", where="--evm-provision", hint="give --evm-key")
    if (ima, evm, arguments.ima_policy, arguments.evm_key) == (None, None, "", None):
        return None
    key = uuid_of(arguments.evm_key)
    source, pcrs = TrustedSource(arguments.trusted_source), tuple(arguments.evm_pcr)
    return IntegrityRequest(ima, evm, arguments.ima_policy, key, arguments.evm_provision, source, pcrs)


def _carried(text: str, host: Host) -> CpioEntry:
    """Returns the initramfs entry of `--carry PATH=FILE`. Raises: UsageError."""
    path, equals, file = text.partition("=")
    if not equals or not path.strip("/") or not file:
        raise UsageError(f"wanted PATH=FILE, got {text!r}", where="--carry")
    return regular_file(path.strip("/"), read_input(Path(file)), mtime=host.source_date_epoch)


def _addition(text: str) -> Entry:
    """Returns the file that `PATH=FILE[:MODE]` adds."""
    path, equals, source = text.partition("=")
    name, colon, mode = source.rpartition(":")
    if not colon or not mode or not set(mode) <= set("01234567"):
        name, mode = source, "644"
    if not equals or not name or not path.strip("/"):
        raise UsageError(f"wanted PATH=FILE[:MODE], got {text!r}", where="--add")
    return Entry.file(path.strip("/"), Path(name), mode=int(mode, 8) & 0o7777)


def _rule(text: str) -> PathRule:
    """Returns the rule that `PATTERN=UID:GID[:MODE]` says."""
    pattern, equals, owner = text.rpartition("=")
    words = owner.split(":")
    try:
        if not equals or len(words) not in (2, 3):
            raise ValueError
        uid, gid = int(words[0]), int(words[1])
        mode = int(words[2], 8) if len(words) == 3 else None
    except ValueError:
        raise UsageError(f"wanted PATTERN=UID:GID[:MODE], got {text!r}", where="--owner") from None
    return PathRule(pattern, uid, gid, mode)
