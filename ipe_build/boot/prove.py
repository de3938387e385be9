"""Boots an image and its damaged copies, several at once, and returns the evidence."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.boot import layout
from ipe_build.boot.console import END, Transcript, kernel_release, read_console
from ipe_build.boot.damage import DAMAGES, FIRMWARE, Damage, open_target
from ipe_build.boot.entry import BootEntry, read_entry, with_options
from ipe_build.boot.evidence import BootResult, Evidence, Subject
from ipe_build.boot.expectation import Facts, Need, Probe, resolve
from ipe_build.boot.judge import APPLICATION_PROBE, judge_damage, judge_probe, skipped_damage, skipped_probe
from ipe_build.boot.locate import SharedBlockError
from ipe_build.boot.probe_disk import PolicyMaterial, build_disk, policy_facts, policy_files, script_files
from ipe_build.boot.probes import PROBES
from ipe_build.boot.qemu import Boot, DirectKernel, Ended, Machine, Patch, boot, qemu_version
from ipe_build.boot.secure_boot_proof import SecureBoot, Start, probe_start, secure_boots
from ipe_build.errors import InputError
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host

_CONTROL_PROBES = ("run-program", APPLICATION_PROBE)


@dataclass(frozen=True, slots=True)
class BootRequest:
    """What is booted and what is known of it. The image is only read; its root must hold `guest_files.probe_files`.

    `kernel`, `initrd`, `command_line` replace what the image's boot entry says. `foreign` is a key that the device does not trust.
    `policy` is the policy in force after boot; without it the policy probes are skipped. `application` and `interpreter` are
    programs of the root with arguments; `keyless` says that the kernel has no key and its boot policy pins the root,
    `frozen_initramfs` that ipe-init froze the initramfs; `on_corruption` is what the image tells dm-verity to do: eio, panic or restart.
    With `secure_boot` there are boots under Secure Boot too.
    """

    disk: Path
    machine: Machine = field(default_factory=Machine)
    kernel: Path | None = None
    initrd: Path | None = None
    command_line: str | None = None
    policy: PolicyMaterial | None = None
    foreign: Signer | None = None
    modules: bool = True
    application: tuple[str, ...] = ()
    interpreter: tuple[str, ...] = ("/bin/sh",)
    dropped_capabilities: frozenset[str] = frozenset()
    on_corruption: str = "eio"
    destructive: bool = True
    keyless: bool = False
    appraised: bool = False
    frozen_initramfs: bool = False
    firmware: bool = False
    secure_boot: SecureBoot | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """One boot to do: `damage` None is the probe boot."""

    damage: Damage | None
    patches: tuple[Patch, ...]
    plan: Path


def boot_image(request: BootRequest, host: Host) -> Evidence:
    """Returns the evidence: the probes of one boot of the image as it is, and one boot for each damaged copy.

    Raises: InputError (no such image, no boot entry, a file of the probes is missing), ToolMissingError, ToolFailedError.
    """
    facts = image_facts(request)
    tried, skipped = _resolve(facts)
    with host.scratch("ipe-build-prove-") as folder, host.progress.step(f"boot {request.disk.name} in QEMU"):
        entry = _entry(request, folder, host)
        more = [f"init={layout.PROBE}", "panic=-1", "loglevel=7", *([] if "console=" in entry.options else ["console=ttyS0"])]
        command_line = with_options(entry.options, *more)
        jobs, left_out = _jobs(request, tried, folder, host)
        started = time.monotonic()
        start = _start(request, entry, command_line, folder, host)
        boots = _boot_all(request, start, jobs, host)
        under_secure_boot = _secure_boots(request, entry, jobs[0].plan, host)
        seconds = time.monotonic() - started
        subject_of = _subject(request, entry, command_line, host)
    transcript = read_console(boots[0].console)
    results = {probe.id: judge_probe(probe, transcript.report(probe.id), transcript.start) for probe in tried}
    results |= {probe.id: skipped_probe(probe, reason) for probe, reason in skipped}
    damages = {job.damage.id: _judged(job, job.damage, boots[number], request) for number, job in enumerate(jobs) if job.damage}
    damages |= {damage.id: skipped_damage(damage, reason) for damage, reason in left_out}
    return Evidence(
        subject=subject_of(boots[0], transcript),
        probes=tuple(results[probe.id] for probe in PROBES),
        boots=(*(damages[damage.id] for damage in (*DAMAGES, FIRMWARE) if damage.id in damages), *under_secure_boot),
        problems=_problems(boots[0], transcript),
        seconds=seconds,
    )


def image_facts(request: BootRequest) -> Facts:
    """Returns what the plans need to know of the image."""
    policy = policy_facts(request.policy)
    words, missing = dict(policy.words), dict(policy.missing)
    words["voucher"] = ("the boot policy pins",) if request.keyless else ("is signed by a trusted key",)
    words["module"] = (layout.UNSIGNED_MODULE if request.keyless else layout.SIGNED_MODULE,)
    if request.keyless:
        missing[Need.SIGNED_MODULE] = "the kernel has no key, so that no module is signed for it"
        missing[Need.FINAL_POLICY] = "the boot policy stays in force: initramfs-frozen shows it"
    if request.frozen_initramfs:
        missing.setdefault(Need.FINAL_POLICY, "ipe-init froze the initramfs")
    else:
        missing[Need.FROZEN_INITRAMFS] = "ipe-init did not freeze the initramfs"
    if not request.modules:
        missing[Need.MODULES] = "the image has no modules"
    if "CAP_MAC_ADMIN" in request.dropped_capabilities:
        missing[Need.OTHER_POLICY] = "without CAP_MAC_ADMIN no policy of another name is loaded"
    for need, name, given in (
        (Need.APPLICATION, "application", request.application),
        (Need.INTERPRETER, "interpreter", request.interpreter),
    ):
        if given:
            words[name] = given
        else:
            missing[need] = f"no {name} of the image was named"
    return Facts(words, missing, request.dropped_capabilities, request.keyless, request.appraised)


def _resolve(facts: Facts) -> tuple[tuple[Probe, ...], tuple[tuple[Probe, str], ...]]:
    """Returns the probes to try, as they are for this image, and those to skip with the reason."""
    tried, skipped = [], []
    for probe in PROBES:
        resolved = resolve(probe, facts)
        if isinstance(resolved, str):
            skipped.append((probe, resolved))
        else:
            tried.append(resolved)
    return tuple(tried), tuple(skipped)


def _entry(request: BootRequest, folder: Path, host: Host) -> BootEntry:
    """Returns what is booted: the image's own boot entry, with the request's files and command line in their place."""
    if request.kernel is not None and request.command_line is not None:
        return BootEntry("", request.kernel, request.initrd, request.command_line)
    found = read_entry(request.disk, folder, host)
    return BootEntry(
        found.name,
        request.kernel or found.kernel,
        request.initrd or found.initrd,
        found.options if request.command_line is None else request.command_line,
        found.uki,
    )


def _start(request: BootRequest, entry: BootEntry, command_line: str, folder: Path, host: Host) -> DirectKernel | Start:
    """Returns how the probes' boots begin: QEMU loads the kernel itself, or firmware with the kernel's keys does."""
    if request.secure_boot is not None and request.secure_boot.has_keys:
        return probe_start(request.secure_boot, entry, command_line, request.disk, folder, host)
    return DirectKernel(entry.kernel, entry.initrd, command_line)


def _secure_boots(request: BootRequest, entry: BootEntry, plan: Path, host: Host) -> tuple[BootResult, ...]:
    """Returns the boots under Secure Boot, none when they were not asked for."""
    if request.secure_boot is None:
        return ()
    return secure_boots(request.secure_boot, entry, request.disk, request.machine, plan, host)


def _jobs(request: BootRequest, tried: Sequence[Probe], folder: Path, host: Host) -> tuple[list[_Job], list[tuple[Damage, str]]]:
    """Returns the boots to do, the probe boot first, and the damages that are left out with the reason."""
    plan, control = folder / "probe-disk", folder / "control-disk"
    files = script_files() | (policy_files(request.policy) if request.policy else {})
    plan.write_bytes(build_disk(tried, files))
    control.write_bytes(build_disk([probe for probe in tried if probe.id in _CONTROL_PROBES], {}))
    jobs = [_Job(None, (), plan), *([_Job(FIRMWARE, (), control)] if request.firmware else [])]
    if not request.destructive:
        return jobs, [(damage, "destructive boots were not asked for") for damage in DAMAGES]
    left_out = []
    target = open_target(request.disk, folder, request.foreign)
    for damage in DAMAGES:
        if damage.needs_signature and target.signature is None:
            left_out.append((damage, "the image holds no signature of its root hash"))
        elif damage.needs_foreign and request.foreign is None:
            left_out.append((damage, "no foreign key was given"))
        elif damage.patch is not None:
            try:
                jobs.append(_Job(damage, (damage.patch(target, host),), control))
            except SharedBlockError as error:
                left_out.append((damage, error.message))
    return jobs, left_out


def _boot_all(request: BootRequest, start: DirectKernel | Start, jobs: Sequence[_Job], host: Host) -> list[Boot]:
    """Returns the boots in the order of the jobs; as many at once as there are processors. An interrupt stops all of them."""
    stop = threading.Event()

    def work(job: _Job) -> Boot:
        firmware = job.damage is not None and job.damage.firmware
        return boot(
            start.disk if isinstance(start, Start) and not firmware else request.disk,
            request.machine,
            host,
            kernel=start if isinstance(start, DirectKernel) and not firmware else None,
            firmware=start.firmware if isinstance(start, Start) else None,
            patches=job.patches,
            extra_disk=job.plan,
            stop_at=job.damage.proof if firmware and job.damage else END,
            cancelled=stop.is_set,
        )

    with ThreadPoolExecutor(max_workers=host.jobs) as pool:
        futures = {pool.submit(work, job): job for job in jobs}
        try:
            _follow(futures, host.progress.note)
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]


def _follow(futures: dict[Future[Boot], _Job], note: Callable[[str], None]) -> None:
    """Says when a boot has ended; raises what a boot raised, as soon as one does."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            job, result = futures[future], future.result()
            note(f"{job.damage.id if job.damage else 'probes'}: {result.ended.value} after {result.seconds:.1f} s")


