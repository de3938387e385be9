"""`ipe-build kernel`: fragment, check, build, inspect; seal and compare are in kernel_seal.py."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.cli import Outcome
from ipe_build.cli.kernel_seal import configure_compare, configure_reserve, configure_seal, run_compare, run_reserve, run_seal
from ipe_build.cli.subverbs import SubVerb, configure_rows, run_row
from ipe_build.errors import ExitStatus, InputError
from ipe_build.formats.dotconfig import parse_dotconfig, render_dotconfig
from ipe_build.host import Host
from ipe_build.kernel.build import Kernel, build_kernel
from ipe_build.kernel.check import Difference, compare, explain
from ipe_build.kernel.embedded import certificate_facts
from ipe_build.kernel.fragment import Fragment, fragment, render_fragment
from ipe_build.kernel.inspect import KernelFacts, inspect_kernel
from ipe_build.kernel.needs import ROWS, Need
from ipe_build.kernel.profiles import ALWAYS, BOARDS, BRINGS, DEBIAN_SOURCE, board_of_name, kernel_request, need_of_name, with_brought
from ipe_build.kernel.slot import DEFAULT_RESERVED, reserved_policy
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import PROPERTY_OF_NAME


def configure(parser: ArgumentParser) -> None:
    """Adds the sub-verbs to the verb's parser."""
    configure_rows(parser, _SUBVERBS)


def run(arguments: Namespace, host: Host) -> Outcome:
    """Returns the outcome of the sub-verb that was asked for."""
    return run_row(arguments, _SUBVERBS, host)


def _need_options(parser: ArgumentParser) -> None:
    """Adds the options that say what the kernel is needed for."""
    parser.add_argument(
        "--feature", action="append", default=[], metavar="NAME", help="what the kernel must be able to do (see --list); repeatable"
    )
    parser.add_argument("--board", metavar="NAME", help="also what this board needs to boot: " + ", ".join(board.name for board in BOARDS))
    parser.add_argument(
        "--property", action="append", default=[], metavar="NAME", help=f"an IPE property: {', '.join(PROPERTY_OF_NAME)}; repeatable"
    )
    parser.add_argument(
        "--policy", action="append", default=[], type=Path, metavar="FILE", help="a policy, for the properties that it uses; repeatable"
    )
    parser.add_argument("--boot-policy", metavar="PATH", help="CONFIG_IPE_BOOT_POLICY: an absolute path, or one below the build folder")
    parser.add_argument("--trusted-keys", metavar="PATH", help="CONFIG_SYSTEM_TRUSTED_KEYS: a PEM bundle")


def _fragment(arguments: Namespace) -> Fragment:
    """Returns the fragment that the options ask for."""
    asked = {need_of_name(name) for name in arguments.feature}
    asked |= set(board_of_name(arguments.board).needs) if arguments.board else set()
    names = [*arguments.property, *(name for path in arguments.policy for name in _properties_of(path))]
    return fragment(
        with_brought({*ALWAYS, *asked}), dict.fromkeys(names), boot_policy=arguments.boot_policy, trusted_keys=arguments.trusted_keys
    )


def _properties_of(path: Path) -> tuple[str, ...]:
    """Returns the names of the properties that a policy's rules use."""
    result = parse(_read(path), role=Role.BOOT)
    if result.policy is None:
        raise InputError(
            result.problem.message if result.problem else "is no IPE policy", where=str(path), hint="see ipe-build policy check"
        )
    return tuple(dict.fromkeys(condition.property.name for rule in result.policy.rules for condition in rule.conditions))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(path)) from error


def _configure_fragment(parser: ArgumentParser) -> None:
    _need_options(parser)
    parser.add_argument("--list", action="store_true", help="print the features and the symbols of each, and end")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there instead of printing it")
    parser.add_argument("--force", action="store_true", help="replace FILE when it exists")


def _run_fragment(arguments: Namespace, host: Host) -> Outcome:
    """Returns the fragment's text; as JSON a list of symbols."""
    if arguments.list:
        rows = [{"feature": row.need.value, "symbol": row.symbol, "value": row.value, "why": row.why} for row in ROWS]
        return Outcome(rows, "\n".join(_listing(need) for need in Need))
    wanted = _fragment(arguments)
    text = render_fragment(wanted)
    if arguments.output is not None:
        with host.output(arguments.output, force=arguments.force) as temporary:
            temporary.write_bytes(text)
    value = [{"symbol": row.symbol, "value": row.value, "why": row.why, "needs": list(row.needs)} for row in wanted.wanted]
    return Outcome(value, f"wrote {arguments.output}" if arguments.output else text.decode().rstrip())


