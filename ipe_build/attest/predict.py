"""The measurements that a boot must lead to: which program measures which bytes into which PCR, in the order of the event log.

Who measures what, each seen in event logs of real boots (tests/boot/test_attest_measure.py):

    PCR 7   firmware: the Secure Boot variables, a separator, then each db entry that authorised a program, once
    PCR 4   firmware: "Calling EFI Application from Boot Option", a separator, then the Authenticode digest of every program it loads;
            a stub has firmware load the kernel inside a UKI (not under Secure Boot, and not in systemd 262)
    PCR 11  systemd-stub: for each section of the UKI its name, then its content
    PCR 12  systemd-boot: the load options of what it starts; a stub: load options, credentials and extensions that come from outside
    PCR 9   the kernel's own EFI stub: its load options, then the initramfs it was given

Sources: TCG PC Client Platform Firmware Profile 1.05; EDK II (Tcg2Dxe, DxeTpm2MeasureBootLib, DxeImageVerificationLib); systemd,
src/boot (measure.c, stub.c, cpio.c); Linux drivers/firmware/efi/libstub/efi-stub-helper.c (efi_measure_tagged_event).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipe_build.attest.chain import BootChain, EfiProgram, SecureBoot, Variable, load_options, uki_command_line
from ipe_build.errors import InputError
from ipe_build.formats.cpio import CpioEntry, write_cpio
from ipe_build.formats.pe import UKI_SECTIONS, authenticode_digest, parse_pe
from ipe_build.formats.tpm_event_log import EventType, extend

BANKS = ("sha256", "sha384")
REFERENCE_PCRS = (4, 7, 9, 11, 12)
BOOT_ACTION = b"Calling EFI Application from Boot Option"
SEPARATOR = bytes(4)
_NOT_MEASURED = ".pcrsig"


@dataclass(frozen=True, slots=True)
class ExpectedEvent:
    """A measurement that must come: the PCR, the event's type, what it is for people, and its digest in every bank."""

    pcr: int
    type: EventType
    what: str
    digests: tuple[tuple[str, bytes], ...]


class StubBehaviour(NamedTuple):
    """What a systemd-stub from a version on does. `skips` are sections it does not measure; `verified` says that we booted one."""

    from_version: int
    skips: tuple[str, ...]
    loads_kernel_through_firmware: bool
    adds_os_release: bool
    verified: bool


STUB_BEHAVIOURS: tuple[StubBehaviour, ...] = (
    StubBehaviour(252, (".uname", ".sbat"), True, False, True),
    StubBehaviour(257, (), True, True, False),
    StubBehaviour(262, (), False, True, False),
)
"""Rows by version; those between them are not known and refused."""
_UNKNOWN_STUBS = (*range(253, 257), *range(258, 262))
_UNKNOWN_SECTIONS = (".profile", ".dtbauto", ".hwids", ".efifw")
"""Sections of newer UKIs that stubs from 257 on measure when they choose them; which one depends on the machine."""


def predict(chain: BootChain, secure_boot: SecureBoot, banks: Sequence[str] = BANKS) -> tuple[ExpectedEvent, ...]:
    """Returns the events of PCRs 4, 7, 9, 11 and 12 that a boot of the chain must log, each PCR's in order.

    Raises: InputError for a chain whose measurements nobody here knows, FormatError for programs that are no PE images.
    """
    return tuple(_Predictor(banks).events(chain, secure_boot))


def pcr_values(events: Iterable[ExpectedEvent], banks: Sequence[str] = BANKS) -> dict[str, dict[int, bytes]]:
    """Returns the reference PCRs, by bank and number; one that nothing extends is all zeros, and must be."""
    values = {bank: {pcr: bytes(hashlib.new(bank).digest_size) for pcr in REFERENCE_PCRS} for bank in banks}
    for event in events:
        for bank, digest in event.digests:
            values[bank][event.pcr] = extend(values[bank][event.pcr], digest, bank)
    return values


def behaviour_of(stub: EfiProgram) -> StubBehaviour:
    """Returns what the stub of a UKI does. Raises: InputError when it is not systemd's or of a version that is not known."""
    info = stub.systemd()
    if info is None or info[0] != "systemd-stub" or info[1] < STUB_BEHAVIOURS[0].from_version or info[1] in _UNKNOWN_STUBS:
        found = f"{info[0]} {info[2]}" if info else "no section .sdmagic"
        raise InputError(
            f"wanted a UKI with the stub of systemd 252, 257, 262 or later, got {found}: what it measures is not known here",
            where=stub.name,
            hint="make the UKI with the stub of systemd 252 (Debian 12), whose measurements are tested by boots",
        )
    row = [one for one in STUB_BEHAVIOURS if one.from_version <= info[1]][-1]
    image = stub.parsed()
    if image.doubtful_sections:
        names = ", ".join(image.doubtful_sections)
        raise InputError(f"has sections of which the stub may take another than the first: {names}", where=stub.name)
    strange = [name for name in _UNKNOWN_SECTIONS if image.section(name)] if row.adds_os_release else []
    if strange:
        raise InputError(f"has sections whose measurement depends on the machine: {', '.join(strange)}", where=stub.name)
    return row


