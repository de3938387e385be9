"""The gate to QEMU: one boot of a disk image, its console as text, and how it ended. The image itself is never written to.

A boot runs in a scratch folder of its own. What the guest writes goes into a snapshot that QEMU throws away; patches go into a copy.
With `DirectKernel` QEMU loads kernel, initramfs and command line itself (the bytes are the image's own, see `boot.entry`); without one
the firmware finds them.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import InputError, ToolMissingError

if TYPE_CHECKING:
    from ipe_build.host import Host

GRACE_S = 5.0
"""How long a machine may take to power off after it said its last word."""
CONSOLE_LIMIT_BYTES = 32 << 20
_PIECE_BYTES = 64 << 10
_PANIC = re.compile(rb"Kernel panic - not syncing")
_PANIC_END = re.compile(rb"---\[ end Kernel panic")


class Ended(StrEnum):
    """How a boot ended."""

    POWER_OFF = "power-off"
    """QEMU ended by itself and the kernel did not panic: the machine was powered off or reset."""
    PANIC = "panic"
    STOPPED = "stopped"
    """The console said what was waited for, and the machine was then stopped."""
    TIMEOUT = "timeout"


class _Architecture(NamedTuple):
    """A row: the emulator, its machine, and the firmware (code, variables) that Debian's packages install."""

    program: str
    machine: str
    emulated_cpu: str
    firmware: tuple[str, str]


