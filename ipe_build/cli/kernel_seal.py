"""`ipe-build kernel seal` and `kernel compare`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from hashlib import sha256
from pathlib import Path

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import named
from ipe_build.cli.policy_common import root_hashes_option
from ipe_build.errors import ExitStatus, InputError
from ipe_build.host import Host
from ipe_build.kernel.compare import Comparison, compare_kernels
from ipe_build.kernel.seal import seal_kernel
from ipe_build.kernel.slot import DEFAULT_RESERVED, reserved_policy
from ipe_build.policy.parser import Role
from ipe_build.policy.render import render


def configure_reserve(parser: ArgumentParser) -> None:
    """Adds the options of `kernel reserve`."""
    parser.add_argument("--bytes", type=int, default=DEFAULT_RESERVED, metavar="N", help=f"its size (default {DEFAULT_RESERVED})")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="for CONFIG_IPE_BOOT_POLICY")
    parser.add_argument("--force", action="store_true", help="replace FILE")


def run_reserve(arguments: Namespace, host: Host) -> Outcome:
    """Writes the reserved boot policy, for a kernel that something else builds."""
    policy = reserved_policy(arguments.bytes)
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_bytes(policy)
    value = {"output": str(arguments.output), "reserved_bytes": len(policy)}
    return Outcome(value, f"{arguments.output}: {len(policy)} bytes, which deny everything until the kernel is sealed")


def configure_seal(parser: ArgumentParser) -> None:
    """Adds the options of `kernel seal`."""
    parser.add_argument("image", type=Path, metavar="BZIMAGE|IMAGE|VMLINUX", help="a kernel built with a reserved boot policy")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--boot-policy", type=Path, metavar="FILE", help="the policy to write into it")
    root_hashes_option(what, "render it from the template `sealed` for this root")
    parser.add_argument("--name", default="ipe-boot", help="with --root-hash: policy_name (default ipe-boot)")
    parser.add_argument(
        "--policy-version", "--version", default="0.0.1", metavar="A.B.C", help="with --root-hash: policy_version (default 0.0.1)"
    )
    parser.add_argument("--again", action="store_true", help="also seal a kernel that was sealed with another policy")
    parser.add_argument("--strip-signature", action="store_true", help="take an Authenticode signature off; it would not fit any more")
    parser.add_argument("--verify", type=Path, metavar="SEALED", help="write nothing; say whether SEALED is what comes out")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the sealed kernel goes")
    parser.add_argument("--force", action="store_true", help="replace FILE")


def run_seal(arguments: Namespace, host: Host) -> Outcome:
    """Seals, and writes the kernel or compares it with the one that was given."""
    if (arguments.output is None) == (arguments.verify is None):
        raise InputError("wanted either an output (-o FILE) or a kernel to compare with (--verify SEALED)", where="kernel seal")
    variables = {
        "name": arguments.name,
        "version": arguments.policy_version,
        "role": str(Role.BOOT),
        "root_hashes": [str(digest) for digest in arguments.root_hash],
    }
    policy = _read(arguments.boot_policy) if arguments.boot_policy is not None else render("sealed", variables)
    try:
        sealed = seal_kernel(_read(arguments.image), policy, host, again=arguments.again, strip_signature=arguments.strip_signature)
    except InputError as error:
        error.where = f"{arguments.image}: {error.where}" if error.where else str(arguments.image)
        raise
    value: dict[str, object] = {
        "image": str(arguments.verify or arguments.output),
        "sha256": sha256(sealed.image).hexdigest(),
        "boot_policy": sealed.policy.decode("utf-8", "replace"),
        "reserved_bytes": sealed.reserved_bytes,
        "layers": list(sealed.layers),
        "signature_removed": sealed.signature_removed,
    }
    if arguments.verify is not None:
        return _compared(compare_kernels(_read(arguments.verify), sealed.image), value, str(arguments.verify), "what sealing gives")
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_bytes(sealed.image)
    notes = ["its signature was taken off: sign it anew"] if sealed.signature_removed else []
    notes += ["it was sealed before, with another policy"] if sealed.replaced not in (None, sealed.policy) else []
    layers = " > ".join(sealed.layers)
    text = f"{arguments.output}: {layers}, {len(sealed.policy)} of {sealed.reserved_bytes} reserved bytes, sha256 {value['sha256']}"
    return Outcome(value, "\n".join([text, *notes]))


def configure_compare(parser: ArgumentParser) -> None:
    """Adds the options of `kernel compare`."""
    parser.add_argument("one", type=Path, metavar="KERNEL", help="a kernel image")
    parser.add_argument("other", type=Path, metavar="KERNEL", help="the other one")


def run_compare(arguments: Namespace, host: Host) -> Outcome:
    """Returns whether two kernels are the same, and where they differ."""
    with named(f"{arguments.one} or {arguments.other}", "kernel image"):
        found = compare_kernels(_read(arguments.one), _read(arguments.other))
    return _compared(found, {"one": str(arguments.one), "other": str(arguments.other)}, str(arguments.one), str(arguments.other))


def _compared(found: Comparison, value: dict[str, object], one: str, other: str) -> Outcome:
    """Returns the outcome of a comparison: fine only when the files are the same."""
    value |= {
        "same_file": found.same_file,
        "same_kernel": found.same_kernel,
        "same_policy": found.same_policy,
        "differences": [
            {"offset": row.offset, "section": row.section, "one": row.one.hex(), "other": row.other.hex()} for row in found.differences
        ],
    }
    if found.same_file:
        return Outcome(value, f"{one} and {other} are the same, byte for byte")
    if found.same_kernel:
        lines = [f"{one} and {other} hold the same kernel, packed or signed differently"]
    else:
        lines = [f"{one} and {other} differ"]
        lines += ["  in the reserved boot policy"] if found.same_policy is False else []
        lines += ["  and nowhere else"] if found.same_policy is False and not found.differences else []
        lines += [f"  at {row.offset:#x} {row.section}: {row.one.hex(' ')} / {row.other.hex(' ')}" for row in found.differences]
    return Outcome(value, "\n".join(lines), ExitStatus.FINDING)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(path)) from error
