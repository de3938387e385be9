"""Root filesystems as the audit reads them in place: SquashFS against what was packed, fs-verity digests against contents."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.audit.checks_loader import fsverity_files
from ipe_build.audit.facts import ImageFacts, Region, RootFiles
from ipe_build.audit.file_tree import FileTree
from ipe_build.audit.findings import Verdict
from ipe_build.errors import FormatError, InputError
from ipe_build.examine import filesystem
from ipe_build.examine.filesystem import read_tree
from ipe_build.formats.ext4 import Ext4
from ipe_build.formats.squashfs import Squashfs
from ipe_build.host import Host
from ipe_build.integrity.fsverity import FsVerityParameters
from ipe_build.integrity.fsverity_ext4 import seal_ext4
from ipe_build.policy.survey import Survey

MIB = 1 << 20


def reader(raw: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: raw[offset : offset + length]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every kind and size that SquashFS stores in a way of its own."""
    root = tmp_path / "root"
    (root / "many/deep").mkdir(parents=True)
    for number in range(700):
        (root / f"many/name{number:04}").write_bytes(b"%d" % number * number)
    (root / "empty").write_bytes(b"")
    (root / "sparse").write_bytes(bytes(3 * MIB) + b"end")
    (root / "noise").write_bytes(os.urandom(MIB + 1))
    (root / "text").write_bytes(b"".join(b"line %d\n" % number for number in range(100_000)))
    (root / "tool").write_bytes(b"#!/bin/sh\n")
    (root / "tool").chmod(0o4755)
    (root / "many/link").symlink_to("../tool")
    os.link(root / "tool", root / "again")
    os.mkfifo(root / "pipe")
    os.utime(root / "text", (1_000_000_000, 1_234_567_890))
    return root


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "lz4"])
@pytest.mark.parametrize("options", [[], ["-no-fragments"], ["-b", "4096"], ["-noI", "-noD", "-noF"]], ids=lambda words: " ".join(words))
def test_squashfs_in_place_is_what_was_packed(folder: Path, tmp_path: Path, host: Host, need, compression: str, options: list[str]) -> None:
    need("mksquashfs")
    image = tmp_path / "image"
    host.run(["mksquashfs", folder, image, "-quiet", "-no-progress", "-comp", compression, *options])
    padded = tmp_path / "disk"
    padded.write_bytes(bytes(4096) + image.read_bytes())
    (tmp_path / "scratch").mkdir()
    _, tree = read_tree(Region(padded, 4096, image.stat().st_size), tmp_path / "scratch", host)
    assert {one.path for one in tree} == {str(path.relative_to(folder)) for path in folder.rglob("*")}
    for one in tree:
        there = (folder / one.path).lstat()
        # unsquashfs, which LZ4 is left to, can keep modes only as far as the one who runs it may.
        assert one.mode == there.st_mode, one.path
        if one.is_file:
            content = (folder / one.path).read_bytes()
            assert (one.size_bytes, one.read(1 << 30)) == (len(content), content), one.path
            assert one.read_at(5000, 200_000) == content[5000:205_000], one.path
        if stat.S_ISLNK(one.mode):
            assert one.target == str((folder / one.path).readlink())
        if compression != "lz4":
            assert one.mtime == min(int(there.st_mtime), host.source_date_epoch)  # mksquashfs knows SOURCE_DATE_EPOCH too
    again, tool = tree.find("again"), tree.find("tool")
    assert again is not None
    assert tool is not None
    assert again.identity == tool.identity


def test_squashfs_attributes_are_read(tmp_path: Path, host: Host, need) -> None:
    need("mksquashfs")
    root, image = tmp_path / "root", tmp_path / "image"
    root.mkdir()
    for number in range(3):
        (root / f"file{number}").write_bytes(b"x")
        try:
            os.setxattr(root / f"file{number}", "user.name", b"same" * 20)
        except OSError:
            pytest.skip("the scratch filesystem keeps no user attributes")
    host.run(["mksquashfs", root, image, "-quiet", "-no-progress", "-xattrs"])
    raw = image.read_bytes()
    assert {path: dict(inode.xattrs) for path, inode in Squashfs(reader(raw), len(raw)).walk()} == {
        b"file%d" % number: {"user.name": b"same" * 20} for number in range(3)
    }


@pytest.fixture
def packed(tmp_path: Path, host: Host, need) -> bytes:
    """A small image whose tables are not compressed, so that a test can change them."""
    need("mksquashfs")
    root, image = tmp_path / "small", tmp_path / "small.squashfs"
    (root / "inside").mkdir(parents=True)
    (root / "inside/file").write_bytes(b"content" * 9000)
    host.run(["mksquashfs", root, image, "-quiet", "-no-progress", "-noI", "-all-root", "-no-xattrs", "-no-fragments"])
    return image.read_bytes()


def test_a_folder_of_squashfs_that_lies_in_itself_ends(packed: bytes) -> None:
    image = Squashfs(reader(packed), len(packed))
    inside = next(inode for path, inode in image.walk() if path == b"inside")
    # The listing of the root names `inside` by its place in the inode table: let it name the root itself.
    (root,) = struct.unpack_from("<Q", packed, 32)
    at = packed.index(b"inside") - 8
    looped = packed[:at] + struct.pack("<H", root & 0xFFFF) + packed[at + 2 :]
    assert stat.S_ISDIR(inside.mode)
    with pytest.raises(FormatError, match="lies in itself"):
        list(Squashfs(reader(looped), len(looped)).walk())


