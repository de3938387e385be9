"""boot.locate and boot.entry on images made by the real tools: the block that is named is the block that the file needs."""

from __future__ import annotations

import random
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.boot.entry import read_entry, read_table, with_options
from ipe_build.boot.locate import BLOCK_BYTES, SharedBlockError, stored_at
from ipe_build.errors import FormatError, InputError
from ipe_build.formats.gpt import Partition, lay_out, write_gpt
from ipe_build.host import Host

ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
TEXT = random.Random(2).randbytes(200_000).hex().encode()
"""Compresses to about a half, so that a stored block is longer than the blocks of 4096 bytes it begins in."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with a large file, a large one that does not compress, and small ones that SquashFS packs together."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "usr").mkdir()
    (folder / "usr/large file").write_bytes(TEXT)
    (folder / "random").write_bytes(random.Random(1).randbytes(300_000))
    for number in range(5):
        (folder / f"small-{number}").write_bytes(b"%d" % number * 5000)
    return folder


MAKERS = {
    "erofs": lambda image, tree: ["mkfs.erofs", "--quiet", image, tree],
    "erofs lz4": lambda image, tree: ["mkfs.erofs", "--quiet", "-zlz4hc", image, tree],
    "ext4": lambda image, tree: ["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "16M"],
    "squashfs gzip": lambda image, tree: ["mksquashfs", tree, image, "-quiet", "-no-progress", "-all-root", "-comp", "gzip"],
    "squashfs zstd": lambda image, tree: ["mksquashfs", tree, image, "-quiet", "-no-progress", "-all-root", "-comp", "zstd"],
    "squashfs plain": lambda image, tree: ["mksquashfs", tree, image, "-quiet", "-no-progress", "-all-root", "-noD", "-noF"],
}
READERS = {
    "erofs": lambda image, path, out: ["fsck.erofs", f"--extract={out}", image],
    "ext4": lambda image, path, out: ["debugfs", "-R", f'dump "{path}" {out}/one', image],
    "squashfs": lambda image, path, out: ["unsquashfs", "-no-progress", "-d", f"{out}/all", image, path.lstrip("/")],
}


def read_file(kind: str, image: Path, path: str, out: Path, host: Host) -> bytes:
    """The file as the filesystem's own tool reads it; b"" when it cannot be read."""
    out.mkdir()
    host.run(READERS[kind.split()[0]](image, path, out), ok=tuple(range(256)))
    name = path.rpartition("/")[2]
    found = [place for place in out.rglob("*") if place.is_file() and place.name in (name, "one")]
    return found[0].read_bytes() if found else b""


@pytest.mark.parametrize("path", ["/usr/large file", "/random"])
@pytest.mark.parametrize("kind", MAKERS)
def test_inverting_the_named_block_damages_the_beginning_of_the_file(
    kind: str, path: str, tree: Path, tmp_path: Path, host: Host, need
) -> None:
    image = tmp_path / "image"
    command = MAKERS[kind](image, tree)
    need(command[0])
    need("unsquashfs")
    host.run(command)
    place = stored_at(image, path, host)
    good = read_file(kind, image, path, tmp_path / "good", host)
    assert good == (tree / path.lstrip("/")).read_bytes()
    data = bytearray(image.read_bytes())
    start = place // BLOCK_BYTES * BLOCK_BYTES
    data[start : start + BLOCK_BYTES] = bytes(byte ^ 0xFF for byte in data[start : start + BLOCK_BYTES])
    image.write_bytes(data)
    bad = read_file(kind, image, path, tmp_path / "bad", host)
    piece = 128 << 10 if kind.startswith("squashfs") else BLOCK_BYTES
    assert bad[:piece] != good[:piece]


