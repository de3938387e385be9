"""Images made to hurt the one who reads them: each is one finding or one error, within bounds, and never a traceback."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.audit.facts import Region
from ipe_build.audit.findings import Verdict
from ipe_build.errors import FormatError
from ipe_build.examine.boot_entries import compare_versions
from ipe_build.examine.filesystem import _Budget, read_tree
from ipe_build.formats.cpio import CpioEntry, directory, regular_file, symbolic_link, write_cpio
from ipe_build.formats.erofs import Erofs
from ipe_build.formats.ext4 import Ext4
from ipe_build.formats.fat import Fat
from ipe_build.formats.gpt import Partition, PartitionTable, write_gpt
from ipe_build.formats.initramfs import unpack_initramfs
from ipe_build.formats.partition_types import EFI_SYSTEM, PARTITION_TYPES
from ipe_build.formats.pe import authenticode_digest
from ipe_build.host import Host, Progress
from ipe_build.kernel.module_compression import unpack as unpack_module
from ipe_build.pipeline import audit_image

MIB = 1 << 20
STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
TYPES = PARTITION_TYPES["x86-64"]


@pytest.fixture
def quiet(host: Host) -> Host:
    return Host(env=host.env, progress=Progress(io.StringIO(), quiet=True))


def bomb(mib: int) -> bytes:
    """So many MiB of zeros, a thousandth of that in gzip."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(mib)), packer.flush()])


def member(path: str, data: bytes, mode: int = 0o100644, **fields: int) -> bytes:
    """A cpio member as nobody's tool writes it: any path, any sizes."""
    name = path.encode() + b"\0"
    values = {"ino": 1, "mode": mode, "uid": 0, "gid": 0, "nlink": 1, "mtime": 0, "size": len(data), "a": 0, "b": 0, "c": 0, "d": 0}
    values |= {"namesize": len(name), "check": 0, **fields}
    head = b"070701" + b"".join(b"%08x" % value for value in values.values()) + name
    return head.ljust(-(-len(head) // 4) * 4, b"\0") + data.ljust(-(-len(data) // 4) * 4, b"\0")


def names(raw: bytes) -> dict[str, bytes]:
    return {one.path: one.data for one in unpack_initramfs(raw).entries}


def test_paths_of_an_initramfs_lead_where_the_kernel_goes() -> None:
    folder = member("etc", b"", 0o40755)
    assert names(folder + member("../../etc/../init", b"x")) == {"etc": b"", "init": b"x"}
    assert names(folder + member("/init", b"1") + member("./init", b"2")) == {"etc": b"", "init": b"2"}
    assert names(folder + member("absent/file", b"x")) == {"etc": b""}
    assert names(folder + member("link", b"etc", 0o120777) + member("link/conf", b"x")) == {"etc": b"", "etc/conf": b"x", "link": b"etc"}
    assert names(member("loop", b"loop", 0o120777) + member("loop/x", b"x")) == {"loop": b"loop"}
    assert names(member("..", b"x") + member("a/" * 3000, b"x")) == {}


def test_hard_links_of_an_initramfs_share_their_content() -> None:
    first = member("one", b"", nlink=2, ino=7)
    assert names(first + member("two", b"content", nlink=2, ino=7)) == {"one": b"content", "two": b"content"}


def test_a_directory_of_the_same_name_gives_way_only_when_it_is_empty() -> None:
    folder, below = member("x", b"", 0o40755), member("x/y", b"1")
    assert names(folder + member("x", b"file")) == {"x": b"file"}
    assert names(folder + below + member("x", b"file")) == {"x": b"", "x/y": b"1"}


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"070701" + b"g" * 104, "no hexadecimal number"),
        (b"070707" + b"0" * 104, "no cpio magic"),
        (b"noise that nobody packed", "neither an archive nor a compression"),
        (gzip.compress(b"junk", mtime=0), "junk within compressed archive"),
        (gzip.compress(write_cpio([regular_file("init", b"x" * 5000)]), mtime=0)[:60], "ends too early"),
        (member("x", b"", namesize=4097), ""),
        (member("x", b"", size=0xFFFFFFFF), ""),
    ],
)
def test_damage_to_an_initramfs_is_said(raw: bytes, error: str) -> None:
    found = unpack_initramfs(raw)
    assert error in found.error
    assert bool(error) == bool(found.error)