def test_a_block_of_squashfs_that_unpacks_to_more_than_a_block_is_damage(packed: bytes) -> None:
    import zlib

    image = Squashfs(reader(packed), len(packed))
    file = next(inode for path, inode in image.walk() if path == b"inside/file")
    assert image.read(file, 0, MIB) == b"content" * 9000
    bomb = zlib.compress(bytes(4 * MIB), 9)
    assert file.content is not None
    at = file.content.start
    bombed = packed[:at] + bomb + packed[at + len(bomb) :]
    changed = Squashfs(reader(bombed), len(bombed))
    with pytest.raises(FormatError, match=r"unpack|wanted"):
        changed.read(file, 0, MIB)


@pytest.mark.parametrize("cut", [50, 200, 4000])
def test_a_cut_squashfs_is_damage_and_not_a_traceback(packed: bytes, cut: int) -> None:
    short = packed[:-cut] if cut < len(packed) else packed[:100]
    short = short[: len(packed) // 2] if cut == 4000 else short
    with pytest.raises(FormatError):
        image = Squashfs(reader(short[:96] + bytes(len(short) - 96)), len(short))
        list(image.walk())


def test_what_a_tool_may_write_is_limited(tmp_path: Path, host: Host, need, monkeypatch: pytest.MonkeyPatch) -> None:
    need("mksquashfs")
    root, image = tmp_path / "root", tmp_path / "image"
    root.mkdir()
    with (root / "zeros").open("wb") as file:
        for _ in range(400):
            file.write(b"\1" * MIB)
    host.run(["mksquashfs", root, image, "-quiet", "-no-progress", "-comp", "lz4"])
    assert image.stat().st_size < 8 * MIB
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(filesystem, "MAX_UNPACKED_BYTES", 64 * MIB)
    with pytest.raises(InputError, match="unpacks to more than there is room for"):
        read_tree(Region(image, 0, image.stat().st_size), tmp_path / "scratch", host)


@pytest.fixture
def sealed(tmp_path: Path, host: Host, need) -> Path:
    """An ext4 image of verity files: of one block, of several, with holes, empty, in pieces."""
    need("mke2fs")
    need("debugfs")
    root, image = tmp_path / "files", tmp_path / "image.ext4"
    root.mkdir()
    (root / "small").write_bytes(b"one block")
    (root / "large").write_bytes(os.urandom(300_000))
    (root / "empty").write_bytes(b"")
    with (root / "sparse").open("wb") as file:
        file.write(os.urandom(5000))
        file.seek(200_000)
        file.write(os.urandom(5000))
    host.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "verity", "-d", root, image, "16M"])
    seal_ext4(image, FsVerityParameters(salt=b"salt"), host)
    return image


def judged(image: Path, tmp_path: Path, host: Host) -> tuple[FileTree, list[tuple[Verdict, str]]]:
    scratch = tmp_path / f"scratch{len(list(tmp_path.iterdir()))}"
    scratch.mkdir()
    _, tree = read_tree(Region(image, 0, image.stat().st_size), scratch, host)
    files = RootFiles(tree, "ext4", image.stat().st_size, Survey("ext4", (), ()), ())
    return tree, [(one.verdict, one.subject) for one in fsverity_files(ImageFacts(image, files=files), host)]


def test_digests_of_sealed_files_are_those_of_their_contents(sealed: Path, tmp_path: Path, host: Host) -> None:
    tree, found = judged(sealed, tmp_path, host)
    assert {one.path: one.verity.matches for one in tree if one.verity is not None} == dict.fromkeys(
        ("small", "large", "empty", "sparse"), True
    )
    assert found == [(Verdict.PASS, "fs-verity")]


@pytest.mark.parametrize("name", ["small", "large", "sparse"])
def test_a_flipped_byte_in_a_sealed_file_is_found(sealed: Path, tmp_path: Path, host: Host, name: str) -> None:
    raw = bytearray(sealed.read_bytes())
    inode = next(inode for path, inode in Ext4(reader(bytes(raw)), len(raw)).walk() if path == name.encode())
    last, length = inode.pieces[-1]
    raw[last + length - 1] ^= 1
    sealed.write_bytes(raw)
    _, found = judged(sealed, tmp_path, host)
    assert found == [(Verdict.FAIL, name)]


def test_extents_of_ext4_that_overlap_are_damage(sealed: Path) -> None:
    raw = sealed.read_bytes()
    sparse = next(inode for path, inode in Ext4(reader(raw), len(raw)).walk() if path == b"sparse")
    first, second = [place for place, _ in sparse.pieces if place >= 0]
    # The second extent's first block in the file becomes that of the first.
    entries = (struct.pack("<IHHI", 200_000 // 4096, count, 0, second // 4096) for count in range(1, 5))
    at = next(raw.index(entry) for entry in entries if entry in raw)
    overlapping = raw[:at] + struct.pack("<I", 0) + raw[at + 4 :]
    assert first != second
    with pytest.raises(FormatError, match="overlap"):
        list(Ext4(reader(overlapping), len(overlapping)).walk())


def test_ext4_files_that_share_extents_beyond_the_budget_are_said(
    tmp_path: Path, host: Host, need, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of 4 MiB has 64 names: hard links; each is read as a file of its own, which is stopped."""
    need("mke2fs")
    root, image = tmp_path / "shared", tmp_path / "shared.ext4"
    root.mkdir()
    (root / "name0").write_bytes(b"\x7fELF" + os.urandom(4 * MIB))
    for number in range(1, 64):
        os.link(root / "name0", root / f"name{number}")
    host.run(["mke2fs", "-q", "-t", "ext4", "-d", root, image, "12M"])
    monkeypatch.setattr(filesystem, "_READ_MORE_BYTES", 16 * MIB)
    (tmp_path / "scratch").mkdir()
    _, tree = read_tree(Region(image, 0, image.stat().st_size), tmp_path / "scratch", host)
    with pytest.raises(FormatError, match="share their blocks"):
        for one in tree:
            one.read(1 << 30)
