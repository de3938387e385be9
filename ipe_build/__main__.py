"""The process that `ipe-build` and `python -m ipe_build` start: what makes it begin and end quickly, then `ipe_build.cli`.

A hash tree over 100 MB takes as long as importing what a command line usually imports; `docs/performance.md` has the milliseconds.
"""

import gc
import importlib
import os
import sys
from types import ModuleType
from typing import NoReturn


def command() -> NoReturn:
    """Runs the command line and leaves the process with its exit status."""
    gc.disable()  # nothing that is imported is garbage; the command line turns it on again before the verb runs
    _import_dataclasses()
    from ipe_build.cli import main

    status = main()
    sys.stderr.flush()
    # Not sys.exit: taking the modules apart one by one is for programs that go on. Outputs are closed, stdout was flushed by main().
    os._exit(status)


def _import_dataclasses() -> None:
    """Imports dataclasses, but not `inspect`, which it needs for classes without a docstring only; that is half of its import.

    It gets a stand-in that looks each name up in the real module when it is wanted; everybody else imports the real one.
    """
    if "inspect" in sys.modules:
        return
    stand_in = ModuleType("inspect")
    stand_in.__getattr__ = lambda name: getattr(importlib.import_module("inspect"), name)  # type: ignore[method-assign]
    sys.modules["inspect"] = stand_in
    try:
        importlib.import_module("dataclasses")
    finally:
        del sys.modules["inspect"]


if __name__ == "__main__":
    command()
