"""Sealed images, booted: the kernel runs the root that its boot policy pins, no other one, and nothing can be changed afterwards."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ipe_build import formats as formats_room
from ipe_build import kernel as kernel_room
from ipe_build.boot.evidence import ProbeResult
from ipe_build.boot.probe_disk import PolicyMaterial
from ipe_build.boot.prove import BootRequest, boot_image
from ipe_build.boot.qemu import DirectKernel, Ended, Machine, boot
from ipe_build.formats.cpio import character_device, directory, regular_file, write_cpio
from ipe_build.host import Host
from ipe_build.host.cache import cache_key
from ipe_build.image.initramfs import InitramfsRequest, make_initramfs
from ipe_build.kernel.build import Kernel, build_kernel
from ipe_build.kernel.compare import compare_kernels
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.kernel.profiles import sealed_kernel_request
from ipe_build.kernel.repack import PACKERS
from ipe_build.kernel.seal import boot_policy_of, root_hashes_of, seal_kernel
from ipe_build.kernel.slot import is_reserved, reserved_policy
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.render import render
from ipe_build.signing.certificates import KeySet
from tests.boot.test_policy_by_path import PATCHES
from tests.fixtures.demo import ipe_build

pytestmark = [pytest.mark.boot, pytest.mark.slow]
PROBE = "/usr/lib/ipe-build/ipe-probe"


@dataclass(frozen=True)
class Sealed:
    """A build's output folder."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "sealed.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def root_hash(self) -> bytes:
        return bytes.fromhex((self.folder / "sealed.erofs.roothash").read_text())

    def results(self) -> dict[str, dict[str, object]]:
        evidence = json.loads((self.folder / "evidence.json").read_text())
        return {one["id"]: one for one in (*evidence["probes"], *evidence["boots"])}


Builder = Callable[..., Sealed]


