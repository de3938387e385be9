"""Wrong input to the verity verb: one clear error, exit status 2, and nothing half written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.integrity import flip, noise

_KERNELS = ["", "python"]

Verb = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def verity(tmp_path: Path) -> Verb:
    """Runs `ipe-build verity` as a process of its own, in an empty folder."""

    def run(*words: str | Path, env: dict[str, str] | None = None, shell: str = "") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "ipe_build", "verity", *map(str, words)]
        if shell:
            argv = ["bash", "-c", f'{shell}; exec "$@"', "bash", *argv]
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, **(env or {})})

    return run


def _refused(done: subprocess.CompletedProcess[str], *parts: str, status: int = 2) -> None:
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for part in parts:
        assert part in done.stderr


def _image(folder: Path, size: int = 300 * 4096) -> Path:
    data = folder / "data"
    data.write_bytes(noise(1 << 20) * (size >> 20) + noise(size % (1 << 20)))
    return data


def test_a_size_that_is_no_multiple_is_refused_and_padded_when_asked(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path, 5000)
    _refused(verity("format", data), "5000 bytes, is not a multiple of the data block size 4096", "--pad")
    assert os.listdir(tmp_path) == ["data"]
    assert data.stat().st_size == 5000
    assert verity("format", data, "--pad", "--salt", "-").returncode == 0
    assert data.read_bytes() == noise(5000).ljust(8192, b"\0")


def test_an_empty_image_is_refused(verity: Verb, tmp_path: Path) -> None:
    _refused(verity("format", _image(tmp_path, 0)), "is empty")


@pytest.mark.parametrize("kernel", _KERNELS)
def test_a_hash_area_that_is_too_small_is_refused(kernel: str, verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path)
    root = json.loads(verity("format", data, "--json").stdout)["root_hash"]
    os.truncate(tmp_path / "data.verity", 8192)
    done = verity("verify", data, "--root-hash", root, env={"IPE_BUILD_HASH_KERNEL": kernel})
    _refused(done, "the hash area is too small: the tree ends at byte 20480, the file at 8192")


def test_an_image_that_lost_blocks_is_refused(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path)
    root = json.loads(verity("format", data, "--json").stdout)["root_hash"]
    os.truncate(data, 4096)
    _refused(verity("verify", data, "--root-hash", root), "has 4096 bytes, the tree is over 300 blocks of 4096")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/proc", "fifo"])
def test_what_is_not_a_file_is_refused(device: str, verity: Verb, tmp_path: Path) -> None:
    if device == "fifo":
        os.mkfifo(tmp_path / device)
    _refused(verity("format", device, "hash"), "wanted a regular file, this is a")
    assert not (tmp_path / "hash").exists()


def test_a_device_for_the_hash_area_is_refused(verity: Verb, tmp_path: Path) -> None:
    _refused(verity("format", _image(tmp_path), "/dev/null"), "/dev/null: is a device", status=2)


def test_an_existing_hash_area_is_kept_unless_forced(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path)
    (tmp_path / "data.verity").write_text("kept")
    _refused(verity("format", data), "exists already")
    assert (tmp_path / "data.verity").read_text() == "kept"
    assert verity("format", data, "--force").returncode == 0
    assert (tmp_path / "data.verity").read_bytes()[:8] == b"verity\0\0"


@pytest.mark.parametrize("kernel", _KERNELS)
def test_no_space_leaves_nothing_behind(kernel: str, verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path, 16 << 20)
    done = verity("format", data, env={"IPE_BUILD_HASH_KERNEL": kernel}, shell="ulimit -f 64")
    _refused(done, "no space left")
    assert os.listdir(tmp_path) == ["data"]


def test_no_space_behind_the_data_gives_it_back_its_old_size(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path, 4 << 20)
    before = data.read_bytes()
    done = verity("format", data, data, "--hash-offset", "4194304", shell="ulimit -f 4100")
    _refused(done)
    assert data.read_bytes() == before


_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
/* A read of the file named by $VICTIM at or past $AT fails as $HOW says. */
ssize_t pread64(int file, void *to, size_t size, off_t offset) {
    ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread64");
    struct stat a, b;
    long at = atol(getenv("AT"));
    if (fstat(file, &a) || stat(getenv("VICTIM"), &b) || a.st_ino != b.st_ino || offset + (off_t)size <= at)
        return real(file, to, size, offset);
    if (!strcmp(getenv("HOW"), "slow")) { usleep(200000); return real(file, to, size, offset); }
    if (offset < at) return real(file, to, (size_t)(at - offset), offset);
    if (!strcmp(getenv("HOW"), "shrink")) { truncate(getenv("VICTIM"), at); return real(file, to, size, offset); }
    if (!strcmp(getenv("HOW"), "grow")) { truncate(getenv("VICTIM"), a.st_size + 4096); return real(file, to, size, offset); }
    errno = EIO;
    return -1;
}
ssize_t pread(int file, void *to, size_t size, off_t offset) { return pread64(file, to, size, offset); }
/* Python's os.preadv. */
ssize_t preadv64v2(int file, const struct iovec *to, int count, off_t offset, int flags) {
    ssize_t have = 0;
    for (int i = 0; i < count; i++) {
        ssize_t got = pread64(file, to[i].iov_base, to[i].iov_len, offset + have);
        if (got < 0) return have ? have : got;
        have += got;
        if ((size_t)got < to[i].iov_len) break;
    }
    return have;
}
ssize_t preadv2(int file, const struct iovec *to, int count, off_t offset, int flags) { return preadv64v2(file, to, count, offset, flags); }
ssize_t preadv64(int file, const struct iovec *to, int count, off_t offset) { return preadv64v2(file, to, count, offset, 0); }
ssize_t preadv(int file, const struct iovec *to, int count, off_t offset) { return preadv64v2(file, to, count, offset, 0); }
/* The same for its pages: one that is gone after the file was cut is a SIGBUS; one with a read error cannot be had. */
void *mmap64(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap64");
    struct stat a, b;
    long from = atol(getenv("AT"));
    if (file < 0 || fstat(file, &a) || stat(getenv("VICTIM"), &b) || a.st_ino != b.st_ino || offset + (off_t)size <= from)
        return real(at, size, protection, flags, file, offset);
    if (!strcmp(getenv("HOW"), "shrink")) truncate(getenv("VICTIM"), from);
    if (!strcmp(getenv("HOW"), "grow")) truncate(getenv("VICTIM"), a.st_size + 4096);
    if (!strcmp(getenv("HOW"), "error")) { errno = EIO; return MAP_FAILED; }
    return real(at, size, protection, flags, file, offset);
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return mmap64(at, size, protection, flags, file, offset);
}
"""


