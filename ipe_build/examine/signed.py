"""What is signed inside of an image, for the rotation of keys: root filesystem, signature partition, boot files, initramfs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ipe_build.audit.facts import ImageFacts, Region
from ipe_build.errors import InputError
from ipe_build.examine import examined
from ipe_build.examine.boot_entries import EspReader
from ipe_build.formats.ima_xattr import SECURITY_EVM, SECURITY_IMA
from ipe_build.formats.partition_types import EFI_SYSTEM
from ipe_build.host import Host
from ipe_build.kernel.rotation import Artefact, artefact_of, attribute_artefact, may_be_signed


def signed_in_image(image: Path, host: Host) -> tuple[Artefact, ...]:
    """Returns the signed things inside of a disk image, a root filesystem image or a unified kernel image; each is called IMAGE:/its/path.

    Raises: InputError when nothing of it can be read; FormatError for a damaged signature.
    """
    with examined(image, host) as facts:
        if (
            facts.files is None
            and facts.esp is None
            and facts.boot_entry is None
            and (facts.root is None or not facts.root.signature_bytes)
        ):
            why = next(iter(facts.unreadable.values()), "holds nothing that we know")
            raise InputError(f"is nothing signed that we know, and no image: {why}", where=str(image))
        return tuple(found for found in _all(image, facts) if found is not None)


def _all(image: Path, facts: ImageFacts) -> Iterator[Artefact | None]:
    """Yields what is signed, and None for what is not."""
    if facts.root is not None and facts.root.signature_bytes:
        yield artefact_of(Path(f"{image}:root-verity-sig"), facts.root.signature_bytes.rstrip(b"\0"))
    for file in facts.files.tree if facts.files is not None else ():
        path = Path(f"{image}:/{file.path}")
        if file.is_file and may_be_signed(path, file.size_bytes):
            yield artefact_of(path, file.read(file.size_bytes))
        for name in (SECURITY_IMA, SECURITY_EVM):
            if name in file.xattrs:
                yield attribute_artefact(path, name, file.xattrs[name])
    yield from _boot_files(image, facts)
    for view in facts.views():
        for entry in view.initramfs or ():
            path = Path(f"{image}:{view.entry_name}:initramfs/{entry.path}")
            if may_be_signed(path, len(entry.data)):
                yield artefact_of(path, entry.data)


def _boot_files(image: Path, facts: ImageFacts) -> Iterator[Artefact | None]:
    """Yields the EFI programs of the EFI system partition."""
    partition = next((one for one in facts.table.partitions if one.type_uuid == EFI_SYSTEM), None) if facts.table is not None else None
    if partition is None or facts.esp is None:
        return
    reader = EspReader(Region(image, partition.offset_bytes, partition.size_bytes))
    for name in facts.esp.files:
        path = Path(f"{image}:ESP{name}")
        if path.suffix.lower() == ".efi" and (data := reader.read(name)) is not None:
            yield artefact_of(path, data)
