"""Where Python's zstd is: `compression.zstd` since 3.14, the backport before. Either may be missing, so it is asked for when needed."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from ipe_build.errors import ToolMissingError


def zstd_library() -> ModuleType:
    """Returns the module. Raises: ToolMissingError where this Python was built without it (Buildroot's for the host, say)."""
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ToolMissingError(
            f"Python's module {name} is needed and was not found", hint="build Python with libzstd, or choose another compression"
        ) from error


def zstd_errors() -> tuple[type[Exception], ...]:
    """Returns what the module raises for damaged data; nothing where there is no such module."""
    try:
        return (zstd_library().ZstdError,)
    except ToolMissingError:
        return ()