class _Predictor:
    """Makes events with digests for its banks."""

    def __init__(self, banks: Sequence[str]) -> None:
        self._banks = banks

    def events(self, chain: BootChain, secure_boot: SecureBoot) -> Iterator[ExpectedEvent]:
        yield from self._secure_boot(secure_boot)
        yield self._hashed(4, EventType.EV_EFI_ACTION, "firmware starts a boot option", BOOT_ACTION)
        yield self._hashed(4, EventType.EV_SEPARATOR, "separator", SEPARATOR)
        if chain.loader is not None:
            yield self._program("boot loader", chain.loader.name, chain.loader.data)
        if chain.is_uki:
            yield from self._uki(chain.image, through_loader=chain.loader, secure_boot=secure_boot.is_on)
        else:
            yield from self._entry(chain)

    def _secure_boot(self, secure_boot: SecureBoot) -> Iterator[ExpectedEvent]:
        for variable in secure_boot.variables:
            what = f"firmware variable {variable.name}"
            yield self._hashed(7, EventType.EV_EFI_VARIABLE_DRIVER_CONFIG, what, variable.measured())
        yield self._hashed(7, EventType.EV_SEPARATOR, "separator", SEPARATOR)
        database = next((one for one in secure_boot.variables if one.name == "db"), None)
        for data in secure_boot.authorities if database else ():
            entry = Variable("db", database.guid, data) if database else None
            assert entry is not None
            yield self._hashed(7, EventType.EV_EFI_VARIABLE_AUTHORITY, "db entry that authorised a program", entry.measured())

    def _entry(self, chain: BootChain) -> Iterator[ExpectedEvent]:
        """A kernel that a boot loader's entry names, with its initramfs and options."""
        yield self._program("kernel", chain.image.name, chain.image.data)
        words = [f"initrd={chain.initrd[0]}"] if chain.initrd else []
        options = " ".join([*words, *([chain.options] if chain.options else [])])
        if options:
            yield self._hashed(12, EventType.EV_IPL, f"load options: {options}", load_options(options))
            yield self._hashed(9, EventType.EV_EVENT_TAG, f"load options: {options}", load_options(options))
        if chain.initrd:
            yield self._hashed(9, EventType.EV_EVENT_TAG, "initramfs", chain.initrd[1])

    def _uki(self, uki: EfiProgram, *, through_loader: EfiProgram | None, secure_boot: bool) -> Iterator[ExpectedEvent]:
        """A UKI. A boot loader of systemd 252 passes its command line on as load options, and both it and the stub measure that.

        Under Secure Boot a stub takes no load options, and answers itself for the kernel that it carries: firmware does not measure it.
        """
        row, image = behaviour_of(uki), uki.parsed()
        sections = {name: image.content(found) for name in UKI_SECTIONS if (found := image.section(name))}
        text = uki_command_line(sections.get(".cmdline", b""), uki.name)
        line = load_options(text)
        loader = through_loader.systemd() if through_loader else None
        passed_on = text and loader is not None and loader[1] < 254
        yield self._program("UKI", uki.name, uki.data)
        if passed_on:
            yield self._hashed(12, EventType.EV_IPL, "the UKI's command line, by the boot loader", line)
        for name, content in sections.items():
            if name in (*row.skips, _NOT_MEASURED):
                continue
            yield self._hashed(11, EventType.EV_IPL, f"name of section {name}", name.encode() + b"\0")
            yield self._hashed(11, EventType.EV_IPL, f"section {name}", content)
        if passed_on and not secure_boot:
            yield self._hashed(12, EventType.EV_IPL, "the UKI's command line, by the stub", line)
        if row.loads_kernel_through_firmware and not secure_boot:
            yield self._program("kernel in the UKI", f"{uki.name}: .linux", sections[".linux"])
        if text:
            yield self._hashed(9, EventType.EV_EVENT_TAG, f"load options: {text}", line)
        initrd = stub_initrd(sections, row)
        if initrd:
            yield self._hashed(9, EventType.EV_EVENT_TAG, "initramfs", initrd)

    def _program(self, what: str, name: str, data: bytes) -> ExpectedEvent:
        parse_pe(data, name)
        kind = EventType.EV_EFI_BOOT_SERVICES_APPLICATION
        return self._event(4, kind, f"{what} {name}", lambda bank: authenticode_digest(data, bank))

    def _hashed(self, pcr: int, kind: EventType, what: str, content: bytes) -> ExpectedEvent:
        return self._event(pcr, kind, what, lambda bank: hashlib.new(bank, content).digest())

    def _event(self, pcr: int, kind: EventType, what: str, digest: Callable[[str], bytes]) -> ExpectedEvent:
        return ExpectedEvent(pcr, kind, what, tuple((bank, digest(bank)) for bank in self._banks))


def stub_initrd(sections: dict[str, bytes], row: StubBehaviour) -> bytes:
    """Returns the initramfs as a stub hands it to the kernel when nothing comes from outside.

    That is section .initrd; from 257 on, archives padded to 4 bytes: .ucode, .initrd, then the stub's own with files below `.extra`.
    """
    if not row.adds_os_release:
        return sections.get(".initrd", b"")
    parts = [sections.get(".ucode", b""), sections.get(".initrd", b"")]
    extras = ((".pcrsig", "tpm2-pcr-signature.json"), (".pcrpkey", "tpm2-pcr-public-key.pem"), (".osrel", "os-release"))
    parts += [_extra_archive(name, sections[section]) for section, name in extras if section in sections]
    return b"".join(part + bytes(-len(part) % 4) for part in parts)


def _extra_archive(name: str, data: bytes) -> bytes:
    """Returns the cpio archive with one file below `.extra`, as the stub makes it: its trailer's length has a capital B."""
    folder = CpioEntry(".extra", 0o040555, ino=1)
    archive = write_cpio((folder, CpioEntry(f".extra/{name}", 0o100444, data, ino=2)), block_bytes=4)
    head, mark, tail = archive.rpartition(b"0000000b")
    return head + mark.upper() + tail
