"""Running the kernel's make: with a log, progress that a person can follow, and an error that shows what went wrong."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import ToolFailedError

if TYPE_CHECKING:
    from ipe_build.host import Host

_STEP = re.compile(rb"^  [A-Z][A-Z0-9_]* +(?:\[M\] +)?(\S+)", re.MULTILINE)
_TROUBLE = re.compile(r"error:|fatal error|undefined reference|\*\*\*|No such file|not found|cannot find", re.IGNORECASE)
_NOTE_S = 15.0
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Make:
    """The kernel's make for one tree and one output folder. `variables` go on its command line, the same for each call."""

    source: Path
    output: Path
    variables: tuple[tuple[str, str], ...]
    log: Path

    def run(self, targets: Sequence[str], host: Host, *, jobs: int = 1, env: Mapping[str, str] | None = None) -> None:
        """Makes the targets, with more environment variables when given; what make prints is appended to the log.

        Raises: ToolMissingError, ToolFailedError with the lines of the log that tell what is wrong.
        """
        words = [f"O={self.output}", *(f"{name}={value}" for name, value in self.variables)]
        begin = self.log.stat().st_size if self.log.exists() else 0
        try:
            with _Watch(self.log, host):
                host.run(["make", "-C", self.source, f"-j{jobs}", *words, *targets], log=self.log, env=env)
        except ToolFailedError as error:
            raise ToolFailedError(
                f"the kernel build failed at {' '.join(targets)}:{_trouble(self.log, begin)}", hint=error.hint or f"see {self.log}"
            ) from None


class _Watch:
    """While it is open, writes a progress line now and then: how many steps make has done, how long it took, what it is at."""

    def __init__(self, log: Path, host: Host) -> None:
        self._log, self._host = log, host
        self._begin = log.stat().st_size if log.exists() else 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        started = time.monotonic()
        steps, at, last = 0, self._begin, ""
        while not self._ended.wait(_NOTE_S):
            with self._log.open("rb") as handle:
                handle.seek(at)
                new = handle.read()
            whole = new[: new.rfind(b"\n") + 1]
            at += len(whole)
            names = _STEP.findall(whole)
            steps += len(names)
            last = names[-1].decode("utf-8", "replace") if names else last
            self._host.progress.note(f"{steps} files made, {time.monotonic() - started:.0f} s, now {last or 'starting'}")


def _trouble(log: Path, begin: int) -> str:
    """Returns the lines of the log, from offset `begin`, that tell what is wrong; where none does, the last ones."""
    with log.open("rb") as handle:
        handle.seek(begin)
        lines = handle.read().decode("utf-8", "replace").strip().splitlines()
    telling = [line for line in lines if _TROUBLE.search(line)][:_SHOWN] or lines[-_SHOWN:]
    return "".join(f"\n    | {line}" for line in telling) or " it printed nothing"
