"""The command line: one row a verb, one file a verb. Prints and exits live here alone."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

from ipe_build.cli.plain import NotPlainError, PlainParser
from ipe_build.errors import ExitStatus, InputError, InterruptedRunError, IpeBuildError, OutputError, UsageError
from ipe_build.host import Host, Progress

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import FrameType


_MAY_BE_EMPTY = frozenset({"--command-line", "--application", "--interpreter"})


class Outcome(NamedTuple):
    """What a verb gives back: the one JSON value for --json, the text for people, the exit status."""

    value: object
    text: str
    status: ExitStatus = ExitStatus.OK


class Verb(NamedTuple):
    """A row: the word, the module that has `configure(parser)` and `run(arguments, host) -> Outcome`, one line of help."""

    name: str
    module: str
    help: str


VERBS: tuple[Verb, ...] = (
    Verb("build", "build", "the whole flow: root filesystem in, booted and proven image out"),
    Verb("config", "config", "check a configuration, or print its schema"),
    Verb("keys", "keys", "make, show and check keys and certificates"),
    Verb("verity", "verity", "dm-verity hash trees: format, verify, dump, table"),
    Verb("fsverity", "fsverity", "fs-verity digests, signatures and manifests"),
    Verb("sign", "sign", "sign what the device checks: policies, root hashes, fs-verity digests, EFI programs; here or elsewhere"),
    Verb("ima", "ima", "IMA and EVM: sign the files of a root filesystem, verify them, IMA policies"),
    Verb("policy", "policy", "IPE policies: check, evaluate, render, make, diff, record, learn"),
    Verb("kernel", "kernel", "kernels: configuration, build, inspection, sealing"),
    Verb("modules", "modules", "sign and verify kernel modules"),
    Verb("root", "root", "make an image a signed verity root: hash tree, root hash, signature, sidecars"),
    Verb("image", "image", "make the parts of an image: filesystem, initramfs, UKI, disk, flash files"),
    Verb("update", "update", "A/B updates: RAUC and SWUpdate images of verity slots, the policies while an update is in flight"),
    Verb("audit", "audit", "would this image boot and enforce: nothing is run"),
    Verb("attest", "attest", "what a boot will measure, a quote against it, who built the image out of what"),
    Verb("boot", "boot", "boot an image in QEMU and probe what runs and what is denied"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of one run of the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    _stop_on_signals()
    try:
        return _run(words)
    except IpeBuildError as error:
        return _report(error, as_json)
    except KeyboardInterrupt:
        return _report(InterruptedRunError("interrupted; outputs that existed before are unchanged"), as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.OK
    except OSError as error:
        return _report(_from_os(error), as_json)


def _run(words: list[str]) -> int:
    """Parses the words, runs the verb and prints its outcome."""
    _refuse_empty(words)
    arguments = _read(words)
    host = Host(progress=Progress(quiet=arguments.quiet, verbose=arguments.verbose))
    verb = next(verb for verb in VERBS if verb.name == arguments.verb)
    run = importlib.import_module(f"ipe_build.cli.{verb.module}").run
    gc.freeze()
    gc.enable()  # see ipe_build.__main__
    outcome: Outcome = run(arguments, host)
    if arguments.json:
        import json

        print(json.dumps(outcome.value, indent=2, ensure_ascii=False))
    elif outcome.text:
        print(outcome.text)
    sys.stdout.flush()
    return outcome.status


def _refuse_empty(words: list[str]) -> None:
    """Raises UsageError for an empty word: a script's variable that is not set, which would be no salt, no nonce or this folder."""
    for before, word in zip(("", *words), words, strict=False):
        if word and not (word[:2] == "--" and word.find("=") == len(word) - 1):
            continue
        option = word[:-1] if word else before if before[:1] == "-" and "=" not in before else ""
        if option not in _MAY_BE_EMPTY:
            raise UsageError("wanted a value, got an empty one", where=option or f"ipe-build {words[0]}", hint="is a variable not set?")


def _read(words: list[str]) -> argparse.Namespace:
    """Returns what the words say. Raises: UsageError; SystemExit after --help and --version."""
    verb = next((verb for verb in VERBS if words[:1] == [verb.name]), None)
    if verb is not None:
        parser = PlainParser()
        try:
            importlib.import_module(f"ipe_build.cli.{verb.module}").configure(parser)
            for leaf in parser.leaves():
                add_common_options(leaf)
            arguments = parser.read(words[1:])
        except NotPlainError:
            pass
        else:
            arguments.verb = verb.name
            return cast("argparse.Namespace", arguments)
    from ipe_build.cli.parser import parse

    return parse(words)


def add_common_options(parser: argparse.ArgumentParser | PlainParser) -> None:
    """Adds --json, --quiet and --verbose to the parser of a verb or sub-verb."""
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout; messages go to stderr")
    parser.add_argument("--quiet", action="store_true", help="no progress, only warnings and errors")
    parser.add_argument("--verbose", action="store_true", help="also print every command that is run")


def _report(error: IpeBuildError, as_json: bool) -> int:
    """Prints an error to stderr (and, for --json, as the one JSON value) and returns its exit status."""
    if not error.hint:
        error.hint = _hint(error.__cause__)
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        value = {"error": {"where": error.where, "message": error.message, "hint": error.hint, "status": int(error.status)}}
        import json

        print(json.dumps(value, indent=2, ensure_ascii=False))
    return error.status


def _from_os(error: OSError) -> IpeBuildError:
    """Returns our error for an operating system error that no room explained."""
    import errno

    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    kind = OutputError if error.errno in (errno.ENOSPC, errno.EDQUOT) else InputError
    message = {
        errno.ENOENT: "wanted a file, there is none of this name",
        errno.EISDIR: "wanted a file, this is a folder",
        errno.ENOTDIR: "wanted a folder, this is a file or below one",
    }.get(error.errno or 0, error.strerror or str(error))
    return kind(message, where=where, hint=_hint(error))


def _hint(cause: BaseException | None) -> str:
    """Returns what to do about a refusal of the operating system, wherever it was noticed; nothing for another cause."""
    if not isinstance(cause, OSError):
        return ""
    import errno

    hints = {
        errno.ENOENT: _no_such_name(cause),
        errno.ENOTDIR: "a part of the path is a file",
        errno.EISDIR: "name a file in it",
        errno.EACCES: "its owner, mode or folder forbids it; say who may with chmod, or run as somebody who may",
        errno.EROFS: "name a place on a filesystem that is mounted writable",
        errno.ENOSPC: "free space, or name a place on another disk",
        errno.EDQUOT: "free space, or name a place on another disk",
        errno.EMFILE: "raise the limit on open files (ulimit -n)",
    }
    return hints.get(cause.errno or 0, "")


def _no_such_name(cause: OSError) -> str:
    """Returns the hint for a name that is not there: what it counts from is often what went wrong."""
    from pathlib import Path

    name = os.fsdecode(cause.filename) if isinstance(cause.filename, str | bytes) else ""
    try:
        return "check its spelling" if not name or Path(name).is_absolute() else f"relative names count from {Path.cwd()}"
    except OSError:  # the working folder itself was removed
        return "the working folder is gone"


def _stop_on_signals() -> None:
    """Lets SIGTERM and SIGHUP end a run the way Ctrl-C does, so that temporary outputs are removed."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see ipe_build.__main__
        signal.signal(signal.SIGINT, signal.default_int_handler)
