"""`python -m tests.fuzz [--seconds N | --runs N] [TARGET…]`: coverage-guided fuzzing with Atheris, a process for each target.

The corpus is kept in the user's cache folder and grows from run to run. What breaks a reader is written there as `crash-…`; the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

from ipe_build.host import Host
from tests.fuzz.targets import BY_NAME, TARGETS, Target

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
    done = subprocess.run([sys.executable, "-m", "tests.fuzz.guided", target.name, *words], capture_output=True, text=True)
    counted = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    broke = "" if done.returncode == 0 else "\n".join(done.stderr.splitlines()[-40:]) or f"status {done.returncode}"
    return int(counted[1]) if counted else 0, sum(1 for _ in corpus.iterdir()), broke


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
