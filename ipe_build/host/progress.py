"""Progress that a person can follow: nested, timed steps on stderr; on a terminal also bytes done and a rate."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_REDRAW_S = 0.1


def human_bytes(count: int) -> str:
    """Returns a size for people: `0 B`, `512 B`, `1.5 MiB`, `4.0 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


class Progress:
    """Writes steps to a stream. `quiet` writes nothing but notes; `verbose` also writes every command that is run."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False, verbose: bool = False) -> None:
        """`stream` is stderr unless given. Time is read from the monotonic clock and never reaches an output file."""
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._verbose = verbose
        self._depth = 0
        self._drawn = 0.0
        self._live = False

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Times a block as one step: `title …` when it begins on a terminal, `title  1.2 s` when it ends."""
        started = time.monotonic()
        self._line(f"{title} …")
        self._depth += 1
        try:
            yield
        except BaseException:
            self._depth -= 1
            self._line(f"{title}: stopped after {time.monotonic() - started:.1f} s")
            raise
        self._depth -= 1
        self._line(f"{title}: {time.monotonic() - started:.1f} s")

    def note(self, text: str) -> None:
        """Writes one line inside the current step (also when quiet is off only)."""
        self._line(text)

    def warn(self, text: str) -> None:
        """Writes one warning line, also when quiet."""
        self._clear()
        self._stream.write(f"warning: {text}\n")
        self._stream.flush()

    def amount(self, done: int, total: int, started: float) -> None:
        """Redraws how many bytes of `total` are done since `started` (monotonic seconds); terminals only, ten times a second."""
        now = time.monotonic()
        if self._quiet or not self._stream.isatty() or (now - self._drawn < _REDRAW_S and done < total):
            return
        self._drawn = now
        rate = done / max(now - started, 1e-6)
        share = f"{100 * done // total:3d}%" if total else "100%"
        text = f"{'  ' * self._depth}{share}  {human_bytes(done)} of {human_bytes(total)}, {human_bytes(int(rate))}/s"
        self._stream.write(f"\r{text}\033[K")
        self._stream.flush()
        self._live = True

    def command(self, line: str, cwd: Path | None) -> None:
        """Writes a command as it could be pasted into a shell, when verbose."""
        if self._verbose:
            self._line(f"$ cd {cwd} && {line}" if cwd is not None else f"$ {line}")

    def _line(self, text: str) -> None:
        if self._quiet:
            return
        self._clear()
        self._stream.write(f"{'  ' * self._depth}{text}\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\033[K")
            self._live = False
