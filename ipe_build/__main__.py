"""The process that `ipe-build` and `python -m ipe_build` start: what makes it begin and end quickly, then `ipe_build.cli`.

A hash tree over 100 MB takes as long as importing what a command line usually imports; `docs/performance.md` has the milliseconds.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command line can say that it was interrupted there is nothing to clean up

import gc
import importlib
import os
import sys
from types import ModuleType
from typing import NoReturn


def command() -> NoReturn:
    """Runs the command line and leaves the process with its exit status."""
    gc.disable()  # nothing that is imported is garbage; the command line turns it on again before the verb runs
    _import_with("dataclasses", "inspect")
    _import_with("pathlib", "urllib.parse", "quote_from_bytes")
    from ipe_build.cli import main

    status = main()
    sys.stderr.flush()
    # Not sys.exit: taking the modules apart one by one is for programs that go on. Outputs are closed, stdout was flushed by main().
    os._exit(status)


def _import_with(module: str, rare: str, *functions: str) -> None:
    """Imports a module, but not the one that it imports for something rare.

    dataclasses needs `inspect` for classes without a docstring only, pathlib needs `urllib.parse` for `as_uri`; each is half of the import.
    They get a stand-in that looks names up in the real module when they are wanted, and `functions` when they are called; everybody
    else imports the real one.
    """
    if rare in sys.modules:
        return

    def look_up(name: str) -> object:
        if sys.modules.get(rare) is stand_in:  # the import itself asks for __path__
            raise AttributeError(name)
        return getattr(importlib.import_module(rare), name)

    def later(name: str) -> object:
        return lambda *arguments: getattr(importlib.import_module(rare), name)(*arguments)

    stand_in = ModuleType(rare)
    vars(stand_in).update({"__getattr__": look_up, **{name: later(name) for name in functions}})
    sys.modules[rare] = stand_in
    try:
        importlib.import_module(module)
    finally:
        del sys.modules[rare]


if __name__ == "__main__":
    command()
