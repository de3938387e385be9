"""A booted kernel takes the fs-verity files that we laid into an unmounted ext4 image: digests, signatures, IPE's rules, a flipped byte."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.boot.qemu import DirectKernel, Ended, Machine, boot
from ipe_build.formats.cpio import character_device, directory, regular_file, write_cpio
from ipe_build.host import Host
from ipe_build.integrity.fsverity import FsVerityParameters, measure
from ipe_build.integrity.fsverity_ext4 import seal_ext4
from ipe_build.kernel.trust import KernelTrust
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.profiles import PROFILES, sign_payload
from tests.fixtures.integrity import flip, noise
from tests.fixtures.kernel import KernelFactory

_NAMES = ("digest", "signature", "foreign", "neither", "flipped", "flipped-tree", "plain", "empty")
_TOOL = "int main(void) { return 42; }\n"
_INIT = r"""
#include <errno.h>
#include <fcntl.h>
#include <linux/fsverity.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void trust(const char *path)
{
    char line[512], cert[4096];
    FILE *keys = fopen("/proc/keys", "r");
    int file = open(path, O_RDONLY);
    long size = read(file, cert, sizeof cert), id = 0;

    while (keys && fgets(line, sizeof line, keys))
        if (strstr(line, " .fs-verity"))
            id = strtol(line, 0, 16);
    printf("TRUST %s\n", syscall(SYS_add_key, "asymmetric", "", cert, size, id) < 0 ? strerror(errno) : "ok");
}

static void look(const char *name)
{
    static char buffer[1 << 16];
    struct { struct fsverity_digest head; unsigned char digest[64]; } measured = {.head.digest_size = 64};
    char path[256];
    long got = 0;
    int status = 0;

    snprintf(path, sizeof path, "/mnt/%s", name);
    int file = open(path, O_RDONLY);
    if (file < 0)
        printf("%s open %s\n", name, strerror(errno));
    else if (ioctl(file, FS_IOC_MEASURE_VERITY, &measured))
        printf("%s measure %s\n", name, strerror(errno));
    else {
        printf("%s measure ", name);
        for (int i = 0; i < measured.head.digest_size; i++)
            printf("%02x", measured.digest[i]);
        printf("\n");
    }
    while (file >= 0 && (got = read(file, buffer, sizeof buffer)) > 0);
    printf("%s read %s\n", name, file < 0 ? "-" : got < 0 ? strerror(errno) : "ok");
    if (!fork()) {
        execl(path, path, (char *)0);
        _exit(errno);
    }
    wait(&status);
    printf("%s exec %s\n", name, WEXITSTATUS(status) == 42 ? "ran" : strerror(WEXITSTATUS(status)));
}

