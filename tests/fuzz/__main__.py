"""`python -m tests.fuzz [--seconds N | --runs N] [TARGET…]`: coverage-guided fuzzing with Atheris, a process for each target.

The package is instrumented once; each target then runs in a fork of that process. The corpus is kept in the user's cache folder and
grows from run to run. What breaks a reader is written there as `crash-…`; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

import atheris

with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["ipe_build"]):
    from ipe_build.host import Host
    from tests.fuzz.targets import BY_NAME, TARGETS, Target, run

LIMITS = ["-rss_limit_mb=1500", "-timeout=60", "-max_len=300000", "-print_final_stats=1", "-verbosity=0"]


def corpus_of(target: Target) -> Path:
    """Returns the folder of a target's corpus, with its seeds in it."""
    folder = Host().cache.root / "fuzz" / target.name
    folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (folder / hashlib.sha256(seed).hexdigest()[:20]).write_bytes(seed)
    return folder


def campaign(target: Target, limit: str) -> tuple[int, int, str]:
    """Returns executions, files in the corpus and what broke (empty: nothing) of fuzzing one target in a process of its own."""
    corpus = corpus_of(target)
    words = [f"-artifact_prefix={corpus.parent}/crash-{target.name}-", limit, *LIMITS, str(corpus)]
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _fuzz(target, words, said.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        text = said.read().decode(errors="replace")
    counted = re.search(r"number_of_executed_units: (\d+)", text)
    broke = "" if status == 0 else "\n".join(text.splitlines()[-40:]) or f"status {status}"
    return int(counted[1]) if counted else 0, sum(1 for _ in corpus.iterdir()), broke


def _fuzz(target: Target, words: list[str], output: int) -> NoReturn:
    """Fuzzes in this process, which ends here; libFuzzer's own words go to the file `output`.

    It ends by an exception and never by `os._exit`: libFuzzer writes down what broke the target when the interpreter ends.
    """
    os.dup2(output, 1)
    os.dup2(output, 2)
    atheris.Setup([sys.argv[0], *words], lambda data: run(target, data))
    atheris.Fuzz()
    sys.exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", choices=[*BY_NAME, []], help=", ".join(BY_NAME))
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--runs", type=int, help="executions for each target, instead of seconds")
    arguments = parser.parse_args()
    limit = f"-runs={arguments.runs}" if arguments.runs else f"-max_total_time={arguments.seconds}"
    failed = total = 0
    for target in [BY_NAME[name] for name in arguments.targets] or TARGETS:
        executions, files, broke = campaign(target, limit)
        total += executions
        failed += bool(broke)
        print(f"{target.name:16} {executions:9} executions  {files:5} in the corpus  {'BROKE' if broke else 'ok'}", flush=True)
        if broke:
            print(broke, file=sys.stderr)
    print(f"{total} executions, {failed} of the targets broke")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
