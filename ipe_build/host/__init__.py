"""The one gate to the machine the build runs on: programs, outputs, cache, scratch space, progress, environment.

A `Host` is handed down as an argument; the rooms import this package for its types only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.host.output import check_output_directory, explained, output_directory, output_file, output_files
from ipe_build.host.progress import Progress
from ipe_build.host.small_output import write_small

if TYPE_CHECKING:
    from ipe_build.host.cache import Cache
    from ipe_build.host.run import Completed

__all__ = ["Cache", "Completed", "Host", "Progress"]


def __getattr__(name: str) -> object:
    """Returns what most verbs do not need: it is imported when it is asked for."""
    if name == "Cache":
        from ipe_build.host.cache import Cache

        return Cache
    if name == "Completed":
        from ipe_build.host.run import Completed

        return Completed
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, as the rooms see it. Tests make one with another environment (say an empty PATH) or cache."""

    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    progress: Progress = field(default_factory=Progress)

    @property
    def cache(self) -> Cache:
        """Returns the user's cache folder (`$IPE_BUILD_CACHE`, else `$XDG_CACHE_HOME/ipe-build`, else `~/.cache/ipe-build`)."""
        from ipe_build.host.cache import Cache

        return Cache.of_environment(self.env)

    @property
    def source_date_epoch(self) -> int:
        """Returns SOURCE_DATE_EPOCH in seconds, or 0 where it is unset: time is an input, never the clock.

        Raises: InputError when it is set to something else than a non-negative integer.
        """
        from ipe_build.errors import InputError

        text = self.env.get("SOURCE_DATE_EPOCH", "0") or "0"
        if not (text.isascii() and text.isdigit()):
            raise InputError(
                f"wanted a non-negative number of seconds, got {text!r}",
                where="environment: SOURCE_DATE_EPOCH",
                hint="set it to a Unix time, for instance the last commit's: git log -1 --format=%ct",
            )
        return int(text)

    @property
    def jobs(self) -> int:
        """Returns how many processes may work at once: the processors this process may run on."""
        return len(os.sched_getaffinity(0))

    def tool(self, name: str) -> Path:
        """Returns the absolute path of a program. Raises: ToolMissingError naming the Debian package that has it."""
        from ipe_build.host.tools import find_tool

        return find_tool(name, self.env)

    def has_tool(self, name: str) -> bool:
        """Returns whether a program is installed."""
        from ipe_build.errors import ToolMissingError

        try:
            self.tool(name)
        except ToolMissingError:
            return False
        return True

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        timeout_s: float | None = None,
        ok: Sequence[int] = (0,),
        stop_when: Callable[[], bool] | None = None,
    ) -> Completed:
        """Returns what the program `argv[0]` (found by `tool`) printed; see `host.run.run_tool`.

        Raises: ToolMissingError, ToolFailedError (exit status not in `ok`, or the time ran out).
        """
        from ipe_build.host.run import run_tool

        program = self.tool(str(argv[0]))
        return run_tool(
            [program, *argv[1:]],
            base_env=self.env,
            extra_env=env or {},
            cwd=cwd,
            stdin=stdin,
            log=log,
            timeout_s=timeout_s,
            ok=ok,
            progress=self.progress,
            stop_when=stop_when,
        )

    def output(self, path: Path, *, force: bool = False, flush: bool = True) -> AbstractContextManager[Path]:
        """Yields a temporary file name beside `path`; renamed to `path` when the block ends well, removed otherwise.

        Without `flush` the disk is not waited for: for thousands of small files, whose maker runs again after a power cut.
        Raises: OutputError when `path` exists and `force` is false, the folder is missing, or the disk is full.
        """
        return output_file(path, force=force, flush=flush)

    def outputs(self, *paths: Path, force: bool = False) -> AbstractContextManager[tuple[Path, ...]]:
        """Yields a temporary name for each path, all checked before the block runs: either all files appear at its end or none.

        Raises: OutputError as `output` does, and for a path that is named twice.
        """
        return output_files(paths, force=force)

    def write_small(self, path: Path, parts: Sequence[bytes], *, mode: int) -> None:
        """Writes a file whole: beside `path`, with these permissions, then renamed over it. The disk is not waited for.

        For thousands of small files, whose maker runs again after a power cut.
        Raises: OutputError when something else than a file is there, the folder is missing, or the disk is full.
        """
        write_small(path, parts, mode)

    @contextmanager
    def output_directory(self, path: Path, *, marker: str) -> Iterator[Path]:
        """Yields an empty temporary folder beside `path`; exchanged for `path` in one step when the block ends well.

        An existing folder is replaced only if it holds the file `marker` (so it is an earlier output of ours) or is empty.
        Raises: OutputError otherwise.
        """
        with output_directory(path, marker=marker) as temporary:
            yield temporary

    def check_output_directory(self, path: Path, *, marker: str) -> None:
        """Raises OutputError now where `output_directory` would raise it later, after the work is done."""
        check_output_directory(path, marker=marker)

    @contextmanager
    def scratch(self, prefix: str = "ipe-build-", *, beside: Path | None = None) -> Iterator[Path]:
        """Yields an empty private folder (mode 0700) in TMPDIR, or in the folder of `beside`, removed at the end whatever happens.

        Raises: OutputError when the disk is full.
        """
        parent = beside.parent if beside is not None else self.env.get("TMPDIR") or None
        import shutil
        import tempfile

        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            with explained(beside or folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
