"""Kernel versions, and what changed between them for somebody who writes an IPE policy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from ipe_build.errors import InputError

_TEXT = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,5}))?(?![0-9.])")


@dataclass(frozen=True, slots=True, order=True)
class KernelVersion:
    """A kernel's version; ordered. `patch` is 0 where it was not said."""

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def of_text(cls, text: str) -> KernelVersion:
        """Returns the version that `6.12`, `6.12.117` or a release such as `6.12.117-amd64` begins with.

        Raises: InputError when the text does not begin with two numbers.
        """
        found = _TEXT.match(text.strip())
        if found is None:
            raise InputError(f"wanted a kernel version such as 6.12 or 6.12.117, got {text!r}", where="kernel version")
        return cls(int(found[1]), int(found[2]), int(found[3] or 0))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}" if self.patch else f"{self.major}.{self.minor}"


FIRST_KERNEL = KernelVersion(6, 12)
"""The first kernel with IPE."""

DEFAULT_KERNEL = FIRST_KERNEL
"""The kernel that is meant where none is named: what it accepts, every later one so far accepts too."""


class Change(NamedTuple):
    """A row: from this kernel on, this is different for policies."""

    since: KernelVersion
    summary: str
    changes_parsing: bool


CHANGES: tuple[Change, ...] = (
    Change(FIRST_KERNEL, "IPE is merged: the language, its seven operations and five properties", True),
    Change(KernelVersion(6, 16), "policy load records carry errno=, and refused loads are recorded too", False),
    Change(
        KernelVersion(6, 19),
        "EXECUTE also judges a script whose interpreter asks with AT_EXECVE_CHECK (audit hook BPRM_CREDS_FOR_EXEC)",
        False,
    ),
)
"""Read off security/ipe of Linux 6.12.117 and of torvalds/linux at 42d3b66d4cdb (after 7.0): policy_parser.c and digest.c differ
in memory allocation only, so the language is one. A change of it gets a row here and a `since` in `properties.py`."""
