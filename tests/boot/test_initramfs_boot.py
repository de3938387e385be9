"""ipe-init in a booted kernel: the good image reaches userspace, and every damaged one stops with its reason before that."""

from __future__ import annotations

import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.boot.qemu import Boot, Ended, Patch
from ipe_build.formats.cpio import CpioEntry
from ipe_build.formats.gpt import Partition
from ipe_build.host import Host
from ipe_build.image.filesystem import FilesystemType
from ipe_build.image.initramfs import OnFailure
from tests.fixtures.image import REACHED, BootableImage

pytestmark = pytest.mark.boot


def said(result: Boot, text: str) -> bool:
    return any(text in line for line in result.console)


def assert_stopped(result: Boot, reason: str) -> None:
    """The boot ended in a panic, for this reason, and nothing of the root ran."""
    console = "\n".join(result.console)
    fatal = [line for line in result.console if "ipe-init: FATAL:" in line]
    assert len(fatal) == 1, console
    assert reason in fatal[0]
    assert REACHED not in console
    assert result.ended is Ended.PANIC, console


def partition(part: Partition | None) -> Partition:
    assert part is not None
    return part


def flipped(image: BootableImage, offset: int) -> Patch:
    """One bit of the disk, flipped."""
    with image.disk.path.open("rb") as handle:
        handle.seek(offset)
        return Patch(offset, bytes([handle.read(1)[0] ^ 1]))


