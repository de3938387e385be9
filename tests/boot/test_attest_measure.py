"""What `attest measure` says of an image is what the TPM holds after firmware, boot loader, stub and kernel have measured it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipe_build.attest.predict import REFERENCE_PCRS
from ipe_build.formats.cpio import regular_file
from ipe_build.formats.tpm_event_log import build_event_log, parse_event_log, replay
from ipe_build.host import Host
from ipe_build.image.disk import make_disk
from ipe_build.image.esp import BootEntry
from ipe_build.image.filesystem import FilesystemType
from ipe_build.image.initramfs import InitramfsRequest, make_initramfs
from ipe_build.steps.attest import measure_image
from tests.fixtures.attest import COMMAND_LINE, MeasuredBooter, MeasuredImage, Quoted, assert_measured

pytestmark = [pytest.mark.boot, pytest.mark.slow]
IMA_PCR = 10


def test_boot_entry_measures_what_was_predicted(quoted: Quoted, measured_image: Callable[..., Path]):
    values = measure_image(measured_image("entry"))
    assert set(values.pcrs) == {"sha256", "sha384"}
    assert_measured(quoted.boot, values)
    assert values.zero_pcrs == (11,)
    assert values.boots.startswith("systemd-boot 2") and values.boots.endswith("starts the entry /loader/entries/test.conf")


@pytest.mark.parametrize("way", ["uki", "loader-uki"])
def test_uki_measures_what_was_predicted(way: str, measured_image: Callable[..., Path], measured_boot: MeasuredBooter, tmp_path: Path):
    disk = measured_image(way)
    values = measure_image(disk)
    done = measured_boot(disk, tmp_path)
    assert_measured(done, values)
    assert values.zero_pcrs == ((12,) if way == "uki" else ())


def test_changed_command_line_boots_to_other_pcrs_and_is_predicted(
    quoted: Quoted, measured_image: Callable[..., Path], measured_boot: MeasuredBooter, tmp_path: Path
):
    disk = measured_image("entry", f"{COMMAND_LINE} x=1")
    done = measured_boot(disk, tmp_path)
    assert_measured(done, measure_image(disk))
    differing = {pcr for pcr in REFERENCE_PCRS if done.pcrs["sha256"][pcr] != quoted.boot.pcrs["sha256"][pcr]}
    assert differing == {9, 12}


def test_event_log_of_the_boot_leads_to_the_tpms_pcrs_and_is_rebuilt_byte_for_byte(quoted: Quoted):
    log = parse_event_log(quoted.boot.log)
    assert log.algorithms == ("sha256", "sha384")
    for bank in log.algorithms:
        pcrs = replay(log.events, bank)
        differing = {pcr for pcr in range(24) if pcrs[pcr] != quoted.boot.pcrs[bank][pcr]}
        assert differing <= {IMA_PCR}
    assert build_event_log(log) == quoted.boot.log


def test_the_sha1_bank_is_off(quoted: Quoted):
    assert set(quoted.boot.pcrs) == {"sha256", "sha384"}


def test_changed_byte_of_kernel_root_hash_policy_or_command_line_changes_its_pcr(measured_parts: MeasuredImage, tmp_path: Path, host: Host):
    """By prediction, on a whole image; that predictions are what is measured is shown by the boots above."""
    entry = measured_parts.request.entry
    assert entry is not None
    kernel = bytearray(measured_parts.kernel.read_bytes())
    kernel[len(kernel) // 2] ^= 1
    (tmp_path / "kernel").write_bytes(kernel)

    def initramfs(name: str, root_hash: bytes, policy: bytes) -> Path:
        made = InitramfsRequest(
            root_hash,
            FilesystemType.EROFS,
            policies=("initramfs:/etc/ipe/ipe-policy.p7b",),
            extra=(regular_file("etc/ipe/ipe-policy.p7b", policy),),
        )
        return make_initramfs(made, tmp_path / name, host).path

    root_hash = measured_parts.request.root_hash
    plain = replace(entry, initramfs=initramfs("plain", root_hash, b"policy"))
    variants = {
        "kernel (boot policy, keys)": (replace(plain, kernel=tmp_path / "kernel"), {4}),
        "root hash": (replace(plain, initramfs=initramfs("hash", bytes([root_hash[0] ^ 1]) + root_hash[1:], b"policy")), {9}),
        "policy": (replace(plain, initramfs=initramfs("policy", root_hash, b"Policy")), {9}),
        "command line": (replace(plain, command_line=f"{COMMAND_LINE} x"), {9, 12}),
    }

    def pcrs(name: str, changed: BootEntry) -> dict[int, bytes]:
        make_disk(replace(measured_parts.request, entry=changed), tmp_path / f"{name[:4]}.raw", host)
        return measure_image(tmp_path / f"{name[:4]}.raw").pcrs["sha384"]

    good = pcrs("good", plain)
    for name, (changed, wanted) in variants.items():
        found = pcrs(name, changed)
        assert {pcr for pcr in REFERENCE_PCRS if found[pcr] != good[pcr]} == wanted, name
