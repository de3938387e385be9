"""What updaters take: RAUC's and SWUpdate's configuration for the two slots, and bundles of one disk image's slot.

A slot's four partitions are raw images. Nothing in a bundle is a program: IPE would deny it, since a bundle is no trusted volume; what has
to run (`ipe-slot`) lies on the verity root.
Sources: RAUC reference (system.conf, manifest); SWUpdate, "Software Description"; cpio "newc" with checksums for .swu.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple
from urllib.parse import unquote

from ipe_build.errors import InputError, SigningKeyError
from ipe_build.formats.cms import Layout
from ipe_build.image.disk import Disk
from ipe_build.image.flash import open_image, sha256_of, write_partition
from ipe_build.image.slots import role_of
from ipe_build.image.templates import render_file
from ipe_build.image.used import used_areas, within
from ipe_build.signing.algorithms import algorithm_of
from ipe_build.signing.envelopes import CmsEnvelope
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host

BOOTLOADERS = ("efi", "uboot", "barebox", "grub", "noop")
_SLOT_NAMES = {"esp": "esp", "root": "root", "root-verity": "verity", "root-verity-sig": "signature"}
"""Partition role to the name of RAUC's slot class."""
_SWU_LIMIT = 0xFFFFFFFF
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """What the device and its bundles agree on. Paths are the device's; `devices` is the folder with the partitions by name.

    `hardware` is SWUpdate's hardware-compatibility: the revisions, one of which the device's /etc/hwrevision says (see `hardware_file`).
    """

    compatible: str
    version: str
    bootloader: str = "efi"
    devices: str = "/dev/disk/by-partlabel"
    state: str = "/var/lib/rauc"
    keyring: str = "/etc/rauc/keyring.pem"
    hardware: tuple[str, ...] = ("1.0",)

    def __post_init__(self) -> None:
        words = [(name, getattr(self, name)) for name in ("compatible", "version", "devices", "state", "keyring")]
        for name, value in (*words, *(("hardware", one) for one in self.hardware or ("",))):
            if not re.fullmatch(r"[A-Za-z0-9._/:+-]+", value):
                raise InputError(f"wanted letters, digits and ._/:+-, got {value!r}", where=f"update: {name}")
        if self.bootloader not in BOOTLOADERS:
            raise InputError(f"wanted one of {', '.join(BOOTLOADERS)}, got {self.bootloader!r}", where="update: bootloader")


class SlotImage(NamedTuple):
    """One raw image of a bundle: RAUC's slot class, the partition's name without the slot, its file, SHA-256 in hex."""

    role: str
    label: str
    file: str
    sha256: str


class DeviceFile(NamedTuple):
    """A file of the device's root: path without leading slash, text, mode."""

    path: str
    text: str
    mode: int


def system_conf(settings: UpdateSettings) -> str:
    """Returns RAUC's /etc/rauc/system.conf for the two slots."""
    return render_file("rauc-system.conf.j2", **_values(settings))


def hardware_file(settings: UpdateSettings) -> str:
    """Returns /etc/hwrevision: the board's name and its revision, which SWUpdate compares with the description's."""
    return f"{settings.compatible} {settings.hardware[0]}\n"


def slot_program() -> str:
    """Returns /usr/lib/ipe/ipe-slot: a POSIX shell script for the device, which needs sfdisk."""
    return render_file("ipe-slot.sh.j2")


def device_files(settings: UpdateSettings) -> tuple[DeviceFile, ...]:
    """Returns the files that the device's root needs for A/B updates."""
    return (
        DeviceFile("usr/lib/ipe/ipe-slot", slot_program(), 0o755),
        DeviceFile("etc/rauc/system.conf", system_conf(settings), 0o644),
        DeviceFile("etc/hwrevision", hardware_file(settings), 0o644),
    )


def write_update_folder(disk: Disk, settings: UpdateSettings, folder: Path) -> tuple[SlotImage, ...]:
    """Returns the slot's images, written to `folder` with `manifest.raucm` (so it is what `rauc bundle` takes), `sw-description` beside.

    The images are those of the first slot of the disk, or of the only one.
    Raises: InputError when the disk has no signed verity root or no EFI system partition.
    """
    images: list[SlotImage] = []
    with open_image(disk.path) as read_at:
        areas = used_areas(disk.table, read_at)
        for partition in (disk.esp, disk.root, disk.root_verity, disk.root_verity_sig):
            if partition is None:
                raise InputError(
                    "wanted an EFI system partition, a root, its hash tree and its signature: one is missing", where=str(disk.path)
                )
            label = role_of(partition)
            file = folder / f"{label}.img"
            with file.open("wb") as handle:
                write_partition(handle, partition, within(areas, partition), read_at)
            images.append(SlotImage(_SLOT_NAMES[label], label, file.name, sha256_of(file)))
    manifest = render_file("rauc-manifest.raucm.j2", images=[(one.role, one.file) for one in images], **_values(settings))
    (folder / "manifest.raucm").write_text(manifest, encoding="utf-8")
    (folder / "sw-description").write_text(sw_description(settings, tuple(images)), encoding="utf-8")
    return tuple(images)