@pytest.fixture(scope="module")
def good(erofs_image: BootableImage, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """One boot of the image as it is, for all that can be read off its console."""
    return erofs_image.boot(scratch=tmp_path_factory.mktemp("good"))


def test_good_image_reaches_userspace_enforcing(good: Boot) -> None:
    result = good
    console = "\n".join(result.console)
    assert result.ended is Ended.POWER_OFF, console
    for line in (
        "ROOT: reached /sbin/init, 1 arguments",
        "ROOT: enforce: 1",
        "ROOT: active: 1",
        "ROOT: mounts: /dev/dm-0 / erofs ro",
        "ROOT: mounts: devtmpfs /dev devtmpfs",
        "ROOT: mounts: securityfs /sys/kernel/security securityfs",
        "ROOT: enforce off: Operation not permitted",
        "ROOT: done",
    ):
        assert said(result, line), f"{line}\n{console}"
    assert not said(result, "FATAL")


def test_dropped_capability_is_gone_from_every_set(good: Boot) -> None:
    result = good
    sets = {}
    for line in result.console:
        _, _, rest = line.partition("ROOT: status: Cap")
        if rest:
            name, value = rest.split(":")
            sets[name] = int(value.strip(), 16)
    assert set(sets) == {"Inh", "Prm", "Eff", "Bnd", "Amb"}
    mac_admin, rawio, sys_admin = 1 << 33, 1 << 17, 1 << 21
    assert not any(value & (mac_admin | rawio) for value in sets.values())
    assert sets["Eff"] & sys_admin and sets["Bnd"] & sys_admin
    helpers = next(line for line in result.console if "ROOT: helpers: " in line).split("helpers:")[1].split()
    assert not (int(helpers[0]) | int(helpers[1]) << 32) & (mac_admin | rawio)
    assert (int(helpers[0]) | int(helpers[1]) << 32) & sys_admin


def test_without_dropping_capabilities_enforcement_can_be_switched_off(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(initramfs=erofs_image.changed(drop_capabilities=()), scratch=tmp_path)
    assert said(result, "ROOT: enforce off: written")


@pytest.mark.parametrize("filesystem", [FilesystemType.SQUASHFS, FilesystemType.EXT4])
def test_other_filesystems_reach_userspace(
    image_factory: Callable[[FilesystemType], BootableImage], filesystem: FilesystemType, tmp_path: Path
) -> None:
    result = image_factory(filesystem).boot(scratch=tmp_path)
    assert said(result, f"ROOT: mounts: /dev/dm-0 / {filesystem} ro")
    assert said(result, "ROOT: done")


@pytest.mark.slow
def test_disk_boots_through_uefi_firmware(erofs_image: BootableImage, need: Callable[[str], Path]) -> None:
    result = erofs_image.boot_firmware()
    console = "\n".join(result.console)
    assert result.ended is Ended.POWER_OFF, console
    assert said(result, "ROOT: active: 1") and said(result, "EFI v2"), console


def test_root_hash_of_the_command_line_is_used(erofs_image: BootableImage, tmp_path: Path) -> None:
    root_hash = erofs_image.request.root_hash.hex()
    result = erofs_image.boot(initramfs=erofs_image.changed(root_hash=None), command_line=f"roothash={root_hash}", scratch=tmp_path)
    assert said(result, "ROOT: done")


def test_wrong_root_hash_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    wrong = bytes(32).hex()
    result = erofs_image.boot(initramfs=erofs_image.changed(root_hash=None), command_line=f"roothash={wrong}", scratch=tmp_path)
    assert_stopped(result, "partition: no partition has the UUID 00000000")


def test_root_hash_given_twice_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    root_hash = erofs_image.request.root_hash.hex()
    words = f"roothash={root_hash} roothash={root_hash}"
    result = erofs_image.boot(initramfs=erofs_image.changed(root_hash=None), command_line=words, scratch=tmp_path)
    assert_stopped(result, "command line: wanted one roothash=HEX")


def test_root_hash_with_the_same_ends_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    """All partitions are found, but the hash differs in the middle: the signature is for another one."""
    longer = erofs_image.request.root_hash[:16] + bytes(16) + erofs_image.request.root_hash[-16:]
    result = erofs_image.boot(initramfs=erofs_image.changed(root_hash=longer), scratch=tmp_path)
    assert_stopped(result, "signature: no usable signature among 1 partitions: it is for another root hash")


def test_second_disk_with_the_same_partitions_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(extra_disk=erofs_image.disk.path, scratch=tmp_path)
    assert_stopped(result, "partition: 2 partitions have the UUID")


@pytest.mark.parametrize(
    ("byte", "reason"),
    [
        (0, "there is no verity superblock"),
        (12, "mount: /dev/dm-0 as erofs: Input/output error"),
        (32, "the kernel refuses the device"),
        (75, "the superblock says"),
    ],
)
def test_corrupted_superblock_stops(erofs_image: BootableImage, byte: int, reason: str, tmp_path: Path) -> None:
    offset = partition(erofs_image.disk.root_verity).offset_bytes
    result = erofs_image.boot(patches=[flipped(erofs_image, offset + byte)], scratch=tmp_path)
    assert_stopped(result, reason)


@pytest.mark.parametrize("byte", [88, 4096])
def test_corrupted_salt_or_tree_stops(erofs_image: BootableImage, byte: int, tmp_path: Path) -> None:
    offset = partition(erofs_image.disk.root_verity).offset_bytes
    result = erofs_image.boot(patches=[flipped(erofs_image, offset + byte)], scratch=tmp_path)
    assert_stopped(result, "mount: /dev/dm-0 as erofs: Input/output error")


def test_foreign_signature_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    place = partition(erofs_image.disk.root_verity_sig).offset_bytes
    result = erofs_image.boot(patches=[Patch(place, erofs_image.foreign_signature)], scratch=tmp_path)
    assert_stopped(result, "the root hash's signature is by a key that the kernel does not trust")


def test_damaged_signature_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    signature = erofs_image.request.signature
    assert signature is not None
    text = signature.rstrip(b"\0")
    at = len(text) - 40
    damaged = text[:at] + (b"A" if text[at : at + 1] != b"A" else b"B") + text[at + 1 :]
    place = partition(erofs_image.disk.root_verity_sig).offset_bytes
    result = erofs_image.boot(patches=[Patch(place, damaged)], scratch=tmp_path)
    assert_stopped(result, "the kernel refuses the device: the root hash's signature does not fit")


def test_signature_partition_without_signature_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    place = partition(erofs_image.disk.root_verity_sig).offset_bytes
    result = erofs_image.boot(patches=[Patch(place, bytes(4096))], scratch=tmp_path)
    assert_stopped(result, "signature: no usable signature among 1 partitions")


def test_disk_without_partition_table_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(patches=[Patch(512, bytes(512))], scratch=tmp_path)
    assert_stopped(result, "partition: no partition has the UUID")


def test_missing_signature_partition_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(patches=_without_partition(erofs_image, partition(erofs_image.disk.root_verity_sig).number), scratch=tmp_path)
    assert_stopped(result, "there is no partition of the type root-verity-sig")


def test_unsigned_root_is_not_executable(erofs_image: BootableImage, tmp_path: Path) -> None:
    """Told to do without the signature, the root is opened, but IPE lets nothing of it run."""
    result = erofs_image.boot(initramfs=erofs_image.changed(signature="none"), scratch=tmp_path)
    assert_stopped(result, "init: /sbin/init: Permission denied")


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("/etc/ipe/missing.p7b", "policy: /etc/ipe/missing.p7b: No such file or directory"),
        ("/etc/ipe/unsigned.p7b", "not a signed policy"),
        ("/etc/ipe/foreign.p7b", "signed by a key that the kernel does not trust"),
        ("/etc/ipe/misnamed.p7b", "its policy_name is not misnamed"),
        ("initramfs:/etc/missing.p7b", "No such file or directory"),
    ],
)
def test_policy_that_cannot_be_loaded_stops(erofs_image: BootableImage, policy: str, reason: str, tmp_path: Path) -> None:
    result = erofs_image.boot(initramfs=erofs_image.changed(policies=(policy,)), scratch=tmp_path)
    assert_stopped(result, reason)