@pytest.fixture(scope="session")
def failing_reads(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], Path]) -> Path:
    """A library that makes reads of one file fail, for LD_PRELOAD: a bad medium without one."""
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(_SHIM)
    subprocess.run([need("gcc"), "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True)
    return folder / "shim.so"


@pytest.mark.parametrize("kernel", ["", "openssl", "python"])
@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("error", "block 1501 cannot be read: Input/output error"),
        ("shrink", "ends at block 1501 of 4096: the file became shorter while it was read"),
        ("grow", "changed while it was read"),
    ],
)
def test_a_read_that_fails_in_the_middle_is_reported(
    kernel: str, how: str, part: str, verity: Verb, tmp_path: Path, failing_reads: Path
) -> None:
    data = _image(tmp_path, 16 << 20)
    env = {"LD_PRELOAD": str(failing_reads), "VICTIM": str(data), "AT": str(1501 * 4096 + 100), "HOW": how, "IPE_BUILD_HASH_KERNEL": kernel}
    _refused(verity("format", data, env=env), part)
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("kernel", ["", "openssl", "python"])
@pytest.mark.parametrize("size", [5 << 20, 200_000, 9000])
@pytest.mark.parametrize(
    ("how", "part"), [("error", "cannot be read: Input/output error"), ("shrink", "read"), ("grow", "changed while it was read")]
)
def test_a_read_of_an_fsverity_file_that_fails_is_reported(
    kernel: str, how: str, part: str, size: int, tmp_path: Path, failing_reads: Path
) -> None:
    """Large files are read alone, middling ones are mapped beside others, small ones are read beside others."""
    data, others = _image(tmp_path, size), [tmp_path / str(number) for number in range(3)]
    for number, other in enumerate(others):
        other.write_bytes(noise(40_000 * number, "other"))
    at = str(size * 3 // 4)
    env = {"LD_PRELOAD": str(failing_reads), "VICTIM": str(data), "AT": at, "HOW": how, "IPE_BUILD_HASH_KERNEL": kernel}
    argv = [sys.executable, "-m", "ipe_build", "fsverity", "digest", *map(str, others), str(data)]
    _refused(subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, **env}), str(data), part)


