"""Files sealed in an unmounted ext4 image: e2fsck accepts it, digests are those of fsverity, what cannot be sealed is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.fsverity import parse_descriptor
from ipe_build.host import Host
from ipe_build.integrity.fsverity import FsVerityParameters
from ipe_build.integrity.fsverity_ext4 import seal_ext4
from tests.fixtures.integrity import noise

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, host: Host, need: Callable[[str], Path]) -> Make:
    """Makes an ext4 image: small and big files, an empty one, hard links, odd names, a folder of folders."""
    for tool in ("debugfs", "mke2fs", "e2fsck", "fsverity"):
        need(tool)

    def made(*options: str, size: str = "16M") -> Path:
        root = tmp_path / "root"
        (root / "a/b/c").mkdir(parents=True)
        for name, length in (
            ("empty", 0),
            ("one", 1),
            ("a/block", 4096),
            ("a/b/c/deep", 65536),
            ('a/sp ace "quoted"', 70000),
            ("big", 3 << 20),
        ):
            (root / name).write_bytes(noise(length, name))
        (root / "a/hard").hardlink_to(root / "one")
        (root / "link").symlink_to("big")
        (root / "sparse").touch()
        with (root / "sparse").open("r+b") as handle:
            handle.truncate(200_000)
        host.run(["mke2fs", "-q", "-t", "ext4", *options, "-d", root, tmp_path / "image", size])
        return tmp_path / "image"

    return made


def _fsck(image: Path, host: Host) -> None:
    assert host.run(["e2fsck", "-fn", image], ok=(0, 4, 8)).status == 0


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        (("-b", "4096"), FsVerityParameters()),
        (("-b", "4096", "-O", "^metadata_csum"), FsVerityParameters("sha512", 4096, b"salt")),
        (("-b", "1024"), FsVerityParameters("sha256", 1024)),
        (("-b", "4096", "-O", "^has_journal"), FsVerityParameters("sha256", 1024, bytes(32))),
    ],
)
def test_every_file_is_sealed_and_e2fsck_accepts_it(
    options: tuple[str, ...], parameters: FsVerityParameters, make: Make, tmp_path: Path, host: Host, need: Callable[[str], Path]
) -> None:
    image = make(*options)
    signature = noise(5000, "as long as a certificate chain would make it")
    sealed = seal_ext4(image, parameters, host, sign=lambda _payload: signature)
    _fsck(image, host)
    assert sorted(path for file in sealed for path in file.paths) == [
        "/a/b/c/deep", "/a/block", "/a/hard", '/a/sp ace "quoted"', "/big", "/empty", "/one", "/sparse",
    ]  # fmt: skip
    words = [f"--hash-alg={parameters.hash_name}", f"--block-size={parameters.block_size}", f"--salt={parameters.salt.hex()}", "--compact"]
    for file in sealed:
        source = tmp_path / "root" / file.paths[0][1:]
        wanted = subprocess.run([need("fsverity"), "digest", *words, source], capture_output=True, text=True, check=True).stdout.strip()
        assert file.digest.hex() == wanted
        host.run(["debugfs", "-R", f"dump <{file.inode}> {tmp_path / 'back'}", image])
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        assert "Flags: 0x180000" in host.run(["debugfs", "-R", f"stat <{file.inode}>", image]).text
    assert " verity" in host.run(["debugfs", "-R", "feature", image]).text


def test_the_descriptor_is_where_the_kernel_looks_for_it(make: Make, host: Host) -> None:
    image = make("-b", "4096")
    (file,) = seal_ext4(image, FsVerityParameters(), host, paths=["/a/b/c/deep"], sign=lambda _payload: b"signature")
    content = image.read_bytes()
    # 65536 bytes end on a 64 KiB border: the tree's one block is block 16, the descriptor's, the last, 17.
    places = [int(host.run(["debugfs", "-R", f"bmap <{file.inode}> {block}", image]).text) for block in (16, 17, 18)]
    assert places[2] == 0
    last = content[places[1] * 4096 : places[1] * 4096 + 4096]
    assert int.from_bytes(last[-4:], "little") == 256 + len("signature")
    descriptor = parse_descriptor(last)
    assert (descriptor.data_size, descriptor.signature_size) == (65536, 9)
    assert last[256:265] == b"signature"


def test_the_same_image_gives_the_same_bytes(make: Make, host: Host) -> None:
    image = make("-b", "4096")
    original = image.read_bytes()
    results = []
    for _ in range(2):
        image.write_bytes(original)
        seal_ext4(image, FsVerityParameters(), host)
        results.append(image.read_bytes())
    assert results[0] == results[1] != original


def test_only_the_chosen_files_are_sealed(make: Make, host: Host) -> None:
    image = make("-b", "4096")
    assert [file.paths for file in seal_ext4(image, FsVerityParameters(), host, paths=["/big", "/a/hard"])] == [
        ("/big",),
        ("/a/hard", "/one"),
    ]
    assert "Flags: 0x80000" in host.run(["debugfs", "-R", "stat /a/block", image]).text
    _fsck(image, host)


def test_what_cannot_be_sealed_is_refused_and_the_image_left_alone(make: Make, tmp_path: Path, host: Host) -> None:
    image = make("-b", "1024", size="6M")
    before = image.read_bytes()
    for parameters, paths, reason in [
        (FsVerityParameters(), None, "blocks have 1024 bytes"),
        (FsVerityParameters(block_size=1024), ["/none"], "no regular file '/none'"),
        (FsVerityParameters(block_size=1024), ["/link"], "no regular file '/link'"),
    ]:
        with pytest.raises(InputError, match=reason):
            seal_ext4(image, parameters, host, paths=paths)
        assert image.read_bytes() == before
    seal_ext4(image, FsVerityParameters(block_size=1024), host, paths=["/one"])
    with pytest.raises(InputError, match="/a/hard is a verity file already"):
        seal_ext4(image, FsVerityParameters(block_size=1024), host, paths=["/one"])
    (tmp_path / "other").write_bytes(bytes(8192))
    with pytest.raises(FormatError, match="ext4 magic"):
        seal_ext4(tmp_path / "other", FsVerityParameters(), host)


def test_an_image_without_room_is_refused_and_left_alone(make: Make, host: Host) -> None:
    image = make("-b", "1024", "-m", "0", "-O", "^has_journal", size="4M")
    before = image.read_bytes()
    with pytest.raises(InputError, match="no room for the Merkle trees"):
        seal_ext4(image, FsVerityParameters(block_size=1024), host, sign=lambda _payload: bytes(700_000))
    assert image.read_bytes() == before
