"""Running other programs: a list for argv, no shell, a small environment, one log line that can be pasted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ipe_build.errors import ToolFailedError

if TYPE_CHECKING:
    import subprocess

    from ipe_build.host.progress import Progress

PASSED_ON = ("HOME", "LANG", "PATH", "SOURCE_DATE_EPOCH", "TMPDIR", "XDG_CACHE_HOME")
"""The variables of ours that another program gets, besides those named in the call; LC_ALL is always C.UTF-8."""
_TAIL_LINES = 25
_WATCH_S = 0.1


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program that ended left: its exit status and both outputs in full (stdout empty when a log was named)."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Returns stdout as UTF-8 text."""
        return self.stdout.decode("utf-8", "replace")


def run_tool(
    argv: Sequence[str | Path],
    *,
    base_env: Mapping[str, str],
    extra_env: Mapping[str, str],
    cwd: Path | None,
    stdin: bytes | None,
    log: Path | None,
    timeout_s: float | None,
    ok: Sequence[int],
    progress: Progress,
    stop_when: Callable[[], bool] | None = None,
) -> Completed:
    """Returns the ended program's outputs. With `log`, stdout and stderr go to that file (appended) instead.

    The program is the leader of a process group of its own; the whole group is killed when we are interrupted or time runs out.
    `stop_when` is asked ten times a second: once it says true the group is killed, and that counts as an end that was wanted
    (status -9), for programs such as an emulator that end by what they print.
    Raises: ToolFailedError with the last lines that the program printed.
    """
    import shlex
    import subprocess

    words = [str(word) for word in argv]
    progress.command(shlex.join(words), cwd)
    env = {name: base_env[name] for name in PASSED_ON if name in base_env} | {"LC_ALL": "C.UTF-8"} | dict(extra_env)
    sink: IO[bytes] | int = log.open("ab") if log is not None else subprocess.PIPE
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT if log is not None else subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolFailedError(f"cannot start {words[0]}: {error.strerror}") from error
    finally:
        if not isinstance(sink, int):
            sink.close()
    try:
        stdout, stderr, stopped = _outputs(process, stdin, timeout_s, stop_when)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        raise ToolFailedError(
            f"{Path(words[0]).name} did not end within {timeout_s:g} s and was killed", hint=f"the command was: {shlex.join(words)}"
        ) from None
    except BaseException:
        _kill_group(process)
        raise
    done = Completed(process.returncode, stdout or b"", stderr or b"")
    if done.status not in ok and not stopped:
        raise _failure(words, done, log)
    return done


def _outputs(
    process: subprocess.Popen[bytes], stdin: bytes | None, timeout_s: float | None, stop_when: Callable[[], bool] | None
) -> tuple[bytes, bytes, bool]:
    """Returns what the program printed, and whether it ended because `stop_when` said so. Raises: subprocess.TimeoutExpired."""
    import subprocess

    if stop_when is None:
        return *process.communicate(stdin, timeout=timeout_s), False
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        try:
            return *process.communicate(stdin, timeout=_WATCH_S), False
        except subprocess.TimeoutExpired:
            stdin = None  # communicate has it already and goes on where it was
            if stop_when():
                _kill_group(process)
                return *process.communicate(), True
            if end is not None and time.monotonic() > end:
                raise


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the program and everything it started, and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(words: list[str], done: Completed, log: Path | None) -> ToolFailedError:
    """Returns the error for a program that ended with a status that was not wanted."""
    import shlex

    printed = log.read_bytes() if log is not None else done.stderr.strip() or done.stdout
    tail = printed.decode("utf-8", "replace").strip().splitlines()[-_TAIL_LINES:]
    ended = f"was killed by signal {-done.status}" if done.status < 0 else f"ended with status {done.status}"
    lines = "".join(f"\n    | {line}" for line in tail) or " and printed nothing"
    return ToolFailedError(f"{Path(words[0]).name} {ended}:{lines}", hint=f"the command was: {shlex.join(words)}")