def boot_config(text: bytes, *, checksum: int | None = None, padding: int = 0) -> bytes:
    """What tools/bootconfig appends to an initramfs."""
    return text + struct.pack("<II", len(text), sum(text) if checksum is None else checksum) + b"#BOOTCONFIG\n" + bytes(padding)


@pytest.mark.parametrize("padding", range(4))
def test_boot_configuration_behind_an_initramfs_is_cut_off_as_the_kernel_does(padding: int) -> None:
    plain, text = write_cpio([regular_file("init", b"i")]), b"kernel.ipe.enforce = 0\n\0"
    found = unpack_initramfs(plain + boot_config(text, padding=padding))
    assert (found.boot_config, found.error, [one.path for one in found.entries]) == (text, "", ["init"])
    for wrong in (boot_config(text, checksum=1), boot_config(text, padding=4), boot_config(bytes(40000))):
        assert unpack_initramfs(plain + wrong).boot_config is None
    assert unpack_initramfs(boot_config(text)[1:]).boot_config is None, "it says more than there is"


def test_mixed_archives_of_an_initramfs_are_all_unpacked() -> None:
    early = write_cpio([directory("kernel"), regular_file("kernel/ucode", b"u")])
    late = write_cpio([regular_file("init", b"i"), symbolic_link("sh", "init")])
    found = unpack_initramfs(early + gzip.compress(late) + bytes(3) + bytes(-3 % 4) + write_cpio([regular_file("more", b"m")]))
    assert [one.path for one in found.entries] == ["init", "kernel", "kernel/ucode", "more", "sh"]
    assert [part.kind for part in found.parts][:2] == ["cpio", "gzip"]


def test_a_bomb_as_an_initramfs_is_stopped() -> None:
    found = unpack_initramfs(bomb(600))
    assert "unpacks to more than" in found.error


def test_a_bomb_as_a_module_is_stopped() -> None:
    with pytest.raises(FormatError, match="unpacks to more than"):
        unpack_module(bomb(300), "bomb.ko.gz")