ARCHITECTURES: dict[str, _Architecture] = {
    "x86-64": _Architecture("qemu-system-x86_64", "q35", "max", ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")),
    "arm64": _Architecture("qemu-system-aarch64", "virt", "max", ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd")),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """The virtual machine. `time` is what its clock says at power on, in seconds since 1970.

    `accelerator` is `tcg` (emulation: the same everywhere) or `kvm`. It is never chosen by looking for /dev/kvm: in a virtual machine
    that device may be there, take a guest, and never run it.
    """

    architecture: str = "x86-64"
    memory_mib: int = 512
    processors: int = 1
    timeout_s: float = 120
    time: int = 0
    accelerator: str = "tcg"


@dataclass(frozen=True, slots=True)
class DirectKernel:
    """What QEMU loads itself instead of a firmware: two files and the whole command line."""

    kernel: Path
    initrd: Path | None
    command_line: str


@dataclass(frozen=True, slots=True)
class Firmware:
    """UEFI firmware and the variables that a boot begins with; what it writes to them is forgotten.

    `smm` firmware keeps its variables where only it can write: the machine then has system management mode.
    """

    code: Path
    variables: Path
    smm: bool = False


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes that replace those at `offset` of the disk, in this boot's copy only."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Boot:
    """What a boot left. `console` is the serial line's text in lines without line ends; `seconds` is wall time, never the same twice."""

    ended: Ended
    console: tuple[str, ...]
    command: tuple[str, ...]
    seconds: float


def qemu_version(machine: Machine, host: Host) -> str:
    """Returns the emulator's version, such as `7.2.22`. Raises: ToolMissingError, ToolFailedError."""
    text = host.run([_row(machine).program, "--version"]).text
    match = re.search(r"version (\S+)", text)
    return match[1] if match else text.splitlines()[0]


def boot(
    disk: Path,
    machine: Machine,
    host: Host,
    *,
    kernel: DirectKernel | None = None,
    firmware: Firmware | None = None,
    patches: Sequence[Patch] = (),
    extra_disk: Path | None = None,
    devices: Sequence[str] = (),
    stop_at: str | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Boot:
    """Returns what one boot of the raw image `disk` printed. The machine is killed when its time is up or we are interrupted.

    `extra_disk` (raw, read-only) becomes a second disk; `devices` are more of QEMU's options, such as a TPM's (`boot.tpm`).
    `stop_at` is a regular expression: the machine is stopped `GRACE_S` after the console matched it, unless it powers off before; at once
    when `cancelled` says so. Without `kernel` the machine boots from `firmware` (Debian's without Secure Boot, unless given).
    Raises: InputError, ToolMissingError, ToolFailedError (QEMU itself failed).
    """
    row = _row(machine)
    if not disk.is_file():
        raise InputError("wanted a disk image, there is no such file", where=str(disk))
    with host.scratch("ipe-build-boot-") as folder:
        _lay_disk(disk, patches, folder)
        console = folder / "console"
        console.touch()
        argv = [*_command(row, machine, folder, kernel, firmware, extra_disk), *devices]
        watch = _Watch(console, machine.timeout_s, stop_at, cancelled)
        started = time.monotonic()
        host.run(argv, cwd=folder, stop_when=watch, env={"TMPDIR": str(folder)})  # its snapshot of the disk
        seconds = time.monotonic() - started
        raw = console.read_bytes()
    return Boot(watch.verdict(raw), console_lines(raw), tuple(str(word) for word in argv), seconds)


def console_lines(raw: bytes) -> tuple[str, ...]:
    """Returns the console's lines: UTF-8 (invalid bytes as U+FFFD), without carriage returns and terminal escapes."""
    text = raw.decode("utf-8", "replace").replace("\r", "")
    return tuple(_ESCAPES.sub("", text).split("\n"))


_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9]|[=>c])")


class _Watch:
    """Reads the console as it grows; true once the machine should be stopped."""

    def __init__(self, console: Path, timeout_s: float, stop_at: str | None, cancelled: Callable[[], bool]) -> None:
        self._console = console
        self._end = time.monotonic() + timeout_s
        self._stop_at = re.compile(stop_at.encode()) if stop_at else None
        self._cancelled = cancelled
        self._said: float | None = None
        self._seen = 0
        self._tail = b""
        self.reason: Ended | None = None

    def __call__(self) -> bool:
        now = time.monotonic()
        with self._console.open("rb") as handle:
            handle.seek(self._seen)
            fresh = handle.read()
        self._seen += len(fresh)
        text = self._tail + fresh
        self._tail = text[-4096:]
        if self._said is None and (_PANIC_END.search(text) or (self._stop_at and self._stop_at.search(text))):
            self._said = now
        if self._said is not None and now > self._said + GRACE_S:
            self.reason = Ended.STOPPED
        elif self._cancelled() or now > self._end or self._seen > CONSOLE_LIMIT_BYTES:
            self.reason = Ended.TIMEOUT
        return self.reason is not None

    def verdict(self, console: bytes) -> Ended:
        """Returns how the boot ended, after it did."""
        if _PANIC.search(console):
            return Ended.PANIC
        return self.reason or Ended.POWER_OFF


def _lay_disk(disk: Path, patches: Sequence[Patch], folder: Path) -> None:
    """Puts `disk.raw` into the folder: a link to the image, or a patched copy that keeps holes."""
    place = folder / "disk.raw"
    if not patches:
        place.symlink_to(disk.resolve())
        return
    with disk.open("rb") as source, place.open("wb") as out:
        while piece := source.read(_PIECE_BYTES):
            out.write(piece) if any(piece) else out.seek(len(piece), os.SEEK_CUR)
        out.truncate(source.tell())
        for patch in patches:
            out.seek(patch.offset)
            out.write(patch.data)


def _command(
    row: _Architecture, machine: Machine, folder: Path, kernel: DirectKernel | None, firmware: Firmware | None, extra_disk: Path | None
) -> list[str | Path]:
    """Returns QEMU's command line; files are named relative to `folder`, so that no path needs quoting inside an option."""
    fast = machine.accelerator == "kvm"
    argv: list[str | Path] = [row.program, "-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"]
    chipset = f"{row.machine},smm=on" if firmware is not None and firmware.smm else row.machine
    argv += ["-machine", chipset, "-accel", "kvm" if fast else "tcg", "-cpu", "host" if fast else row.emulated_cpu]
    argv += ["-m", str(machine.memory_mib), "-smp", str(machine.processors)]
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(machine.time))
    argv += ["-rtc", f"base={clock},clock=vm", "-chardev", "file,id=console,path=console", "-serial", "chardev:console"]
    argv += ["-drive", "if=none,id=disk,file=disk.raw,format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=disk,bootindex=1"]
    if extra_disk is not None:
        (folder / "extra.raw").symlink_to(extra_disk.resolve())
        argv += ["-drive", "if=none,id=extra,file=extra.raw,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=extra"]
    if kernel is None:
        return argv + _firmware(firmware or Firmware(Path(row.firmware[0]), Path(row.firmware[1])), folder)
    argv += ["-kernel", kernel.kernel.resolve(), "-append", kernel.command_line]
    return argv + (["-initrd", kernel.initrd.resolve()] if kernel.initrd is not None else [])


def _firmware(firmware: Firmware, folder: Path) -> list[str | Path]:
    """Returns the options for UEFI firmware, with fresh variables of this boot. Raises: ToolMissingError when it is not installed."""
    if not firmware.code.is_file() or not firmware.variables.is_file():
        raise ToolMissingError(f"the UEFI firmware {firmware.code} is needed and was not found", hint="on Debian: apt-get install ovmf")
    shutil.copyfile(firmware.variables, folder / "variables.fd")
    return [
        *(("-global", "driver=cfi.pflash01,property=secure,value=on") if firmware.smm else ()),
        "-drive",
        f"if=pflash,unit=0,format=raw,readonly=on,file={firmware.code}",
        "-drive",
        "if=pflash,unit=1,format=raw,file=variables.fd",
    ]


def _row(machine: Machine) -> _Architecture:
    """Returns the architecture's row. Raises: InputError."""
    row = ARCHITECTURES.get(machine.architecture)
    if row is None:
        raise InputError(f"no emulator is known for {machine.architecture!r}", hint=f"known are {', '.join(ARCHITECTURES)}")
    return row
