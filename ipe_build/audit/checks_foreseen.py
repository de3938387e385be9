"""Checks of the whole: does a boot entry, walked through stage by stage, come to the root, and does IPE then deny a stranger's program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.findings import Answer
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.prediction import predict

if TYPE_CHECKING:
    from ipe_build.host import Host


def foreseen_boot(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the boot is foreseen to come to the first program of the root, and where and why it would end before."""
    if facts.root is None or facts.boot_entry is None:
        yield unknown("boot", "there is no root to boot, or nothing that starts it")
        return
    found = predict(facts, host)
    if found.boots is Answer.NO:
        yield bad("boot", f"ends at the stage '{found.stage}': {found.why}")
    elif found.boots is Answer.UNKNOWN:
        yield unknown("boot", f"not foreseen from the stage '{found.stage}' on: {found.why}")
    else:
        yield good("boot", "the first program of the root is started")


def foreseen_enforcement(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether IPE, once the system runs, is foreseen to deny a program that nothing vouches for."""
    if facts.root is None or facts.boot_entry is None:
        yield unknown("enforcement", "there is no root to boot, or nothing that starts it")
        return
    found = predict(facts, host)
    outcome = {Answer.YES: good, Answer.NO: bad, Answer.UNKNOWN: unknown}[found.enforces]
    yield outcome("enforcement", found.enforces_why)
