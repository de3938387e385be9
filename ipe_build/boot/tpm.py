"""An emulated TPM 2.0 for a machine: swtpm, provisioned, connected to QEMU, and ended with the boot.

    with emulated_tpm(machine.architecture, host) as tpm:
        boot(disk, machine, host, devices=tpm.qemu_arguments)

A TPM serves one boot, as QEMU ends it when the machine goes. What survives a boot (seeds, sealed keys, NV memory, but no PCR) lies in
`state`: name a folder to have the same TPM again at the next boot.

Source: swtpm(8), swtpm_setup(8); QEMU, docs/specs/tpm.rst; TCG PC Client Platform TPM Profile (PTP).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError, ToolFailedError

if TYPE_CHECKING:
    from ipe_build.host import Completed, Host

BANKS = ("sha256", "sha384")
"""The PCR banks that are active; firmware, boot loader and kernel extend each of them."""
TPM_DEVICES: dict[str, tuple[str, ...]] = {"x86-64": ("tpm-tis", "tpm-crb"), "arm64": ("tpm-tis-device",)}
"""QEMU's devices for each architecture, the usual one first. The kernel needs TCG_TIS or TCG_CRB."""
_STATE_FILE = "tpm2-00.permall"
_LONGEST_SOCKET_PATH = 107
_START_S = 20.0
_END_S = 3.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Tpm:
    """A running TPM. `qemu_arguments` connects a machine to it; `state` is the folder with what survives a boot."""

    state: Path
    qemu_arguments: tuple[str, ...]


@contextmanager
def emulated_tpm(
    architecture: str, host: Host, *, state: Path | None = None, banks: Sequence[str] = BANKS, device: str | None = None
) -> Iterator[Tpm]:
    """Yields a TPM for one boot of a machine. `state` is made and provisioned if it holds no TPM yet; without one the TPM is forgotten.

    Raises: InputError (no such device for the architecture, a path too long for a socket), ToolMissingError, ToolFailedError.
    """
    known = TPM_DEVICES.get(architecture, ())
    chosen = device or next(iter(known), "")
    if chosen not in known:
        raise InputError(
            f"no TPM device {chosen!r} is known for {architecture}", hint=f"known are {', '.join(known)}" if known else "name another"
        )
    with host.scratch("ipe-tpm-") as folder:
        place = state or folder / "state"
        provision(place, host, banks=banks)
        socket = folder / "control"
        if "," in str(socket) or len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
            raise InputError("the path is too long for a socket, or has a comma", where=str(socket), hint="set TMPDIR to another folder")
        argv = ["swtpm", "socket", "--tpm2", "--tpmstate", "dir=.", "--ctrl", f"type=unixio,path={socket}", "--terminate"]
        with _in_background(argv, place, host) as running:
            _await(socket, running)
            yield Tpm(place, _qemu_arguments(socket, chosen))


def provision(state: Path, host: Host, *, banks: Sequence[str] = BANKS) -> None:
    """Makes a new TPM in the folder `state` with these PCR banks active (SHA-1's is off); one that is there already is left alone.

    It gets an endorsement key, but no certificate: nobody vouches for an emulated TPM.
    """
    if (state / _STATE_FILE).is_file():
        return
    state.mkdir(parents=True, exist_ok=True)
    # Started by root, swtpm_setup becomes the user tss, who may not write where we do.
    user = ("--runas", "root") if os.geteuid() == 0 else ()
    # Both programs run in the folder itself: they take a comma in its path for the next option.
    argv = ["swtpm_setup", "--tpm2", "--tpm-state", ".", "--createek", "--pcr-banks", ",".join(banks), *user]
    host.run(argv, cwd=state, timeout_s=120)


def _qemu_arguments(socket: Path, device: str) -> tuple[str, ...]:
    """Returns QEMU's options."""
    return (
        "-chardev",
        f"socket,id=tpm-control,path={socket}",
        "-tpmdev",
        "emulator,id=tpm0,chardev=tpm-control",
        "-device",
        f"{device},tpmdev=tpm0",
    )


@contextmanager
def _in_background(argv: Sequence[str | Path], cwd: Path, host: Host) -> Iterator[Future[Completed]]:
    """Runs a program while the block lasts. It is given a moment to end by itself afterwards, then killed."""
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(host.run, argv, cwd=cwd, stop_when=stop.is_set)
        try:
            yield running
            end = time.monotonic() + _END_S
            while not running.done() and time.monotonic() < end:
                time.sleep(_POLL_S)
        finally:
            stop.set()
    running.result()


def _await(socket: Path, running: Future[Completed]) -> None:
    """Returns once swtpm listens. Raises: ToolFailedError when it does not, or what it ended with."""
    end = time.monotonic() + _START_S
    while not socket.exists():
        if running.done():
            raise ToolFailedError(f"swtpm ended before anybody talked to it: {running.result().stderr.decode('utf-8', 'replace').strip()}")
        if time.monotonic() > end:
            raise ToolFailedError(f"swtpm did not listen within {_START_S:g} s")
        time.sleep(_POLL_S)
