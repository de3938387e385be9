"""boot.qemu with the real emulator and a guest of a few instructions: consoles, ends, timeouts; the image is never written to."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipe_build.boot.qemu import DirectKernel, Ended, Machine, Patch, boot, console_lines, qemu_version
from ipe_build.errors import InputError, ToolFailedError, ToolMissingError
from ipe_build.host import Host

MACHINE = Machine(memory_mib=64, timeout_s=60)


def guest(kernel: Path, text: str) -> DirectKernel:
    return DirectKernel(kernel, None, text)


def test_power_off_ends_the_boot_and_the_console_is_kept(serial_guest: Path, small_disk: Path, host: Host):
    done = boot(small_disk, MACHINE, host, kernel=guest(serial_guest, 'one, "two" three P'))
    assert done.ended is Ended.POWER_OFF
    assert any(line.endswith('one, "two" three P') for line in done.console)


def test_reset_ends_the_boot_too(serial_guest: Path, small_disk: Path, host: Host):
    assert boot(small_disk, MACHINE, host, kernel=guest(serial_guest, "again R")).ended is Ended.POWER_OFF


def test_panic_is_seen_even_when_the_machine_hangs_after_it(serial_guest: Path, small_disk: Path, host: Host):
    text = "Kernel panic - not syncing: no init ---[ end Kernel panic ]---"
    done = boot(small_disk, MACHINE, host, kernel=guest(serial_guest, text))
    assert done.ended is Ended.PANIC
    assert done.seconds < MACHINE.timeout_s


def test_machine_is_stopped_when_its_last_word_was_said(serial_guest: Path, small_disk: Path, host: Host):
    done = boot(small_disk, MACHINE, host, kernel=guest(serial_guest, "the last word"), stop_at="last w[o]rd")
    assert done.ended is Ended.STOPPED


def test_hanging_machine_is_killed_when_its_time_is_up(serial_guest: Path, small_disk: Path, host: Host):
    done = boot(small_disk, Machine(memory_mib=64, timeout_s=2), host, kernel=guest(serial_guest, "hang"))
    assert done.ended is Ended.TIMEOUT


def test_patches_and_boots_leave_the_image_as_it_is(serial_guest: Path, small_disk: Path, host: Host):
    before = hashlib.sha256(small_disk.read_bytes()).digest()
    small_disk.chmod(0o444)
    done = boot(small_disk, MACHINE, host, kernel=guest(serial_guest, "P"), patches=[Patch(4097, b"changed"), Patch(0, b"x" * 5000)])
    assert done.ended is Ended.POWER_OFF
    assert hashlib.sha256(small_disk.read_bytes()).digest() == before


def test_qemu_that_cannot_start_is_an_error(small_disk: Path, host: Host, need):
    need("qemu-system-x86_64")
    with pytest.raises(ToolFailedError, match="qemu"):
        boot(small_disk, MACHINE, host, kernel=guest(small_disk.parent / "no-kernel", "P"))


def test_missing_image_unknown_architecture_and_missing_emulator_are_errors(small_disk: Path, host: Host):
    with pytest.raises(InputError, match="no such file"):
        boot(small_disk.parent / "none", MACHINE, host)
    with pytest.raises(InputError, match="vax"):
        boot(small_disk, Machine("vax"), host)
    bare = Host(env={"PATH": "/nonexistent", "IPE_BUILD_ONLY_PATH": "1"}, progress=host.progress)
    with pytest.raises(ToolMissingError, match="qemu"):
        boot(small_disk, MACHINE, bare)


def test_version_is_a_number(host: Host, need):
    need("qemu-system-x86_64")
    assert qemu_version(MACHINE, host)[0].isdigit()


def test_console_lines_lose_carriage_returns_and_escapes_only():
    assert console_lines(b"\x1b[2J\x1b[01;31ma\xffb\x1b[0m\r\n[ 1.0] c\r\n") == ("a\ufffdb", "[ 1.0] c", "")


def test_interrupt_leaves_no_emulator_behind(serial_guest: Path, small_disk: Path):
    code = f"""
from pathlib import Path
from ipe_build.boot.qemu import DirectKernel, Machine, boot
from ipe_build.host import Host
kernel = DirectKernel(Path({str(serial_guest)!r}), None, "hang")
boot(Path({str(small_disk)!r}), Machine(memory_mib=64), Host(), kernel=kernel)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    emulator = None
    for _ in range(600):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        emulator = next((c for c in children if b"qemu-system" in Path(f"/proc/{c}/cmdline").read_bytes()), None)
        if emulator:
            break
        time.sleep(0.1)
    assert emulator is not None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert not Path(f"/proc/{emulator}").exists()
