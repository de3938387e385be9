"""The command line: one row a verb, one file a verb. Prints and exits live here alone."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

from ipe_build.cli.plain import NotPlainError, PlainParser
from ipe_build.errors import ExitStatus, InterruptedRunError, IpeBuildError, OutputError
from ipe_build.host import Host, Progress

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from types import FrameType


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
    Verb("sign", "sign", "sign what the device checks: policies, root hashes, fs-verity digests"),
    Verb("ima", "ima", "IMA and EVM: sign the files of a root filesystem, verify them, IMA policies"),
    Verb("policy", "policy", "IPE policies: check, evaluate, render, diff, learn"),
    Verb("kernel", "kernel", "kernel configuration, build and inspection"),
    Verb("modules", "modules", "sign and verify kernel modules"),
    Verb("root", "root", "make an image a signed verity root: hash tree, root hash, signature, sidecars"),
    Verb("image", "image", "make the parts of an image: filesystem, initramfs, disk"),
    Verb("update", "update", "A/B updates: RAUC and SWUpdate images of verity slots, the policies while an update is in flight"),
    Verb("audit", "audit", "would this image boot and enforce: nothing is run"),
    Verb("attest", "attest", "what a build consists of, for somebody who verifies it"),
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
    kind = OutputError if error.errno in (errno.ENOSPC, errno.EDQUOT) else IpeBuildError
    return kind(error.strerror or str(error), where=where)


def _stop_on_signals() -> None:
    """Lets SIGTERM and SIGHUP end a run the way Ctrl-C does, so that temporary outputs are removed."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