def _subject(request: BootRequest, entry: BootEntry, command_line: str, host: Host) -> Callable[[Boot, Transcript], Subject]:
    """Returns a function that makes the subject once the boot is known; the files are digested now, while they are there."""
    digests = {path: _sha256(path) for path in (request.disk, entry.kernel, entry.initrd) if path is not None}

    def make(booted: Boot, transcript: Transcript) -> Subject:
        start = transcript.start
        return Subject(
            image=request.disk.name,
            image_bytes=request.disk.stat().st_size,
            image_sha256=digests[request.disk],
            kernel_sha256=digests[entry.kernel],
            initrd_sha256=digests[entry.initrd] if entry.initrd is not None else "",
            kernel_release=kernel_release(booted.console) or (start.release if start else ""),
            command_line=entry.options,
            probe_command_line=command_line,
            policy=f"{start.policy} {start.version}".strip() if start else "",
            enforcing=start is not None and start.enforce == "1",
            emulator=f"QEMU {qemu_version(request.machine, host)}",
            accelerator=request.machine.accelerator,
        )

    return make


def _judged(job: _Job, damage: Damage, booted: Boot, request: BootRequest) -> BootResult:
    return judge_damage(damage, booted, job.patches, request.on_corruption)


def _problems(booted: Boot, transcript: Transcript) -> tuple[str, ...]:
    """Returns what is wrong with the probe boot as a whole."""
    problems = []
    if transcript.start is None:
        last = next((line for line in reversed(booted.console) if line.strip()), "nothing")
        problems.append(f"the probe program did not start ({booted.ended.value}); the console's last line: {last}")
    elif transcript.start.enforce != "1":
        problems.append("IPE was not enforcing when the probes began")
    if transcript.failed:
        problems.append(f"the probe program gave up: {transcript.failed}")
    elif transcript.start is not None and not transcript.finished:
        problems.append(f"the probes did not run to their end ({booted.ended.value})")
    elif booted.ended is Ended.PANIC:
        problems.append("the kernel panicked")
    return tuple(problems)


def _sha256(path: Path) -> str:
    """Returns a file's SHA-256 in hex. Raises: InputError when it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
