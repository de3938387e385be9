"""Filesystem images: the tools of others agree, owners are as asked, and nothing but the inputs decides the bytes."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

import ipe_build
from ipe_build.errors import InputError, IpeBuildError, OutputError, ToolMissingError
from ipe_build.host import Host
from ipe_build.image.filesystem import FilesystemRequest, FilesystemType, detect_filesystem, make_filesystem
from ipe_build.image.rootfs import Entry, PathRule

EPOCH = 1_700_000_000
FSUUID = UUID("11111111-2222-3333-4444-555555555555")
ALL = list(FilesystemType)
MAKERS = {FilesystemType.EROFS: "mkfs.erofs", FilesystemType.SQUASHFS: "mksquashfs", FilesystemType.EXT4: "mke2fs"}
ADDITIONS = (
    Entry.file("etc/ipe/ipe policy.p7b", b"policy", mode=0o400),
    Entry.character_device("dev/console", 5, 1),
    Entry("dev/disk", stat.S_IFBLK | 0o660, rdev=(259, 300)),
    Entry("run/fifo", stat.S_IFIFO | 0o600),
)
RULES = (
    PathRule("/bin/tool", 70000, 80000, 0o6755),
    PathRule("/home/*", 1000, 1000),
    PathRule("/tmp", mode=0o1777),
    PathRule("/", 3, 4, 0o711),
)
XATTRS = {"security.ima": bytes(range(60)), "security.capability": bytes.fromhex("0100000200200000000000000000000000000000")}
CAPABLE = Entry("bin/ping", stat.S_IFREG | 0o755, b"x", xattrs=tuple(sorted(XATTRS.items())))
WANTED = {
    "/": (0o040711, 3, 4),
    "/bin/tool": (0o106755, 70000, 80000),
    "/bin/same": (0o106755, 70000, 80000),
    "/home/user": (0o040755, 1000, 1000),
    "/home/user/note": (0o100644, 1000, 1000),
    "/home": (0o040755, 0, 0),
    "/tmp": (0o041777, 0, 0),
    "/etc/ipe/ipe policy.p7b": (0o100400, 0, 0),
    "/dev/console": (0o020600, 0, 0),
    "/dev/disk": (0o060660, 0, 0),
    "/run/fifo": (0o010600, 0, 0),
    "/link": (0o120777, 0, 0),
}


def fill(root: Path, seed: int) -> Path:
    """A root filesystem; `seed` decides in which order its files are made (and so how the folder lists them)."""
    files: list[tuple[str, bytes]] = [("bin/tool", b"\x7fELF" + bytes(9000)), ("home/user/note", b"hello\n"), ("empty", b"")]
    files += [(f"usr/share/{number:03}/{'n' * (number % 60 + 1)}", b"%d" % number * number) for number in range(120)]
    files += [("usr/big", random.Random(1).randbytes(300_000) + bytes(200_000)), ("usr/näme with space", b"x")]
    random.Random(seed).shuffle(files)
    for name in ("tmp", "dev", "home/user"):
        (root / name).mkdir(parents=True)
    for name, data in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    os.link(root / "bin" / "tool", root / "bin" / "same")
    (root / "link").symlink_to("usr/big")
    for folder, _, names in os.walk(root):
        for name in ["", *names]:
            place = Path(folder, name)
            if not place.is_symlink():
                place.chmod(0o755 if place.is_dir() else 0o644)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("root"), 1)


@pytest.fixture(scope="module", autouse=True)
def tools(need: Callable[[str], Path]) -> None:
    for tool in ("fakeroot", "debugfs", *MAKERS.values()):
        need(tool)


def request(source: Path, filesystem: FilesystemType, **changes: object) -> FilesystemRequest:
    base = FilesystemRequest(source, FSUUID, filesystem, additions=ADDITIONS, rules=RULES)
    return replace(base, **changes)  # type: ignore[arg-type]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seen_by(image: Path, filesystem: FilesystemType, path: str, host: Host) -> tuple[int, int, int]:
    """Mode, uid and gid of a path, as the tools of others see it."""
    if filesystem is FilesystemType.EROFS:
        # dump.erofs leaves out set-user-id and the like, so the image is unpacked (as what fakeroot takes for root) and listed.
        out = image.with_suffix(".unpacked")
        script = 'test -d "$1" || fsck.erofs --extract="$1" --preserve "$0" >/dev/null; cd "$1"; find . -printf "%#m %U %G %y %p\\n"'
        listing = image.with_suffix(".list")
        if not listing.exists():
            listing.write_bytes(host.run(["fakeroot", "sh", "-c", script, image, out]).stdout)
        kinds = {"f": 0o100000, "d": 0o040000, "c": 0o020000, "b": 0o060000, "p": 0o010000, "l": 0o120000}
        for line in listing.read_text().splitlines():
            mode, uid, gid, kind, name = line.split(" ", 4)
            if name == f".{path.rstrip('/')}":
                return kinds[kind] | int(mode, 8), int(uid), int(gid)
        raise AssertionError(f"{path} is not in the image")
    if filesystem is FilesystemType.EXT4:
        text = host.run(["debugfs", "-R", f'stat "{path}"', image]).text
        match = re.search(r"Type: (.+?)\s+Mode:\s+(\d+).*?User:\s+(\d+)\s+Group:\s+(\d+)", text, re.DOTALL)
        assert match, text
        kinds = {
            "regular": 0o100000,
            "directory": 0o040000,
            "character special": 0o020000,
            "block special": 0o060000,
            "FIFO": 0o010000,
            "symlink": 0o120000,
        }
        return kinds[match[1]] | int(match[2], 8), int(match[3]), int(match[4])
    for line in host.run(["unsquashfs", "-lln", image]).text.splitlines():
        match = re.match(r"(\S{10}) (\d+)/(\d+)\s.*?squashfs-root(/.*)?$", line)
        if match and (match[4] or "/").split(" -> ")[0] == path:
            kinds = {"-": 0o100000, "d": 0o040000, "c": 0o020000, "b": 0o060000, "p": 0o010000, "l": 0o120000}
            return kinds[match[1][0]] | _mode_of_letters(match[1][1:]), int(match[2]), int(match[3])
    raise AssertionError(f"{path} is not in the image")


def _mode_of_letters(letters: str) -> int:
    """Permissions from `rwsr-xr-t`."""
    letters = letters[-9:]
    mode = sum(1 << (8 - index) for index, letter in enumerate(letters) if letter not in "-ST")
    special = ((2, "sS", 0o4000), (5, "sS", 0o2000), (8, "tT", 0o1000))
    return mode | sum(bit for index, marks, bit in special if letters[index] in marks)


@pytest.mark.parametrize("filesystem", ALL)
def test_owners_modes_and_devices_are_as_asked(root: Path, filesystem: FilesystemType, host: Host, tmp_path: Path) -> None:
    image = make_filesystem(request(root, filesystem), tmp_path / "image", host)
    assert {path: seen_by(image.path, filesystem, path, host) for path in WANTED} == WANTED
    assert image.size_bytes == image.path.stat().st_size and image.size_bytes % 4096 == 0
    assert detect_filesystem(image.path) is filesystem


@pytest.mark.parametrize("filesystem", ALL)
def test_checkers_of_others_find_nothing(
    root: Path, filesystem: FilesystemType, host: Host, need: Callable[[str], Path], tmp_path: Path
) -> None:
    image = make_filesystem(request(root, filesystem), tmp_path / "image", host).path
    checks = {
        FilesystemType.EROFS: ["fsck.erofs", image],
        FilesystemType.SQUASHFS: ["unsquashfs", "-d", tmp_path / "out", "-no-xattrs", "-excludes", image, "dev"],
        FilesystemType.EXT4: ["e2fsck", "-fn", image],
    }
    need(str(checks[filesystem][0]))
    host.run(checks[filesystem])
    blkid = need("blkid")
    facts = host.run([blkid, "-p", "-o", "export", image]).text
    assert f"TYPE={filesystem}" in facts
    assert filesystem is FilesystemType.SQUASHFS or f"UUID={FSUUID}" in facts


@pytest.mark.parametrize("filesystem", ALL)
def test_contents_are_whole(root: Path, filesystem: FilesystemType, host: Host, tmp_path: Path) -> None:
    image = make_filesystem(request(root, filesystem), tmp_path / "image", host).path
    out = tmp_path / "out"
    out.mkdir()
    if filesystem is FilesystemType.EROFS:
        host.run(["fsck.erofs", f"--extract={out}", "--no-preserve", image])
    elif filesystem is FilesystemType.SQUASHFS:
        host.run(["unsquashfs", "-f", "-d", out, image], ok=(0, 2))
    else:
        host.run(["debugfs", "-R", f"rdump / {out}", image])
    for place in (place for place in root.rglob("*") if place.is_file() and not place.is_symlink()):
        assert (out / place.relative_to(root)).read_bytes() == place.read_bytes(), place
    assert (out / "etc/ipe/ipe policy.p7b").read_bytes() == b"policy"


@pytest.mark.parametrize("filesystem", ALL)
def test_order_place_clock_and_umask_do_not_show(root: Path, filesystem: FilesystemType, host: Host, tmp_path: Path) -> None:
    other = fill(tmp_path / "elsewhere" / "a longer name", 2)
    os.utime(other / "bin" / "tool", (1, 1))
    first = make_filesystem(request(root, filesystem), tmp_path / "one", host).path
    before = os.umask(0o077)
    try:
        second = make_filesystem(request(other, filesystem), tmp_path / "two", host).path
    finally:
        os.umask(before)
    assert digest(first) == digest(second)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
@pytest.mark.parametrize("filesystem", ALL)
def test_unprivileged_user_makes_the_same_bytes(
    root: Path, filesystem: FilesystemType, host: Host, need: Callable[[str], Path], tmp_path: Path
) -> None:
    as_root = make_filesystem(request(root, filesystem, additions=(CAPABLE,), rules=RULES), tmp_path / "as-root", host).path
    place = Path("/tmp") / f"ipe-build-nobody-{os.getpid()}-{filesystem}"
    place.mkdir()
    place.chmod(0o777)
    try:
        code = (
            "import sys, os, dataclasses\n"
            "from pathlib import Path\n"
            "from uuid import UUID\n"
            "from ipe_build.host import Host\n"
            "from ipe_build.image.filesystem import *\n"
            "from ipe_build.image.rootfs import Entry, PathRule\n"
            "os.setgid(65534); os.setuid(65534)\n"
            f"rules, additions = {RULES!r}, ({CAPABLE!r},)\n"
            f"source, uuid, filesystem = Path({str(place / 'root')!r}), UUID({str(FSUUID)!r}), FilesystemType({str(filesystem)!r})\n"
            "request = FilesystemRequest(source, uuid, filesystem, rules=rules, additions=additions)\n"
            f"make_filesystem(request, Path({str(place / 'image')!r}), Host())\n"
        )
        shutil.copytree(root, place / "root", symlinks=True)
        (place / "root/bin/same").unlink()
        os.link(place / "root/bin/tool", place / "root/bin/same")
        shutil.copytree(Path(ipe_build.__file__).parent, place / "ipe_build", ignore=shutil.ignore_patterns("__pycache__"))
        env = {**host.env, "TMPDIR": str(place), "HOME": str(place), "PYTHONPATH": str(place)}
        subprocess.run([need("/usr/bin/python3"), "-c", code], check=True, env=env, cwd=place)  # ours may lie in a folder of root's
        assert (place / "image").stat().st_uid == 65534
        assert digest(place / "image") == digest(as_root)
    finally:
        shutil.rmtree(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="root reads everything; only root can become someone who does not")
def test_unreadable_file_is_one_clear_error(host: Host, need: Callable[[str], Path]) -> None:
    place = Path("/tmp") / f"ipe-build-unreadable-{os.getpid()}"
    (place / "root" / "closed").mkdir(parents=True)
    try:
        place.chmod(0o755)
        (place / "root" / "secret").write_text("x")
        shutil.copytree(Path(ipe_build.__file__).parent, place / "ipe_build", ignore=shutil.ignore_patterns("__pycache__"))
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from ipe_build.errors import InputError\n"
            "from ipe_build.image.rootfs import read_folder\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try:\n    read_folder(Path('root'))\n"
            "except InputError as error:\n    print(error)\n"
        )

        def said() -> str:
            words = [need("/usr/bin/python3"), "-c", code]
            return subprocess.run(
                words, check=True, env={**host.env, "PYTHONPATH": str(place)}, cwd=place, capture_output=True, text=True
            ).stdout

        assert said() == ""
        (place / "root" / "secret").chmod(0o600)
        assert said() == f"{place}/root/secret: cannot be read: Permission denied\n"
        (place / "root" / "secret").chmod(0o644)
        (place / "root" / "closed").chmod(0o700)
        assert said() == f"{place}/root/closed: cannot be read: Permission denied\n"
    finally:
        shutil.rmtree(place)


@pytest.mark.slow
def test_number_of_processors_does_not_show(host: Host, tmp_path: Path) -> None:
    big = tmp_path / "root"
    big.mkdir()
    rng = random.Random(5)
    for number in range(30):
        (big / f"f{number}").write_bytes(b"".join(rng.choice((b"text ", b"more ", rng.randbytes(9))) for _ in range(60_000)))
    everyone = make_filesystem(FilesystemRequest(big, FSUUID, FilesystemType.SQUASHFS), tmp_path / "all", host).path
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        alone = make_filesystem(FilesystemRequest(big, FSUUID, FilesystemType.SQUASHFS), tmp_path / "one", host).path
    finally:
        os.sched_setaffinity(0, before)
    assert digest(everyone) == digest(alone)


@pytest.mark.parametrize("filesystem", ALL)
def test_time_and_uuid_are_inputs(root: Path, filesystem: FilesystemType, host: Host, tmp_path: Path) -> None:
    later = Host(env={**host.env, "SOURCE_DATE_EPOCH": str(EPOCH + 1)}, progress=host.progress)
    first = make_filesystem(request(root, filesystem), tmp_path / "one", host).path
    assert digest(make_filesystem(request(root, filesystem), tmp_path / "two", later).path) != digest(first)
    if filesystem is not FilesystemType.SQUASHFS:
        changed = request(root, filesystem, uuid=UUID(int=1))
        assert digest(make_filesystem(changed, tmp_path / "three", host).path) != digest(first)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("filesystem", ALL)
def test_tar_and_folder_give_the_same_image(
    root: Path, filesystem: FilesystemType, suffix: str, host: Host, need: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = tmp_path / "root.tar"
    with tarfile.open(plain, "w") as tar:
        for place in [root, *sorted(root.rglob("*"), key=lambda place: place.relative_to(root).parts)]:
            info = tar.gettarinfo(place, arcname=f"./{place.relative_to(root)}")
            info.uid = info.gid = 0
            if place == root:
                info.mode = 0o755  # a folder's own mode does not count
            with place.open("rb") if info.isreg() else open(os.devnull, "rb") as handle:
                tar.addfile(info, handle if info.isreg() else None)
    packed = tmp_path / f"root.tar{suffix}"
    if suffix == ".gz":
        packed.write_bytes(gzip.compress(plain.read_bytes()))
    elif suffix == ".xz":
        packed.write_bytes(lzma.compress(plain.read_bytes()))
    elif suffix == ".zst":
        need("zstd")
        host.run(["zstd", "-q", plain, "-o", packed])
    of_folder = make_filesystem(request(root, filesystem), tmp_path / "folder", host).path
    of_tar = make_filesystem(request(packed, filesystem), tmp_path / "tar", host).path
    assert digest(of_folder) == digest(of_tar)


def test_times_of_every_ext4_inode_are_the_epoch(root: Path, host: Host, tmp_path: Path) -> None:
    image = make_filesystem(request(root, FilesystemType.EXT4), tmp_path / "image", host).path
    for path in ("/", "/bin/tool", "/home/user", "/link", "/dev/console", "/usr/share/119", "/lost+found"):
        times = re.findall(r"(?:[acm]|cr)time: (0x\w+):(\w+)", host.run(["debugfs", "-R", f"stat {path}", image]).text)
        assert times == [(f"0x{EPOCH:08x}", "00000000")] * 4, path


@pytest.mark.parametrize("size_mib", [4, 64])
def test_ext4_has_the_size_that_was_asked_for(root: Path, size_mib: int, host: Host, tmp_path: Path) -> None:
    image = make_filesystem(request(root, FilesystemType.EXT4, size_bytes=size_mib << 20), tmp_path / "image", host)
    assert image.size_bytes == size_mib << 20
    host.run(["e2fsck", "-fn", image.path])


@pytest.mark.slow
def test_many_files_fit_into_the_computed_ext4(host: Host, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in range(40):
        (root / f"d{folder}").mkdir(parents=True)
        for number in range(100):
            (root / f"d{folder}" / ("f" * 200 + str(number))).write_bytes(b"x" * (number * 50 % 9000))
    (root / "huge").write_bytes(b"\1" * (140 << 20))
    image = make_filesystem(FilesystemRequest(root, FSUUID, FilesystemType.EXT4), tmp_path / "image", host)
    host.run(["e2fsck", "-fn", image.path])


def xattr_seen_by(image: Path, filesystem: FilesystemType, path: str, name: str, host: Host, tmp_path: Path) -> bytes | None:
    """An extended attribute's value, as the tools of others see it (for EROFS: the running kernel)."""
    if filesystem is FilesystemType.EXT4:
        out = tmp_path / "value"
        host.run(["debugfs", "-R", f"ea_get -f {out} {path} {name}", image])
        return out.read_bytes() if out.exists() and out.stat().st_size else None
    if filesystem is FilesystemType.SQUASHFS:
        code = "import os, sys; sys.stdout.write(os.getxattr(*sys.argv[1:]).hex())"
        script = f'unsquashfs -q -n -d "$1" "$0" >/dev/null; exec "$2" -c "{code}" "$1$3" "$4"'
        words = [image, tmp_path / "out", sys.executable, path, name]
        done = host.run(["fakeroot", "sh", "-c", script, *words], ok=(0, 1))
        return bytes.fromhex(done.text) if done.status == 0 else None
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    if subprocess.run(["mount", "-o", "loop,ro", image, mounted], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount an EROFS image")
    try:
        return os.getxattr(mounted / path.lstrip("/"), name)
    except OSError:
        return None
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize("name", ["security.ima", "security.capability"])
@pytest.mark.parametrize("filesystem", ALL)
def test_extended_attributes_are_in_the_image(root: Path, filesystem: FilesystemType, name: str, host: Host, tmp_path: Path) -> None:
    extra = Entry("bin/ping", stat.S_IFREG | 0o755, b"x", xattrs=((name, XATTRS[name]),))
    image = make_filesystem(request(root, filesystem, additions=(extra,)), tmp_path / "image", host).path
    assert xattr_seen_by(image, filesystem, "/bin/ping", name, host, tmp_path) == XATTRS[name]


@pytest.mark.parametrize("filesystem", ALL)
def test_extended_attributes_are_left_out_when_asked(root: Path, filesystem: FilesystemType, host: Host, tmp_path: Path) -> None:
    image = make_filesystem(request(root, filesystem, additions=(CAPABLE,), xattrs=False), tmp_path / "image", host).path
    assert xattr_seen_by(image, filesystem, "/bin/ping", "security.ima", host, tmp_path) is None


def test_finished_image_is_taken_as_it_is(root: Path, host: Host, tmp_path: Path) -> None:
    first = make_filesystem(request(root, FilesystemType.SQUASHFS), tmp_path / "one", host).path
    taken = make_filesystem(FilesystemRequest(first, FSUUID), tmp_path / "two", host)
    assert taken.filesystem is FilesystemType.SQUASHFS and digest(taken.path) == digest(first)
    with pytest.raises(InputError, match="nothing can be added"):
        make_filesystem(request(first, FilesystemType.SQUASHFS), tmp_path / "three", host)


def test_source_is_not_changed(root: Path, host: Host, tmp_path: Path) -> None:
    def facts() -> list[tuple[object, ...]]:
        rows = ((place, place.lstat()) for place in sorted(root.rglob("*")))
        return [(place, status.st_mode, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink, status.st_uid) for place, status in rows]

    before = facts()
    make_filesystem(request(root, FilesystemType.EROFS), tmp_path / "image", host)
    assert facts() == before


def test_existing_output_is_left_as_it_is(root: Path, host: Host, tmp_path: Path) -> None:
    (tmp_path / "image").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        make_filesystem(request(root, FilesystemType.EROFS), tmp_path / "image", host)
    assert (tmp_path / "image").read_text() == "mine"


@pytest.mark.parametrize("filesystem", ALL)
def test_missing_maker_names_its_package(root: Path, filesystem: FilesystemType, host: Host, tmp_path: Path) -> None:
    bare = Host(env={**host.env, "PATH": str(tmp_path), "IPE_BUILD_ONLY_PATH": "1"}, progress=host.progress)
    with pytest.raises(ToolMissingError, match="apt-get install"):
        make_filesystem(request(root, filesystem), tmp_path / "image", bare)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small tmpfs")
@pytest.mark.parametrize("filesystem", ALL)
def test_full_disk_is_one_clear_error_and_leaves_nothing(root: Path, filesystem: FilesystemType, host: Host, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small]).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(IpeBuildError) as caught:
            make_filesystem(request(root, filesystem), small / "image", host)
        assert re.search("[Nn]o space|ENOSPC|write|Write", str(caught.value))
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": Path("/nonexistent")}, "does not exist"),
        ({"compression": "brotli"}, "has no compression 'brotli'"),
        ({"size_bytes": 4096}, "only ext4 takes a size"),
        ({"rules": (PathRule("/nothing", 1, 1),)}, "matches no path"),
        ({"additions": (Entry.file("x", Path("/nonexistent")),)}, "/nonexistent"),
    ],
)
def test_bad_request_is_one_clear_error(root: Path, changes: dict[str, object], message: str, host: Host, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        make_filesystem(replace(request(root, FilesystemType.EROFS), **changes), tmp_path / "image", host)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8bgarbage", b"\xfd7zXZ\0garbage", b"\x28\xb5\x2f\xfdgarbage", bytes(2048)])
def test_file_that_is_no_root_filesystem_is_refused(content: bytes, host: Host, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(content)
    with pytest.raises(InputError):
        make_filesystem(FilesystemRequest(tmp_path / "source", FSUUID), tmp_path / "image", host)
