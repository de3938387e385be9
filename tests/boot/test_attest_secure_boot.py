"""PCR 7 under Secure Boot: predicted from the firmware's variables and the programs' signatures, and measured so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ipe_build.attest.secure_boot import of_event_log, read_variable_store
from ipe_build.boot.qemu import Firmware, Machine
from ipe_build.boot.secure_boot import secure_firmware
from ipe_build.errors import FormatError, InputError, VerificationError
from ipe_build.formats.tpm_event_log import EventLog, parse_event_log
from ipe_build.host import Host
from ipe_build.image.disk import make_disk
from ipe_build.image.esp import EspFile
from ipe_build.image.uki import UkiRequest, build_uki
from ipe_build.signing.authenticode import attach_signatures, unsigned
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.steps.attest import measure_image
from tests.fixtures.attest import COMMAND_LINE, OS_RELEASE, MeasuredBooter, MeasuredImage, Quoted, assert_measured
from tests.fixtures.efi import SYSTEMD_BOOT

pytestmark = pytest.mark.slow


@pytest.fixture
def firmware(test_keys: KeySet, foreign_keys: KeySet, tmp_path: Path, host: Host, need) -> Firmware:
    """Firmware with Secure Boot on, two certificates in db: one that signed nothing, and the root of ours."""
    need("qemu-system-x86_64")
    stranger, root = (load_certificate(keys.root.certificate) for keys in (foreign_keys, test_keys))
    return secure_firmware((stranger, root), tmp_path, host)


def signed_program(data: bytes, keys: KeySet, host: Host) -> bytes:
    body = unsigned(data)
    return attach_signatures(body, (sign_payload(PROFILES["efi-image"], body, keys.pair("policy").signer(host)),))


@pytest.fixture
def signed_disk(measured_parts: MeasuredImage, test_keys: KeySet, tmp_path: Path, host: Host) -> Path:
    """systemd-boot that starts a UKI, both signed by a key whose issuer is in db."""
    uki = build_uki(UkiRequest(measured_parts.kernel, (measured_parts.initrd,), COMMAND_LINE, os_release=OS_RELEASE))
    files = (
        EspFile("EFI/BOOT/BOOTX64.EFI", signed_program(SYSTEMD_BOOT.read_bytes(), test_keys, host)),
        EspFile("EFI/Linux/test.efi", signed_program(uki, test_keys, host)),
    )
    disk = tmp_path / "signed.raw"
    make_disk(replace(measured_parts.request, entry=None, files=files, boot_loader=False), disk, host)
    return disk


@pytest.mark.boot
def test_pcr_7_and_all_others_are_predicted_under_secure_boot(
    firmware: Firmware, signed_disk: Path, measured_boot: MeasuredBooter, tmp_path: Path
):
    values = measure_image(signed_disk, firmware=partial(read_variable_store, firmware.variables))
    assert values.secure_boot
    assert [event.what for event in values.events].count("db entry that authorised a program") == 1
    done = measured_boot(signed_disk, tmp_path, firmware=firmware, machine=Machine(memory_mib=768, timeout_s=180))
    assert_measured(done, values)
    log = parse_event_log(done.log)
    assert measure_image(signed_disk, firmware=lambda _: of_event_log(log)).pcrs == values.pcrs
    assert measure_image(signed_disk).pcrs["sha256"][7] != values.pcrs["sha256"][7]


def test_program_that_secure_boot_would_refuse_has_no_reference_values(
    firmware: Firmware, signed_disk: Path, measured_image: Callable[..., Path], tmp_path: Path, test_keys: KeySet, host: Host
):
    with pytest.raises(VerificationError, match="no entry of db authorises it"):
        measure_image(measured_image("uki"), firmware=partial(read_variable_store, firmware.variables))
    (tmp_path / "other").mkdir()
    other = secure_firmware((load_certificate(test_keys.pair("verity").certificate),), tmp_path / "other", host)
    with pytest.raises(VerificationError, match="no entry of db authorises it"):
        measure_image(signed_disk, firmware=partial(read_variable_store, other.variables))


def test_variables_of_no_machine_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read_variable_store(tmp_path / "missing", ())
    (tmp_path / "vars.fd").write_bytes(bytes(4096))
    with pytest.raises(FormatError, match="has no firmware volume"):
        read_variable_store(tmp_path / "vars.fd", ())


def test_log_of_a_good_device_gives_its_state_and_another_log_none(quoted: Quoted):
    log = parse_event_log(quoted.boot.log)
    state = of_event_log(log)
    assert (state.is_on, [one.name for one in state.variables]) == (False, ["SecureBoot", "PK", "KEK", "db", "dbx"])
    with pytest.raises(InputError, match="wanted measurements of SecureBoot"):
        of_event_log(EventLog(log.algorithms, ()))
