"""A device updates itself under its IPE policy: SWUpdate writes slot b, RAUC slot a; policies that are pinned to the root hashes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.boot.qemu import Boot, DirectKernel, Ended
from ipe_build.formats.cpio import regular_file
from ipe_build.formats.gpt import Partition
from ipe_build.host import Host
from ipe_build.image.disk import read_disk
from ipe_build.image.initramfs import InitramfsRequest, make_initramfs
from ipe_build.image.update import make_rauc_bundle, make_swupdate_image
from ipe_build.policy.ledger import Ledger
from ipe_build.policy.transition import Transition, transition
from ipe_build.signing.certificates import KeySet
from tests.fixtures.image import COMMAND_LINE, sign_policy
from tests.fixtures.update import SETTINGS, Device, UpdatableImage

pytestmark = [pytest.mark.boot, pytest.mark.slow]


def said(result: Boot, text: str) -> bool:
    return any(text in line for line in result.console)


def partitions(disk: Path) -> dict[str, Partition]:
    return {one.name: one for one in read_disk(disk).table.partitions}


@dataclass(frozen=True)
class Updated:
    """What the two updates left: the device, the boots that made them, the table after each."""

    device: Device
    old: UpdatableImage
    new: UpdatableImage
    swupdate: Boot
    after_swupdate: dict[str, Partition]
    rauc: Boot
    after_rauc: dict[str, Partition]


@pytest.fixture(scope="module")
def updated(updatable: Callable[[str], UpdatableImage], kernel_factory, test_keys: KeySet, host: Host, tmp_path_factory) -> Updated:
    """A in slot a updates to B in slot b with SWUpdate; B, booted, puts A back into slot a with RAUC."""
    old, new = updatable("A"), updatable("B")
    folder = tmp_path_factory.mktemp("device")
    subprocess.run(["cp", "--sparse=always", old.disk.path, folder / "disk.raw"], check=True)
    device = Device(folder / "disk.raw", kernel_factory, host)
    pair = test_keys.pair("module")
    make_swupdate_image(new.disk, SETTINGS, pair.signer(host), folder / "b.swu", host, force=True)
    swupdate = device.boot_slot("a", "update=swupdate", update=folder / "b.swu")
    after_swupdate = partitions(device.disk)
    make_rauc_bundle(old.disk, SETTINGS, pair.uri, pair.certificate, folder / "a.raucb", host, force=True)
    size = (folder / "a.raucb").stat().st_size
    with (folder / "a.raucb").open("ab") as handle:
        handle.truncate(-(-size // 512) * 512)
    rauc = device.boot_slot("b", f"update=rauc size={size}", update=folder / "a.raucb")
    return Updated(device, old, new, swupdate, after_swupdate, rauc, partitions(device.disk))


def test_swupdate_writes_the_other_slot_and_it_gets_the_new_root_hash(updated: Updated, need) -> None:
    console = "\n".join(updated.swupdate.console)
    assert said(updated.swupdate, "ROOT: version A, booted a, other b"), console
    assert said(updated.swupdate, "ROOT: swupdate: 0"), console
    table = updated.after_swupdate
    assert table["root-b"].uuid == UUID(bytes=updated.new.root_hash[:16])
    assert table["root-verity-b"].uuid == UUID(bytes=updated.new.root_hash[16:])
    assert table["root-a"].uuid == UUID(bytes=updated.old.root_hash[:16])
    raw, source = updated.device.disk.read_bytes(), updated.new.disk.path.read_bytes()
    assert updated.new.disk.root
    begin, size = updated.new.disk.root.offset_bytes, (updated.new.disk.path.parent / "root.img").stat().st_size
    assert raw[table["root-b"].offset_bytes :][:size] == source[begin:][:size]
    assert subprocess.run([need("sfdisk"), "--verify", updated.device.disk], capture_output=True).returncode == 0


def test_a_bundle_of_a_foreign_key_is_refused(updated: Updated) -> None:
    assert said(updated.swupdate, "ROOT: foreign swupdate: 1"), "\n".join(updated.swupdate.console)


def test_the_slot_program_refuses_the_image_that_is_booted_and_a_slot_that_is_none(updated: Updated) -> None:
    """Two partitions with one UUID would stop every later boot."""
    assert said(updated.swupdate, "twin: ipe-slot: slot a holds this very image")
    assert said(updated.swupdate, "twin: ipe-slot: wanted slot a or b, got 'c'")


def test_while_updating_nothing_but_the_root_runs(updated: Updated) -> None:
    for result in (updated.swupdate, updated.rauc):
        assert said(result, "ROOT: a copy of a program is denied")
        assert not said(result, "ROOT: a copy of a program runs")


def test_the_new_slot_boots_from_its_own_boot_entry_and_rauc_writes_the_first_again(updated: Updated) -> None:
    console = "\n".join(updated.rauc.console)
    assert said(updated.rauc, "ROOT: version B, booted b, other a"), console
    assert said(updated.rauc, "ROOT: rauc: 0"), console
    assert updated.after_rauc["root-a"].uuid == UUID(bytes=updated.old.root_hash[:16])
    assert updated.after_rauc["root-b"].uuid == UUID(bytes=updated.new.root_hash[:16])


@pytest.fixture(scope="module")
def policies(updated: Updated) -> Transition:
    """The policies of the update from A to B."""
    return transition("ipe-policy", (f"sha256:{updated.old.root_hash.hex()}",), f"sha256:{updated.new.root_hash.hex()}", Ledger())


@pytest.fixture
def boot_pinned(updated: Updated, policies: Transition, test_keys: KeySet, host: Host, tmp_path: Path) -> Callable[[bytes, str], Boot]:
    """Boots a root hash under a policy that an initramfs shared by both slots carries; the command line says which root."""

    def booted(policy: bytes, root_hash: str) -> Boot:
        entry = regular_file("etc/ipe/ipe-policy.p7b", sign_policy(policy, test_keys, host))
        request = InitramfsRequest(None, "erofs", policies=("initramfs:/etc/ipe/ipe-policy.p7b",), extra=(entry,), wait_s=2)
        initrd = make_initramfs(request, tmp_path / "initrd", host, force=True)
        disk = tmp_path / "disk.raw"
        if not disk.exists():
            shutil.copy(updated.device.disk, disk)
        kernel = updated.device.disk.with_name("linux")
        return Device(disk, updated.device.kernel, host).boot(DirectKernel(kernel, initrd.path, f"{COMMAND_LINE} roothash={root_hash}"))

    return booted


def test_while_the_update_is_in_flight_old_and_new_run(updated: Updated, policies: Transition, boot_pinned) -> None:
    for image, slot in ((updated.old, "a"), (updated.new, "b")):
        result = boot_pinned(policies.in_flight, image.root_hash.hex())
        assert said(result, f"ROOT: version {image.version}, booted {slot}"), "\n".join(result.console)
        assert said(result, "ROOT: a copy of a program is denied")


def test_after_the_update_the_new_root_runs_and_the_old_is_refused(updated: Updated, policies: Transition, boot_pinned) -> None:
    new = boot_pinned(policies.final, updated.new.root_hash.hex())
    assert said(new, "ROOT: version B, booted b"), "\n".join(new.console)
    old = boot_pinned(policies.final, updated.old.root_hash.hex())
    console = "\n".join(old.console)
    assert said(old, "ipe-init: FATAL: init: /sbin/init: Permission denied"), console
    assert "ROOT: version" not in console and old.ended is Ended.PANIC
