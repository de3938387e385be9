"""Each break that a boot can show is booted, and what comes of it is held against what the audit foresaw of the same bytes."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from ipe_build.audit.findings import Answer, Prediction, Stage
from ipe_build.audit.judge import audit
from ipe_build.boot import layout
from ipe_build.boot.console import END
from ipe_build.boot.entry import with_options
from ipe_build.boot.expectation import resolve
from ipe_build.boot.probe_disk import build_disk
from ipe_build.boot.probes import PROBES
from ipe_build.boot.prove import BootRequest, image_facts
from ipe_build.boot.qemu import DirectKernel, Machine
from ipe_build.examine import examined
from ipe_build.host import Host, Progress
from ipe_build.image.disk import read_disk
from tests.fixtures.audit_breaks import BOOT, BREAKS, FIRMWARE, Break, no_boot_loader
from tests.fixtures.audit_observed import Observed, agrees, booted, observe

_NOTHING_TO_START = r"No bootable option|No loader found|UEFI Interactive Shell|Shell>|Start PXE"


@pytest.fixture
def quiet(host: Host) -> Host:
    return Host(env=host.env, progress=Progress(io.StringIO(), quiet=True))


def foresee_and_boot(disk: Path, host: Host, *, keeps_init: bool = False) -> tuple[Prediction, Observed]:
    """Returns what is foreseen of a disk with the probe program as its init, and what a boot of exactly that shows."""
    plan = disk.with_name("probes")
    resolved = (resolve(probe, image_facts(BootRequest(disk))) for probe in PROBES if probe.id in ("run-program", "run-copy"))
    plan.write_bytes(build_disk([one for one in resolved if not isinstance(one, str)], {}))
    with examined(disk, host) as facts:
        assert facts.boot_entry is not None
        entry = facts.boot_entry
    more = [] if keeps_init else [f"init={layout.PROBE}"]
    command_line = with_options(entry.command_line, *more) if more else entry.command_line
    with examined(disk, host, command_line=command_line) as facts:
        foreseen = audit(facts, host).predictions[0]
    kernel, initrd = disk.with_name("kernel"), disk.with_name("initrd")
    kernel.write_bytes(entry.kernel)
    initrd.write_bytes(entry.initramfs)
    stop_at = r"ipe-init: starting /" if keeps_init else rf"{END}|System halted"
    direct = DirectKernel(kernel, initrd, command_line)
    machine = Machine(memory_mib=256, time=host.source_date_epoch, timeout_s=240)
    return foreseen, observe(booted(disk, machine, host, kernel=direct, extra=plan, stop_at=stop_at))


def foresee_and_start(disk: Path, host: Host) -> tuple[Prediction, Observed]:
    """Returns what is foreseen of a disk as it is, and what firmware makes of it."""
    with examined(disk, host) as facts:
        foreseen = audit(facts, host).predictions[0]
    machine = Machine(memory_mib=512, time=host.source_date_epoch, timeout_s=240)
    return foreseen, observe(booted(disk, machine, host, stop_at=rf"ipe-init: starting /|{_NOTHING_TO_START}"))


ROWS = [row for row in BREAKS if row.shows in (BOOT, FIRMWARE)]


@pytest.mark.boot
@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_boot_of_a_broken_image_agrees_with_what_the_audit_foresees(
    demo_build: Path, tmp_path: Path, quiet: Host, need, row: Break
) -> None:
    need("qemu-system-x86_64")
    disk = tmp_path / "disk.raw"
    shutil.copyfile(demo_build / "demo.raw", disk)
    row.damage(disk, read_disk(disk), quiet)
    foreseen, seen = foresee_and_start(disk, quiet) if row.shows == FIRMWARE else foresee_and_boot(disk, quiet, keeps_init=row.keeps_init)
    assert agrees(foreseen, seen) == [], f"{foreseen}\n{seen.console[-3000:]}"


@pytest.mark.boot
@pytest.mark.slow
def test_the_good_image_is_foreseen_to_boot_and_to_enforce_and_does(demo_build: Path, tmp_path: Path, quiet: Host, need) -> None:
    need("qemu-system-x86_64")
    disk = tmp_path / "disk.raw"
    shutil.copyfile(demo_build / "demo.raw", disk)
    foreseen, seen = foresee_and_boot(disk, quiet)
    assert (foreseen.boots, foreseen.stage, foreseen.enforces) == (Answer.YES, Stage.RUNS, Answer.YES)
    assert (seen.stage, seen.enforces) == (Stage.RUNS, True)
    assert agrees(foreseen, seen) == []


def test_a_prediction_that_a_boot_contradicts_is_noticed() -> None:
    boots = Prediction("x", "given", True, Answer.YES, Stage.RUNS, "", Answer.YES, "")
    ends = Prediction("x", "given", True, Answer.NO, Stage.VERITY, "", Answer.UNKNOWN, "")
    assert agrees(boots, Observed(Stage.POLICY, None, ""))
    assert agrees(boots, Observed(Stage.RUNS, False, ""))
    assert agrees(ends, Observed(Stage.RUNS, True, ""))
    assert agrees(ends, Observed(Stage.MOUNT, None, ""))
    assert not agrees(ends, Observed(Stage.VERITY, None, ""))


def test_every_row_says_what_a_boot_shows() -> None:
    assert len({row.id for row in BREAKS}) == len(BREAKS) >= 60
    names = {row.id for row in BREAKS}
    for row in BREAKS:
        twin = row.shows.removeprefix("the same damage as ")
        assert row.shows in (BOOT, FIRMWARE) or row.shows.startswith("not visible to a boot: ") or twin in names, row
    assert len(ROWS) >= 60
    assert no_boot_loader in [row.damage for row in ROWS]
