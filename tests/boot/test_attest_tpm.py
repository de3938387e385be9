"""The emulated TPM: made once, connected to a machine, gone with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.boot.qemu import DirectKernel, Ended, Machine, boot
from ipe_build.boot.tpm import emulated_tpm, provision
from ipe_build.errors import InputError, ToolFailedError
from ipe_build.host import Host


@pytest.fixture
def tools(need: Callable[[str], Path]) -> None:
    for name in ("swtpm", "swtpm_setup", "qemu-system-x86_64"):
        need(name)


@pytest.mark.boot
@pytest.mark.parametrize("device", ["tpm-tis", "tpm-crb"])
def test_a_machine_boots_with_the_tpm_and_both_end(tools, device: str, serial_guest: Path, small_disk: Path, tmp_path: Path, host: Host):
    state = tmp_path / "state, with a comma"
    with emulated_tpm("x86-64", host, state=state, device=device) as tpm:
        direct = DirectKernel(serial_guest, None, "with a TPM: P")
        done = boot(small_disk, Machine(timeout_s=60), host, kernel=direct, devices=tpm.qemu_arguments)
    assert (done.ended, done.console[0].split()[-4:]) == (Ended.POWER_OFF, ["with", "a", "TPM:", "P"])
    assert f"{device},tpmdev=tpm0" in done.command
    assert (state / "tpm2-00.permall").is_file()


def test_a_provisioned_tpm_is_left_as_it_is(tools, tmp_path: Path, host: Host):
    provision(tmp_path / "state", host)
    made = (tmp_path / "state" / "tpm2-00.permall").read_bytes()
    provision(tmp_path / "state", host)
    assert (tmp_path / "state" / "tpm2-00.permall").read_bytes() == made


def test_a_tpm_that_no_machine_used_ends_with_the_block(tools, host: Host):
    with emulated_tpm("x86-64", host) as tpm:
        assert tpm.state.is_dir()
    assert not tpm.state.exists()


def test_an_error_inside_the_block_is_what_comes_out(tools, host: Host):
    with pytest.raises(KeyError, match="mine"), emulated_tpm("x86-64", host):
        raise KeyError("mine")


def test_an_unknown_device_is_refused_with_the_known_ones(host: Host):
    with pytest.raises(InputError, match="tpm-tis, tpm-crb"), emulated_tpm("x86-64", host, device="tpm-spapr"):
        pass
    with pytest.raises(InputError, match="riscv"), emulated_tpm("riscv", host):
        pass


def test_a_socket_path_that_is_too_long_is_refused(tools, tmp_path: Path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(InputError, match="too long for a socket"), emulated_tpm("x86-64", Host(env={**Host().env, "TMPDIR": str(deep)})):
        pass


@pytest.mark.boot
def test_a_damaged_state_is_an_error_and_not_a_hang(tools, tmp_path: Path, serial_guest: Path, small_disk: Path, host: Host):
    (tmp_path / "tpm2-00.permall").write_bytes(b"no TPM")
    direct = DirectKernel(serial_guest, None, "P")
    with pytest.raises(ToolFailedError, match="tpm-emulator"), emulated_tpm("x86-64", host, state=tmp_path) as tpm:
        boot(small_disk, Machine(timeout_s=60), host, kernel=direct, devices=tpm.qemu_arguments)