def test_policy_loaded_twice_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    twice = ("/etc/ipe/ipe-policy.p7b", "/etc/ipe/ipe-policy.p7b")
    result = erofs_image.boot(initramfs=erofs_image.changed(policies=twice), scratch=tmp_path)
    assert_stopped(result, "its version is not higher than the loaded one's")


def test_boot_policy_is_deleted_when_asked(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(initramfs=erofs_image.changed(delete_policies=("ipe-boot",)), scratch=tmp_path)
    assert said(result, "ipe-init: policy ipe-boot is deleted")
    assert said(result, "ROOT: boot policy: No such file or directory") and said(result, "ROOT: done")


def test_active_policy_cannot_be_deleted_and_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(initramfs=erofs_image.changed(delete_policies=("ipe-policy",)), scratch=tmp_path)
    assert_stopped(result, "policy: ipe-policy: cannot be deleted")


def test_success_audit_is_set(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(initramfs=erofs_image.changed(success_audit=True), scratch=tmp_path)
    assert said(result, "ROOT: success_audit: 1") and said(result, "ROOT: done")


def test_permissive_kernel_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(command_line="ipe.enforce=0", scratch=tmp_path)
    assert_stopped(result, "ipe: /sys/kernel/security/ipe/enforce: wanted 1, got 0")


def test_kernel_without_ipe_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(command_line="lsm=lockdown", scratch=tmp_path)
    assert_stopped(result, "ipe: the kernel has no IPE")


def test_init_of_the_command_line_is_ignored_unless_allowed(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(command_line="init=/nonexistent", scratch=tmp_path)
    assert said(result, "ROOT: reached /sbin/init")
    allowed = erofs_image.boot(
        initramfs=erofs_image.changed(init_from_command_line=True), command_line="init=/nonexistent", scratch=tmp_path
    )
    assert_stopped(allowed, "init: /nonexistent: No such file or directory")


def test_arguments_reach_init(erofs_image: BootableImage, tmp_path: Path) -> None:
    result = erofs_image.boot(command_line="-- single", scratch=tmp_path)
    assert said(result, "ROOT: reached /sbin/init, 2 arguments: single")


def test_corrupted_init_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    root = partition(erofs_image.disk.root)
    content = (erofs_image.request.filesystem).read_bytes()
    at = content.index(b"ROOT: reached")
    result = erofs_image.boot(patches=[flipped(erofs_image, root.offset_bytes + at)], scratch=tmp_path)
    console = "\n".join(result.console)
    assert REACHED not in console and result.ended is Ended.PANIC, console
    assert "data block" in console and "is corrupted" in console


def test_corruption_panics_when_asked(erofs_image: BootableImage, tmp_path: Path) -> None:
    root = partition(erofs_image.disk.root)
    patch = flipped(erofs_image, root.offset_bytes + 1024)
    result = erofs_image.boot(initramfs=erofs_image.changed(verity_options=("panic_on_corruption",)), patches=[patch], scratch=tmp_path)
    assert result.ended is Ended.PANIC and said(result, "dm-verity device corrupted")
    assert not said(result, REACHED)


RECOVERY = r"""
#include <stdio.h>
#include <sys/reboot.h>
#include <sys/stat.h>
int main(void)
{
	struct stat status;
	printf("RECOVERY: runs, verity device %s\n", stat("/dev/dm-0", &status) ? "gone" : "there");
	fflush(stdout);
	reboot(RB_POWER_OFF);
	return 1;
}
"""


@pytest.fixture(scope="module")
def recovery(host: Host, need: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recovery")
    (folder / "recovery.c").write_text(RECOVERY)
    host.run([need("gcc"), "-static", "-Os", "-s", "-o", folder / "recovery", folder / "recovery.c"])
    return folder / "recovery"


def test_recovery_runs_after_the_verity_device_is_removed(erofs_image: BootableImage, recovery: Path, tmp_path: Path) -> None:
    request = erofs_image.changed(on_failure=OnFailure.RECOVERY, recovery=recovery, policies=("/etc/ipe/missing.p7b",))
    result = erofs_image.boot(initramfs=request, scratch=tmp_path)
    console = "\n".join(result.console)
    assert said(result, "FATAL: policy: /etc/ipe/missing.p7b") and said(result, "RECOVERY: runs, verity device gone"), console
    assert not said(result, REACHED)


def test_recovery_cannot_run_once_the_device_policy_is_active(erofs_image: BootableImage, recovery: Path, tmp_path: Path) -> None:
    request = erofs_image.changed(on_failure=OnFailure.RECOVERY, recovery=recovery, delete_policies=("missing",))
    result = erofs_image.boot(initramfs=request, scratch=tmp_path)
    assert said(result, "FATAL: policy: missing: cannot be deleted") and said(result, "the recovery program cannot be run")
    assert result.ended is Ended.PANIC and not said(result, "RECOVERY: runs") and not said(result, REACHED)


def test_power_off_is_an_ending(erofs_image: BootableImage, tmp_path: Path) -> None:
    request = erofs_image.changed(on_failure=OnFailure.POWEROFF, policies=("/etc/ipe/missing.p7b",))
    result = erofs_image.boot(initramfs=request, scratch=tmp_path)
    assert said(result, "FATAL: policy") and result.ended is Ended.POWER_OFF and not said(result, REACHED)


def test_signature_file_in_the_initramfs_is_used(erofs_image: BootableImage, tmp_path: Path) -> None:
    from ipe_build.formats.verity_sig import parse_verity_signature

    signature = erofs_image.request.signature
    assert signature is not None
    entry = CpioEntry("etc/root.p7s", stat.S_IFREG | 0o400, parse_verity_signature(signature).signature)
    request = erofs_image.changed(signature="file:/etc/root.p7s", extra=(entry,))
    patches = _without_partition(erofs_image, partition(erofs_image.disk.root_verity_sig).number)
    result = erofs_image.boot(initramfs=request, patches=patches, scratch=tmp_path)
    assert said(result, "ROOT: done")


def _without_partition(image: BootableImage, number: int) -> list[Patch]:
    """Returns patches of the primary GPT that make an entry unused, both CRCs put right."""
    with image.disk.path.open("rb") as handle:
        head = bytearray(handle.read(512 * 34))
    at = 1024 + 128 * (number - 1)
    head[at : at + 128] = bytes(128)
    head[512 + 88 : 512 + 92] = zlib.crc32(head[1024:]).to_bytes(4, "little")
    head[512 + 16 : 512 + 20] = bytes(4)
    head[512 + 16 : 512 + 20] = zlib.crc32(head[512 : 512 + 92]).to_bytes(4, "little")
    return [Patch(512, bytes(head[512:]))]
