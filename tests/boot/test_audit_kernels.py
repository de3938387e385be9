"""Kernels with a broken configuration or trust, built for real: the audit finds what is wrong from the binary, and a boot agrees."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.audit.checks import CHECKS
from ipe_build.audit.findings import Answer, AuditReport, Verdict
from ipe_build.audit.judge import audit
from ipe_build.boot.entry import with_options
from ipe_build.boot.qemu import DirectKernel, Machine
from ipe_build.examine import examined
from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig
from ipe_build.host import Host, Progress
from ipe_build.image.disk import read_disk
from ipe_build.kernel.build import Kernel
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.kernel.signs import SIGNS
from tests.fixtures.audit_kernels import (
    AGENT,
    BOOTS,
    GUESTS,
    KERNELS,
    NO_SUCH_KERNEL,
    SAID,
    SHOWN,
    SHOWN_WORDS,
    BrokenKernel,
    Ground,
    Guest,
    KernelBoot,
    initramfs_of,
    no_drop,
)
from tests.fixtures.audit_observed import Observed, agent_says, agrees, booted, observe

BrokenKernels = Callable[[str], Kernel]
pytestmark = [pytest.mark.boot, pytest.mark.slow]


@pytest.fixture
def quiet(host: Host) -> Host:
    return Host(env=host.env, progress=Progress(io.StringIO(), quiet=True))


def audited(
    ground: Ground, kernel: Kernel, host: Host, *, initrd: Path | None = None, words: tuple[str, ...] = (), config: DotConfig | None = None
) -> AuditReport:
    """The audit of the demo with this kernel's binary: nothing else is known of how it was built."""
    command_line = with_options(ground.options, f"init=/{AGENT}", *words)
    given = (initrd or ground.initrd,)
    with examined(ground.disk, host, kernel=kernel.image, initramfs=given, command_line=command_line, config=config) as facts:
        return audit(facts, host)


def started(ground: Ground, kernel: Kernel, host: Host, initrd: Path, words: tuple[str, ...]) -> Observed:
    direct = DirectKernel(kernel.image, initrd, with_options(ground.options, f"init=/{AGENT}", *words))
    machine = Machine(memory_mib=256, time=host.source_date_epoch, timeout_s=240)
    return observe(booted(ground.disk, machine, host, kernel=direct, stop_at="System halted"))


def failed(report: AuditReport) -> frozenset[str]:
    return frozenset(one.check for one in report.findings if one.verdict is Verdict.FAIL)


FORESEEN = {"foreseen-boot", "foreseen-enforcement"}
"""The boot as a whole: what a kernel does to it is held against boots below."""
BROKEN = [row for row in KERNELS if row.id != "good"]


@pytest.mark.parametrize("row", BROKEN, ids=[row.id for row in BROKEN])
def test_what_is_wrong_with_a_kernel_is_found_from_its_binary_by_just_the_checks_meant_for_it(
    kernel_ground: Ground, broken_kernel: BrokenKernels, quiet: Host, row: BrokenKernel
) -> None:
    good = failed(audited(kernel_ground, broken_kernel("good"), quiet))
    assert failed(audited(kernel_ground, broken_kernel(row.id), quiet)) - good - FORESEEN == row.checks


@pytest.mark.parametrize("row", BOOTS, ids=[row.id for row in BOOTS])
def test_boot_with_a_broken_kernel_agrees_with_what_the_audit_foresees(
    kernel_ground: Ground, broken_kernel: BrokenKernels, tmp_path: Path, quiet: Host, need, row: KernelBoot
) -> None:
    need("qemu-system-x86_64")
    root = read_disk(kernel_ground.disk).root
    assert root is not None
    words = tuple(word.format(root=root.uuid) for word in row.words)
    initrd = initramfs_of(row.initramfs, kernel_ground, tmp_path / "initrd", pack_zstd=row.zstd)
    kernel = broken_kernel(row.kernel)
    foreseen = audited(kernel_ground, kernel, quiet, initrd=initrd, words=words).predictions[0]
    seen = started(kernel_ground, kernel, quiet, initrd, words)
    assert agrees(foreseen, seen) == [], f"{foreseen}\n{seen.console[-3000:]}"
    assert (foreseen.boots, seen.stage, seen.enforces) == (row.boots, row.stage, row.enforces), f"{foreseen}\n{seen.console[-3000:]}"


