"""Small outputs: whole with their permissions, or what was there before; refusals name the file."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipe_build.errors import OutputError
from ipe_build.host import Host


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def test_parts_follow_each_other_and_the_permissions_are_exact_whatever_the_umask(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "a.ko"
    with umask(0o077):
        host.write_small(path, (b"one", b"", b"two"), mode=0o664)
    assert path.read_bytes() == b"onetwo"
    assert stat.S_IMODE(path.stat().st_mode) == 0o664
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_leaves_who_reads_the_old_file_the_old_file(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "a.ko"
    path.write_bytes(b"old")
    other = tmp_path / "hard-link"
    other.hardlink_to(path)
    host.write_small(path, (b"new",), mode=0o600)
    assert path.read_bytes() == b"new"
    assert other.read_bytes() == b"old"


def test_relative_path_is_written_in_the_working_folder(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    host.write_small(Path("a.ko"), (b"new",), mode=0o600)
    assert (tmp_path / "a.ko").read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["folder", "fifo", "no folder"])
def test_what_is_not_a_file_is_refused_and_stays(kind: str, host: Host, tmp_path: Path) -> None:
    path = tmp_path / "a.ko"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = tmp_path / "none" / "a.ko"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as caught:
        host.write_small(path, (b"new",), mode=0o600)
    assert str(path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_disk_without_space_leaves_the_old_file_and_no_other(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "a.ko"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a write is cut there, as a full disk cuts it; the next is refused
    try:
        with pytest.raises(OutputError, match="no space left"):
            host.write_small(path, (b"x" * 60, b"y" * 60), mode=0o600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
