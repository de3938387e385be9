"""THE table of boots under Secure Boot: the signed image, and copies of it whose unified kernel image is another file.

Also how the probes are started where the kernel has its keys from the firmware: by a UKI with the probes' command line, signed by the
same key.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509

from ipe_build.boot.damage import Damage
from ipe_build.boot.entry import BootEntry, find_partition, read_table
from ipe_build.boot.evidence import BootResult
from ipe_build.boot.judge import judge_damage, skipped_damage
from ipe_build.boot.qemu import Firmware, Machine, boot
from ipe_build.boot.secure_boot import REFUSED, secure_firmware
from ipe_build.errors import InputError
from ipe_build.formats.partition_types import EFI_SYSTEM
from ipe_build.formats.pe import parse_pe
from ipe_build.formats.uki import with_command_line
from ipe_build.signing.authenticode import unsigned
from ipe_build.signing.efi_image import sign_image
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host

_PIECE_BYTES = 1 << 20
_REACHED = r"ipe-init: starting /"
_ANY_KERNEL = r"EFI stub:|Linux version|ipe-init:"


@dataclass(frozen=True, slots=True)
class SecureBoot:
    """What is enrolled and who signs. `signer` None: the key is not here, so boots that need another signed UKI are left out.

    `db` are all certificates in firmware's db. `has_keys`: the kernel trusts no certificate of its own for policies and root hashes,
    it takes those of db (its .platform keyring); the probes then run under this firmware.
    """

    db: tuple[x509.Certificate, ...]
    signer: Signer | None
    foreign: Signer | None
    has_keys: bool = False


class _Row(NamedTuple):
    """A boot: what is judged, how the UKI becomes another (None: it stays), and which of db is enrolled (None: all)."""

    damage: Damage
    change: Callable[[bytes, SecureBoot], bytes] | None
    enrolled: Callable[[bytes, SecureBoot], tuple[x509.Certificate, ...]] | None = None
    needs_foreign: bool = False
    needs_keys: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """How the probes' boots begin: this disk, from this firmware."""

    disk: Path
    firmware: Firmware


def probe_start(secure_boot: SecureBoot, entry: BootEntry, command_line: str, disk: Path, folder: Path, host: Host) -> Start:
    """Returns a copy of the disk whose UKI has the probes' command line, signed by the same key; nothing else in it differs.

    Raises: InputError when the image boots no UKI or the key is not here.
    """
    if entry.uki is None:
        raise InputError("its kernel is in no unified kernel image, so the probes' command line cannot be signed", where=str(disk))
    if secure_boot.signer is None:
        raise InputError("the key that signs unified kernel images is not here; the probes need one of their own", where=str(disk))
    signed = sign_image(with_command_line(entry.uki.read_bytes(), command_line, str(entry.uki)), secure_boot.signer)
    copy = folder / "probe-image.raw"
    with_file(disk, entry.name, signed, copy, host)
    return Start(copy, secure_firmware(secure_boot.db, folder, host))


def secure_boots(secure_boot: SecureBoot, entry: BootEntry, disk: Path, machine: Machine, plan: Path, host: Host) -> tuple[BootResult, ...]:
    """Returns what came of each boot of `SECURE_BOOTS`; `plan` is a second disk, as the device's other boots get one.

    Raises: InputError when the image boots no UKI, ToolMissingError, ToolFailedError.
    """
    if entry.uki is None:
        raise InputError("boots no unified kernel image, which Secure Boot could judge", where=str(disk), hint='[disk] boot = "uki"')
    data, stop = entry.uki.read_bytes(), threading.Event()

    def work(row: _Row) -> BootResult:
        reason = _why_left_out(row, secure_boot)
        if reason:
            return skipped_damage(row.damage, reason)
        with host.scratch("ipe-build-secure-boot-") as folder:
            image = disk
            if row.change is not None:
                image = folder / "image.raw"
                with_file(disk, entry.name, row.change(data, secure_boot), image, host)
            db = row.enrolled(data, secure_boot) if row.enrolled is not None else secure_boot.db
            firmware = secure_firmware(db, folder, host)
            done = boot(image, machine, host, firmware=firmware, extra_disk=plan, stop_at=row.damage.proof, cancelled=stop.is_set)
        result = judge_damage(row.damage, done, (), "")
        if row.change is None and row.enrolled is None and not any(_is_on(line) for line in done.console):
            result = replace(result, problems=(*result.problems, "nothing on the console says that Secure Boot is on"))
        host.progress.note(f"{row.damage.id}: {done.ended.value} after {done.seconds:.1f} s")
        return result

    with ThreadPoolExecutor(max_workers=host.jobs) as pool:
        try:
            return tuple(pool.map(work, SECURE_BOOTS))
        except BaseException:
            stop.set()
            raise


