"""A root filesystem as a value: its entries, read from a folder or a tar, with owners, modes and additions as asked.

Nothing is extracted here and nothing in the source is changed: an entry says where its content is.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ipe_build.errors import InputError

KEPT_XATTRS = ("security.capability", "security.evm", "security.ima")
"""Extended attributes taken from a folder; others (SELinux labels, ACLs) belong to the machine the build runs on."""
_MAX_LINKS = 40
_PAX_XATTR = "SCHILY.xattr."


@dataclass(frozen=True, slots=True)
class TarContent:
    """A file's content inside an uncompressed tar."""

    archive: Path
    member: tarfile.TarInfo


Content = bytes | Path | TarContent


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a root filesystem, and also what an addition is: `Entry.file("etc/ipe/ipe-policy.p7b", data)`.

    `path` has no leading slash; the root itself is "". `mode` holds type and permissions like stat's st_mode.
    `hardlink` names the entry (an ordinary file) that this one shares its content with.
    """

    path: str
    mode: int
    content: Content = b""
    uid: int = 0
    gid: int = 0
    target: str = ""
    rdev: tuple[int, int] = (0, 0)
    hardlink: str = ""
    xattrs: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def file(cls, path: str, content: Content, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
        """Returns an ordinary file."""
        return cls(path, stat.S_IFREG | mode, content, uid, gid)

    @classmethod
    def folder(cls, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
        """Returns a folder."""
        return cls(path, stat.S_IFDIR | mode, b"", uid, gid)

    @classmethod
    def link(cls, path: str, target: str) -> Entry:
        """Returns a symbolic link."""
        return cls(path, stat.S_IFLNK | 0o777, target=target)

    @classmethod
    def character_device(cls, path: str, major: int, minor: int, *, mode: int = 0o600) -> Entry:
        """Returns a character device."""
        return cls(path, stat.S_IFCHR | mode, rdev=(major, minor))

    @property
    def is_folder(self) -> bool:
        """Returns whether this is a folder."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Returns whether this is an ordinary file."""
        return stat.S_ISREG(self.mode)

    @property
    def inode_path(self) -> str:
        """Returns the path that stands for the inode: all hard links to one file have the same."""
        return self.hardlink or self.path

    @property
    def size_bytes(self) -> int:
        """Returns the content's length in bytes (0 for anything but a file)."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size if isinstance(self.content, Path) else self.content.member.size


@dataclass(frozen=True, slots=True)
class PathRule:
    """Owner and permissions of every path that `pattern` matches (`/etc/shadow`, `/home/*`; `*` also matches `/`). None: as it was."""

    pattern: str
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Rootfs:
    """A root filesystem: entries by path, each after its folder, sorted; the first is the root folder ""."""

    entries: tuple[Entry, ...]

    def by_path(self) -> Mapping[str, Entry]:
        """Returns the entries by their path."""
        return MappingProxyType({entry.path: entry for entry in self.entries})

    def without_xattrs(self) -> Rootfs:
        """Returns the same without extended attributes."""
        return Rootfs(tuple(replace(entry, xattrs=()) for entry in self.entries))


def read_folder(folder: Path, *, keep_owners: bool = False) -> Rootfs:
    """Returns the root filesystem in a folder; symbolic links in it are not followed (`folder` itself may be one), hard links are kept.

    Owners are 0:0 unless `keep_owners`, and the root's mode is 0755, so the user who builds does not leak into the image.
    Sockets are left out.
    Raises: InputError for a folder or file that cannot be read.
    """
    entries: list[Entry] = []
    first_names: dict[tuple[int, int], str] = {}
    for path, place in _walk(folder.resolve()):
        entry = _of_stat(path, place, keep_owners=keep_owners)
        if entry is None:
            continue
        status = place.lstat()
        if entry.is_file and status.st_nlink > 1:
            first = first_names.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                entry = replace(entry, hardlink=first, content=b"", xattrs=())
        entries.append(entry if path else replace(entry, mode=stat.S_IFDIR | 0o755))
    return sorted_rootfs(entries)


def read_tar(archive: Path, *, keep_owners: bool = True) -> Rootfs:
    """Returns the root filesystem in an uncompressed tar. A later member replaces an earlier one of the same path.

    Raises: InputError for a member that is absolute, has "..", lies below a symbolic link or a file, or is a hard link to
    nothing; such archives could write outside of the root or mean different things to different programs.
    """
    found: dict[str, Entry] = {"": Entry.folder("")}
    try:
        with tarfile.open(archive, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                entry = _of_member(archive, member, keep_owners=keep_owners)
                _place(found, entry, f"{archive}: member {member.name}")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"cannot be read as a tar archive: {error}", where=str(archive)) from error
    if len(found) == 1:
        raise InputError("is an empty tar archive", where=str(archive))
    return sorted_rootfs(found.values())


def add(rootfs: Rootfs, additions: Sequence[Entry]) -> Rootfs:
    """Returns the root filesystem with the additions in it; an addition replaces what had its path.

    Symbolic links in its folder's path are followed inside the root: `lib/modules` lands in `usr/lib/modules` where `lib` is a link.

    Raises: InputError for a path outside the root, a folder replaced by something else, a folder that is a file.
    """
    found = {entry.path: entry for entry in rootfs.entries}
    for addition in additions:
        parent, _, name = addition.path.rpartition("/")
        checked = clean_path(addition.path, f"addition {addition.path}")
        if checked != addition.path or not name:
            raise InputError("wanted a path without '.', empty parts or a leading slash", where=f"addition {addition.path}")
        folder = _resolve(found, parent)
        _place(found, replace(addition, path=f"{folder}/{name}" if folder else name), f"addition {addition.path}")
    return sorted_rootfs(found.values())


def apply_rules(rootfs: Rootfs, rules: Sequence[PathRule]) -> Rootfs:
    """Returns the root filesystem with owners and permissions as the rules say; a later rule wins.

    Raises: InputError for a rule that matches nothing (a misspelled path would otherwise leave an owner as it was).
    """
    entries = list(rootfs.entries)
    for rule in rules:
        hits = {entry.inode_path for entry in entries if fnmatch.fnmatchcase(f"/{entry.path}", rule.pattern)}
        if not hits:
            raise InputError("matches no path of the root filesystem", where=f"rule {rule.pattern}", hint="patterns begin with /")
        entries = [_ruled(entry, rule) if entry.inode_path in hits else entry for entry in entries]
    return Rootfs(tuple(entries))


def clean_path(name: str, where: str) -> str:
    """Returns `name` without "./" and a final slash. Raises: InputError for an absolute name, "..", NUL."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise InputError("wanted a path inside the root: not absolute, without '..'", where=where)
    if any(len(os.fsencode(part)) > 255 for part in parts):
        raise InputError("a part of the path is longer than 255 bytes", where=where)
    return "/".join(parts)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields every path below the folder, and "" for itself, each folder before what is in it."""
    pending: list[tuple[str, Path]] = [("", folder)]
    while pending:
        path, place = pending.pop()
        yield path, place
        if not place.is_symlink() and place.is_dir():
            try:
                names = sorted((child.name for child in place.iterdir()), reverse=True)
            except OSError as error:
                raise InputError(f"cannot be read: {error.strerror}", where=str(place)) from error
            pending += [(f"{path}/{name}" if path else name, place / name) for name in names]


def _of_stat(path: str, place: Path, *, keep_owners: bool) -> Entry | None:
    """Returns the entry for a file of the machine; None for a socket."""
    status = place.lstat()
    if stat.S_ISSOCK(status.st_mode):
        return None
    if stat.S_ISREG(status.st_mode) and not os.access(place, os.R_OK):
        raise InputError("cannot be read: Permission denied", where=str(place))
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return Entry(
        path,
        status.st_mode,
        place if stat.S_ISREG(status.st_mode) else b"",
        status.st_uid if keep_owners else 0,
        status.st_gid if keep_owners else 0,
        target=os.readlink(place) if stat.S_ISLNK(status.st_mode) else "",  # noqa: PTH115 - Path would change "./x" and "x/"
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        xattrs=_xattrs_of(place) if stat.S_ISREG(status.st_mode) else (),
    )


def _xattrs_of(place: Path) -> tuple[tuple[str, bytes], ...]:
    """Returns the extended attributes worth keeping."""
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError:
        return ()
    return tuple((name, os.getxattr(place, name, follow_symlinks=False)) for name in sorted(names) if name in KEPT_XATTRS)


_TAR_TYPES: dict[bytes, int] = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def _of_member(archive: Path, member: tarfile.TarInfo, *, keep_owners: bool) -> Entry:
    """Returns the entry for a member of a tar."""
    where = f"{archive}: member {member.name}"
    kind = _TAR_TYPES.get(member.type)
    if kind is None:
        raise InputError(f"has the unknown type {member.type!r}", where=where)
    if member.uid < 0 or member.gid < 0 or member.size < 0:
        raise InputError("has a negative owner or size", where=where)
    if member.issym() and not member.linkname:
        raise InputError("is a symbolic link to nothing", where=where)
    headers = member.pax_headers.items()
    xattrs = (
        (key.removeprefix(_PAX_XATTR), text.encode("utf-8", "surrogateescape")) for key, text in headers if key.startswith(_PAX_XATTR)
    )
    is_file = kind == stat.S_IFREG and not member.islnk()
    return Entry(
        clean_path(member.name, where),
        kind | (member.mode & 0o7777),
        TarContent(archive, member) if is_file else b"",
        member.uid if keep_owners else 0,
        member.gid if keep_owners else 0,
        target=member.linkname if member.issym() else "",
        rdev=(member.devmajor, member.devminor) if member.isdev() and not member.isfifo() else (0, 0),
        hardlink=clean_path(member.linkname, where) if member.islnk() else "",
        xattrs=tuple(sorted(xattrs)),
    )


def _place(found: dict[str, Entry], entry: Entry, where: str) -> None:
    """Puts the entry into `found`; missing folders above it are made (0755, root)."""
    parts = entry.path.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        parent = "/".join(parts[:depth])
        above = found.setdefault(parent, Entry.folder(parent))
        if not above.is_folder:
            kind = f"a symbolic link to {above.target}" if above.target else "not a folder"
            raise InputError(f"lies below {parent}, which is {kind}", where=where)
    before = found.get(entry.path)
    if before is not None and before.is_folder and not entry.is_folder:
        raise InputError("would replace a folder by something else", where=where)
    if before is not None and entry.is_folder and not before.is_folder:
        raise InputError("would replace something else by a folder", where=where)
    if entry.hardlink:
        first = found.get(entry.hardlink)
        if first is None or not first.is_file or entry.hardlink == entry.path:
            raise InputError(f"is a hard link to {entry.hardlink}, which is no earlier file", where=where)
        entry = replace(first, path=entry.path, hardlink=first.hardlink or first.path, content=b"", xattrs=())
    if before is not None and before.is_file:
        _pass_on_content(found, before)
    found[entry.path] = entry


def _pass_on_content(found: dict[str, Entry], replaced: Entry) -> None:
    """Lets another name keep the content of an entry that is about to be replaced and that other names are hard links to."""
    heirs = sorted(path for path, entry in found.items() if entry.hardlink == replaced.path)
    for heir in heirs:
        if heir == heirs[0]:
            found[heir] = replace(replaced, path=heir)
        else:
            found[heir] = replace(found[heir], hardlink=heirs[0])


def _resolve(found: Mapping[str, Entry], path: str) -> str:
    """Returns the folder that `path` means inside the root, symbolic links followed as a chroot would."""
    pending = [part for part in path.split("/") if part]
    here: list[str] = []
    links = 0
    while pending:
        part = pending.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            here = here[:-1]
            continue
        entry = found.get("/".join([*here, part]))
        if entry is not None and entry.target:
            links += 1
            if links > _MAX_LINKS:
                raise InputError("symbolic links form a circle", where=f"root filesystem: /{path}")
            here = [] if entry.target.startswith("/") else here
            pending = entry.target.split("/") + pending
            continue
        here.append(part)
    return "/".join(here)


def _ruled(entry: Entry, rule: PathRule) -> Entry:
    """Returns the entry as the rule says; a symbolic link has no permissions of its own."""
    permissions = entry.mode & 0o7777 if rule.mode is None or entry.target else rule.mode
    return replace(
        entry,
        uid=entry.uid if rule.uid is None else rule.uid,
        gid=entry.gid if rule.gid is None else rule.gid,
        mode=stat.S_IFMT(entry.mode) | permissions,
    )


def sorted_rootfs(entries: Iterable[Entry]) -> Rootfs:
    """Returns the entries sorted by the parts of their paths, so that a folder comes before what is in it."""
    ordered = sorted(entries, key=lambda entry: entry.path.split("/"))
    return Rootfs(tuple(ordered))