int main(void)
{
    static const char *const names[] = {NAMES};

    setvbuf(stdout, 0, _IOLBF, 0);
    mount("proc", "/proc", "proc", 0, 0);
    mount("dev", "/dev", "devtmpfs", 0, 0);
    freopen("/dev/console", "w", stdout);
    setvbuf(stdout, 0, _IOLBF, 0);
    trust("/cert.der");
    printf("MOUNT %s\n", mount("/dev/vda", "/mnt", "ext4", MS_RDONLY, 0) ? strerror(errno) : "ok");
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        look(names[i]);
    printf("DONE\n");
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
"""


def _compile(gcc: Path, source: str, out: Path) -> bytes:
    source_file = out.with_suffix(".c")
    source_file.write_text(source)
    subprocess.run([gcc, "-static", "-Os", "-w", "-o", out, source_file], check=True)
    return out.read_bytes()


def _image(folder: Path, files: Mapping[str, bytes], host: Host) -> Path:
    root = folder / "root"
    root.mkdir()
    for name, content in files.items():
        (root / name).write_bytes(content)
        (root / name).chmod(0o755)
    image = folder / "image"
    size = sum(len(content) for content in files.values()) // 1024 + 8192
    host.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", root, image, f"{size}k"])
    return image


def _offset(image: Path, path: str, block: int, host: Host) -> int:
    """Returns where a block of a file lies in the image."""
    return int(host.run(["debugfs", "-R", f"bmap {path} {block}", image]).text.split()[-1]) * 4096


@pytest.fixture(scope="module")
def seen(
    host: Host,
    need: Callable[[str], Path],
    kernel_factory: KernelFactory,
    test_keys: KeySet,
    foreign_keys: KeySet,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[tuple[str, str], str], dict[str, str], tuple[str, ...]]:
    """What the guest saw by (file, question), the digests that the host computed, and the whole console."""
    for tool in ("debugfs", "e2fsck", "mke2fs", "qemu-system-x86_64"):
        need(tool)
    folder = tmp_path_factory.mktemp("fsverity")
    tool = _compile(need("gcc"), _TOOL, folder / "tool")
    # Different tails make different digests; the sizes have trees of one and two levels.
    files = {name: tool + noise(300 + 70_000 * at, name) for at, name in enumerate(_NAMES)} | {"empty": b""}
    image = _image(folder, files, host)
    parameters = FsVerityParameters("sha256", 4096, b"")
    digests = {}
    for name, content in files.items():
        (folder / "content").write_bytes(content)
        digests[name] = measure(folder / "content", parameters, host).digest.hex()
    profile = PROFILES["fs-verity-builtin"]
    ours, foreign = test_keys.pair("verity"), foreign_keys.pair("verity")
    for pair, names in ((ours, ["/signature"]), (foreign, ["/foreign"])):
        signer = pair.signer(host)
        seal_ext4(image, parameters, host, paths=names, sign=lambda payload, by=signer: sign_payload(profile, payload, by, None))
    sealed = seal_ext4(image, parameters, host, paths=["/digest", "/neither", "/flipped", "/flipped-tree", "/empty"])
    assert {file.paths[0]: file.digest.hex() for file in sealed} == {file.paths[0]: digests[file.paths[0][1:]] for file in sealed}
    checked = host.run(["e2fsck", "-fn", image], ok=(0, 4))
    assert checked.status == 0, checked.text
    flip(image, _offset(image, "/flipped", 0, host) + 100)
    flip(image, _offset(image, "/flipped-tree", -(-len(files["flipped-tree"]) // 65536) * 16, host) + 5)
    rules = [f"op=EXECUTE fsverity_digest=sha256:{digests[name]} action=ALLOW" for name in ("digest", "flipped", "flipped-tree")]
    policy = [
        "policy_name=fsverity policy_version=0.0.1",
        "DEFAULT action=ALLOW",
        "DEFAULT op=EXECUTE action=DENY",
        "op=EXECUTE boot_verified=TRUE action=ALLOW",
        "op=EXECUTE fsverity_signature=TRUE action=ALLOW",
        *rules,
    ]
    kernel = kernel_factory(KernelTrust("".join(f"{line}\n" for line in policy).encode()))
    names = ", ".join(f'"{name}"' for name in _NAMES)
    init = _compile(need("gcc"), _INIT.replace("{NAMES}", "{" + names + "}"), folder / "init")
    certificate = x509.load_pem_x509_certificate(ours.certificate.read_bytes()).public_bytes(Encoding.DER)
    entries = [directory(name) for name in ("dev", "proc", "mnt")]
    entries += [character_device("dev/console", 5, 1), regular_file("init", init, mode=0o755), regular_file("cert.der", certificate)]
    (folder / "initrd").write_bytes(write_cpio(entries))
    direct = DirectKernel(kernel.image, folder / "initrd", "console=ttyS0 panic=-1 loglevel=6 ipe.enforce=1 ipe.success_audit=0")
    left = boot(image, Machine(time=1_700_100_000), host, kernel=direct)
    assert left.ended is Ended.POWER_OFF, "\n".join(left.console[-40:])
    said = {}
    for line in left.console:
        words = line.split(" ", 2)
        if len(words) == 3 and words[0] in _NAMES:
            said[words[0], words[1]] = words[2].strip()
    return said, digests, left.console


@pytest.mark.boot
@pytest.mark.slow
def test_the_kernel_measures_the_digest_that_we_computed(seen) -> None:
    said, digests, console = seen
    assert "MOUNT ok" in console and "TRUST ok" in console and "DONE" in console
    for name in ("digest", "signature", "neither", "empty"):
        assert said[name, "measure"] == digests[name]
        assert said[name, "read"] == "ok"


@pytest.mark.boot
@pytest.mark.slow
def test_a_file_whose_digest_the_policy_names_runs_and_another_is_denied(seen) -> None:
    said, *_ = seen
    assert said["digest", "exec"] == "ran"
    assert said["neither", "exec"] == "Permission denied"
    assert said["plain", "exec"] == "Permission denied"


@pytest.mark.boot
@pytest.mark.slow
def test_a_signed_file_runs_and_a_foreign_signature_is_refused(seen) -> None:
    said, *_ = seen
    assert said["signature", "exec"] == "ran"
    assert said["foreign", "open"] == "Required key not available"
    assert said["foreign", "exec"] == "Required key not available"


@pytest.mark.boot
@pytest.mark.slow
def test_a_flipped_byte_in_data_or_tree_is_denied(seen) -> None:
    said, digests, _ = seen
    for name in ("flipped", "flipped-tree"):
        assert said[name, "measure"] == digests[name]
        assert said[name, "read"] == "Input/output error"
        assert said[name, "exec"] == "Input/output error"


@pytest.mark.boot
@pytest.mark.slow
def test_a_file_that_was_not_chosen_is_no_verity_file(seen) -> None:
    said, *_ = seen
    assert said["plain", "measure"] == "No data available"
    assert said["plain", "read"] == "ok"
