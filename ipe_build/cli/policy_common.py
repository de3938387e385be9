"""What the sub-verbs of `ipe-build policy` share: options of the target, and reading files."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError
from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig, release_of
from ipe_build.host import Host
from ipe_build.policy.evaluate import Enabled, all_enabled
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.files import read_policy
from ipe_build.policy.ledger import Ledger, read_ledger
from ipe_build.policy.model import Policy
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import DIGEST_SIZES
from ipe_build.policy.survey import Survey
from ipe_build.policy.versions import DEFAULT_KERNEL, KernelVersion

if TYPE_CHECKING:
    from argparse import _ActionsContainer


def target_options(parser: ArgumentParser) -> None:
    """Adds the options that describe the target kernel."""
    parser.add_argument(
        "--kernel-version", metavar="A.B", help=f"the target kernel (default: the one that wrote its .config, or {DEFAULT_KERNEL})"
    )
    parser.add_argument(
        "--kernel-config", "--target-config", type=Path, metavar=".config", help="the target kernel's resolved configuration"
    )


def fact_options(parser: ArgumentParser) -> None:
    """Adds the options that say what the kernel will know about a file."""
    flag = {"nargs": "?", "const": True, "default": False, "type": _truth, "metavar": "TRUE|FALSE"}
    parser.add_argument("--boot-verified", help="the file is in the initramfs", **flag)  # type: ignore[arg-type]
    parser.add_argument(
        "--root-hash",
        "--roothash",
        type=digest_word,
        metavar="ALG:HEX|FILE",
        help="the file is on a dm-verity volume with this root hash",
    )
    parser.add_argument("--signed", help="the volume was opened with its root hash's signature", **flag)  # type: ignore[arg-type]
    parser.add_argument("--fsverity-digest", type=digest_word, metavar="ALG:HEX", help="the file has fs-verity and this digest")
    parser.add_argument("--fsverity-signed", help="the file has a built-in fs-verity signature", **flag)  # type: ignore[arg-type]
    parser.add_argument("--image", type=Path, metavar="IMAGE", help="a root filesystem: folder, EROFS, SquashFS, ext4, initramfs, GPT disk")
    parser.add_argument("--no-file", action="store_true", help="memory or a buffer is judged (init_module, a JIT), no file")


def root_hashes_option(parser: _ActionsContainer, about: str) -> None:
    """Adds the option that names root hashes, any number of them."""
    parser.add_argument(
        "--root-hash",
        "--roothash",
        type=digest_word,
        action="append",
        default=[],
        metavar="ALG:HEX|FILE",
        help=f"{about} (repeatable)",
    )


def facts_of(arguments: Namespace) -> Facts:
    """Returns the facts that the options say. A signed volume or file without its digest has one that no rule names."""
    unknown = Digest(b"", b"not named")
    root = arguments.root_hash or (unknown if arguments.signed else None)
    file = arguments.fsverity_digest or (unknown if arguments.fsverity_signed else None)
    return Facts(not arguments.no_file, arguments.boot_verified, root, arguments.signed, file, arguments.fsverity_signed)


def survey_of(arguments: Namespace, host: Host) -> Survey | None:
    """Returns the survey of --image with the facts that the options say, else the image itself; None without --image."""
    image: Path | None = arguments.image
    if image is None:
        return None
    from ipe_build.examine.survey import survey

    facts = facts_of(arguments)
    return survey(image, host, facts if facts != Facts() else None)


def _truth(word: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if word.lower() not in known:
        raise ArgumentTypeError(f"wanted TRUE or FALSE, got {word!r}")
    return known[word.lower()]


def digest_word(word: str) -> Digest:
    """Returns the digest of ALGORITHM:HEX, of hex alone (its algorithm told by the length), or of a file that holds either."""
    path = Path(word)
    if len(word) < 1024 and path.is_file():
        word = read_file(path)[:4096].decode("ascii", "replace").strip()
    name, colon, digits = word.rpartition(":")
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        raise ArgumentTypeError(f"wanted ALGORITHM:HEX, got {word[:80]!r}") from None
    if not colon:
        name = next((known for known in ("sha256", "sha512", "sha384", "sha1") if DIGEST_SIZES[known] == len(value)), "")
    if not name or not value:
        raise ArgumentTypeError(f"wanted ALGORITHM:HEX, got {word[:80]!r}")
    return Digest(name.encode("utf-8", "surrogateescape"), value)


def kernel_of(arguments: Namespace) -> KernelVersion:
    """Returns the target kernel's version: the one that was said, or the one that the head of its configuration says."""
    if arguments.kernel_version:
        return KernelVersion.of_text(arguments.kernel_version)
    config: Path | None = arguments.kernel_config
    release = release_of(read_file(config)) if config is not None and str(config) != "-" else None  # stdin can be read once
    return KernelVersion.of_text(release) if release is not None else DEFAULT_KERNEL


