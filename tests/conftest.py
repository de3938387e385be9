"""Fixtures that all tests share; those of one room live in tests/fixtures/ROOM.py."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.errors import ToolMissingError
from ipe_build.host import Host, Progress
from tests.missing import missing

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell's background job ignores interrupts, and so would the programs that tests start to interrupt them.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("tests.fixtures")  # all at once: they import one another
_FIXTURES = Path(__file__).parent / "fixtures"
pytest_plugins = [f"tests.fixtures.{file.stem}" for file in sorted(_FIXTURES.glob("[a-z]*.py"))]


@pytest.fixture(scope="session")
def host() -> Host:
    """The machine, with progress written to memory. The cache is the user's, so a kernel is built once."""
    return Host(env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}, progress=Progress(io.StringIO()))


@pytest.fixture(scope="session")
def need(host: Host):
    """`need("veritysetup")`: skips on a laptop, fails in CI, when a program is missing. Returns its path."""

    def needed(program: str) -> Path:
        try:
            return host.tool(program)
        except ToolMissingError as error:
            missing(str(error))

    return needed


@pytest.fixture(scope="session")
def need_file() -> Callable[[Path, str], Path]:
    """`need_file(path, package)`: skips on a laptop, fails in CI, when a package's file is missing. Returns its path."""

    def needed(path: Path, package: str) -> Path:
        if not path.is_file():
            missing(f"{path} is missing: apt-get install {package}")
        return path

    return needed


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all xdist workers of this run share (guard what you make there with host.cache-like locks)."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
