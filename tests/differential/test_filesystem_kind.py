"""The kind and size of a filesystem image, against images that the real tools make."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.formats.filesystem import HEAD_BYTES, FilesystemKind, filesystem_bytes, filesystem_kind


def made(kind: FilesystemKind, source: Path, image: Path, need: Callable[[str], Path]) -> bytes:
    commands: dict[FilesystemKind, list[str | Path]] = {
        FilesystemKind.EROFS: [need("mkfs.erofs"), "--quiet", image, source],
        FilesystemKind.SQUASHFS: [need("mksquashfs"), source, image, "-quiet", "-no-progress"],
        FilesystemKind.EXT4: [need("mke2fs"), "-q", "-t", "ext4", "-d", source, image, "3M"],
    }
    subprocess.run([str(word) for word in commands[kind]], check=True, capture_output=True)
    return image.read_bytes()


@pytest.mark.parametrize("kind", [FilesystemKind.EROFS, FilesystemKind.SQUASHFS, FilesystemKind.EXT4])
def test_kind_and_size_are_those_of_the_image(kind: FilesystemKind, tmp_path: Path, need: Callable[[str], Path]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(bytes(range(256)) * 1000)
    image = made(kind, source, tmp_path / "image", need)
    assert filesystem_kind(image[:HEAD_BYTES]) is kind
    size = filesystem_bytes(image[:HEAD_BYTES])
    assert size is not None
    assert len(image) - 4096 < size <= len(image)


@pytest.mark.parametrize("head", [b"", bytes(HEAD_BYTES), b"hsq", b"\x7fELF" + bytes(4096)])
def test_what_is_no_filesystem_has_no_kind(head: bytes) -> None:
    assert filesystem_kind(head) is None
    assert filesystem_bytes(head) is None


def test_a_superblock_cut_short_has_no_size() -> None:
    assert filesystem_kind(b"hsqs") is FilesystemKind.SQUASHFS
    assert filesystem_bytes(b"hsqs") is None