def config_of(arguments: Namespace) -> DotConfig | None:
    """Returns the target kernel's configuration, None where none was named."""
    path: Path | None = arguments.kernel_config
    return None if path is None else parse_dotconfig(read_file(path), where=str(path))


def enabled_of(arguments: Namespace) -> Enabled:
    """Returns which Kconfig symbols are on: without a configuration all."""
    config = config_of(arguments)
    return config.enabled if config is not None else all_enabled


def read_file(path: Path) -> bytes:
    """Returns a file's bytes, of `-` what stands on stdin. Raises: InputError."""
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(error.strerror or str(error), where=str(path)) from error


def load_policy(path: Path, kernel: KernelVersion = DEFAULT_KERNEL) -> Policy:
    """Returns the policy in a file. Raises: InputError when the kernel would not parse it."""
    result = parse(read_policy(path), kernel, Role.BOOT)
    if result.policy is None or result.problem is not None:
        problem = result.problem
        where = f"{path}:{problem.line}" if problem and problem.line else str(path)
        raise InputError(
            f"the kernel refuses this policy with {result.errno}: {problem.message if problem else ''}",
            where=where,
            hint=problem.hint if problem else "",
        )
    return result.policy


def existing_ledger(path: Path) -> Ledger:
    """Returns the ledger in a file that must be there: with a misspelled name nothing would be compared. Raises: InputError."""
    if not path.is_file():
        raise InputError("wanted a ledger, there is no such file", where=str(path), hint="ipe-build policy record --begin makes one")
    return read_ledger(path)


def begin_option(parser: ArgumentParser) -> None:
    """Adds the option that lets a ledger, or a policy in one, begin."""
    parser.add_argument("--begin", action="store_true", help="the ledger, or this policy in it, is new: make it")


def ledger_to_enter(path: Path, names: Iterable[bytes], *, begin: bool) -> Ledger:
    """Returns the ledger into which versions of these policies are to be entered.

    Without `begin` it must be there and know each name: the versions of a misspelled one would start anew, below those that devices have.
    Raises: InputError naming the ledger and the names that it knows.
    """
    if begin:
        return read_ledger(path)
    if not path.is_file():
        raise InputError("there is no such ledger", where=str(path), hint="mind its name; --begin makes a new one")
    ledger = read_ledger(path)
    known = [name for name, _ in ledger.policies]
    for name in names:
        if name not in known:
            listed = ", ".join(one.decode("utf-8", "backslashreplace") for one in known) or "none"
            raise InputError(
                f"knows no policy {name.decode('utf-8', 'backslashreplace')}; it knows {listed}",
                where=str(path),
                hint="mind policy_name; --begin enters the first version of a new policy",
            )
    return ledger


def shown(path: Path) -> str:
    """Returns a path that can be printed."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Returns text for a terminal: bytes that are no text, and control characters other than line ends, are escaped."""
    clean = _without_surrogates(text)
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in clean)


def encodable(value: object) -> object:
    """Returns a JSON value whose texts can be written as UTF-8."""
    if isinstance(value, str):
        return _without_surrogates(value)
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    return [encodable(item) for item in value] if isinstance(value, list | tuple) else value


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
