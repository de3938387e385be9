"""The oeqa runtime cases, run against a guest that BitBake's tasks made: a shell on the serial line is the target.

OE-core's oeqa is in no package: its base class has a stand-in here (tests/layer/oeqa_parts). IPE_TEST_OECORE=/path/to/oe-core runs the
cases with OE-core's own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import select
import subprocess
import sys
import time
import unittest
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYER = Path(__file__).parents[2] / "meta-ipe"
PARTS = Path(__file__).parent / "oeqa_parts"
AGENT = r"""stty -echo -onlcr; exec sh -c 'while read -r line; do eval "$line" 2>&1; echo "@$?@END"; done'"""
APPLETS = (
    "sh",
    "true",
    "cat",
    "cp",
    "chmod",
    "dmesg",
    "dd",
    "grep",
    "ls",
    "mount",
    "printf",
    "readlink",
    "stty",
    "touch",
    "test",
    "[",
)


class SerialTarget:
    """A target as oeqa has them: `run(command)` on the guest's console."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.text = ""

    def read_until(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Waits for a pattern and takes the console's text away up to its end."""
        end = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < end and self.process.poll() is None, self.text
            if select.select([self.process.stdout], [], [], 1)[0]:
                self.text += os.read(self.process.stdout.fileno(), 65536).decode("latin-1")
        self.text = self.text[found.end() :]
        return found

    def send(self, line: str) -> None:
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def run(self, command: str, timeout: float = 60) -> tuple[int, str]:
        """Returns exit status and output."""
        self.send(command)
        found = self.read_until(r"(?s)^(.*?)@(\d+)@END\r?\n", timeout)
        return int(found[2]), found[1].replace("\r", "")


def busybox_rootfs(folder: Path, busybox: Path) -> Path:
    for name in ("dev", "proc", "sys", "run", "tmp", "bin", "sbin"):
        (folder / name).mkdir(parents=True)
    (folder / "bin/busybox").write_bytes(busybox.read_bytes())
    (folder / "bin/busybox").chmod(0o755)
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    (folder / "sbin/init").symlink_to("../bin/busybox")
    return folder


@pytest.fixture(scope="module")
def guest(first_builder, tmp_path_factory, need) -> Iterator[SerialTarget]:
    """A booted guest with a shell as its first program, under the policy that the layer's recipes made."""
    from tests.fixtures.bitbake import another_builder

    qemu = need("qemu-system-x86_64")
    folder = tmp_path_factory.mktemp("oeqa")
    settings = {
        "SMALL_ROOTFS": str(busybox_rootfs(folder / "rootfs", need("busybox"))),
        "IPE_INITRAMFS_ARGS": "--init /bin/sh",
        "IPE_FLASH": "",
    }
    builder = another_builder(first_builder, folder).with_settings(**settings)
    builder.built("small-image")
    root_hash = (builder.deploy / "small-image-small.erofs.roothash").read_text().strip()
    words: list[str | Path] = [qemu, "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-no-reboot", "-nodefaults"]
    words += ["-display", "none", "-serial", "stdio", "-kernel", builder.deploy / "bzImage", "-initrd", builder.deploy / "ipe-initrd-small"]
    words += ["-append", f"console=ttyS0 panic=-1 quiet loglevel=1 roothash={root_hash}"]
    disk = builder.deploy / "small-image-small.ipedisk"
    words += ["-drive", f"if=none,id=disk,file={disk},format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=disk"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        target = SerialTarget(process)
        target.read_until("[#$] ", 120)
        target.send(f"export PATH=/bin:/sbin; {AGENT}")
        target.send("[ -e /proc/mounts ] || mount -t proc proc /proc; mount -t tmpfs tmpfs /run; echo ready")
        target.read_until(r"\nready\r?\n@0@END\r?\n", 60)
        yield target
    finally:
        process.kill()
        process.wait()


def cases() -> type[unittest.TestCase]:
    """The class of runtime cases, on the base class that is there."""
    base = [f"{os.environ['IPE_TEST_OECORE']}/meta/lib"] if "IPE_TEST_OECORE" in os.environ else [str(PARTS)]
    sys.path[:0] = base
    try:
        spec = importlib.util.spec_from_file_location("ipe_runtime_cases", LAYER / "lib/oeqa/runtime/cases/ipe.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # OE-core's base class looks its cases' file up there
        spec.loader.exec_module(module)
        return module.IpeTest
    finally:
        sys.path[: len(base)] = []


NAMES = (
    "ipe_enforces",
    "one_policy_is_active",
    "root_is_on_dm_verity_and_read_only",
    "program_runs_from_the_root_and_its_copy_is_denied",
    "enforcement_cannot_be_switched_off",
    "unsigned_policy_is_refused",
    "writing_to_the_verity_device_is_refused",
)


def outcome(name: str, target: object) -> unittest.TestResult:
    """Runs one case against a target."""
    case = cases()
    case.target = target
    result = unittest.TestResult()
    case(f"test_{name}").run(result)
    return result


def test_every_case_is_named_here() -> None:
    assert {f"test_{name}" for name in NAMES} == {name for name in dir(cases()) if name.startswith("test_")}


@pytest.mark.boot
@pytest.mark.parametrize("name", NAMES)
def test_runtime_case_passes_on_a_booted_guest(guest, name) -> None:
    result = outcome(name, guest)
    assert result.wasSuccessful() and not result.skipped, [*result.failures, *result.errors, *result.skipped]


class ThisMachine:
    """A machine without IPE: the deny twin of every case."""

    def run(self, command: str, timeout: float = 60) -> tuple[int, str]:
        # What would touch the machine is not asked of it.
        harmless = not re.search(r"\b(mount|dd) ", command) and "/new_policy" not in command and "/enforce" not in command
        if not harmless:
            return 0, "0"
        done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_runtime_case_fails_on_a_machine_without_ipe(name) -> None:
    result = outcome(name, ThisMachine())
    assert result.failures and not result.errors, [name, *result.errors, *result.skipped]