@pytest.fixture(scope="session")
def sealed_build(demo_config: Path, shared_tmp: Path, sealed_kernel: Kernel, need) -> Builder:
    """`sealed_build(NAME, (old, new)…, boot=…)`: conf/sealed.toml with these lines changed, built once a run for each name."""
    for tool in ("qemu-system-x86_64", "mkfs.erofs", "mcopy", "gzip"):
        need(tool)

    def made(name: str, *changes: tuple[str, str], boots: bool = False) -> Sealed:
        text = demo_config.with_name("sealed.toml").read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        config = demo_config.with_name(f"sealed-{name}.toml")
        folder = shared_tmp / f"sealed-{name}"
        with (shared_tmp / f"sealed-{name}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                config.write_text(text)
                done = ipe_build("build", "-c", config, "-o", folder, *([] if boots else ["--no-boot"]))
                assert done.returncode == 0, done.stderr + done.stdout
        return Sealed(folder)

    return made


@pytest.fixture(scope="session")
def image(sealed_build: Builder) -> Sealed:
    """conf/sealed.toml as it is, booted and probed, also from UEFI firmware."""
    return sealed_build("demo", ("firmware = false", "firmware = true"), boots=True)


@pytest.fixture(scope="session")
def other_image(sealed_build: Builder) -> Sealed:
    """The same with another salt, so that its root hash is another one."""
    return sealed_build("other", ("[policy.boot]", '[verity]\nsalt = "0ff1ce"\n\n[policy.boot]'))


def probes_of(image: Sealed, host: Host, foreign_keys: KeySet, **changes: object) -> dict[str, ProbeResult]:
    """One probe boot of the image with parts of it replaced."""
    policy = PolicyMaterial((image.folder / "ipe-boot.pol").read_bytes(), None, foreign_keys.pair("policy").signer(host))
    request = BootRequest(
        image.disk,
        Machine(time=host.source_date_epoch),
        policy=policy,
        application=("/usr/bin/thermostat",),
        dropped_capabilities=frozenset({"CAP_MAC_ADMIN", "CAP_LINUX_IMMUTABLE", "CAP_SYS_RAWIO", "CAP_SYS_PTRACE"}),
        keyless=True,
        frozen_initramfs=True,
        destructive=False,
    )
    return {one.id: one for one in boot_image(replace(request, **changes), host).probes}  # type: ignore[arg-type]


def test_the_build_seals_the_kernel_holds_no_key_and_every_probe_comes_out_as_expected(image: Sealed, sealed_kernel: Kernel) -> None:
    results = image.results()
    facts = inspect_kernel(image.kernel)
    policy = boot_policy_of(image.kernel.read_bytes())
    assert policy == (image.folder / "ipe-boot.pol").read_bytes()
    assert root_hashes_of(policy) == {("sha256", image.root_hash)}
    assert (facts.certificates, facts.revoked) == ((), ())
    assert facts.config is not None
    assert not facts.config.enabled("MODULE_SIG_FORCE")
    assert not facts.config.enabled("SECONDARY_TRUSTED_KEYRING")
    assert not list(image.folder.glob("*.p7*"))
    assert {
        name: results[name]["observed"] for name in ("run-application", "module-unsigned", "run-copy", "module-copy", "enforce-off")
    } == {
        "run-application": "allowed",
        "module-unsigned": "allowed",
        "run-copy": "denied: EACCES",
        "module-copy": "denied: EACCES",
        "enforce-off": "denied: EPERM",
    }
    assert results["initramfs-frozen"]["observed"] == "denied: EPERM"
    assert results["policy-any-key"]["observed"] == "denied: EPERM"
    assert results["flip-hash-tree"]["observed"] == results["flip-hash-tree"]["expected"]
    assert results["firmware"]["observed"] == results["firmware"]["expected"]
    found = compare_kernels(image.kernel.read_bytes(), sealed_kernel.image.read_bytes())
    assert (found.same_policy, found.differences) == (False, ())


def test_the_same_sources_give_the_same_sealed_disk_and_kernel(image: Sealed, sealed_build: Builder, tmp_path: Path) -> None:
    again = sealed_build("again", ("firmware = false", "firmware = false # built again"))
    assert again.kernel.read_bytes() == image.kernel.read_bytes()
    assert hashlib.sha256(again.disk.read_bytes()).digest() == hashlib.sha256(image.disk.read_bytes()).digest()


def test_a_second_person_seals_the_kernel_and_gets_the_same_bytes(image: Sealed, sealed_kernel: Kernel) -> None:
    words = ("kernel", "seal", sealed_kernel.image, "--boot-policy", image.folder / "ipe-boot.pol", "--verify", image.kernel)
    assert ipe_build(*words).returncode == 0
    published = (image.folder / "vmlinuz.unsealed.sha256").read_text().strip()
    assert hashlib.sha256(sealed_kernel.image.read_bytes()).hexdigest() == published


def test_a_kernel_sealed_for_one_root_does_not_run_another(image: Sealed, other_image: Sealed, host: Host) -> None:
    """Kernel of the one, disk and initramfs of the other: the root is opened and mounted, and its init is denied."""
    assert image.root_hash != other_image.root_hash
    kernel = DirectKernel(image.kernel, other_image.folder / "initrd", "console=ttyS0 panic=-1 loglevel=7")
    booted = boot(other_image.disk, Machine(time=host.source_date_epoch), host, kernel=kernel)
    console = "\n".join(booted.console)
    assert "ipe-init: root: " in console
    assert re.search(r"ipe-init: FATAL: init: /sbin/init: Permission denied", console), console[-2000:]
    assert re.search(r'ipe_op=EXECUTE ipe_hook=BPRM_CHECK enforcing=1 .*rule="DEFAULT action=DENY"', console)
    assert booted.ended is Ended.PANIC
    own = replace(kernel, kernel=other_image.kernel)
    reached = boot(other_image.disk, Machine(time=host.source_date_epoch), host, kernel=own, stop_at=r"ipe-init: starting /sbin/init")
    assert "FATAL" not in "\n".join(reached.console)


def test_a_kernel_that_was_not_sealed_runs_nothing(image: Sealed, sealed_kernel: Kernel, host: Host) -> None:
    text = inspect_kernel(sealed_kernel.image).boot_policy
    assert text is not None
    assert is_reserved(text)
    kernel = DirectKernel(sealed_kernel.image, image.folder / "initrd", "console=ttyS0 panic=-1 loglevel=7")
    booted = boot(image.disk, Machine(time=host.source_date_epoch), host, kernel=kernel)
    console = "\n".join(booted.console)
    assert "ipe-init" not in console
    assert 'rule="DEFAULT action=DENY"' in console
    assert booted.ended is Ended.PANIC


@pytest.mark.parametrize("compression", [row.name for row in PACKERS if row.name != "gzip"])
def test_a_kernel_sealed_in_place_boots_and_enforces_in_every_compression(
    image: Sealed, sealed_kernel: Kernel, host: Host, need, foreign_keys: KeySet, compression: str
) -> None:
    need(next(row.command[0] for row in PACKERS if row.name == compression))
    built = build_kernel(replace(sealed_kernel_request(), compression=compression), KernelTrust(reserved_policy()), host)
    unsealed, policy = built.image.read_bytes(), (image.folder / "ipe-boot.pol").read_bytes()
    code = [(Path(room.__path__[0]) / name).read_bytes() for room, name in _SEALS]

    def seal(folder: Path) -> None:
        (folder / "bzImage").write_bytes(seal_kernel(unsealed, policy, host).image)

    kernel = host.cache.entry("test-sealed-kernel", cache_key(unsealed, policy, *code), seal) / "bzImage"
    assert inspect_kernel(kernel).layers == ("bzImage", compression, "ELF")
    results = probes_of(image, host, foreign_keys, kernel=kernel)
    assert not [one.problems for one in results.values() if one.problems]
    assert results["run-application"].observed == "allowed"
    assert results["run-copy"].observed == "denied: EACCES"


_SEALS = ((kernel_room, "seal.py"), (kernel_room, "slot.py"), (kernel_room, "repack.py"), (formats_room, "bzimage.py"))


def test_linking_the_policy_in_gives_a_kernel_that_boots_as_the_one_sealed_in_place(
    image: Sealed, sealed_build: Builder, host: Host, foreign_keys: KeySet
) -> None:
    linked = sealed_build("linked", ('seal = "in-place"', 'seal = "link"'))
    assert linked.root_hash == image.root_hash
    assert inspect_kernel(linked.kernel).boot_policy == (image.folder / "ipe-boot.pol").read_bytes()
    results = probes_of(image, host, foreign_keys, kernel=linked.kernel)
    assert not [one.problems for one in results.values() if one.problems]


def test_a_prebuilt_kernel_without_a_tree_is_sealed_by_the_build(image: Sealed, sealed_build: Builder, sealed_kernel: Kernel) -> None:
    assert sealed_kernel.modules_folder is not None
    lines = f'image = "{sealed_kernel.image}"\nmodules = "{sealed_kernel.modules_folder}"\n'
    prebuilt = sealed_build("prebuilt", ('source = "/usr/src/linux-source-6.12.tar.xz"\n', lines))
    assert prebuilt.kernel.read_bytes() == image.kernel.read_bytes()


def test_without_the_freeze_the_initramfs_below_the_root_runs_what_is_written_into_it(
    image: Sealed, host: Host, foreign_keys: KeySet, tmp_path: Path
) -> None:
    """What mainline gives: boot_verified goes by the filesystem, which stays; so the freeze is what closes it."""
    request = InitramfsRequest(
        image.root_hash, "erofs", init_from_command_line=True, signature="none", drop_capabilities=("CAP_MAC_ADMIN", "CAP_LINUX_IMMUTABLE")
    )
    for name, freeze in (("open", False), ("frozen", True)):
        make_initramfs(replace(request, freeze=freeze), tmp_path / name, host)
    thawed = probes_of(image, host, foreign_keys, initrd=tmp_path / "open")["initramfs-frozen"]
    assert (thawed.observed, thawed.detail) == ("allowed", "hello")
    frozen = probes_of(image, host, foreign_keys, initrd=tmp_path / "frozen")["initramfs-frozen"]
    assert (frozen.observed, frozen.detail) == ("denied: EPERM", "nothing can be written there")


@pytest.fixture(scope="session")
def handed_over(sealed_build: Builder, need) -> Sealed:
    """An image whose initramfs carries the policy that takes over, in plain text, and a kernel with our patches."""
    need("patch")
    patches = ", ".join(f'"{path}"' for path in PATCHES)
    lines = ("[policy.device]", "signed = false", 'template = "sealed"', 'name = "ipe-policy"', 'version = "0.0.2"')
    changes = [(f"# {line}", line) for line in lines]
    return sealed_build("handed-over", ("# features = ", f"patches = [{patches}]\n# features = "), *changes, boots=True)


def test_an_unsigned_policy_takes_over_and_the_initramfs_counts_for_nothing_then(
    handed_over: Sealed, host: Host, foreign_keys: KeySet, tmp_path: Path
) -> None:
    evidence = json.loads((handed_over.folder / "evidence.json").read_text())
    assert evidence["subject"]["policy"] == "ipe-policy 0.0.2"
    assert b"boot_verified" not in (handed_over.folder / "ipe-policy.pol").read_bytes()
    plain = regular_file("etc/ipe/ipe-policy.pol", (handed_over.folder / "ipe-policy.pol").read_bytes())
    request = InitramfsRequest(
        handed_over.root_hash,
        "erofs",
        init_from_command_line=True,
        signature="none",
        policies=("initramfs:/etc/ipe/ipe-policy.pol",),
        extra=(plain,),
    )
    make_initramfs(request, tmp_path / "open", host)
    results = probes_of(handed_over, host, foreign_keys, initrd=tmp_path / "open", dropped_capabilities=frozenset())
    assert results["initramfs-frozen"].observed == "denied: EACCES", (
        "written into the initramfs below the root, and judged by the new policy"
    )
    assert results["policy-any-key"].observed == "denied: ENOKEY"


def test_a_kernel_without_our_patch_ends_the_boot_at_the_unsigned_policy(image: Sealed, handed_over: Sealed, host: Host) -> None:
    assert image.root_hash == handed_over.root_hash
    kernel = DirectKernel(image.kernel, handed_over.folder / "initrd", "console=ttyS0 panic=-1 loglevel=7")
    booted = boot(handed_over.disk, Machine(time=host.source_date_epoch), host, kernel=kernel)
    assert re.search(r"ipe-init: FATAL: policy: .*takes no paths", "\n".join(booted.console))
    assert booted.ended is Ended.PANIC


_KEEPER = r"""
/* The first program of an initramfs that keeps a program of it open over its end: what a descriptor still is after the switch. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void try(const char *what, int fd, const char *path)
{
    char *arguments[] = {"keeper", "hello", NULL}, *none[] = {NULL};
    int state = 0;
    pid_t child = fork();

    if (child == 0) {
        syscall(SYS_execveat, fd, path, arguments, none, path[0] ? 0 : AT_EMPTY_PATH);
        _exit(errno);
    }
    waitpid(child, &state, 0);
    printf("keeper: %s: %s\n", what, WEXITSTATUS(state) == 42 ? "ran" : strerror(WEXITSTATUS(state)));
    fflush(stdout);
}

static void copy(int from, const char *to)
{
    char block[65536];
    int fd = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);

    lseek(from, 0, SEEK_SET);
    for (ssize_t got; (got = read(from, block, sizeof(block))) > 0;)
        if (write(fd, block, (size_t)got) != got)
            _exit(9);
    close(fd);
}

int main(int count, char **arguments)
{
    int kept;

    (void)arguments;
    if (getpid() != 1)
        return count == 2 ? 42 : 1;
    kept = open("/init", O_RDONLY);
    mkdir("/root", 0755);
    mount("tmpfs", "/root", "tmpfs", 0, "mode=0755");
    copy(kept, "/root/copy");
    unlink("/init");
    if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        return 2;
    try("a copy on the new root", AT_FDCWD, "/copy");
    try("a removed program of the initramfs, kept open", kept, "");
    reboot(RB_POWER_OFF);
    return 0;
}
"""


def test_a_program_of_the_initramfs_that_is_kept_open_stays_boot_verified(image: Sealed, host: Host, need, tmp_path: Path) -> None:
    """Why ipe-init leaves no descriptor open: removed and with another root mounted over it, the program still runs."""
    (tmp_path / "keeper.c").write_text(_KEEPER)
    host.run([need("gcc"), "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "init", tmp_path / "keeper.c"])
    entries = [directory("dev"), character_device("dev/console", 5, 1), regular_file("init", (tmp_path / "init").read_bytes(), mode=0o755)]
    (tmp_path / "initrd").write_bytes(write_cpio(entries))
    kernel = DirectKernel(image.kernel, tmp_path / "initrd", "console=ttyS0 panic=-1 loglevel=7")
    console = "\n".join(boot(image.disk, Machine(time=host.source_date_epoch), host, kernel=kernel).console)
    assert "keeper: a copy on the new root: Permission denied" in console, console[-2000:]
    assert "keeper: a removed program of the initramfs, kept open: ran" in console, console[-2000:]


def test_the_build_fails_when_the_policy_pins_another_root(demo_config: Path, sealed_kernel: Kernel, tmp_path: Path) -> None:
    text = demo_config.with_name("sealed.toml").read_text()
    changed = text.replace('version = "0.0.1"\n', f'version = "0.0.1"\nvariables = {{ root_hashes = "sha256:{"ab" * 32}" }}\n', 1)
    assert changed != text
    config = demo_config.with_name("sealed-wrong.toml")
    config.write_text(changed)
    done = ipe_build("build", "-c", config, "-o", tmp_path / "out", "--no-boot")
    assert done.returncode == 1
    assert f"the kernel's boot policy pins {'ab' * 32}, the root is " in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[kernel]\n", '[keys.policy]\nkey = "file:x"\ncertificate = "x"\n[kernel]\n', "[keys] policy"),
        ('root_hash = "embedded"', 'root_hash = "command-line"', "[initramfs] root_hash"),
        ("reserve = 4096", "reserve = 512", "are reserved for it in this kernel"),
    ],
)
def test_what_a_sealed_image_cannot_have_is_refused(
    demo_config: Path, sealed_kernel: Kernel, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = demo_config.with_name("sealed.toml").read_text()
    assert old in text
    config = demo_config.with_name(f"sealed-{tmp_path.name}.toml")
    config.write_text(text.replace(old, new, 1))
    done = ipe_build("build", "-c", config, "-o", tmp_path / "out", "--no-boot")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_a_policy_for_a_root_is_rendered_by_the_verb_as_by_the_build(image: Sealed) -> None:
    text = render("sealed", {"name": "ipe-boot", "version": "0.0.1", "root_hashes": [f"sha256:{image.root_hash.hex()}"]})
    assert text == (image.folder / "ipe-boot.pol").read_bytes()