def _listing(need: Need) -> str:
    rows = [row for row in ROWS if row.need is need]
    brought = f"  (brings {', '.join(BRINGS[need])})" if need in BRINGS else ""
    return f"{need.value}{brought}\n" + "\n".join(f"  {row.symbol}={row.value or '(empty)'}: {row.why}" for row in rows)


def _configure_check(parser: ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar=".config", help="a resolved kernel configuration")
    _need_options(parser)
    parser.add_argument("--source", type=Path, metavar="TREE", help="the kernel tree, to say what a missing symbol depends on")


def _run_check(arguments: Namespace, host: Host) -> Outcome:
    """Returns the differences between what is needed and what the configuration has."""
    resolved = parse_dotconfig(_read(arguments.config), where=str(arguments.config))
    wanted = _fragment(arguments)
    found = compare(wanted, resolved)
    if arguments.source is not None:
        found = explain(found, resolved, arguments.source, board_of_name(arguments.board).srcarch if arguments.board else "x86")
    text = "\n".join([*map(str, found), f"{arguments.config}: {len(found)} of {len(wanted.wanted)} symbols are not as needed"])
    return Outcome([_difference(row) for row in found], text, ExitStatus.FINDING if found else ExitStatus.OK)


def _difference(row: Difference) -> dict[str, object]:
    return {
        "symbol": row.symbol,
        "wanted": row.wanted,
        "got": row.got,
        "why": row.why,
        "needs": list(row.needs),
        "hint": row.hint,
    }


def _configure_build(parser: ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, default=DEBIAN_SOURCE, metavar="TREE|TAR", help=f"kernel source (default {DEBIAN_SOURCE})")
    parser.add_argument("--base", default="tinyconfig", help="base configuration: tinyconfig, defconfig, …, or file:PATH")
    parser.add_argument("--board", default=BOARDS[0].name, help=f"what it is for (default {BOARDS[0].name})")
    parser.add_argument(
        "--feature", action="append", metavar="NAME", help="see kernel fragment --list (default: hardening, probes); repeatable"
    )
    parser.add_argument("--property", action="append", default=[], metavar="NAME", help="an IPE property that policies use; repeatable")
    parser.add_argument("--filesystem", default="erofs", help="of the root: erofs, squashfs or ext4")
    parser.add_argument("--module-compression", default="none", help="none, gzip, xz or zstd")
    parser.add_argument("--fragment", action="append", default=[], type=Path, metavar="FILE", help="configuration of your own; repeatable")
    policy = parser.add_mutually_exclusive_group(required=True)
    policy.add_argument("--boot-policy", type=Path, metavar="FILE", help="the policy to compile in")
    policy.add_argument(
        "--reserve", type=int, metavar="BYTES", help=f"compile in a reserved policy of this size, for kernel seal (say {DEFAULT_RESERVED})"
    )
    parser.add_argument("--trust", action="append", default=[], type=Path, metavar="CERT", help="a certificate to build in; repeatable")
    parser.add_argument("--revoke", action="append", default=[], type=Path, metavar="CERT", help="a certificate not to trust; repeatable")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="for the image, vmlinux, kernel.config and modules/"
    )


def _run_build(arguments: Namespace, host: Host) -> Outcome:
    """Builds, copies the result to the output folder and returns where everything is."""
    host.check_output_directory(arguments.output, marker="kernel.config")
    request = kernel_request(
        arguments.source,
        board=arguments.board,
        features=("hardening", "probes") if arguments.feature is None else arguments.feature,
        properties=arguments.property,
        filesystem=arguments.filesystem,
        module_compression=arguments.module_compression,
        base=arguments.base,
        fragments=tuple(arguments.fragment),
    )
    boot_policy = _read(arguments.boot_policy) if arguments.boot_policy is not None else reserved_policy(arguments.reserve)
    trust = KernelTrust(boot_policy, tuple(map(_read, arguments.trust)), tuple(map(_read, arguments.revoke)))
    kernel = build_kernel(request, trust, host)
    with host.output_directory(arguments.output, marker="kernel.config") as folder:
        _copy(kernel, folder)
    value = {
        "image": str(arguments.output / kernel.image.name),
        "config": str(arguments.output / "kernel.config"),
        "modules": str(arguments.output / "modules"),
        "release": kernel.release,
    }
    return Outcome(value, f"{value['image']}: Linux {kernel.release}, {len(kernel.modules)} modules (unsigned) in {value['modules']}")


def _copy(kernel: Kernel, folder: Path) -> None:
    for path in (kernel.image, kernel.config, *([kernel.vmlinux] if kernel.vmlinux else [])):
        shutil.copyfile(path, folder / path.name)
    if kernel.modules_folder is not None:
        shutil.copytree(kernel.modules_folder, folder / "modules" / kernel.release)


