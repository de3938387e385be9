"""What a machine lacks: a test is left out on a laptop, and fails in CI, where everything is to be there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(message: str) -> NoReturn:
    """Ends the test: it is skipped, or fails with CI set."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
