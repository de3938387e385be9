"""Root filesystems as values: what is read from folders and tars, what is refused, what is added."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from ipe_build.errors import InputError
from ipe_build.image.rootfs import Entry, PathRule, Rootfs, TarContent, add, apply_rules, read_folder, read_tar


def a_tar(folder: Path, *members: tuple[str, dict[str, object]]) -> Path:
    """A tar of members: the name and TarInfo's fields; `data` is the content."""
    path = folder / "root.tar"
    with tarfile.open(path, "w") as tar:
        for name, fields in members:
            info = tarfile.TarInfo(name)
            data = fields.get("data", b"")
            assert isinstance(data, bytes)
            info.size = len(data)
            for key, value in fields.items():
                if key != "data":
                    setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return path


def paths(rootfs: Rootfs) -> list[str]:
    return [entry.path for entry in rootfs.entries]


def test_folder_is_read_without_following_links_and_with_hard_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "a").write_text("x")
    os.link(root / "etc" / "a", root / "etc" / "b")
    (root / "etc" / "out").symlink_to("/etc")
    os.mkfifo(root / "pipe")
    found = read_folder(root)
    assert paths(found) == ["", "etc", "etc/a", "etc/b", "etc/out", "pipe"]
    by_path = found.by_path()
    assert by_path["etc/b"].hardlink == "etc/a" and not by_path["etc/a"].hardlink
    assert by_path["etc/out"].target == "/etc"
    assert stat.S_ISFIFO(by_path["pipe"].mode)