def test_block_of_a_large_squashfs_file_hurts_no_other_file(tree: Path, tmp_path: Path, host: Host, need):
    need("mksquashfs")
    image = tmp_path / "image"
    host.run(MAKERS["squashfs gzip"](image, tree))
    start = stored_at(image, "/random", host) // BLOCK_BYTES * BLOCK_BYTES
    data = bytearray(image.read_bytes())
    data[start : start + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    image.write_bytes(data)
    for number, path in enumerate(("/usr/large file", "/small-0", "/small-4")):
        assert read_file("squashfs", image, path, tmp_path / str(number), host) == (tree / path.lstrip("/")).read_bytes()


def test_small_erofs_file_among_the_inodes_has_no_block_of_its_own(tree: Path, tmp_path: Path, host: Host, need):
    need("mkfs.erofs")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/tiny").write_bytes(b"x" * 100)
    host.run(MAKERS["erofs"](tmp_path / "image", tmp_path / "root"))
    with pytest.raises(SharedBlockError, match="blocks of its own"):
        stored_at(tmp_path / "image", "/tiny", host)


@pytest.mark.parametrize("kind", ["erofs", "ext4", "squashfs gzip"])
def test_file_that_is_not_there_is_an_error(kind: str, tree: Path, tmp_path: Path, host: Host, need):
    command = MAKERS[kind](tmp_path / "image", tree)
    need(command[0])
    host.run(command)
    with pytest.raises(InputError, match="no file /none"):
        stored_at(tmp_path / "image", "/none", host)


def test_unknown_filesystem_is_an_error(tmp_path: Path, host: Host):
    (tmp_path / "image").write_bytes(bytes(8192))
    with pytest.raises(InputError, match="no filesystem"):
        stored_at(tmp_path / "image", "/x", host)


@pytest.fixture
def disk(tmp_path: Path, host: Host, need) -> Path:
    """A disk with an EFI system partition of 4 MiB, empty so far."""
    need("mkfs.vfat")
    need("mcopy")
    table = lay_out(UUID(int=1), [Partition(1, ESP, UUID(int=2), "esp", 0, 4 << 20)])
    esp = tmp_path / "esp"
    esp.write_bytes(bytes(4 << 20))
    host.run(["mkfs.vfat", esp])
    place = tmp_path / "disk.raw"
    with place.open("wb") as handle:
        handle.truncate(table.size_bytes)
        for piece in write_gpt(table):
            handle.seek(piece.offset)
            handle.write(piece.data)
        handle.seek(table.partitions[0].offset_bytes)
        handle.write(esp.read_bytes())
    return place


def put(disk: Path, host: Host, **files: bytes) -> None:
    """Copies files into the disk's EFI system partition; __ in a name is a folder's slash."""
    image = f"{disk}@@{read_table(disk).partitions[0].offset_bytes}"
    for folder in ("loader", "loader/entries"):
        host.run(["mmd", "-i", image, f"::{folder}"], ok=(0, 1))
    for name, data in files.items():
        source = disk.parent / "file"
        source.write_bytes(data)
        host.run(["mcopy", "-o", "-i", image, source, f"::{name.replace('__', '/')}"])


def test_first_entry_by_name_is_read_with_all_its_archives(disk: Path, tmp_path: Path, host: Host):
    first = b"# c\ntitle x\nlinux /linux\ninitrd /one\ninitrd /two\noptions a=1\noptions  b\n"
    put(disk, host, linux=b"KERNEL", one=b"1", two=b"22", loader__entries__b=b"no entry")
    image = f"{disk}@@{read_table(disk).partitions[0].offset_bytes}"
    for name, text in (("a.conf", first), ("z.conf", b"linux /none\n")):
        (tmp_path / name).write_bytes(text)
        host.run(["mcopy", "-i", image, tmp_path / name, f"::loader/entries/{name}"])
    entry = read_entry(disk, tmp_path, host)
    assert (entry.name, entry.options) == ("a.conf", "a=1 b")
    assert entry.kernel.read_bytes() == b"KERNEL"
    assert entry.initrd is not None
    assert entry.initrd.read_bytes() == b"122"


def test_entry_that_names_a_missing_file_is_an_error(disk: Path, tmp_path: Path, host: Host):
    put(disk, host)
    image = f"{disk}@@{read_table(disk).partitions[0].offset_bytes}"
    (tmp_path / "a.conf").write_bytes(b"linux /none\n")
    host.run(["mcopy", "-i", image, tmp_path / "a.conf", "::loader/entries/a.conf"])
    with pytest.raises(InputError, match="/none"):
        read_entry(disk, tmp_path, host)


def test_disk_without_entries_or_esp_is_an_error(disk: Path, tmp_path: Path, host: Host):
    with pytest.raises(InputError, match="loader/entries"):
        read_entry(disk, tmp_path, host)
    other = lay_out(UUID(int=1), [Partition(1, UUID(int=9), UUID(int=2), "data", 0, 1 << 20)])
    bare = tmp_path / "bare.raw"
    with bare.open("wb") as handle:
        handle.truncate(other.size_bytes)
        for piece in write_gpt(other):
            handle.seek(piece.offset)
            handle.write(piece.data)
    with pytest.raises(InputError, match="EFI system"):
        read_entry(bare, tmp_path, host)
    (tmp_path / "text").write_bytes(b"no disk" * 1000)
    with pytest.raises(FormatError):
        read_entry(tmp_path / "text", tmp_path, host)


def test_options_replace_those_of_the_same_name_and_stay_before_the_dashes():
    assert with_options("console=ttyS0 init=/a quiet panic=1 console=tty0 -- x", "init=/b", "panic=-1") == (
        "console=ttyS0 console=tty0 init=/b panic=-1 -- x"
    )
    assert with_options("", "a=1") == "a=1"