def _configure_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="VMLINUX|BZIMAGE|IMAGE|UKI", help="a kernel, also compressed")
    parser.add_argument("--config", action="store_true", help="print the configuration that is in it (IKCONFIG) and nothing else")
    parser.add_argument("--boot-policy", action="store_true", help="print the boot policy that is in it and nothing else")


def _run_inspect(arguments: Namespace, host: Host) -> Outcome:
    """Returns what the kernel says about itself."""
    facts = inspect_kernel(arguments.image)
    value = _facts(facts)
    if arguments.config:
        if facts.config is None:
            raise InputError("holds no configuration", where=str(arguments.image), hint="it was built without CONFIG_IKCONFIG")
        return Outcome(value, render_dotconfig(facts.config.values.items()).decode().rstrip())
    if arguments.boot_policy:
        if facts.boot_policy is None:
            raise InputError("holds no boot policy", where=str(arguments.image), hint="it was built without CONFIG_IPE_BOOT_POLICY")
        return Outcome(value, facts.boot_policy.decode("utf-8", "replace").rstrip("\n"))
    return Outcome(value, _facts_text(facts))


def _facts(facts: KernelFacts) -> dict[str, object]:
    """Returns the facts as JSON has them; the configuration as symbol and value."""
    return {
        "version": facts.version,
        "banner": facts.banner,
        "architecture": facts.architecture or None,
        "layers": list(facts.layers),
        "ipe": facts.ipe,
        "properties": None if facts.properties is None else list(facts.properties),
        "boot_policy": None if facts.boot_policy is None else facts.boot_policy.decode("utf-8", "replace"),
        "certificates": [_certificate(der) for der in facts.certificates],
        "revoked": [_certificate(der) for der in facts.revoked],
        "lsms": None if facts.lsms is None else list(facts.lsms),
        "command_line": facts.command_line,
        "config": None if facts.config is None else dict(facts.config.values),
        "exact": facts.exact,
    }


def _certificate(der: bytes) -> dict[str, object]:
    facts = certificate_facts(der)
    return {
        "subject": facts.subject,
        "issuer": facts.issuer,
        "serial": f"{facts.serial:x}",
        "subject_key_id": facts.subject_key_id.hex() or None,
        "algorithm": facts.algorithm,
        "not_before": facts.not_before.isoformat(),
        "not_after": facts.not_after.isoformat(),
        "sha256": facts.sha256.hex(),
    }


def _facts_text(facts: KernelFacts) -> str:
    """Returns the facts for a person; what cannot be told is said so."""
    told = "found by their shape: the image has no symbols" if not facts.exact else "read by their symbols"
    rows = [
        ("version", facts.version),
        ("banner", facts.banner),
        ("image", " > ".join(facts.layers) + (f" ({facts.architecture})" if facts.architecture else "")),
        ("IPE", "built in" if facts.ipe else "not built in"),
        ("properties", "cannot be told without the configuration" if facts.properties is None else ", ".join(facts.properties) or "none"),
        ("LSM order", "not found" if facts.lsms is None else ",".join(facts.lsms)),
        ("command line", "cannot be told" if facts.command_line is None else facts.command_line or "none built in"),
        ("configuration", "not in the image" if facts.config is None else f"{len(facts.config.values)} symbols (--config prints it)"),
        ("boot policy", "none" if facts.boot_policy is None else ""),
    ]
    lines = [f"{name:14}{value}" for name, value in rows]
    if facts.boot_policy is not None:
        lines += [f"    {line}" for line in facts.boot_policy.decode("utf-8", "replace").rstrip("\n").split("\n")]
    for title, certificates in (("trusts", facts.certificates), ("revoked", facts.revoked)):
        lines.append(f"{title:14}{len(certificates)} certificates, {told}")
        for der in certificates:
            row = certificate_facts(der)
            lines.append(
                f"    {row.subject} ({row.algorithm}, key {row.subject_key_id.hex() or 'without an id'}, until {row.not_after:%Y-%m-%d})"
            )
    return "\n".join(lines)


_SUBVERBS: tuple[SubVerb, ...] = (
    SubVerb("fragment", _configure_fragment, _run_fragment, "print the kernel configuration that a policy and an image need"),
    SubVerb("check", _configure_check, _run_check, "compare a resolved .config with what is needed"),
    SubVerb("inspect", _configure_inspect, _run_inspect, "print what a kernel binary says about itself: nothing is run"),
    SubVerb("build", _configure_build, _run_build, "build a kernel with a boot policy and certificates"),
    SubVerb("reserve", configure_reserve, run_reserve, "write the boot policy to compile into a kernel that is sealed later"),
    SubVerb("seal", configure_seal, run_seal, "write the boot policy into a kernel that is built already"),
    SubVerb("compare", configure_compare, run_compare, "say whether two kernels are the same, and where not"),
)