def test_building_user_does_not_leak(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    (root / "f").write_text("")
    if os.geteuid() == 0:
        os.chown(root / "f", 1234, 1234)
    found = read_folder(root)
    assert {(entry.uid, entry.gid) for entry in found.entries} == {(0, 0)}
    assert stat.S_IMODE(found.entries[0].mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_owners_are_kept_when_asked(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_text("")
    os.chown(root / "f", 1234, 4321)
    entry = read_folder(root, keep_owners=True).by_path()["f"]
    assert (entry.uid, entry.gid) == (1234, 4321)


def test_tar_is_read_with_owners_devices_and_xattrs(tmp_path: Path) -> None:
    value = bytes([1, 0, 0, 2, 255])
    archive = a_tar(
        tmp_path,
        ("./", {"type": tarfile.DIRTYPE, "mode": 0o750}),
        ("./bin/tool", {"data": b"abc", "mode": 0o4755, "uid": 7, "gid": 8}),
        ("./bin/same", {"type": tarfile.LNKTYPE, "linkname": "./bin/tool"}),
        ("./dev/console", {"type": tarfile.CHRTYPE, "devmajor": 5, "devminor": 1, "mode": 0o600}),
        ("./cap", {"pax_headers": {"SCHILY.xattr.security.capability": value.decode("utf-8", "surrogateescape")}}),
    )
    found = read_tar(archive).by_path()
    assert sorted(found) == ["", "bin", "bin/same", "bin/tool", "cap", "dev", "dev/console"]
    tool = found["bin/tool"]
    assert (tool.uid, tool.gid, stat.S_IMODE(tool.mode), tool.size_bytes) == (7, 8, 0o4755, 3)
    assert isinstance(tool.content, TarContent)
    assert found["bin/same"].hardlink == "bin/tool" and found["bin/same"].uid == 7
    assert found["dev/console"].rdev == (5, 1)
    assert found["cap"].xattrs == (("security.capability", value),)
    assert stat.S_IMODE(found[""].mode) == 0o750


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((("/etc/x", {}),), "not absolute"),
        ((("a/../../x", {}),), "without '..'"),
        ((("l", {"type": tarfile.SYMTYPE, "linkname": "/etc"}), ("l/x", {})), "lies below l, which is a symbolic link to /etc"),
        ((("f", {}), ("f/x", {})), "lies below f, which is not a folder"),
        ((("h", {"type": tarfile.LNKTYPE, "linkname": "missing"}),), "is a hard link to missing, which is no earlier file"),
        ((("h", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),), "not absolute"),
        ((("h", {"type": tarfile.LNKTYPE, "linkname": "h"}),), "which is no earlier file"),
        ((("s", {"type": tarfile.SYMTYPE, "linkname": "x"}), ("h", {"type": tarfile.LNKTYPE, "linkname": "s"})), "no earlier file"),
        ((("d/x", {}), ("d", {})), "would replace a folder"),
        ((("d", {}), ("d", {"type": tarfile.DIRTYPE})), "would replace something else by a folder"),
        ((("t", {"type": b"Z"}),), "unknown type"),
        ((("n" * 256, {}),), "longer than 255 bytes"),
        ((), "empty tar"),
    ],
)
def test_unsafe_tar_is_refused(tmp_path: Path, members: tuple[tuple[str, dict[str, object]], ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_tar(a_tar(tmp_path, *members))


def test_later_member_replaces_an_earlier_one_and_links_keep_the_old_content(tmp_path: Path) -> None:
    archive = a_tar(tmp_path, ("a", {"data": b"old"}), ("b", {"type": tarfile.LNKTYPE, "linkname": "a"}), ("a", {"data": b"newer"}))
    found = read_tar(archive).by_path()
    assert found["a"].size_bytes == 5 and not found["b"].hardlink and found["b"].size_bytes == 3


def test_truncated_tar_is_an_error(tmp_path: Path) -> None:
    archive = a_tar(tmp_path, ("a", {"data": bytes(5000)}), ("b", {"data": b"x"}))
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot be read as a tar archive"):
        read_tar(archive)


BASE = Rootfs(
    (
        Entry.folder(""),
        Entry.folder("etc"),
        Entry.file("etc/x", b"1"),
        Entry.link("lib", "usr/lib"),
        Entry.folder("usr"),
        Entry.folder("usr/lib"),
    )
)


def test_addition_goes_through_links_inside_the_root() -> None:
    found = add(BASE, [Entry.file("lib/modules/6.12/a.ko", b"ko")]).by_path()
    assert found["usr/lib/modules/6.12/a.ko"].content == b"ko" and "lib/modules" not in found
    assert found["lib"].target == "usr/lib"


def test_addition_replaces_a_file_and_makes_folders() -> None:
    found = add(BASE, [Entry.file("etc/x", b"2", mode=0o600), Entry.file("new/deep/y", b"")]).by_path()
    assert found["etc/x"].content == b"2" and stat.S_IMODE(found["etc/x"].mode) == 0o600
    assert found["new"].is_folder and found["new/deep"].is_folder


@pytest.mark.parametrize("path", ["/etc/x", "../x", "etc//x", "./x", "", "etc/x/y", "etc"])
def test_addition_outside_or_in_the_way_is_refused(path: str) -> None:
    with pytest.raises(InputError):
        add(BASE, [Entry.file(path, b"")])


def test_absolute_link_stays_inside_the_root() -> None:
    base = add(BASE, [Entry.link("out", "/../../etc")])
    assert "etc/y" in add(base, [Entry.file("out/y", b"")]).by_path()


def test_circle_of_links_is_an_error() -> None:
    base = add(BASE, [Entry.link("a", "b"), Entry.link("b", "a")])
    with pytest.raises(InputError, match="circle"):
        add(base, [Entry.file("a/x", b"")])


def test_later_rule_wins_and_hard_links_change_together() -> None:
    base = add(BASE, [Entry("etc/y", stat.S_IFREG | 0o644, hardlink="etc/x")])
    found = apply_rules(base, [PathRule("/etc/*", 1, 2, 0o600), PathRule("/etc/y", uid=9)]).by_path()
    assert (found["etc/x"].uid, found["etc/x"].gid, stat.S_IMODE(found["etc/x"].mode)) == (9, 2, 0o600)
    assert (found["etc/y"].uid, found["etc"].uid) == (9, 0)


def test_rule_keeps_the_mode_of_a_link() -> None:
    found = apply_rules(BASE, [PathRule("/lib", 1, 1, 0o600)]).by_path()["lib"]
    assert found.mode == stat.S_IFLNK | 0o777 and found.uid == 1


def test_rule_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="matches no path"):
        apply_rules(BASE, [PathRule("/etc/missing", 1, 1)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    (tmp_path / "f").chmod(0)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        read_folder(tmp_path)
