"""What starts: type 1 entries and unified kernel images of an EFI system partition, in the order in which systemd-boot lists them.

Source: UAPI group, "Boot Loader Specification" (type 1 and 2 entries, sorting), "Version Format Specification"; systemd-boot(7),
loader.conf(5): `default` is a pattern of entries' names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cmp_to_key

from ipe_build.audit.facts import BootEntry, EfiLoader, EntryKind, EspFacts, Region, UkiFacts
from ipe_build.errors import InputError, IpeBuildError
from ipe_build.examine.inputs import MAX_BOOT_FILE_BYTES
from ipe_build.formats.command_line import kernel_words
from ipe_build.formats.fat import Fat, FatFile
from ipe_build.formats.loader_entry import entry_fields
from ipe_build.formats.pe import PeImage, authenticode_digest, is_pe, parse_pe
from ipe_build.formats.spc import decode_spc
from ipe_build.signing.authenticode import signatures_of, unsigned
from ipe_build.signing.loading import parse_certificates
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.verify import verify_signature

MAX_ENTRIES = 64
_MAX_TEXT_BYTES = 1 << 20
_DEFAULT_LOADER = re.compile(r"/efi/boot/boot(x64|aa64|arm|riscv64|ia32)\.efi", re.IGNORECASE)
_TYPE_1 = re.compile(r"/loader/entries/[^/]+\.conf", re.IGNORECASE)
_TYPE_2 = re.compile(r"/efi/linux/[^/]+\.efi", re.IGNORECASE)
_SDMAGIC = re.compile(rb"#### LoaderInfo: ([ -~]{1,80}?) ####")
_COUNTED = re.compile(r"\+(\d+)(?:-\d+)?$")

Failed = Callable[[str, str], None]
"""`failed(part, reason)` notes what could not be read."""


@dataclass(frozen=True, slots=True)
class _Sorted:
    """An entry with what its place in the list is decided by."""

    entry: BootEntry
    identifier: str
    sort_key: str
    machine_id: str
    version: str
    exhausted: bool


class EspReader:
    """An EFI system partition: its facts, and files by their paths in any case."""

    def __init__(self, region: Region) -> None:
        self._fat = Fat(region.read, region.size_bytes)
        self.files = self._fat.files()
        self._by_name: dict[str, FatFile] = {one.path.lower(): one for one in reversed(self.files)}

    def read(self, path: str, max_bytes: int = MAX_BOOT_FILE_BYTES) -> bytes | None:
        """Returns a file, None when it is not there. Raises: FormatError, InputError."""
        found = self._by_name.get("/" + path.replace("\\", "/").strip("/").lower())
        return None if found is None else self._fat.read(found, max_bytes)


def read_esp(region: Region, failed: Failed) -> tuple[EspFacts, tuple[BootEntry, ...]]:
    """Returns what an EFI system partition holds, and its boot entries, the one that starts by itself first.

    Raises: FormatError when it is no FAT filesystem; what is wrong with one entry goes to `failed`.
    """
    esp = EspReader(region)
    names = tuple(one.path for one in esp.files)
    loader_conf = (esp.read("/loader/loader.conf", _MAX_TEXT_BYTES) or b"").decode("utf-8", "replace")
    found: list[_Sorted] = []
    for pattern, read in ((_TYPE_1, _type_1), (_TYPE_2, _type_2)):
        for name in [name for name in names if pattern.fullmatch(name)]:
            if len(found) >= MAX_ENTRIES:
                failed("boot entries", f"more than {MAX_ENTRIES}: the others were not read")
                break
            try:
                found.append(read(esp, name))
            except IpeBuildError as error:
                failed(f"boot entry {name}", error.message)
    ordered = _ordered(found, loader_conf)
    started = [entry for name in names if _DEFAULT_LOADER.fullmatch(name) and (entry := _uki_or_none(esp, name, failed)) is not None]
    entries = [*started, *(one.entry for one in ordered)]
    times = {one.path: one.modified for one in esp.files}
    loaders = {name: _loader(esp, name) for name in names if _DEFAULT_LOADER.fullmatch(name)}
    facts = EspFacts(names, loader_conf, bool(started), times, loaders)
    return facts, tuple(replace(entry, default=number == 0) for number, entry in enumerate(entries))


def uki_entry(data: bytes, name: str) -> BootEntry:
    """Returns what a unified kernel image starts. Raises: FormatError."""
    image = parse_pe(data, name)

    def content(section: str) -> bytes:
        there = image.section(section)
        return b"" if there is None else image.content(there)

    command_line = content(".cmdline").rstrip(b"\0").decode("utf-8", "replace").strip()
    return BootEntry(
        content(".linux"), content(".initrd"), command_line, name, EntryKind.UKI, uki=_uki_facts(data, image, content(".osrel"))
    )


def _uki_facts(data: bytes, image: PeImage, os_release: bytes) -> UkiFacts:
    """Returns what is known of an image besides what it starts. Signatures are checked against the certificates that they carry."""
    signers, problem = [], ""
    try:
        payload = unsigned(data)
        for signature in signatures_of(data):
            carried = decode_spc(signature).certificates
            certificates = [one for der in carried for one in parse_certificates(der, "signature of the image")]
            signers.append(verify_signature(PROFILES["efi-image"], payload, signature, certificates).subject.rfc4514_string())
    except IpeBuildError as error:
        problem = error.message
    return UkiFacts(
        sections=tuple(one.name for one in image.uki_sections),
        has_command_line=image.section(".cmdline") is not None,
        signed=image.is_signed,
        signers=tuple(signers),
        problem=problem,
        digest=authenticode_digest(data),
        doubtful=image.doubtful_sections,
        os_release=_settings(os_release.rstrip(b"\0").decode("utf-8", "replace")),
    )


def _loader(esp: EspReader, name: str) -> EfiLoader:
    """Returns what an EFI program at firmware's default place is."""
    try:
        data = esp.read(name) or b""
        image = parse_pe(data, name)
        section = image.section(".sdmagic")
        said = _SDMAGIC.search(image.content(section)) if section is not None else None
        return EfiLoader(image.architecture, said[1].decode("ascii", "replace") if said is not None else "", "")
    except IpeBuildError as error:
        return EfiLoader("", "", error.message)


