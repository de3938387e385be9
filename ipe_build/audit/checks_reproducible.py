"""Notes on reproducibility: what in the image looks as if a second build of the same sources gave other bytes.

One image alone cannot prove that a build is reproducible; these say what is there that usually is not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.formats.filesystem import FilesystemKind, filesystem_kind

if TYPE_CHECKING:
    from ipe_build.host import Host

_CLAMPED = 0.5
"""From this share of files on, the latest time is taken for one that all later ones were set to (SOURCE_DATE_EPOCH)."""
_BANNER = re.compile(r"Linux version \S+ \(([^()\s]+)@([^()\s]+)\).* #\d+ (.*)")
_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +(\d+) (\d\d):(\d\d):(\d\d) \S+ (\d{4})"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_UUID_AT = {FilesystemKind.EROFS: 1024 + 48, FilesystemKind.EXT4: 1024 + 104}
_FAT_LEAP = ("1980-01-01", "1980-00-00", "2107-12-31")
"""What FAT says of files whose time was before it begins, was never set, or is after it ends."""


def _shown(seconds: int) -> str:
    """Returns a time as a person reads it; the number where there is no such year."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"second {seconds}"


def _times(subject: str, times: Iterable[int]) -> Outcome:
    """Returns whether times of files are one, or were all set to one that none is after."""
    found = Counter(times)
    if not found:
        return good(subject, "there is no file with a time")
    latest = max(found)
    share = found[latest] / found.total()
    if len(found) == 1:
        return good(subject, f"all {found.total()} files say {_shown(latest)}")
    if share >= _CLAMPED:
        return good(subject, f"no file is after {_shown(latest)}, which {found[latest]} of {found.total()} say: a bound that was set")
    return bad(subject, f"{len(found)} different times, {_shown(min(found))} to {_shown(latest)}: most likely when the files were made")


def initramfs_times(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the members of the initramfs have one time (SOURCE_DATE_EPOCH), or those of the hour they were packed."""
    if facts.initramfs is None:
        yield unknown("initramfs", "there is none that could be read")
    else:
        yield _times("initramfs", (one.mtime for one in facts.initramfs))


def root_times(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the files of the root have one time, or a latest one that was set (SOURCE_DATE_EPOCH)."""
    if facts.files is None:
        yield unknown("root filesystem", "it could not be read")
    else:
        yield _times("root filesystem", (one.mtime for one in facts.files.tree if one.mtime is not None))


def esp_times(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the files of the EFI system partition have one time."""
    if facts.esp is None:
        yield (
            good("EFI system partition", "there is none")
            if facts.table is None and "EFI system partition" not in facts.unreadable
            else unknown("EFI system partition", "it could not be read")
        )
        return
    found = Counter("{:04}-{:02}-{:02} {:02}:{:02}:{:02}".format(*one) for one in facts.esp.times.values())
    if len(found) > 1 and any(not one.startswith(_FAT_LEAP) for one in found):
        yield bad("EFI system partition", f"{len(found)} different times, {min(found)} to {max(found)}")
    else:
        yield good("EFI system partition", f"all {found.total()} files say {next(iter(found), 'nothing')}")


def kernel_banner(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel names who built it and when: KBUILD_BUILD_USER, _HOST and _TIMESTAMP fix that."""
    if facts.kernel is None or not facts.kernel.banner:
        yield unknown("kernel", "its banner could not be read")
        return
    banner = _BANNER.search(facts.kernel.banner)
    if banner is None:
        yield good("kernel", "its banner names nobody")
        return
    user, machine, rest = banner.groups()
    date = _DATE.search(rest)
    if date is None:
        yield good("kernel", f"built by {user}@{machine}, no date of the build")
        return
    month, day, *clock, year = date.groups()
    said = f"{year}-{_MONTHS.index(month) + 1:02}-{int(day):02} {':'.join(clock)}"
    others = {_shown(one.mtime) for one in facts.initramfs or ()}
    if said in others or said.endswith("00:00:00"):
        yield good("kernel", f"built by {user}@{machine}; its date, {said}, is one that was set")
    else:
        yield bad("kernel", f"built by {user}@{machine} on {said}: a second build says another time")


def identifiers(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether UUIDs of disk and root filesystem are random ones (version 4): a second build would draw others."""
    region = facts.root.data_region if facts.root is not None else None
    rows: list[tuple[str, UUID]] = [("disk", facts.table.disk_uuid)] if facts.table is not None else []
    head = region.read(0, 2048) if region is not None else b""
    at = _UUID_AT.get(kind) if (kind := filesystem_kind(head)) is not None else None
    if at is not None and len(head) >= at + 16:
        rows.append(("root filesystem", UUID(bytes=head[at : at + 16])))
    if not rows:
        yield (
            good("UUIDs", "there are none of a disk or filesystem") if region is not None else unknown("UUIDs", "there is no disk or root")
        )
    for name, value in rows:
        if value.version == 4:
            yield bad(name, f"{value} is a random UUID, unless somebody fixed it")
        else:
            yield good(name, f"{value} is no random UUID")