def with_file(disk: Path, path: str, data: bytes, out: Path, host: Host) -> None:
    """Writes a copy of a disk image to `out`, in whose EFI system partition the file `path` has this content. Zeros become holes."""
    with disk.open("rb") as source, out.open("wb") as target:
        while piece := source.read(_PIECE_BYTES):
            target.write(piece) if any(piece) else target.seek(len(piece), os.SEEK_CUR)
        target.truncate(source.tell())
    partition = find_partition(read_table(out), (EFI_SYSTEM,), "EFI system", out)
    image = f"{out.resolve()}@@{partition.offset_bytes}"
    host.run(["mcopy", "-o", "-i", image, "-", f"::{path}"], stdin=data, env={"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"})


def _why_left_out(row: _Row, secure_boot: SecureBoot) -> str:
    """Returns why a boot cannot be done, empty when it can."""
    if row.needs_foreign and secure_boot.foreign is None:
        return "no foreign key was given"
    if row.needs_keys and not secure_boot.has_keys:
        return "the kernel has the keys of policies and root hashes built in"
    if row.needs_keys and len(secure_boot.db) < 2:
        return "one key signs everything"
    if row.needs_keys and secure_boot.signer is None:
        return "the key that signs unified kernel images is not here"
    return ""


def _is_on(line: str) -> bool:
    """Returns whether a console line says that Secure Boot is on: the kernel's EFI stub or the kernel itself."""
    return "ecure boot enabled" in line or "Secure Boot is enabled" in line


def _flipped(data: bytes, _secure_boot: SecureBoot) -> bytes:
    """Returns the UKI with one bit in the middle of its kernel flipped."""
    section = parse_pe(data).section(".linux")
    assert section is not None
    at = section.raw_offset + section.virtual_size // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _by_foreign(data: bytes, secure_boot: SecureBoot) -> bytes:
    assert secure_boot.foreign is not None
    return sign_image(data, secure_boot.foreign)


def _only_signer(_data: bytes, secure_boot: SecureBoot) -> tuple[x509.Certificate, ...]:
    """Returns the certificate of the UKI's signer: then it starts, and the kernel knows no key that signs policies."""
    assert secure_boot.signer is not None
    return (secure_boot.signer.certificate,)


def _refused(row_id: str, what: str, why: str) -> Damage:
    return Damage(row_id, what, "firmware refuses to start it", why, None, REFUSED.pattern, never=_ANY_KERNEL, firmware=True)


SECURE_BOOTS: tuple[_Row, ...] = (
    _Row(
        Damage(
            "secure-boot",
            "nothing: firmware with Secure Boot on starts the unchanged image",
            "the image's own first program is started",
            "firmware's db has the certificate that signed the unified kernel image",
            None,
            _REACHED,
            never=r"ipe-init: FATAL|Kernel panic",
            firmware=True,
        ),
        None,
    ),
    _Row(
        _refused("uki-unsigned", "the unified kernel image without its signature", "nothing vouches for it"),
        lambda data, _secure_boot: unsigned(data),
    ),
    _Row(
        _refused("uki-foreign", "the same unified kernel image, signed by a foreign key", "its signer's certificate is not in db"),
        _by_foreign,
        needs_foreign=True,
    ),
    _Row(
        _refused("uki-flipped", "one bit of the kernel in the unified kernel image", "the signature is over another digest"),
        _flipped,
    ),
    _Row(
        Damage(
            "keys-not-enrolled",
            "firmware's db, which has the unified kernel image's signer alone",
            "the root is never mounted",
            "the kernel finds no key in .platform that made the root hash's signature",
            None,
            r"verity: Root hash verification failed \(-ENOKEY\)|ipe-init: FATAL: policy: .* does not trust",
            never=_REACHED,
        ),
        None,
        _only_signer,
        needs_keys=True,
    ),
)
