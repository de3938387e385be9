"""Predicted measurements: every byte that matters moves the PCR that it belongs to, and nothing is predicted that is not known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.attest.chain import SETUP_MODE, BootChain, EfiProgram, Variable
from ipe_build.attest.predict import BANKS, REFERENCE_PCRS, behaviour_of, pcr_values, predict, stub_initrd
from ipe_build.attest.reference import ReferenceValues, read_reference_values
from ipe_build.errors import FormatError, InputError
from ipe_build.formats.corim import decode_corim, encode_corim
from ipe_build.formats.cpio import read_archives
from ipe_build.formats.gpt import Partition, lay_out, write_gpt
from ipe_build.formats.partition_types import EFI_SYSTEM
from ipe_build.formats.pe import authenticode_digest
from ipe_build.host import Host
from ipe_build.image.esp import EspFile, make_esp
from ipe_build.steps.attest import measure_image, read_chain
from tests.fixtures.efi import make_pe

LOADER = make_pe(((b".text", b"loader"), (b".sdmagic", b"#### LoaderInfo: systemd-boot 252.39-1~deb12u2 ####\0")))
KERNEL = make_pe(((b".text", b"kernel"),))
CHAIN = BootChain(EfiProgram("loader", LOADER), EfiProgram("kernel", KERNEL), ("\\linux\\initrd", b"initrd"), "root=x")


def uki(version: str = "252.39", command_line: bytes = b"root=x", extra: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    magic = f"#### LoaderInfo: systemd-stub {version} ####".encode() + b"\0"
    sections = ((b".text", b"stub"), (b".sdmagic", magic), (b".osrel", b"ID=test\n"), (b".cmdline", command_line))
    return make_pe((*sections, (b".uname", b"6.12"), (b".initrd", b"an initramfs"), (b".linux", KERNEL), *extra))


def changed(chain: BootChain, other: BootChain) -> set[int]:
    """Returns the PCRs that differ; the same ones in both banks."""
    one, two = pcr_values(predict(chain, SETUP_MODE)), pcr_values(predict(other, SETUP_MODE))
    found = [{pcr for pcr in REFERENCE_PCRS if one[bank][pcr] != two[bank][pcr]} for bank in BANKS]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("other", "pcrs"),
    [
        (replace(CHAIN, loader=EfiProgram("loader", LOADER.replace(b"loader", b"Loader"))), {4}),
        (replace(CHAIN, image=EfiProgram("kernel", KERNEL.replace(b"kernel", b"Kernel"))), {4}),
        (replace(CHAIN, initrd=("\\linux\\initrd", b"Initrd")), {9}),
        (replace(CHAIN, options="root=y"), {9, 12}),
        (replace(CHAIN, initrd=("\\linux\\initre", b"initrd")), {9, 12}),
    ],
    ids=["loader", "kernel", "initramfs", "command line", "initramfs' path"],
)
def test_changed_byte_of_an_entry_changes_its_pcr(other: BootChain, pcrs: set[int]):
    assert changed(CHAIN, other) == pcrs


@pytest.mark.parametrize(
    ("was", "becomes", "pcrs"),
    [
        (b"kernel", b"Kernel", {4, 11}),
        (b"an initramfs", b"AN initramfs", {4, 9, 11}),
        (b"root=x", b"root=y", {4, 9, 11}),
        (b"ID=test", b"ID=tesT", {4, 11}),
        (b"6.12", b"6.13", {4}),
    ],
    ids=["kernel", "initramfs (policy, root hash)", "command line", "os-release", "uname (252 does not measure it)"],
)
def test_changed_byte_of_a_uki_changes_its_pcrs(was: bytes, becomes: bytes, pcrs: set[int]):
    data = uki()
    assert changed(BootChain(None, EfiProgram("uki", data)), BootChain(None, EfiProgram("uki", data.replace(was, becomes)))) == pcrs


def test_signature_of_a_program_does_not_change_what_is_measured():
    data = uki()
    at = data.index(b"PE\0\0") + 24 + 64
    assert data[at : at + 4] == bytes(4)
    assert changed(BootChain(None, EfiProgram("u", data)), BootChain(None, EfiProgram("u", data[:at] + b"sum!" + data[at + 4 :]))) == set()


def test_secure_boot_variables_and_authorities_are_in_pcr_7_alone():
    other = replace(SETUP_MODE, variables=(Variable("SecureBoot", SETUP_MODE.variables[0].guid, b"\1"), *SETUP_MODE.variables[1:]))
    one, two = (pcr_values(predict(CHAIN, state)) for state in (SETUP_MODE, other))
    assert {pcr for pcr in REFERENCE_PCRS if one["sha256"][pcr] != two["sha256"][pcr]} == {7}
    authorised = replace(other, authorities=(UUID(int=1).bytes_le + b"certificate",))
    assert pcr_values(predict(CHAIN, authorised))["sha256"][7] != two["sha256"][7]
    assert (SETUP_MODE.is_on, other.is_on) == (False, True)


def test_kernel_in_a_uki_is_not_measured_by_firmware_under_secure_boot():
    on = replace(SETUP_MODE, variables=(replace(SETUP_MODE.variables[0], data=b"\1"), *SETUP_MODE.variables[1:]))
    chain = BootChain(None, EfiProgram("u", uki()))
    programs = {
        state: [event.what.split()[0] for event in predict(chain, given) if event.pcr == 4]
        for state, given in (("off", SETUP_MODE), ("on", on))
    }
    assert programs == {"off": ["firmware", "separator", "UKI", "kernel"], "on": ["firmware", "separator", "UKI"]}
    behind = replace(chain, loader=EfiProgram("loader", LOADER))
    assert [len([event for event in predict(behind, state) if event.pcr == 12]) for state in (SETUP_MODE, on)] == [2, 1]


def test_variable_is_measured_as_uefi_variable_data():
    guid = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
    wanted = "61dfe48bca93d211aa0d00e098032b8c0200000000000000010000000000000050004b0001"
    assert Variable("PK", guid, b"\1").measured().hex() == wanted


def test_uki_without_secure_boot_demands_a_zero_pcr_12_and_an_entry_a_zero_pcr_11():
    values = ReferenceValues("u", b"", "", False, predict(BootChain(None, EfiProgram("u", uki())), SETUP_MODE))
    assert values.zero_pcrs == (12,)
    assert not any(values.pcrs["sha256"][12])
    assert ReferenceValues("u", b"", "", False, predict(CHAIN, SETUP_MODE)).zero_pcrs == (11,)


def test_stub_252_measures_each_section_by_name_and_content_in_its_order():
    events = [event for event in predict(BootChain(None, EfiProgram("u", uki())), SETUP_MODE, ("sha256",)) if event.pcr == 11]
    wanted = [(b".linux", KERNEL), (b".osrel", b"ID=test\n"), (b".cmdline", b"root=x"), (b".initrd", b"an initramfs")]
    digests = [hashlib.sha256(part).digest() for name, content in wanted for part in (name + b"\0", content)]
    assert [dict(event.digests)["sha256"] for event in events] == digests


def test_newer_stubs_measure_all_sections_and_hand_os_release_to_the_initramfs():
    row = behaviour_of(EfiProgram("u", uki("257.1")))
    made = stub_initrd({".initrd": b"12345", ".osrel": b"ID=test\n"}, row)
    assert made[:8] == b"12345\0\0\0"
    (archive,) = read_archives(made[8:])
    found = [(entry.path, entry.mode, entry.data, entry.nlink, entry.mtime) for entry in archive.entries]
    assert found == [(".extra", 0o040555, b"", 1, 0), (".extra/os-release", 0o100444, b"ID=test\n", 1, 0)]
    names = [event.what for event in predict(BootChain(None, EfiProgram("u", uki("257.1"))), SETUP_MODE) if event.pcr == 11]
    assert "section .uname" in names
    programs = [event for event in predict(BootChain(None, EfiProgram("u", uki("262"))), SETUP_MODE) if event.pcr == 4]
    assert [event.what.split()[0] for event in programs] == ["firmware", "separator", "UKI"]


@pytest.mark.parametrize("version", ["251.9", "253.1", "256.7", "260"])
def test_stub_whose_behaviour_is_not_known_is_refused(version: str):
    with pytest.raises(InputError, match="what it measures is not known"):
        predict(BootChain(None, EfiProgram("u", uki(version))), SETUP_MODE)


def test_sections_whose_choice_depends_on_the_machine_are_refused():
    data = uki("257.1", extra=((b".dtbauto", b"dtb"),))
    with pytest.raises(InputError, match=r"\.dtbauto"):
        predict(BootChain(None, EfiProgram("u", data)), SETUP_MODE)


@pytest.mark.parametrize("line", [b" root=x", b"root=x\n", b"a\tb"])
def test_command_line_that_stubs_treat_differently_is_refused(line: bytes):
    with pytest.raises(InputError, match="depends on the stub"):
        predict(BootChain(None, EfiProgram("u", uki(command_line=line))), SETUP_MODE)
    with pytest.raises(FormatError, match="not UTF-8"):
        predict(BootChain(None, EfiProgram("u", uki(command_line=b"\xff"))), SETUP_MODE)


# Images


def disk_of(files: dict[str, bytes], folder: Path, host: Host, need) -> Path:
    """A disk with one EFI system partition."""
    for tool in ("mkfs.vfat", "mcopy", "mmd"):
        need(tool)
    esp = folder / "esp"
    size = make_esp([EspFile(path, content) for path, content in files.items()], esp, 1 << 20, UUID(int=5), host)
    table = lay_out(UUID(int=6), [Partition(0, EFI_SYSTEM, UUID(int=7), "esp", 0, size)])
    disk = folder / "disk.raw"
    with disk.open("wb") as handle:
        handle.truncate(table.size_bytes)
        for piece in write_gpt(table):
            handle.seek(piece.offset)
            handle.write(piece.data)
        handle.seek(table.partitions[0].offset_bytes)
        handle.write(esp.read_bytes())
    return disk


ENTRY = b"title T\nlinux /k/linux\ninitrd /k/initrd\noptions root=x\noptions quiet\n"
FILES = {
    "EFI/BOOT/BOOTX64.EFI": LOADER,
    "k/linux": KERNEL,
    "k/initrd": b"initrd",
    "loader/entries/a.conf": ENTRY,
    "loader/loader.conf": b"timeout 0\ndefault a.conf\n",
}


def test_entry_of_a_disk_is_read_as_systemd_boot_passes_it_on(tmp_path: Path, host: Host, need):
    chain, boots = read_chain(disk_of(FILES, tmp_path, host, need))
    assert chain.loader is not None
    assert (chain.loader.data, chain.image.data) == (LOADER, KERNEL)
    assert (chain.initrd, chain.options) == (("\\k\\initrd", b"initrd"), "root=x quiet")
    assert boots == "systemd-boot 252.39-1~deb12u2 starts the entry /loader/entries/a.conf"


def test_uki_is_found_where_firmware_and_where_systemd_boot_look(tmp_path: Path, host: Host, need):
    direct = disk_of({"EFI/BOOT/BOOTX64.EFI": uki()}, tmp_path, host, need)
    assert read_chain(direct)[0].loader is None
    (tmp_path / "bare.efi").write_bytes(uki())
    assert measure_image(tmp_path / "bare.efi").pcrs == measure_image(direct).pcrs
    through = disk_of({"EFI/BOOT/BOOTX64.EFI": LOADER, "EFI/Linux/a.efi": uki()}, tmp_path, host, need)
    assert read_chain(through)[0].loader is not None
    assert measure_image(through).zero_pcrs == ()


def test_one_of_several_entries_is_named_by_its_file(tmp_path: Path, host: Host, need):
    other = ENTRY.replace(b"quiet", b"loud")
    disk = disk_of(FILES | {"loader/loader.conf": b"", "loader/entries/b.conf": other}, tmp_path, host, need)
    assert read_chain(disk, "B.conf")[0].options == "root=x loud"
    assert read_chain(disk, "a.conf")[0].options == "root=x quiet"
    assert measure_image(disk, entry="a.conf").pcrs != measure_image(disk, entry="b.conf").pcrs
    for name in ("c.conf", "*.conf", ""):
        with pytest.raises(InputError, match=r"there are: /loader/entries/a\.conf, /loader/entries/b\.conf"):
            read_chain(disk, name)


def test_boot_loader_that_is_newer_than_the_tested_one_is_noted(tmp_path: Path, host: Host, need):
    newer = LOADER.replace(b"systemd-boot 252.39", b"systemd-boot 257.11")
    notes = [measure_image(disk_of(FILES | {"EFI/BOOT/BOOTX64.EFI": data}, tmp_path, host, need)).notes for data in (LOADER, newer)]
    assert [any("newer than the one (252)" in note for note in one) for one in notes] == [False, True]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"EFI/BOOT/BOOTX64.EFI": make_pe(((b".text", b"x"),))}, "neither a UKI nor systemd-boot"),
        ({"k/linux": KERNEL}, "BOOTX64.EFI"),
        (FILES | {"loader/loader.conf": b"", "loader/entries/b.conf": ENTRY}, "wanted one boot entry"),
        (FILES | {"loader/entries/a.conf": b"linux /k/other\n"}, "has no /k/other"),
        (FILES | {"loader/entries/a.conf": ENTRY + b"devicetree /k/dtb\n"}, "devicetree"),
        (FILES | {"loader/entries/a.conf": ENTRY + b"initrd /k/initrd\n"}, "at most one line initrd"),
        (FILES | {"loader/credentials/secret.cred": b"x"}, "PCR 12"),
        ({"EFI/BOOT/BOOTX64.EFI": uki(), "EFI/BOOT/BOOTX64.EFI.extra.d/x.cred": b"x"}, "PCR 12"),
        (FILES | {"k/linux": b"no program"}, "wanted a PE image"),
    ],
    ids=["unknown loader", "no loader", "two entries", "no kernel", "devicetree", "two initrds", "credential", "extra of a UKI", "no PE"],
)
def test_boot_that_nobody_could_foresee_is_refused(files: dict[str, bytes], message: str, tmp_path: Path, host: Host, need):
    with pytest.raises((InputError, FormatError), match=message):
        measure_image(disk_of(files, tmp_path, host, need))


def test_program_that_is_no_uki_is_refused_as_an_image(tmp_path: Path):
    (tmp_path / "x.efi").write_bytes(KERNEL)
    with pytest.raises(InputError, match=r"without a section \.linux"):
        measure_image(tmp_path / "x.efi")
    with pytest.raises(InputError, match="cannot be read"):
        measure_image(tmp_path / "missing")


# Reference values


def reference() -> ReferenceValues:
    return ReferenceValues("image", bytes(32), "words", False, predict(CHAIN, SETUP_MODE), ("a note",))


def test_reference_values_survive_their_file(tmp_path: Path):
    (tmp_path / "r.json").write_bytes(reference().to_bytes())
    assert read_reference_values(tmp_path / "r.json") == reference()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": "other"}', b'{"schema": "ipe-build/reference-values/1", "pcrs": {}}'])
def test_other_files_are_no_reference_values(content: bytes, tmp_path: Path):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(FormatError, match="wanted reference values"):
        read_reference_values(tmp_path / "r.json")


def test_pcrlock_has_a_record_for_each_event():
    records = json.loads(reference().to_pcrlock())["records"]
    assert [record["pcr"] for record in records] == [event.pcr for event in reference().events]
    kernel = authenticode_digest(KERNEL).hex()
    assert {"hashAlg": "sha256", "digest": kernel} in [digest for record in records for digest in record["digests"]]


def test_corim_holds_the_pcrs_and_is_deterministic():
    made = encode_corim("id", "vendor", "model", reference().pcrs)
    assert made[:3] == bytes.fromhex("d901f5")  # tag 501
    assert made == encode_corim("id", "vendor", "model", reference().pcrs)
    assert decode_corim(made) == reference().pcrs
    with pytest.raises(FormatError, match="wanted a CoRIM"):
        decode_corim(made[:-1])