@pytest.mark.parametrize("kernel", ["openssl", "python"])
def test_an_interrupt_ends_all_workers_and_leaves_nothing_behind(kernel: str, tmp_path: Path, failing_reads: Path) -> None:
    data = _image(tmp_path, 64 << 20)
    env = {"LD_PRELOAD": str(failing_reads), "VICTIM": str(data), "AT": "0", "HOW": "slow", "IPE_BUILD_HASH_KERNEL": kernel}
    argv = [sys.executable, "-m", "ipe_build", "verity", "format", str(data)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob(".data.verity.*")):
        time.sleep(0.01)
    time.sleep(0.3)  # all of it takes several seconds: it is in the middle of them
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    assert os.listdir(tmp_path) == ["data"]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("kernel", ["", "openssl", "python"])
def test_memory_does_not_grow_with_the_image(kernel: str, tmp_path: Path) -> None:
    data = _image(tmp_path, 48 << 20)
    os.truncate(data, 6 << 30)
    # Asked of the process itself: what wait4 reports counts also what pytest had when it forked.
    program = (
        "import os, sys; from ipe_build.cli import main; main(['verity', 'format', sys.argv[1], '--quiet']);"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    environment = {**os.environ, "IPE_BUILD_HASH_KERNEL": kernel}
    done = subprocess.run([sys.executable, "-c", program, str(data)], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout.split("VmHWM:")[1].split()[0]) < 100 * 1024  # KiB
    assert (tmp_path / "data.verity").stat().st_size > 48 << 20


def test_verify_names_every_block_that_differs(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path)
    root = json.loads(verity("format", data, "--json").stdout)["root_hash"]
    assert verity("verify", data, "--root-hash", root).returncode == 0
    for block in range(0, 300, 3):
        flip(data, block * 4096 + 11)
    done = verity("verify", data, "--root-hash", root, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["data_blocks"] == list(range(0, 300, 3))
    assert "100 data blocks differ: 0, 3, 6" in verity("verify", data, "--root-hash", root).stdout


def test_verify_refuses_a_foreign_root_hash_and_a_flipped_tree(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path)
    root = json.loads(verity("format", data, "--json").stdout)["root_hash"]
    done = verity("verify", data, "--root-hash", "00" * 32, "--json")
    assert done.returncode == 1 and not json.loads(done.stdout)["root_matches"]
    flip(tmp_path / "data.verity", 2 * 4096 + 3)
    done = verity("verify", data, "--root-hash", root, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) | {"data_blocks": []} == {
        "accepted": False,
        "root_matches": True,
        "hash_blocks": [2],
        "data_blocks": [],
        "fec_rounds": [],
    }


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--hash", "sha257"], "no hash algorithm is named 'sha257'"),
        (["--salt", "xyz"], "hex digits"),
        (["--salt", "00" * 257], "at most 256 bytes"),
        (["--uuid", "no"], "wanted a UUID"),
        (["--data-block-size", "1000"], "power of two"),
        (["--hash-block-size", "256"], "power of two"),
        (["--format", "2"], "format type"),
        (["--hash-offset", "100"], "multiple of 512"),
        (["--hash-offset", "512", "--no-superblock"], "multiple of 4096"),
        (["--data-blocks", "301"], "301 data blocks"),
        (["--fec-device", "fec", "--fec-roots", "25"], "2 to 24 roots"),
        (["--fec-device", "fec", "--hash-block-size", "1024"], "one size"),
        (["--fec-device", "data.verity", "--fec-offset", "4096"], "overlaps the FEC area"),
    ],
)
def test_parameters_that_cannot_be_are_refused(words: list[str], part: str, verity: Verb, tmp_path: Path) -> None:
    _refused(verity("format", _image(tmp_path), *words), part)
    assert os.listdir(tmp_path) == ["data"]


def test_a_hash_area_on_the_data_is_refused(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path)
    _refused(verity("format", data, data), "overlaps the hash area at 0", "--hash-offset 1228800")
    with data.open("ab") as handle:
        handle.write(b"\0" * 9000 + b"precious")
    _refused(verity("format", data, data, "--hash-offset", "1228800", "--data-blocks", "300"), "there is something behind the data")


def test_the_same_inputs_give_the_same_bytes_where_source_date_epoch_is_set(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path)
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
    for name in ("one", "two"):
        assert verity("format", data, name, env=epoch).returncode == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for name in ("three", "four"):
        assert verity("format", data, name, env={"SOURCE_DATE_EPOCH": ""}).returncode == 0
    assert (tmp_path / "three").read_bytes() != (tmp_path / "four").read_bytes()


def test_dump_and_table_say_what_format_made(verity: Verb, tmp_path: Path) -> None:
    data = _image(tmp_path)
    made = json.loads(verity("format", data, "--json", "--hash-offset", "8192", "--fec-device", "fec").stdout)
    dumped = json.loads(verity("dump", "data.verity", "--hash-offset", "8192", "--json").stdout)
    assert {name: made[name] for name in dumped if name != "hash"} == {name: value for name, value in dumped.items() if name != "hash"}
    words = [
        "table",
        data,
        "--root-hash",
        made["root_hash"],
        "--hash-offset",
        "8192",
        "--data-device",
        "/dev/sda2",
        "--hash-device",
        "/dev/sda3",
    ]
    forms = json.loads(verity(*words, "--json", "--option", "panic_on_corruption").stdout)
    line = f"0 2400 verity 1 /dev/sda2 /dev/sda3 4096 4096 300 3 sha256 {made['root_hash']} {made['salt']} 1 panic_on_corruption"
    assert forms["dm"] == line
    assert forms["dm-mod"] == f'dm-mod.create="vroot,{made["uuid"]},,ro,{line}"'
    opened = f"veritysetup open /dev/sda2 vroot /dev/sda3 {made['root_hash']} --hash-offset=8192 --panic-on-corruption"
    assert forms["veritysetup"] == opened
    assert forms["systemd"].split()[0] == f"roothash={made['root_hash']}"
    corrected = json.loads(verity(*words, "--json", "--fec-device", "fec", "--fec-name", "/dev/sda4").stdout)["dm"]
    assert corrected.endswith(f" 8 use_fec_from_device /dev/sda4 fec_roots 2 fec_blocks {made['fec']['blocks']} fec_start 0")
    assert verity(*words, "--form", "dm").stdout == line.removesuffix(" 1 panic_on_corruption") + "\n"
