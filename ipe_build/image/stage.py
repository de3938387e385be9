"""A root filesystem laid out in a scratch folder, with the fakeroot database that says what each file stands for."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ipe_build.errors import InputError
from ipe_build.image.rootfs import Content, Entry, Rootfs, TarContent

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stage:
    """The folder to make a filesystem from. `prefix` are the words before a maker's absolute path: fakeroot with our database."""

    folder: Path
    prefix: tuple[str | Path, ...]
    rootfs: Rootfs


def stage(rootfs: Rootfs, scratch: Path, epoch: int) -> Stage:
    """Returns the root filesystem laid out below `scratch`: contents as ordinary files, all times `epoch`.

    Owners, modes, devices and extended attributes are told to fakeroot only, so no privilege is needed.
    Raises: InputError for content that cannot be read.
    """
    folder = scratch / "root"
    folder.mkdir(mode=0o700)
    with ExitStack() as stack:
        archives: dict[Path, tarfile.TarFile] = {}
        for entry in sorted(rootfs.entries, key=lambda entry: bool(entry.hardlink)):
            place = folder / entry.path if entry.path else folder
            _lay(entry, place, folder, archives, stack)
    for entry in reversed(rootfs.entries):
        os.utime(folder / entry.path, (epoch, epoch), follow_symlinks=False)
    database = scratch / "fakeroot"
    database.write_text("".join(_database_line(entry, (folder / entry.path).lstat()) for entry in rootfs.entries))
    return Stage(folder, ("fakeroot", "-i", database, "--", *_xattr_setter(rootfs, folder, scratch)), rootfs)


def _xattr_setter(rootfs: Rootfs, folder: Path, scratch: Path) -> tuple[str | Path, ...]:
    """Returns the words that run `set_xattrs` before the maker; none where there is nothing to set."""
    rows = [
        (str(folder / entry.path), name, value.hex())
        for entry in rootfs.entries
        for name, value in (() if entry.hardlink else entry.xattrs)
    ]
    if not rows:
        return ()
    table = scratch / "xattrs.json"
    table.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8", errors="surrogateescape")
    return (sys.executable, "-I", "-S", Path(__file__).with_name("set_xattrs.py"), table)


def _lay(entry: Entry, place: Path, folder: Path, archives: dict[Path, tarfile.TarFile], stack: ExitStack) -> None:
    """Makes one file, folder or link; anything special becomes an empty file."""
    if entry.is_folder:
        if entry.path:
            place.mkdir(mode=0o700)
    elif entry.target:
        place.symlink_to(entry.target)
    elif entry.hardlink:
        os.link(folder / entry.hardlink, place, follow_symlinks=False)
    else:
        _write(entry.content, place, archives, stack)


def _write(content: Content, place: Path, archives: dict[Path, tarfile.TarFile], stack: ExitStack) -> None:
    """Writes a file's content, streamed."""
    if isinstance(content, bytes):
        place.write_bytes(content)
    elif isinstance(content, TarContent):
        if content.archive not in archives:
            archives[content.archive] = stack.enter_context(tarfile.TarFile(content.archive))
        try:
            source = archives[content.archive].extractfile(content.member)
            assert source is not None
            with source, place.open("wb") as sink:
                shutil.copyfileobj(source, sink, _COPY_BYTES)
        except tarfile.TarError as error:
            raise InputError(f"cannot be read: {error}", where=f"{content.archive}: member {content.member.name}") from error
        if place.stat().st_size != content.member.size:
            raise InputError("the archive ends in the middle of it", where=f"{content.archive}: member {content.member.name}")
    else:
        try:
            source_file = content.open("rb")
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(content)) from error
        with source_file, place.open("wb") as sink:
            shutil.copyfileobj(source_file, sink, _COPY_BYTES)


def _database_line(entry: Entry, status: os.stat_result) -> str:
    """Returns fakeroot's record for one inode (faked.cc: dev hex, ino, mode octal, owners, links, device number)."""
    is_device = stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode)
    rdev = os.makedev(*entry.rdev) if is_device else 0
    owner = f"mode={entry.mode:o},uid={entry.uid},gid={entry.gid}"
    return f"dev={status.st_dev:x},ino={status.st_ino},{owner},nlink={status.st_nlink},rdev={rdev}\n"