def test_auditing_a_bomb_stays_within_memory(tmp_path: Path) -> None:
    kernel, initramfs = tmp_path / "kernel", tmp_path / "initramfs"
    kernel.write_bytes(bomb(600))
    initramfs.write_bytes(gzip.compress(write_cpio([regular_file("init", b"x")])) + bomb(600))

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    words = [sys.executable, "-m", "ipe_build", "audit", kernel, initramfs, "--json", "--quiet"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, preexec_fn=limited, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "unpacks to more than" in done.stdout


def disk(path: Path, *partitions: Partition, size: int = 64 * MIB, contents: tuple[tuple[int, bytes], ...] = ()) -> Path:
    """A disk whose table says these partitions; it may lie."""
    honest = PartitionTable(UUID(int=1), size, ())
    head, tail = write_gpt(honest)
    entries = b"".join(
        one.type_uuid.bytes_le
        + one.uuid.bytes_le
        + struct.pack("<QQQ", one.offset_bytes // 512, (one.offset_bytes + one.size_bytes) // 512 - 1, 0)
        + one.name.encode("utf-16-le").ljust(72, b"\0")
        for one in partitions
    ).ljust(128 * 128, b"\0")
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in (
            (head.offset, head.data[:512] + signed_header(head.data[512:1024], entries) + entries),
            (tail.offset, entries + signed_header(tail.data[-512:], entries)),
            *contents,
        ):
            file.seek(offset)
            file.write(data)
    return path


def signed_header(header: bytes, entries: bytes) -> bytes:
    body = header[:16] + bytes(4) + header[20:88] + struct.pack("<I", zlib.crc32(entries))
    return body[:16] + struct.pack("<I", zlib.crc32(body[:92])) + body[20:] + header[92:]


def part(number: int, kind: UUID, start: int, size: int) -> Partition:
    return Partition(number, kind, UUID(int=number), f"p{number}", start, size)


def failed(path: Path, host: Host) -> set[str]:
    return {one.check for one in audit_image(path, host)[0].findings if one.verdict is Verdict.FAIL}


def test_overlapping_partitions_are_said(tmp_path: Path, quiet: Host) -> None:
    image = disk(tmp_path / "x.raw", part(1, TYPES.root, MIB, 8 * MIB), part(2, TYPES.root_verity, 4 * MIB, 8 * MIB))
    assert "gpt-intact" in failed(image, quiet)


def test_a_disk_of_terabytes_of_nothing_is_judged_at_once(tmp_path: Path, quiet: Host) -> None:
    size = 8 << 40
    superblock = b"verity\0\0" + struct.pack("<II16s32sIIQH", 1, 1, b"u" * 16, b"sha256".ljust(32, b"\0"), 4096, 4096, (4 << 40) // 4096, 0)
    erofs = bytearray(2048)
    erofs[1024:1028] = b"\xe2\xe1\xf5\xe0"
    erofs[1036] = 12
    signature = b'{"rootHash":"' + b"00" * 32 + b'","signature":"AAAA"}'
    image = disk(
        tmp_path / "x.raw",
        part(1, TYPES.root, MIB, 4 << 40),
        part(2, TYPES.root_verity, (4 << 40) + MIB, 1 << 40),
        part(3, TYPES.root_verity_sig, (6 << 40), 1 << 40),
        part(4, EFI_SYSTEM, (7 << 40), 1 << 39),
        size=size,
        contents=((MIB, bytes(erofs)), ((4 << 40) + MIB, superblock), (6 << 40, signature)),
    )
    assert {"hash-tree", "image-readable"} <= failed(image, quiet)


def test_a_superblock_that_says_more_than_there_is_reads_nothing_beyond(tmp_path: Path, quiet: Host) -> None:
    area = tmp_path / "hash"
    area.write_bytes(
        b"verity\0\0" + struct.pack("<II16s32sIIQH", 1, 1, b"u" * 16, b"sha256".ljust(32, b"\0"), 4096, 4096, 1 << 60, 0).ljust(4096, b"\0")
    )
    root = tmp_path / "root"
    root.write_bytes(b"hsqs" + bytes(8188))
    value = tmp_path / "hash.roothash"
    value.write_text("00" * 32)
    assert "hash-tree" in {one.check for one in audit_image([root, area, value], quiet)[0].findings if one.verdict is Verdict.FAIL}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "inside").mkdir(parents=True)
    (folder / "inside/file").write_bytes(os.urandom(9000))
    return folder


def reader(raw: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: raw[offset : offset + length]


def test_a_folder_of_erofs_that_lies_in_itself_ends(host: Host, need, tree: Path, tmp_path: Path) -> None:
    need("mkfs.erofs")
    image = tmp_path / "x.erofs"
    host.run(["mkfs.erofs", "--quiet", "-T0", image, tree])
    raw = image.read_bytes()
    inside = next(inode.number for path, inode in Erofs(reader(raw), len(raw)).walk() if path == b"inside")
    root = Erofs(reader(raw), len(raw)).root.number
    entry = struct.pack("<Q", inside)
    assert raw.count(entry) >= 1
    looped = raw.replace(entry, struct.pack("<Q", root))
    with pytest.raises(FormatError, match="lies in itself"):
        list(Erofs(reader(looped), len(looped)).walk())


def test_a_folder_of_ext4_that_lies_in_itself_ends(host: Host, need, tree: Path, tmp_path: Path) -> None:
    need("mke2fs")
    image = tmp_path / "x.ext4"
    host.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "4M"])
    raw = image.read_bytes()
    inside = next(inode.number for path, inode in Ext4(reader(raw), len(raw)).walk() if path == b"inside")
    at = raw.index(b"inside") - 8
    assert struct.unpack_from("<I", raw, at)[0] == inside
    looped = raw[:at] + struct.pack("<I", 2) + raw[at + 4 :]
    with pytest.raises(FormatError, match="lies in itself"):
        list(Ext4(reader(looped), len(looped)).walk())


def test_a_chain_of_fat_clusters_that_comes_back_ends(host: Host, need, tmp_path: Path) -> None:
    need("mkfs.vfat")
    need("mcopy")
    image = tmp_path / "x.fat"
    host.run(["mkfs.vfat", "-C", "-S", "512", image, "4096"])
    content = tmp_path / "content"
    content.write_bytes(os.urandom(100_000))
    host.run(["mcopy", "-i", image, content, "::/file"])
    raw = bytearray(image.read_bytes())
    file = Fat(reader(bytes(raw)), len(raw)).files()[0]
    assert Fat(reader(bytes(raw)), len(raw)).read(file, MIB) == content.read_bytes()
    reserved = struct.unpack_from("<H", raw, 14)[0] * 512
    at = reserved + (file.cluster + 1) * 3 // 2
    odd = (file.cluster + 1) & 1
    value = struct.unpack_from("<H", raw, at)[0]
    struct.pack_into("<H", raw, at, (value & 0xF | file.cluster << 4) if odd else (value & 0xF000 | file.cluster))
    with pytest.raises(FormatError, match="comes back to itself"):
        Fat(reader(bytes(raw)), len(raw)).read(file, MIB)


def test_files_that_share_their_blocks_are_not_read_for_ever(tmp_path: Path) -> None:
    image = tmp_path / "x"
    image.write_bytes(bytes(16 * MIB))
    budget = _Budget(Region(image, 0, 16 * MIB))
    with pytest.raises(FormatError, match="share their blocks"):
        for _ in range(1000):
            budget.read(0, 16 * MIB)


@pytest.mark.parametrize("make", ["mkfs.erofs", "mke2fs", "mksquashfs"])
def test_any_filesystem_gives_its_files(host: Host, need, tree: Path, tmp_path: Path, make: str) -> None:
    need(make)
    need("unsquashfs")
    image = tmp_path / "image"
    words = {
        "mkfs.erofs": ["mkfs.erofs", "--quiet", image, tree],
        "mke2fs": ["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "4M"],
        "mksquashfs": ["mksquashfs", tree, image, "-quiet", "-no-progress"],
    }
    host.run(words[make])
    padded = tmp_path / "disk"
    padded.write_bytes(bytes(MIB) + image.read_bytes())
    (tmp_path / "scratch").mkdir()
    _, found = read_tree(Region(padded, MIB, image.stat().st_size), tmp_path / "scratch", host)
    file = found.find("inside/file")
    assert file is not None
    assert file.read(1 << 20) == (tree / "inside/file").read_bytes()


def test_sections_of_a_uki_that_overlap_are_not_hashed_again_and_again(tmp_path: Path, quiet: Host, need_file) -> None:
    """Each of 64 sections is the whole file: a signature over that would be 64 times its bytes."""
    stub = bytearray(need_file(STUB, "systemd-boot-efi").read_bytes())
    at = struct.unpack_from("<I", stub, 60)[0]
    optional = struct.unpack_from("<H", stub, at + 20)[0]
    struct.pack_into("<H", stub, at + 6, 64)
    table = at + 24 + optional
    headers = -(-(table + 64 * 40) // 512) * 512
    struct.pack_into("<I", stub, at + 24 + 60, headers)
    size = max(len(stub), headers)
    for number in range(64):
        name = {0: b".linux", 1: b".osrel"}.get(number, b".s%d" % number)
        stub[table + 40 * number : table + 40 * (number + 1)] = struct.pack("<8sIIIIIIHHI", name, size, 4096, size, 0, 0, 0, 0, 0, 0x40)
    with pytest.raises(FormatError, match="overlap"):
        authenticode_digest(bytes(stub))
    image = tmp_path / "hostile.efi"
    image.write_bytes(stub)
    report = audit_image(image, quiet)[0]
    found = [one for one in report.findings if one.check == "image-readable" and one.verdict is Verdict.FAIL]
    assert any("overlap" in one.why for one in found), found


def test_a_long_number_in_a_version_is_compared_and_not_computed() -> None:
    assert compare_versions("1" * 4000, "2" * 4000) < 0
    assert compare_versions("6.12.9", "6.12.10") < 0 < compare_versions("6.12.10", "6.12.9")
    assert compare_versions("1.0~rc1", "1.0") < 0
    assert compare_versions("1.0", "1.0") == 0


def test_cpio_entries_that_are_no_files_have_no_content() -> None:
    assert names(member("dev", b"content", 0o20600)) == {}
    assert CpioEntry("x", 0o100644).data == b""
