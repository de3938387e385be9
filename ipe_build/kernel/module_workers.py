"""Forked workers that take numbered pieces of work from a common list, share a loaded key, and never leave half of one thing done.

Instead of a pool of the standard library, whose threads and queues take a part of each piece's time that counts beside a quick signature.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import TypeVar

from ipe_build.errors import ToolFailedError

Result = TypeVar("Result")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20


def in_workers(pieces: Sequence[int], work: Callable[[int], Result], workers: int) -> Iterator[Result]:
    """Yields what `work` returns for each piece, as they come; workers take them in this order. Close it when you leave it early.

    Raises: what `work` raises, after each worker has ended its current `finishing`; ToolFailedError when a worker is killed.
    """
    numbers = os.memfd_create("pieces")  # its position is common to all workers
    started: dict[Connection, ForkProcess] = {}
    finished = False
    try:
        os.pwrite(numbers, array("I", pieces).tobytes(), 0)
        gc.freeze()  # what workers inherit is shared with them as long as nobody writes to it
        with _stopping_later():  # what arrives in the middle of a fork would be lost
            for _ in range(workers):
                reader, process = _start(numbers, work)
                started[reader] = process
        yield from _results(started)
        finished = True
    finally:
        with _stopping_later():  # a second Ctrl-C waits until nobody works any more
            os.ftruncate(numbers, 0)
            os.close(numbers)
            for process in () if finished else started.values():
                with suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGUSR1)  # none goes on to its next module
            for reader, process in started.items():
                reader.close()
                process.join()
            gc.unfreeze()


@contextmanager
def _stopping_later() -> Iterator[None]:
    """Lets Ctrl-C and the like wait for the end of the block. By handlers: a masked signal goes to another thread, if there is one."""
    if threading.current_thread() is not threading.main_thread():  # none is handled here
        yield
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda got, _frame: arrived.append(got)) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _start(numbers: int, work: Callable[[int], Result]) -> tuple[Connection, ForkProcess]:
    """Returns a new worker and where its results are read."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(os.getpid(), numbers, writer, work), daemon=True)
    process.start()
    writer.close()  # only the worker holds it: when it ends, the reader says so
    return reader, process


def _results(started: dict[Connection, ForkProcess]) -> Iterator[Result]:
    """Yields the results until each worker said that there are no more pieces."""
    working = set(started)
    while working:
        for reader in wait(list(working)):
            assert isinstance(reader, Connection)
            try:
                kind, value = reader.recv()
            except EOFError:
                message = "a signing worker was killed"
                raise ToolFailedError(message, hint="was there enough memory? run it again: signing continues") from None
            if kind == "error":
                raise value
            if kind == "end":
                working.discard(reader)
            else:
                yield value


def _serve(parent: int, numbers: int, writer: Connection, work: Callable[[int], object]) -> None:
    """Works, in a worker, until no piece is left."""
    _begin(parent)
    size = array("I").itemsize
    try:
        while number := os.read(numbers, size):
            writer.send(("result", work(array("I", number)[0])))
        writer.send(("end", None))
    except Exception as error:
        writer.send(("error", error))


def _begin(parent: int) -> None:
    """Lets a worker end after its module, and not before, when the build is interrupted, when it fails, and when it is killed."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda _number, _frame: finishing.leave())
    gc.disable()  # a worker ends before there is garbage worth the search
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if hasattr(libc, "mallopt"):  # glibc: pages of a module that is done are there for the next one, and not given back
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
    if os.getppid() != parent:  # it was killed before that
        finishing.leave()


class _Finishing:
    """A block that a worker brings to its end before it leaves, for nobody else would remove what is half written."""

    inside = False
    orphaned = False

    def leave(self) -> None:
        """Ends the process, a worker: now, or at the end of the block."""
        self.orphaned = True
        if not self.inside:
            os._exit(1)

    def __enter__(self) -> None:
        self.inside = True

    def __exit__(self, *_error: object) -> None:
        self.inside = False
        if self.orphaned:
            os._exit(1)


finishing = _Finishing()
"""This process's; outside of a worker it does nothing."""