@pytest.mark.parametrize("row", GUESTS, ids=[row.id for row in GUESTS])
def test_what_a_guest_can_do_is_what_the_audit_says_of_its_kernel(
    guest_ground: Callable[[bytes], Ground], broken_kernel: BrokenKernels, tmp_path: Path, quiet: Host, need, row: Guest
) -> None:
    need("qemu-system-x86_64")
    kernel, ground = broken_kernel(row.kernel), guest_ground(row.policy)
    initrd = initramfs_of(no_drop, ground, tmp_path / "initrd")
    report = audited(ground, kernel, quiet, initrd=initrd, words=SHOWN_WORDS)
    seen = started(ground, kernel, quiet, initrd, SHOWN_WORDS)
    assert agrees(report.predictions[0], seen) == [], seen.console[-3000:]
    assert (report.predictions[0].boots, seen.enforces) == (Answer.YES, True), seen.console[-3000:]
    said, found = agent_says(seen.console.splitlines()), failed(report)
    wrong = next(one.checks for one in KERNELS if one.id == row.kernel) | row.checks
    for shown in SHOWN:
        assert (shown.check in found) == (shown.check in wrong), shown
        assert said[shown.tag] in ((shown.open,) if shown.check in found else shown.closed), f"{shown}\n{seen.console[-4000:]}"
    for check, without, having in SAID:
        assert bool(re.search(without, seen.console)) == (check in found) == (check in wrong), f"{check}\n{seen.console[-4000:]}"
        assert check in found or re.search(having, seen.console), f"{check}\n{seen.console[-4000:]}"


def test_a_kernel_that_does_not_carry_its_configuration_is_judged_by_one_that_is_given(
    kernel_ground: Ground, broken_kernel: BrokenKernels, quiet: Host
) -> None:
    kernel = broken_kernel("without-ipe")
    config = parse_dotconfig(kernel.config.read_bytes())
    alone, told = audited(kernel_ground, kernel, quiet), audited(kernel_ground, kernel, quiet, config=config)
    unknown = {one.check for one in alone.findings if one.verdict is Verdict.UNKNOWN}
    assert "kernel-devmem" in unknown
    assert not unknown & {"kernel-filesystem", "kernel-hash", "kernel-verity-signatures", "initramfs-unpacks"}, "its code shows these"
    assert "kernel-devmem" not in {one.check for one in told.findings if one.verdict is Verdict.UNKNOWN}
    assert "kernel-ipe" in failed(alone) & failed(told)
    assert alone.predictions[0].stage is told.predictions[0].stage


@pytest.mark.parametrize("name", [row.id for row in KERNELS if row.symbols or row.id == "good"])
def test_signs_of_what_is_built_in_are_in_the_kernels_that_have_it_and_in_no_other(broken_kernel: BrokenKernels, name: str) -> None:
    kernel = broken_kernel(name)
    config = parse_dotconfig(kernel.config.read_bytes())
    assert inspect_kernel(kernel.image).signs == {symbol for symbol in SIGNS if config.get(symbol) == "y"}


def test_every_check_of_a_kernel_has_a_kernel_that_fails_it_or_a_reason_why_none_can() -> None:
    of_kernels = {check.id for check in CHECKS if check.id.startswith("kernel-")} | {"module-signatures", "module-compression"}
    made = {check for row in (*KERNELS, *GUESTS) for check in row.checks}
    assert of_kernels - made == set(NO_SUCH_KERNEL)
    assert not made & set(NO_SUCH_KERNEL)
    assert {row.kernel for row in (*BOOTS, *GUESTS)} == {row.id for row in KERNELS}
    shown = {row.check for row in SHOWN} | {check for check, _, _ in SAID}
    guests = {row.kernel for row in GUESTS}
    assert shown == {check for row in KERNELS for check in row.checks if row.id in guests} | {"kernel-kexec"}
