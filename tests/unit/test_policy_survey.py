"""Surveys of root filesystems in every form, made and taken apart by the real tools."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.cli import main
from ipe_build.errors import InputError
from ipe_build.examine.survey import sidecar_root_hash, survey
from ipe_build.formats.cpio import directory, regular_file, write_cpio
from ipe_build.formats.gpt import Partition, lay_out, write_gpt
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.formats.verity_sig import VeritySignature
from ipe_build.image.disk import DiskRequest, make_disk
from ipe_build.image.esp import EspFile
from ipe_build.integrity.fsverity import FsVerityParameters
from ipe_build.integrity.fsverity_ext4 import seal_ext4
from ipe_build.integrity.verity import VerityParameters, format_image
from ipe_build.policy.classify import classify
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.survey import Kind, Survey, Trait

FACTS = Facts(root_hash=Digest(b"sha256", b"\1" * 32), root_hash_signed=True)
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + bytes(44)
FILES = {
    "usr/bin/app": (ELF, 0o755),
    "usr/bin/node": (ELF, 0o755),
    "usr/bin/packed": (ELF + b"UPX!" + bytes(2000), 0o755),
    "usr/bin/speaks-of-upx": (ELF + bytes(2000) + b"UPX!", 0o755),
    "usr/bin/runner": (ELF + b"\0memfd_create\0\0libffi.so.8\0", 0o755),
    "usr/bin/script": (b"#!/bin/sh\n", 0o755),
    "usr/share/doc/script": (b"#!/bin/sh\n", 0o644),
    "usr/lib/object.o": (ELF.replace(b"\x03\x00\x3e", b"\x01\x00\x3e"), 0o644),
    "lib/modules/6.12.0/a.ko": (ELF, 0o644),
    "lib/modules/6.12.0/b.ko.xz": (b"xz", 0o644),
    "lib/firmware/f.bin": (b"f", 0o644),
    "etc/ima/ima-policy": (b"measure", 0o644),
    "etc/fstab": (b"# c\noverlay /etc overlay rw 0 0\n/dev/vda3 /data btrfs rw\n\nshort\n", 0o644),
    "etc/passwd": (b"root", 0o644),
    "sbin/init": (ELF, 0o755),
    "empty": (b"", 0o755),
}
EXPECTED = {
    "usr/bin/app": (Kind.ELF, set()),
    "usr/bin/node": (Kind.ELF, {Trait.JIT, Trait.INTERPRETER}),
    "usr/bin/packed": (Kind.ELF, {Trait.UPX}),
    "usr/bin/speaks-of-upx": (Kind.ELF, set()),
    "usr/bin/runner": (Kind.ELF, {Trait.MEMFD, Trait.LIBFFI}),
    "usr/bin/script": (Kind.SCRIPT, set()),
    "lib/modules/6.12.0/a.ko": (Kind.MODULE, set()),
    "lib/modules/6.12.0/b.ko.xz": (Kind.COMPRESSED_MODULE, set()),
    "lib/firmware/f.bin": (Kind.FIRMWARE, set()),
    "etc/ima/ima-policy": (Kind.POLICY, set()),
    "sbin/init": (Kind.ELF, {Trait.INIT}),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for name, (data, mode) in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
    (folder / "usr/bin/link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "fifo")
    return folder


def same(found: Survey) -> bool:
    rows = {entry.path: (entry.kind, set(entry.traits)) for entry in found.entries}
    assert rows == EXPECTED
    assert found.mounts == (("/etc", "overlay"), ("/data", "btrfs"))
    assert all(entry.facts == FACTS for entry in found.entries)
    return True


def test_folder_is_surveyed(root: Path, host) -> None:
    found = survey(root, host, FACTS)
    assert same(found)
    assert found.filesystem is None


@pytest.mark.parametrize(
    ("kind", "tool", "reader", "words"),
    [
        ("erofs", "mkfs.erofs", "fsck.erofs", ("--quiet", "IMAGE", "ROOT")),
        ("squashfs", "mksquashfs", "unsquashfs", ("ROOT", "IMAGE", "-quiet", "-no-progress")),
        ("ext4", "mke2fs", "debugfs", ("-q", "-t", "ext4", "-d", "ROOT", "IMAGE", "8M")),
    ],
)
def test_image_is_surveyed_like_its_folder(root: Path, host, need, tmp_path: Path, kind: str, tool: str, reader: str, words) -> None:
    need(tool), need(reader)
    image = tmp_path / "image"
    host.run([tool, *({"IMAGE": image, "ROOT": root}.get(word, word) for word in words)])
    found = survey(image, host, FACTS)
    assert same(found)
    assert found.filesystem == kind


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_disk_is_surveyed_like_the_folder_of_its_root(root: Path, host, need, tmp_path: Path, capsys, sector_bytes: int) -> None:
    for tool in ("mkfs.erofs", "fsck.erofs", "mkfs.vfat", "mcopy"):
        need(tool)
    image, area, disk = (tmp_path / name for name in ("root.erofs", "root.verity", "disk.img"))
    host.run(["mkfs.erofs", "--quiet", image, root])
    tree = format_image(image, area, VerityParameters(salt=b""), host)
    request = DiskRequest(image, area, tree.root_hash, None, UUID(int=1), files=(EspFile("loader.conf", b"timeout 0\n"),))
    made = make_disk(replace(request, sector_bytes=sector_bytes), disk, host)
    assert made.esp is not None and made.root is not None and made.esp.offset_bytes < made.root.offset_bytes
    found = survey(disk, host, FACTS)
    assert same(found)
    assert found.filesystem == "erofs"
    policy = tmp_path / "p.pol"
    rule = f"op=EXECUTE dmverity_roothash=sha256:{tree.root_hash.hex()} action=ALLOW"
    policy.write_text(f"policy_name=p policy_version=1.0.0\nDEFAULT action=DENY\n{rule}\n")
    for digest, allowed in ((tree.root_hash, 7), (bytes(32), 0)):
        assert (
            main(["policy", "evaluate", str(policy), "--image", str(disk), "--roothash", f"sha256:{digest.hex()}", "--json", "--quiet"])
            == 0
        )
        totals = json.loads(capsys.readouterr().out)["totals"]
        assert totals["EXECUTE"] == {"allow": allowed, "deny": 7 - allowed}
        assert totals["KMODULE"] == {"allow": 0, "deny": 2}


def test_files_with_fsverity_are_judged_by_their_digests(root: Path, host, need, tmp_path: Path, capsys) -> None:
    need("mke2fs"), need("debugfs")
    image, policy = tmp_path / "root.ext4", tmp_path / "p.pol"
    host.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", root, image, "8M"])
    (sealed,) = seal_ext4(image, FsVerityParameters(), host, paths=["/usr/bin/app"])
    rule = f"op=EXECUTE fsverity_digest=sha256:{sealed.digest.hex()} action=ALLOW"
    policy.write_text(f"policy_name=p policy_version=1.0.0\nDEFAULT action=DENY\n{rule}\n")
    assert main(["policy", "evaluate", str(policy), "--image", str(image), "--json", "--quiet"]) == 0
    assert [row["path"] for row in json.loads(capsys.readouterr().out)["files"] if row["action"] == "ALLOW"] == ["/usr/bin/app"]


@pytest.mark.parametrize("named_by", ["signature", "uuids", "nothing"])
def test_disk_names_the_root_hash_that_its_files_are_judged_by(root: Path, host, need, tmp_path: Path, capsys, named_by: str) -> None:
    for tool in ("mkfs.erofs", "mkfs.vfat", "mcopy"):
        need(tool)
    image, area, disk = (tmp_path / name for name in ("root.erofs", "root.verity", "disk.img"))
    host.run(["mkfs.erofs", "--quiet", image, root])
    hash_name = "sha512" if named_by == "nothing" else "sha256"  # its UUIDs are but half of it
    tree = format_image(image, area, VerityParameters(hash_name=hash_name, salt=b""), host)
    signature = VeritySignature(tree.root_hash, bytes(32), b"DER").build() if named_by == "signature" else None
    make_disk(DiskRequest(image, area, tree.root_hash, signature, UUID(int=1)), disk, host)
    known = Facts(root_hash=Digest(b"sha256", tree.root_hash), root_hash_signed=named_by == "signature")
    assert {entry.facts for entry in survey(disk, host).entries} == {known if named_by != "nothing" else Facts()}
    policy = tmp_path / "p.pol"
    policy.write_text("policy_name=p policy_version=1.0.0\nDEFAULT action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n")
    assert main(["policy", "evaluate", str(policy), "--image", str(disk), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["totals"]["EXECUTE"]["allow"] == (7 if named_by == "signature" else 0)
    assert ("nothing on it names a root hash" in said.err) == (named_by == "nothing")
    assert "--root-hash and --signed say it" in said.err or named_by != "nothing"


def test_disk_whose_data_comes_first_is_surveyed_by_the_partition_of_a_root_type(root: Path, host, need, tmp_path: Path) -> None:
    for tool in ("mkfs.erofs", "fsck.erofs", "mke2fs"):
        need(tool)
    image, data, disk = (tmp_path / name for name in ("root.erofs", "data.ext4", "disk.img"))
    host.run(["mkfs.erofs", "--quiet", image, root])
    host.run(["mke2fs", "-q", "-t", "ext4", data, "2M"])
    linux_data = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

    def written(root_type: UUID) -> Path:
        kinds = ((linux_data, data), (root_type, image))
        parts = [Partition(0, kind, UUID(int=number), "p", 0, path.stat().st_size) for number, (kind, path) in enumerate(kinds, 2)]
        table = lay_out(UUID(int=1), parts)
        with disk.open("wb") as handle:
            handle.truncate(table.size_bytes)
            for piece in write_gpt(table):
                os.pwrite(handle.fileno(), piece.data, piece.offset)
            for partition, (_, path) in zip(table.partitions, kinds, strict=True):
                os.pwrite(handle.fileno(), path.read_bytes(), partition.offset_bytes)
        return disk

    assert same(survey(written(PARTITION_TYPES["x86-64"].root), host, FACTS))
    assert survey(written(linux_data), host, FACTS).filesystem == "ext4"


def test_disk_without_a_root_filesystem_is_one_error(host, tmp_path: Path) -> None:
    table = lay_out(UUID(int=1), [Partition(0, UUID(int=3), UUID(int=2), "p", 0, 4096)])
    disk = tmp_path / "disk.img"
    with disk.open("wb") as handle:
        handle.truncate(table.size_bytes)
        for piece in write_gpt(table):
            os.pwrite(handle.fileno(), piece.data, piece.offset)
    with pytest.raises(InputError, match="no partition holds a root filesystem"):
        survey(disk, host, FACTS)


@pytest.mark.parametrize("form", ["plain", "gzip", "two"])
def test_initramfs_is_surveyed_like_its_folder(host, tmp_path: Path, form: str) -> None:
    folders = sorted({str(parent) for name in FILES for parent in Path(name).parents} - {"."})
    entries = [*map(directory, folders), *(regular_file(name, data, mode=mode) for name, (data, mode) in FILES.items())]
    early, late = write_cpio([directory("early")]), write_cpio(entries)
    image = tmp_path / "initrd"
    image.write_bytes({"plain": late, "gzip": gzip.compress(late), "two": early + gzip.compress(late)}[form])
    found = survey(image, host, FACTS)
    assert same(found)
    assert found.filesystem == "initramfs"
    assert all(entry.facts == Facts(boot_verified=True) for entry in survey(image, host).entries)


@pytest.mark.parametrize("data", [b"", b"junk" * 100, b"\x1f\x8b\x08junkjunkjunkjunk", b"070701" + b"x" * 200, b"hsqs" + bytes(200)])
def test_what_is_no_root_filesystem_is_one_error(host, need, tmp_path: Path, data: bytes) -> None:
    need("unsquashfs")
    image = tmp_path / "image"
    image.write_bytes(data)
    with pytest.raises(InputError):
        survey(image, host, FACTS)


def test_root_hash_beside_an_image_is_found(tmp_path: Path) -> None:
    image = tmp_path / "root.erofs"
    image.write_bytes(b"")
    assert sidecar_root_hash(image) is None
    (tmp_path / "root.roothash").write_text("ab" * 32 + "\n")
    assert sidecar_root_hash(image) == (b"\xab" * 32, False)
    (tmp_path / "root.roothash.p7s").write_bytes(b"x")
    assert sidecar_root_hash(image) == (b"\xab" * 32, True)
    (tmp_path / "root.erofs.roothash").write_text("no hash")
    with pytest.raises(InputError):
        sidecar_root_hash(image)


def test_big_endian_programs_are_programs() -> None:
    data = b"\x7fELF\x02\x02\x01" + bytes(9) + b"\x00\x02\x00\x15" + bytes(44)
    assert classify("bin/app", True, data) == (Kind.ELF, frozenset())
    assert classify("bin/app", True, data.replace(b"\x00\x02\x00\x15", b"\x00\x01\x00\x15")) is None
