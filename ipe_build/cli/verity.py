"""`ipe-build verity`: dm-verity hash trees under veritysetup's option names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import root_hash_of, uuid_of
from ipe_build.errors import ExitStatus, InputError, UsageError
from ipe_build.integrity.verity import FecParameters, VerityParameters, VerityTree

if TYPE_CHECKING:
    import argparse
    from uuid import UUID

    from ipe_build.host import Host
    from ipe_build.integrity.check import VerityCheck

_SALT_SIZE = 32
_SHOWN = 16


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_text, add in (
        ("format", "write superblock and hash tree", _configure_format),
        ("verify", "check data and tree against a root hash", _configure_verify),
        ("dump", "show what a superblock says", _configure_dump),
        ("table", "print the dm table, dm-mod.create=, veritysetup and systemd forms", _configure_table),
    ):
        add(actions.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}."))


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns the outcome of the sub-verb."""
    actions = {"format": _format, "verify": _verify, "dump": _dump, "table": _table}
    return actions[arguments.action](arguments, host)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="the image")
    parser.add_argument("hash", type=Path, nargs="?", metavar="HASH", help="the hash area (default: DATA.verity; DATA itself is allowed)")


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    """Adds what a superblock would say."""
    parser.add_argument("--hash", dest="hash_name", metavar="NAME", default="sha256", help="hash algorithm (default: sha256)")
    parser.add_argument("--salt", metavar="HEX", help="salt in hex, - for none (default: see below)")
    parser.add_argument("--data-block-size", type=int, default=4096, metavar="BYTES", help="512 to 524288 (default: 4096)")
    parser.add_argument("--hash-block-size", type=int, default=4096, metavar="BYTES", help="512 to 524288 (default: 4096)")
    parser.add_argument("--data-blocks", type=int, metavar="N", help="protect only the first N blocks")
    parser.add_argument("--format", type=int, default=1, dest="hash_type", metavar="TYPE", help="1 normal (default), 0 Chrome OS")
    _add_place(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    """Adds where the hash area and the error correction are."""
    parser.add_argument("--hash-offset", type=int, default=0, metavar="BYTES", help="where the hash area begins in HASH (default: 0)")
    parser.add_argument("--no-superblock", action="store_true", help="the hash area has no superblock")
    parser.add_argument("--fec-device", type=Path, metavar="FILE", help="file for the error correction data (HASH or DATA are allowed)")
    parser.add_argument("--fec-roots", type=int, default=2, metavar="N", help="parity bytes a codeword, 2 to 24 (default: 2)")
    parser.add_argument("--fec-offset", type=int, default=0, metavar="BYTES", help="where it begins in FILE (default: 0)")


def _configure_format(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    _add_parameters(parser)
    parser.add_argument("--uuid", help="the superblock's UUID (default: derived from the root hash)")
    parser.add_argument("--pad", action="store_true", help="lengthen DATA with zeros to a whole block")
    parser.add_argument("--force", action="store_true", help="replace outputs that exist, write over what lies behind the data")
    parser.add_argument("--root-hash-file", type=Path, metavar="FILE", help="also write the root hash in hex to FILE")
    parser.epilog = (
        "Without --salt: 32 random bytes as veritysetup has them; with SOURCE_DATE_EPOCH set, SHA-256 of a fixed text and that number, "
        "so that the same image gives the same tree. A salt need not be secret or differ between images."
    )


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--root-hash", required=True, metavar="HEX|FILE", help="the root hash in hex, or a file that holds it")
    _add_parameters(parser)
    _configure_repair(parser)


def _configure_repair(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("repair", "with --fec-device: whole new files, written only when every block of them is right")
    group.add_argument("--repair", type=Path, metavar="OUT", help="the repaired image")
    group.add_argument("--repair-hash", type=Path, metavar="OUT", help="the repaired hash area, when it is a file of its own")
    group.add_argument("--force", action="store_true", help="replace outputs that exist")


def _configure_dump(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("hash", type=Path, metavar="HASH", help="the hash area")
    parser.add_argument("--hash-offset", type=int, default=0, metavar="BYTES", help="where the superblock is (default: 0)")


def _configure_table(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--root-hash", required=True, metavar="HEX|FILE", help="the root hash in hex, or a file that holds it")
    _add_parameters(parser)
    parser.add_argument("--data-device", metavar="NAME", help="the data device on the target (default: DATA)")
    parser.add_argument("--hash-device", metavar="NAME", help="the hash device on the target (default: HASH)")
    parser.add_argument("--fec-name", metavar="NAME", help="the error correction device on the target (default: --fec-device)")
    parser.add_argument("--name", default="vroot", help="the mapped device's name (default: vroot)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="WORD", help="a further target option, such as panic_on_corruption"
    )
    parser.add_argument("--root-hash-signature", default="", metavar="FILE", help="the signature's path, for veritysetup and systemd")
    parser.add_argument("--form", choices=("all", "dm", "dm-mod", "veritysetup", "systemd"), default="all", help="print one form only")


def _hash_area(arguments: argparse.Namespace) -> Path:
    """Returns the path of the hash area."""
    given: Path | None = arguments.hash
    return given if given is not None else Path(f"{arguments.data}.verity")


def _parameters(arguments: argparse.Namespace, salt: bytes, uuid: UUID | None) -> VerityParameters:
    """Returns what the options say."""
    fec = FecParameters(arguments.fec_roots, arguments.fec_offset) if arguments.fec_device is not None else None
    return VerityParameters(
        arguments.hash_name,
        salt,
        uuid,
        arguments.data_block_size,
        arguments.hash_block_size,
        arguments.hash_type,
        arguments.hash_offset,
        not arguments.no_superblock,
        fec,
    )


def _salt(text: str | None, host: Host) -> bytes:
    """Returns the salt that was given or, when none was, a random one; one made from SOURCE_DATE_EPOCH where that is set."""
    if text is None and host.env.get("SOURCE_DATE_EPOCH"):
        from ipe_build.integrity.engine import digest_message
        from ipe_build.integrity.hashes import find_hash

        return digest_message(find_hash("sha256"), b"ipe-build verity salt\0%d" % host.source_date_epoch)
    if text is None:
        import os

        return os.urandom(_SALT_SIZE)
    return b"" if text == "-" else _hex(text, "--salt")


def _hex(text: str, name: str) -> bytes:
    """Returns the bytes of hex digits. Raises: UsageError naming the option."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"wanted an even number of hex digits, got {text!r}", where=name) from None


def _format(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.integrity.verity import format_image

    hash_area = _hash_area(arguments)
    parameters = _parameters(arguments, _salt(arguments.salt, host), uuid_of(arguments.uuid))
    more = [arguments.root_hash_file] if arguments.root_hash_file is not None else []
    with host.outputs(*more, force=arguments.force) as temporaries:
        tree = format_image(
            arguments.data,
            hash_area,
            parameters,
            host,
            fec_area=arguments.fec_device,
            data_blocks=arguments.data_blocks,
            pad=arguments.pad,
            force=arguments.force,
        )
        for temporary in temporaries:
            temporary.write_text(tree.root_hash.hex(), "ascii")
    return Outcome({"data": str(arguments.data), "hash": str(hash_area), **_value(tree)}, _text(tree))


def _tree(arguments: argparse.Namespace) -> VerityTree:
    """Returns the tree that verify and table work on, with its root hash. Raises: InputError when that has a wrong length."""
    root_hash = root_hash_of(arguments.root_hash)
    tree = replace(_tree_without_root(arguments), root_hash=root_hash)
    wanted = tree.parameters.algorithm.digest_size
    if len(root_hash) != wanted:
        raise InputError(f"a {tree.parameters.hash_name} root hash has {wanted} bytes, got {len(root_hash)}", where="--root-hash")
    if arguments.fec_device is None:
        return tree
    from ipe_build.integrity.files import is_same_file, open_input
    from ipe_build.integrity.repair import covered_blocks

    hash_area = _hash_area(arguments)
    with open_input(hash_area) as area:
        return replace(tree, fec_blocks=covered_blocks(tree, area.size, with_hash=is_same_file(hash_area, arguments.fec_device)))


def _tree_without_root(arguments: argparse.Namespace) -> VerityTree:
    """Returns the tree as the superblock or the options describe it."""
    from ipe_build.integrity.verity import read_superblock

    if not arguments.no_superblock:
        found = read_superblock(_hash_area(arguments), arguments.hash_offset)
        fec = FecParameters(arguments.fec_roots, arguments.fec_offset) if arguments.fec_device is not None else None
        return replace(found, parameters=replace(found.parameters, fec=fec))
    if arguments.salt is None:
        raise UsageError("without a superblock the salt must be given", where="--salt", hint="--salt - for none")
    parameters = _parameters(arguments, b"" if arguments.salt == "-" else _hex(arguments.salt, "--salt"), None)
    blocks = arguments.data_blocks or arguments.data.stat().st_size // parameters.data_block_size
    return VerityTree(parameters, blocks, b"", parameters.hash_offset)


def _verify(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.integrity.check import check_image

    tree = _tree(arguments)
    hash_area = _hash_area(arguments)
    if arguments.repair is not None:
        return _repair(arguments, tree, hash_area, host)
    found = check_image(arguments.data, hash_area, tree, host)
    rounds: tuple[int, ...] = ()
    if arguments.fec_device is not None:
        from ipe_build.integrity.repair import check_parity

        rounds = check_parity(arguments.data, hash_area, arguments.fec_device, tree, host)
    value = {
        "accepted": found.accepted,
        "root_matches": found.root_matches,
        "hash_blocks": list(found.hash_blocks),
        "data_blocks": list(found.data_blocks),
        "fec_rounds": list(rounds),
    }
    text = _found_text(found) + (f"\n{len(rounds)} rounds of error correction differ: {_numbers(rounds)}" if rounds else "")
    return Outcome(value, text, ExitStatus.OK if found.accepted and not rounds else ExitStatus.FINDING)


def _repair(arguments: argparse.Namespace, tree: VerityTree, hash_area: Path, host: Host) -> Outcome:
    """Returns what was repaired. Raises: UsageError, VerificationError when it cannot be."""
    from ipe_build.integrity.repair import repair_image

    if arguments.fec_device is None:
        raise UsageError("a repair needs the error correction data", where="--repair", hint="say --fec-device FILE")
    done = repair_image(
        *(arguments.data, hash_area, arguments.fec_device, tree, arguments.repair, arguments.repair_hash), host, force=arguments.force
    )
    value = {"repaired": str(arguments.repair), "data_blocks": list(done.data_blocks), "hash_blocks": list(done.hash_blocks)}
    text = f"{arguments.repair}: {len(done.data_blocks)} data and {len(done.hash_blocks)} hash blocks repaired, all verified"
    return Outcome(value, text)


def _numbers(blocks: tuple[int, ...]) -> str:
    """Returns the first numbers of a list, for people; every one is in --json."""
    more = f" and {len(blocks) - _SHOWN} more (--json names all)" if len(blocks) > _SHOWN else ""
    return ", ".join(map(str, blocks[:_SHOWN])) + more


def _found_text(found: VerityCheck) -> str:
    """Returns what a check found, for people; every differing block is in --json."""
    if found.accepted:
        return f"verified: {found.tree.data_blocks} data blocks, {found.tree.hash_blocks} hash blocks"
    lines = [] if found.root_matches else ["the hash tree does not belong to the root hash"]
    for kind, blocks in (("hash", found.hash_blocks), ("data", found.data_blocks)):
        if blocks:
            lines.append(f"{len(blocks)} {kind} blocks differ: {_numbers(blocks)}")
    return "\n".join(lines)


def _dump(arguments: argparse.Namespace, _host: Host) -> Outcome:
    from ipe_build.integrity.verity import read_superblock

    tree = read_superblock(arguments.hash, arguments.hash_offset)
    return Outcome({"hash": str(arguments.hash), **_value(tree)}, _text(tree))


def _value(tree: VerityTree) -> dict[str, object]:
    """Returns a tree for --json."""
    parameters = tree.parameters
    value: dict[str, object] = {
        "root_hash": tree.root_hash.hex(),
        "uuid": str(parameters.uuid) if parameters.uuid is not None else None,
        "hash_type": parameters.hash_type,
        "hash_name": parameters.hash_name,
        "salt": parameters.salt.hex(),
        "data_blocks": tree.data_blocks,
        "data_block_size": parameters.data_block_size,
        "hash_blocks": tree.hash_blocks,
        "hash_block_size": parameters.hash_block_size,
        "hash_offset": tree.hash_offset,
        "hash_start_block": tree.hash_start_block,
        "hash_area_end": tree.end_offset,
        "superblock": parameters.superblock,
    }
    if not tree.root_hash:
        del value["root_hash"]
    if parameters.fec is not None:
        value["fec"] = {"roots": parameters.fec.roots, "offset": parameters.fec.offset, "blocks": tree.fec_blocks}
    return value


def _text(tree: VerityTree) -> str:
    """Returns a tree for people, with veritysetup's labels."""
    parameters = tree.parameters
    rows = [
        ("UUID", str(parameters.uuid) if parameters.uuid is not None else ""),
        ("Hash type", str(parameters.hash_type)),
        ("Data blocks", str(tree.data_blocks)),
        ("Data block size", str(parameters.data_block_size)),
        ("Hash blocks", str(tree.hash_blocks)),
        ("Hash block size", str(parameters.hash_block_size)),
        ("Hash algorithm", parameters.hash_name),
        ("Salt", parameters.salt.hex() or "-"),
        ("Root hash", tree.root_hash.hex()),
    ]
    return "\n".join(f"{label + ':':<17}{value}" for label, value in rows if value)


def _table(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.integrity.table import table_forms

    tree = _tree(arguments)
    hash_area = _hash_area(arguments)
    forms = table_forms(
        tree,
        data_device=arguments.data_device or str(arguments.data),
        hash_device=arguments.hash_device or arguments.data_device or str(hash_area)
        if hash_area == arguments.data
        else arguments.hash_device or str(hash_area),
        fec_device=arguments.fec_name or (str(arguments.fec_device) if arguments.fec_device is not None else ""),
        name=arguments.name,
        options=_target_options(arguments.option),
        signature=arguments.root_hash_signature,
    )
    if arguments.form != "all":
        return Outcome({arguments.form: forms[arguments.form]}, forms[arguments.form])
    return Outcome(forms, "\n".join(f"{form}: {text}" for form, text in forms.items()))


def _target_options(words: list[str]) -> tuple[str, ...]:
    """Returns dm-verity's options. Raises: UsageError for one that is no word."""
    for word in words:
        if not word.strip():
            raise UsageError(f"wanted a target option, got {word!r}", where="--option")
    return tuple(words)