def sw_description(settings: UpdateSettings, images: tuple[SlotImage, ...]) -> str:
    """Returns SWUpdate's description: the sets `stable,a` and `stable,b`, each image written raw and checked by its SHA-256."""
    hardware = ", ".join(f'"{one}"' for one in settings.hardware)
    return render_file("sw-description.j2", **{**_values(settings), "images": [one._asdict() for one in images], "hardware": hardware})


def make_rauc_bundle(disk: Disk, settings: UpdateSettings, key: str, certificate: Path, out: Path, host: Host, *, force: bool) -> None:
    """Makes a RAUC bundle of format verity at `out`. `key` is a URI that RAUC can use itself: `file:PATH` or `pkcs11:…`.

    Its bytes differ each time: RAUC salts the bundle's hash tree and signs the time.
    Raises: SigningKeyError, ToolMissingError, ToolFailedError.
    """
    named, env = _rauc_key(key, host)
    with host.scratch(beside=out.absolute()) as scratch, host.output(out, force=force) as temporary:
        content = scratch / "content"
        content.mkdir()
        write_update_folder(disk, settings, content)
        (content / "sw-description").unlink()
        made = scratch / "bundle.raucb"
        host.run(["rauc", "bundle", f"--cert={certificate}", f"--key={named}", content, made], env=env)
        made.rename(temporary)


def _rauc_key(key: str, host: Host) -> tuple[str, dict[str, str]]:
    """Returns the key as RAUC names it (a path or the PKCS#11 URI), and the variables that it reads module and PIN from."""
    scheme, _, rest = key.partition(":")
    if scheme == "pkcs11":
        return key, {name: host.env[name] for name in ("RAUC_PKCS11_MODULE", "RAUC_PKCS11_PIN") if name in host.env}
    if scheme != "file" or "?" in rest:
        raise SigningKeyError(
            f"RAUC signs with pkcs11: keys and with file: keys that have no passphrase, got {scheme}:",
            where="RAUC bundle: key",
            hint="the PIN of a pkcs11: key comes from RAUC_PKCS11_PIN",
        )
    return unquote(rest), {}


def make_swupdate_image(disk: Disk, settings: UpdateSettings, signer: Signer, out: Path, host: Host, *, force: bool) -> None:
    """Makes a .swu at `out`: cpio of the signed description and the images, the same bytes from the same inputs.

    The description's signature is a detached CMS (`swupdate -k CERTIFICATE`). Raises: InputError for an image of 4 GiB or more.
    """
    with host.scratch(beside=out.absolute()) as folder, host.output(out, force=force) as temporary:
        images = write_update_folder(disk, settings, folder)
        description = (folder / "sw-description").read_bytes()
        digest = algorithm_of(public_key_of(signer.certificate)).digests[0]
        signature = CmsEnvelope(Layout.SMIME, attached=False, certificates=True).seal(description, signer, digest)
        (folder / "sw-description.sig").write_bytes(signature)
        with temporary.open("wb") as archive:
            for number, name in enumerate(("sw-description", "sw-description.sig", *(one.file for one in images)), 1):
                _add_member(archive, folder / name, number)
            _add_header(archive, "TRAILER!!!", 0, 0, 0, mode=0)
            archive.write(bytes(-archive.tell() % 512))


def _values(settings: UpdateSettings) -> dict[str, object]:
    """Returns the settings as the templates' variables."""
    names = ("compatible", "version", "bootloader", "devices", "state", "keyring")
    return {name: getattr(settings, name) for name in names}


def _add_member(archive: BinaryIO, file: Path, ino: int) -> None:
    """Adds a file; its checksum is the sum of its bytes, mod 2^32."""
    size = file.stat().st_size
    if size > _SWU_LIMIT:
        raise InputError(f"has {size} bytes, a .swu holds files below 4 GiB", where=str(file), hint="use RAUC")
    checksum = sum(sum(piece) for piece in _pieces(file))
    _add_header(archive, file.name, size, checksum & _SWU_LIMIT, ino)
    for piece in _pieces(file):
        archive.write(piece)
    archive.write(bytes(-archive.tell() % 4))


def _pieces(file: Path) -> Iterator[bytes]:
    """Yields a file's content, at most 1 MiB at a time."""
    with file.open("rb") as handle:
        while piece := handle.read(_CHUNK_BYTES):
            yield piece


def _add_header(archive: BinaryIO, name: str, size: int, checksum: int, ino: int, *, mode: int = 0o100644) -> None:
    """Writes a header of the kind "crc" (070702) and the name, padded to four bytes."""
    raw = name.encode() + b"\0"
    fields = (ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(raw), checksum)
    archive.write(b"070702" + b"".join(b"%08X" % field for field in fields) + raw)
    archive.write(bytes(-archive.tell() % 4))