def _uki_or_none(esp: EspReader, name: str, failed: Failed) -> BootEntry | None:
    """Returns the entry of an EFI program that is a unified kernel image, None for one that is not."""
    try:
        data = esp.read(name) or b""
        return uki_entry(data, name) if is_pe(data) and parse_pe(data, name).is_uki else None
    except IpeBuildError as error:
        failed(f"EFI program {name}", error.message)
        return None


def _type_1(esp: EspReader, name: str) -> _Sorted:
    """Returns a type 1 entry: text that names its files."""
    fields = entry_fields((esp.read(name, _MAX_TEXT_BYTES) or b"").decode("utf-8", "replace"))
    programs = [path for key in ("linux", "efi", "uki") for path in fields.get(key, ())]
    if len(programs) != 1:
        raise InputError(f"wanted one line `linux`, `efi` or `uki`, got {len(programs)}", where=name)

    def file(path: str) -> bytes:
        data = esp.read(path)
        if data is None:
            raise InputError(f"names {path}, which is not there", where=name)
        return data

    program, options = file(programs[0]), " ".join(fields.get("options", ()))
    if is_pe(program) and parse_pe(program, programs[0]).is_uki:
        inside = uki_entry(program, name)
        entry = replace(inside, command_line=inside.command_line if inside.uki and inside.uki.has_command_line else options)
    else:
        # Where the loader hands over an initramfs of its own, the kernel's EFI stub does not look at words initrd= of the options.
        words = [word.value for word in kernel_words(options) if word.name == "initrd" and word.value]
        entry = BootEntry(program, b"".join(map(file, fields.get("initrd", ()) or words)), options, name, EntryKind.CONF)
    stem = name.rpartition("/")[2].rpartition(".")[0]
    first = {key: values[0] for key, values in fields.items()}
    return _sorted(entry, stem, first.get("sort-key", ""), first.get("machine-id", ""), first.get("version", ""))


def _type_2(esp: EspReader, name: str) -> _Sorted:
    """Returns a type 2 entry: a unified kernel image in /EFI/Linux."""
    entry = uki_entry(esp.read(name) or b"", name)
    known = entry.uki.os_release if entry.uki is not None else {}
    version = next((known[key] for key in ("IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID") if key in known), "")
    return _sorted(entry, name.rpartition("/")[2], known.get("IMAGE_ID") or known.get("ID", ""), "", version)


def _sorted(entry: BootEntry, identifier: str, sort_key: str, machine_id: str, version: str) -> _Sorted:
    counted = _COUNTED.search(identifier.removesuffix(".efi"))
    return _Sorted(entry, identifier, sort_key, machine_id, version, counted is not None and int(counted[1]) == 0)


def _ordered(found: list[_Sorted], loader_conf: str) -> list[_Sorted]:
    """Returns the entries as the boot loader lists them; the one that loader.conf's `default` names comes first."""
    listed = sorted(found, key=cmp_to_key(_compare))
    pattern = next((words[1] for line in loader_conf.splitlines() if len(words := line.split(None, 1)) == 2 and words[0] == "default"), "")
    pattern = pattern.strip().lower()
    for number, one in enumerate(listed):
        name = one.entry.name.rpartition("/")[2].lower()
        if pattern and (fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.removesuffix(".conf"), pattern)):
            return [one, *listed[:number], *listed[number + 1 :]]
    return listed


def _compare(one: _Sorted, other: _Sorted) -> int:
    """Returns less than zero when `one` is listed first."""
    if one.exhausted != other.exhausted:
        return 1 if one.exhausted else -1
    if bool(one.sort_key) != bool(other.sort_key):
        return -1 if one.sort_key else 1
    if one.sort_key:
        for mine, theirs in ((one.sort_key, other.sort_key), (one.machine_id, other.machine_id)):
            if mine != theirs:
                return -1 if mine < theirs else 1
        newer = compare_versions(other.version, one.version)
        if newer:
            return newer
    return compare_versions(other.identifier.lower(), one.identifier.lower())


_TOKEN = re.compile(r"\d+|[a-zA-Z]+|[~\-^.]")
_RANKS = {"~": -2, "": -1, "-": 0, "^": 1, ".": 2}


def compare_versions(one: str, other: str) -> int:
    """Returns less than zero when version `one` is older: numbers as numbers, `~` before the end of a string, `-`, `^`, `.` behind it."""
    mine, theirs = _TOKEN.findall(one), _TOKEN.findall(other)
    for number in range(max(len(mine), len(theirs))):
        left = mine[number] if number < len(mine) else ""
        right = theirs[number] if number < len(theirs) else ""
        if left == right:
            continue
        if left.isdigit() and right.isdigit():
            if int(left[:4000]) != int(right[:4000]):
                return -1 if int(left[:4000]) < int(right[:4000]) else 1
            continue
        ranks = [_RANKS.get(token, 4 if token.isdigit() else 3) for token in (left, right)]
        if ranks[0] != ranks[1]:
            return -1 if ranks[0] < ranks[1] else 1
        return -1 if left < right else 1
    return 0


def _settings(text: str) -> dict[str, str]:
    """Returns os-release's settings; quotes are taken off, escapes left as they are."""
    rows = (line.partition("=") for line in text.splitlines() if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in rows}
