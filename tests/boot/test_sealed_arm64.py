"""A sealed arm64 kernel: Image and Image.gz sealed without a tree, booted on an emulated arm64 machine, with its deny twin."""

from __future__ import annotations

import gzip
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.boot.qemu import Boot, DirectKernel, Ended, Machine, boot
from ipe_build.host import Host
from ipe_build.image.disk import DiskRequest, make_disk
from ipe_build.image.filesystem import FilesystemRequest, FilesystemType, make_filesystem
from ipe_build.image.initramfs import InitramfsRequest, make_initramfs
from ipe_build.image.rootfs import Entry
from ipe_build.integrity.verity import VerityParameters, format_image
from ipe_build.kernel.build import Kernel, build_kernel
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.kernel.profiles import DEBIAN_SOURCE, kernel_request
from ipe_build.kernel.seal import boot_policy_of, root_hashes_of, seal_kernel
from ipe_build.kernel.slot import is_reserved, reserved_policy
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.render import render

pytestmark = [pytest.mark.boot, pytest.mark.slow]
_COMPILER = "aarch64-linux-gnu-gcc"
_INIT = r"""
/* The first program of the root: it runs, and a copy of it on tmpfs must not. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    char block[65536], *words[] = {"copy", "again", NULL};
    int from, to, state = 0;

    (void)arguments;
    if (count > 1)
        return 42;
    printf("arm64: the root runs\n");
    if (mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"))
        return 1;
    from = open("/sbin/init", O_RDONLY);
    to = open("/run/copy", O_WRONLY | O_CREAT, 0755);
    for (ssize_t got; (got = read(from, block, sizeof(block))) > 0;)
        if (write(to, block, (size_t)got) != got)
            return 2;
    close(from);
    close(to);
    if (!fork()) {
        execv("/run/copy", words);
        _exit(errno);
    }
    wait(&state);
    printf("arm64: a copy on tmpfs: %s\n", WEXITSTATUS(state) == 42 ? "ran" : strerror(WEXITSTATUS(state)));
    fflush(stdout);
    reboot(RB_POWER_OFF);
    return 0;
}
"""


@pytest.fixture(scope="session")
def arm64_kernel(host: Host, need, need_file) -> Kernel:
    """An arm64 kernel without keys and with a reserved policy: no probes, nothing that the test does not need."""
    for tool in (_COMPILER, "qemu-system-aarch64", "make", "bc", "bison", "flex"):
        need(tool)
    need_file(DEBIAN_SOURCE, "linux-source-6.12")
    request = kernel_request(board="qemu-arm64", features=("sealed",), properties=("boot_verified", "dmverity_roothash"))
    return build_kernel(request, KernelTrust(reserved_policy()), host)


def sealed_policy_for(root_hash: bytes) -> bytes:
    return render("sealed", {"name": "ipe-boot", "version": "0.0.1", "root_hashes": [f"sha256:{root_hash.hex()}"]})


def booted(disk: Path, kernel: Path, initrd: Path, host: Host) -> Boot:
    line = "console=ttyAMA0 panic=-1 loglevel=7"
    machine = Machine("arm64", memory_mib=256, time=host.source_date_epoch)
    return boot(disk, machine, host, kernel=DirectKernel(kernel, initrd, line))


def test_a_sealed_arm64_image_runs_its_root_and_no_other(arm64_kernel: Kernel, host: Host, need, tmp_path: Path) -> None:
    need("mkfs.erofs")
    (tmp_path / "init.c").write_text(_INIT)
    host.run([_COMPILER, "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "init", tmp_path / "init.c"])
    (tmp_path / "empty").mkdir()
    entries = [Entry.folder(name) for name in ("dev", "proc", "sys", "run", "sbin")]
    entries.append(Entry.file("sbin/init", (tmp_path / "init").read_bytes(), mode=0o755))
    request = FilesystemRequest(tmp_path / "empty", UUID(int=7), FilesystemType.EROFS, additions=tuple(entries))
    image, area = tmp_path / "root.erofs", tmp_path / "root.verity"
    make_filesystem(request, image, host)
    tree = format_image(image, area, VerityParameters(salt=b"\x5a" * 8), host)
    drops = ("CAP_MAC_ADMIN", "CAP_LINUX_IMMUTABLE")
    initramfs = InitramfsRequest(
        tree.root_hash, "erofs", signature="none", drop_capabilities=drops, freeze=True, moves=("/dev", "/proc", "/sys"), compiler=_COMPILER
    )
    make_initramfs(initramfs, tmp_path / "initrd", host)
    disk = tmp_path / "disk.raw"
    make_disk(DiskRequest(image, area, tree.root_hash, None, UUID(int=8), architecture="arm64"), disk, host)

    unsealed, policy = arm64_kernel.image.read_bytes(), sealed_policy_for(tree.root_hash)
    (tmp_path / "Image").write_bytes(seal_kernel(unsealed, policy, host).image)
    facts = inspect_kernel(tmp_path / "Image")
    assert (facts.architecture, facts.layers, facts.certificates) == ("arm64", ("arm64 Image",), ())
    assert boot_policy_of((tmp_path / "Image").read_bytes()) == policy
    assert root_hashes_of(policy) == {("sha256", tree.root_hash)}
    ran = booted(disk, tmp_path / "Image", tmp_path / "initrd", host)
    console = "\n".join(ran.console)
    assert "ipe-init: the initramfs is frozen" in console, console[-2000:]
    assert "arm64: the root runs" in console, console[-2000:]
    assert "arm64: a copy on tmpfs: Permission denied" in console, console[-2000:]
    assert ran.ended is Ended.POWER_OFF

    other = sealed_policy_for(bytes(32))
    (tmp_path / "Image.other").write_bytes(seal_kernel(unsealed, other, host).image)
    denied = booted(disk, tmp_path / "Image.other", tmp_path / "initrd", host)
    console = "\n".join(denied.console)
    assert "FATAL: init: /sbin/init: Permission denied" in console, console[-2000:]
    assert "arm64: the root runs" not in console
    assert denied.ended is Ended.PANIC


def test_a_compressed_arm64_image_is_sealed_as_the_plain_one(arm64_kernel: Kernel, host: Host) -> None:
    unsealed, policy = arm64_kernel.image.read_bytes(), sealed_policy_for(b"\xab" * 32)
    text = inspect_kernel(unsealed).boot_policy
    assert text is not None
    assert is_reserved(text)
    packed = seal_kernel(gzip.compress(unsealed, 9, mtime=0), policy, host).image
    assert gzip.decompress(packed) == seal_kernel(unsealed, policy, host).image
