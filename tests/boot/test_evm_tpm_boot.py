"""EVM's HMAC key on a device with an emulated TPM (swtpm): made and sealed at the first boot, unsealed at every later one, nowhere else.

What it protects is a writable partition: files that the device itself labels, so no signature of the build can cover them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.boot.qemu import Ended
from ipe_build.boot.tpm import emulated_tpm
from ipe_build.formats.ext4 import Ext4
from ipe_build.formats.gpt import Partition, PartitionTable, lay_out, write_gpt
from ipe_build.formats.ima_xattr import IntegrityKind, parse_integrity_xattr
from ipe_build.host import Host
from ipe_build.image.integrity import IntegrityRequest, TrustedSource
from ipe_build.image.rootfs import Entry
from tests.fixtures.ima import REACHED, ImaBoot, ImaBooter

pytestmark = [pytest.mark.boot, pytest.mark.slow]
KEY_UUID, DATA_UUID, LINUX_DATA = UUID(int=0xE71), UUID(int=0xDA7A), UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
POLICY = "/etc/ima/ima-policy"
RULES = Entry.file(POLICY.lstrip("/"), b"appraise func=FILE_CHECK fsname=ext4\n")
PROVISION = IntegrityRequest(ima_policy=POLICY, evm_key=KEY_UUID, evm_provision=True)
OPERATE = replace(PROVISION, evm_provision=False)
NAMES = ("good", "mode", "content")
MOUNT = [("mount", "mount", "/dev/vdb2", "/data", "ext4")]
EVM_STATE = [("show", "evm", "/sys/kernel/security/evm")]
READS = [*MOUNT, *EVM_STATE, *(("read", name, f"/data/{name}") for name in NAMES)]


def piece(table: PartitionTable, uuid: UUID) -> Partition:
    return next(part for part in table.partitions if part.uuid == uuid)


@dataclass(frozen=True, slots=True)
class Device:
    """A device's second disk, on which the key's partition and the writable one lie, and its TPM."""

    disk: Path
    tpm: Path
    table: PartitionTable
    run: Callable[..., ImaBoot]
    first: ImaBoot
    host: Host

    def boot(
        self, request: IntegrityRequest, plan: Sequence[Sequence[str]], folder: Path, *, disk: Path | None = None, tpm: Path | None = None
    ) -> ImaBoot:
        """Boots with a copy of the disk and of the TPM's state, so that tests do not see each other's."""
        if disk is None:
            disk = self.copy(folder)
        if tpm is None:
            tpm = folder / "tpm"
            shutil.copytree(self.tpm, tpm)
        return self.run(disk, tpm, request, plan)

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copyfile(self.disk, folder / "device.raw"))

    def key_text(self) -> bytes:
        with self.disk.open("rb") as handle:
            handle.seek(piece(self.table, KEY_UUID).offset_bytes)
            return handle.read(8192).rstrip(b"\0")

    def with_key_text(self, text: bytes, folder: Path) -> Path:
        disk = self.copy(folder)
        with disk.open("r+b") as handle:
            handle.seek(piece(self.table, KEY_UUID).offset_bytes)
            handle.write(text.ljust(8192, b"\0"))
        return disk

    def with_changed_data(self, change: Callable[[Path], None], folder: Path) -> Path:
        """A copy of the disk whose writable partition somebody changed while the device was off."""
        disk, part, data = self.copy(folder), piece(self.table, DATA_UUID), folder / "data.ext4"
        with disk.open("r+b") as handle:
            handle.seek(part.offset_bytes)
            data.write_bytes(handle.read(part.size_bytes))
            change(data)
            handle.seek(part.offset_bytes)
            handle.write(data.read_bytes())
        return disk


def make_disk(path: Path, host: Host) -> PartitionTable:
    """An empty partition for the key, and an ext4 one."""
    parts = [Partition(0, LINUX_DATA, KEY_UUID, "evm-key", 0, 64 << 10), Partition(0, LINUX_DATA, DATA_UUID, "data", 0, 8 << 20)]
    table = lay_out(UUID(int=0xD15C), parts)
    data = path.with_suffix(".ext4")
    host.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-F", data, "8M"])
    with path.open("wb") as handle:
        handle.truncate(table.size_bytes)
        for row in write_gpt(table):
            handle.seek(row.offset)
            handle.write(row.data)
        handle.seek(piece(table, DATA_UUID).offset_bytes)
        handle.write(data.read_bytes())
    return table


@pytest.fixture(scope="module")
def device(ima_boot: ImaBooter, host: Host, need, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """A device after its first boot, in which it made its key and wrote three files."""
    for tool in ("swtpm", "swtpm_setup", "mke2fs", "debugfs"):
        need(tool)
    folder = tmp_path_factory.mktemp("evm")
    disk, tpm = folder / "device.raw", folder / "tpm"

    def run(disk: Path, state: Path, request: IntegrityRequest, plan: Sequence[Sequence[str]], memory_mib: int = 256) -> ImaBoot:
        with emulated_tpm("x86-64", host, state=state) as running:
            drive = ("-drive", f"if=none,id=device,file={disk},format=raw", "-device", "virtio-blk-pci,drive=device")
            return ima_boot([RULES], plan, request, devices=(*running.qemu_arguments, *drive), memory_mib=memory_mib)

    table = make_disk(disk, host)
    plan = [*MOUNT, *EVM_STATE, *(("write", name, f"/data/{name}", f"written by the device: {name}") for name in NAMES)]
    plan += [("xattr", "hmac", "/data/good", "security.evm"), ("xattr", "hash", "/data/good", "security.ima")]
    return Device(disk, tpm, table, run, run(disk, tpm, PROVISION, plan), host)


def assert_stopped(result: ImaBoot, reason: str) -> None:
    fatal = [line for line in result.console if "ipe-init: FATAL:" in line]
    assert len(fatal) == 1 and reason in fatal[0], result.text
    assert not result.said(REACHED) and result.ended is Ended.PANIC
    assert not result.said("evm: key initialized")


def tampered(image: Path, host: Host) -> None:
    """What somebody with the disk in hand can do: another mode; another content with the hash that fits it."""
    with image.open("r+b") as handle:
        ext4 = Ext4(lambda offset, length: os.pread(handle.fileno(), length, offset), image.stat().st_size)
        inode = dict(ext4.walk())[b"content"]
        offset, length = inode.pieces[0]
        text = b"written by somebody else: content"[:length].ljust(length)
        handle.seek(offset)
        handle.write(text)
    new_hash = image.with_suffix(".hash")
    new_hash.write_bytes(b"\x04\x04" + hashlib.sha256(text).digest())
    for command in ("set_inode_field /mode mode 0100666", f"ea_set -f {new_hash} /content security.ima"):
        host.run(["debugfs", "-w", "-R", command, image])


def test_first_boot_seals_a_new_key_and_the_kernel_uses_it(device: Device) -> None:
    result = device.first
    for line in (
        "ipe-init: TPM: made a storage root key at 0x81000001",
        "ipe-init: EVM: a new key, sealed for this device, lies on /dev/vdb1",
        "evm: key initialized",
        "ipe-init: EVM: the HMAC key is in use",
    ):
        assert result.said(line), f"{line}\n{result.text}"
    assert result.values("SHOW")["evm"] == "1"
    assert set(result.did().values()) == {0}, result.text
    hmac = parse_integrity_xattr("security.evm", bytes.fromhex(result.values("XATTR")["hmac"]))
    assert hmac.kind is IntegrityKind.HMAC
    stored = parse_integrity_xattr("security.ima", bytes.fromhex(result.values("XATTR")["hash"]))
    assert (stored.kind, stored.digest) == (IntegrityKind.HASH, hashlib.sha256(b"written by the device: good").digest())
    magic, kmk, evm = device.key_text().split(b"\n")[:3]
    assert magic == b"ipe-evm-key 1" and kmk.startswith(b"kmk 3081") and evm.startswith(b"evm default trusted:evm-kmk 64 ")


def test_later_boot_unseals_the_key_and_refuses_what_was_changed_offline(device: Device, tmp_path: Path) -> None:
    disk = device.with_changed_data(lambda image: tampered(image, device.host), tmp_path)
    result = device.boot(OPERATE, READS, tmp_path, disk=disk)
    assert result.said("evm: key initialized") and not result.said("a new key"), result.text
    assert result.did() == {"mount": 0, "evm": 0, "good": 0, "mode": errno.EACCES, "content": errno.EACCES}, result.text
    assert result.causes() == {"mode": "invalid-HMAC", "content": "invalid-HMAC"}


def test_without_the_key_the_same_changes_are_not_noticed(device: Device, tmp_path: Path) -> None:
    """The control: IMA alone believes the hash that the attacker wrote."""
    disk = device.with_changed_data(lambda image: tampered(image, device.host), tmp_path)
    result = device.boot(IntegrityRequest(ima_policy=POLICY), READS, tmp_path, disk=disk)
    assert result.did() == dict.fromkeys(("mount", "evm", *NAMES), 0), result.text
    assert result.values("SHOW")["evm"] == "0"


def test_another_devices_tpm_does_not_unseal_the_key(device: Device, tmp_path: Path) -> None:
    result = device.boot(OPERATE, [], tmp_path, tpm=tmp_path / "other-tpm")
    assert_stopped(result, "evm: the trusted key cannot be unsealed")


@pytest.mark.parametrize("blob", [b"kmk ", b"evm default trusted:evm-kmk 64 "])
def test_damaged_blob_stops_the_boot(blob: bytes, device: Device, tmp_path: Path) -> None:
    text = bytearray(device.key_text())
    place = text.index(blob) + len(blob) + 200
    text[place] = ord("0") if text[place] != ord("0") else ord("1")
    result = device.boot(OPERATE, [], tmp_path, disk=device.with_key_text(bytes(text), tmp_path))
    assert_stopped(result, "evm: the trusted key cannot" if blob == b"kmk " else "evm: the encrypted key cannot")


def test_emptied_partition_stops_the_boot_when_nothing_is_provisioned(device: Device, tmp_path: Path) -> None:
    result = device.boot(OPERATE, [], tmp_path, disk=device.with_key_text(b"", tmp_path))
    assert_stopped(result, "is empty: boot once with evm_provision = yes")


def test_foreign_text_on_the_partition_stops_the_boot(device: Device, tmp_path: Path) -> None:
    result = device.boot(PROVISION, [], tmp_path, disk=device.with_key_text(b"ipe-evm-key 2\nkmk 00\nevm 00\n", tmp_path))
    assert_stopped(result, "holds no key of ours")


def test_key_sealed_to_pcrs_is_unsealed_only_while_they_are_unchanged(device: Device, host: Host, tmp_path: Path) -> None:
    """SeaBIOS measures the machine's description into PCR 1: with more memory it is another machine."""
    disk, tpm = tmp_path / "device.raw", tmp_path / "tpm"
    make_disk(disk, host)
    first = device.run(disk, tpm, replace(PROVISION, evm_pcrs=(0, 1, 7)), EVM_STATE)
    assert first.said("EVM: a new key") and first.values("SHOW")["evm"] == "1", first.text
    again = device.run(disk, tpm, replace(OPERATE, evm_pcrs=(0, 1, 7)), EVM_STATE)
    assert again.said("evm: key initialized") and again.values("SHOW")["evm"] == "1", again.text
    other = device.run(disk, tpm, replace(OPERATE, evm_pcrs=(0, 1, 7)), [], memory_mib=288)
    assert_stopped(other, "evm: the trusted key cannot be unsealed")
    careless = device.run(disk, tpm, OPERATE, [])
    assert_stopped(careless, "evm: the trusted key cannot be unsealed")


def test_a_tee_is_asked_for_by_the_same_settings() -> None:
    """Emitted, not run here: the emulated machine has no OP-TEE. The kernel then wants trusted.source=tee and no keyhandle=."""
    settings = replace(OPERATE, trusted_source=TrustedSource.TEE).settings()
    assert dict(settings) == {"evm_key": str(KEY_UUID), "evm_provision": "no", "trusted_source": "tee", "ima_policy": POLICY}
