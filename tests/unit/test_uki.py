"""Unified kernel images: the same bytes from the same inputs, every section where it should be, and refusals that say why."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.errors import FormatError, InputError, ToolMissingError
from ipe_build.formats.kernel_image import open_kernel, release_of
from ipe_build.formats.pe import authenticode_digest, parse_pe, uncovered_ranges
from ipe_build.formats.pe_write import NewSection, with_sections
from ipe_build.formats.uki import is_uki, uki_parts, with_command_line
from ipe_build.image.uki import SECTION_ORDER, UkiRequest, build_uki, stub_path
from ipe_build.signing.certificates import KeySet
from tests.fixtures.efi import STUB, make_pe

COMMAND_LINE = "console=ttyS0 panic=-1"
SBAT = b"sbat,1,SBAT Version,sbat,1,https://example.org\nstub,1,us,stub,1,https://example.org\n"


def efi(*sections: tuple[bytes, bytes]) -> bytes:
    """A small EFI application: `make_pe` with subsystem 10 and a way in."""
    return make_pe(((b".text", b"\x90" * 100), *sections))


@pytest.fixture
def request_(tmp_path: Path) -> UkiRequest:
    """A small kernel, two initramfs archives, and a small stub with SBAT data."""
    (tmp_path / "stub").write_bytes(efi((b".sbat", SBAT), (b".sdmagic", b"#### LoaderInfo: systemd-stub 252 ####")))
    (tmp_path / "kernel").write_bytes(efi((b".setup", b"kernel" * 1000)))
    (tmp_path / "initrd").write_bytes(b"initramfs" * 1001)
    (tmp_path / "more").write_bytes(b"more")
    return UkiRequest(
        tmp_path / "kernel",
        (tmp_path / "initrd", tmp_path / "more"),
        COMMAND_LINE,
        stub=tmp_path / "stub",
        os_release=b"ID=test\n",
        uname="6.12.0-test",
    )


def test_same_inputs_give_the_same_bytes_wherever_they_lie(request_: UkiRequest, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere/k"
    moved.write_bytes(request_.kernel.read_bytes())
    assert build_uki(request_) == build_uki(replace(request_, kernel=moved))


def test_sections_are_in_order_at_pages_of_their_own_and_nothing_is_left_uncovered(request_: UkiRequest) -> None:
    made = build_uki(request_)
    image, stub = parse_pe(made), parse_pe(request_.stub.read_bytes())
    names = [section.name for section in image.sections]
    assert names == [section.name for section in stub.sections] + [".osrel", ".cmdline", ".uname", ".initrd", ".linux"]
    added = image.sections[len(stub.sections) :]
    assert all(section.virtual_address % 4096 == 0 for section in added)
    for one, other in zip(image.sections, image.sections[1:], strict=False):
        assert one.virtual_address + one.virtual_size <= other.virtual_address
        assert one.raw_offset + one.raw_size == other.raw_offset
    last = image.sections[-1]
    assert image.size_of_image == -(-(last.virtual_address + last.virtual_size) // 4096) * 4096
    assert uncovered_ranges(image) == ()
    assert len(made) % 8 == 0


def test_contents_come_back_as_they_went_in(request_: UkiRequest) -> None:
    made = build_uki(request_)
    image, parts = parse_pe(made), uki_parts(made)
    padded = request_.initrds[0].read_bytes().ljust(-(-len(request_.initrds[0].read_bytes()) // 4) * 4, b"\0")
    assert parts.kernel == request_.kernel.read_bytes()
    assert parts.initrd == padded + b"more"
    assert parts.command_line == COMMAND_LINE
    assert image.content(image.section(".uname")) == b"6.12.0-test"
    assert image.content(image.section(".osrel")) == b"ID=test\n"
    assert is_uki(made)
    assert not is_uki(request_.stub.read_bytes())


def test_any_changed_input_changes_the_digest_that_is_signed(request_: UkiRequest, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(efi((b".setup", b"kernel" * 999 + b"kernem")))
    changes = [
        replace(request_, command_line=f"{COMMAND_LINE} "[:-1] + "x"),
        replace(request_, kernel=tmp_path / "other"),
        replace(request_, initrds=request_.initrds[:1]),
        replace(request_, os_release=b"ID=tesu\n"),
        replace(request_, uname="6.12.0-tesu"),
    ]
    digests = {authenticode_digest(build_uki(one)) for one in (request_, *changes)}
    assert len(digests) == len(changes) + 1


def test_sbat_lines_are_added_to_the_stubs_own(request_: UkiRequest) -> None:
    made = parse_pe(build_uki(replace(request_, sbat="ours,2,us,ours,2,https://example.org\n")))
    assert [section.name for section in made.sections].count(".sbat") == 1
    assert made.content(made.section(".sbat")) == SBAT + b"ours,2,us,ours,2,https://example.org\n"


def test_every_section_of_the_specification_can_be_given(request_: UkiRequest, tmp_path: Path) -> None:
    for name in ("dtb", "splash", "key", "signature", "own"):
        (tmp_path / name).write_bytes(name.encode())
    made = parse_pe(
        build_uki(
            replace(
                request_,
                sbat="ours,1",
                dtb=tmp_path / "dtb",
                splash=tmp_path / "splash",
                pcr_public_key=tmp_path / "key",
                pcr_signature=tmp_path / "signature",
                extra=((".own", tmp_path / "own"),),
            )
        )
    )
    names = [section.name for section in made.sections]
    assert [name for name in names if name in SECTION_ORDER] == list(SECTION_ORDER)
    assert names.index(".own") < names.index(".initrd")
    assert uncovered_ranges(made) == ()


def test_headers_grow_when_the_sections_do_not_fit(request_: UkiRequest, tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(b"own")
    extra = tuple((f".x{number}", tmp_path / "own") for number in range(20))
    made, stub = parse_pe(build_uki(replace(request_, extra=extra))), parse_pe(request_.stub.read_bytes())
    assert made.size_of_headers > stub.size_of_headers
    assert made.content(made.sections[0]) == stub.content(stub.sections[0])
    assert uncovered_ranges(made) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command_line": "a\nb"}, "wanted one line"),
        ({"command_line": "x" * 2048}, "at most 2047 bytes, got 2048"),
        ({"sbat": "no generation"}, "component,generation"),
        ({"architecture": "arm64"}, "is for x86-64, wanted arm64"),
        ({"architecture": "vax", "stub": None}, "unknown architecture"),
        ({"kernel": Path("/nowhere")}, "cannot be read"),
        ({"initrds": (Path("/nowhere"),)}, "cannot be read"),
        ({"extra": ((".cmdline", STUB),)}, "has an option of its own"),
        ({"extra": ((".text", STUB),)}, r"has a section \.text already"),
        ({"extra": ((".a", STUB), (".a", STUB))}, r"has a section \.a already"),
        ({"extra": ((".too-long-name", STUB),)}, "1 to 8 ASCII characters"),
    ],
)
def test_what_would_be_cut_or_read_otherwise_is_refused(
    request_: UkiRequest, change: dict[str, object], message: str, need_file: Callable[[Path, str], Path]
) -> None:
    need_file(STUB, "systemd-boot-efi")
    with pytest.raises(InputError, match=message):
        build_uki(replace(request_, **change))  # type: ignore[arg-type]


def test_kernel_without_an_efi_stub_is_refused(request_: UkiRequest) -> None:
    request_.kernel.write_bytes(b"\x7fELF" + bytes(1000))
    with pytest.raises(FormatError, match="is no EFI program") as caught:
        build_uki(request_)
    assert "CONFIG_EFI_STUB" in caught.value.hint


def test_uki_as_kernel_or_stub_is_refused(request_: UkiRequest, tmp_path: Path) -> None:
    (tmp_path / "uki").write_bytes(build_uki(request_))
    for change in ({"kernel": tmp_path / "uki"}, {"stub": tmp_path / "uki"}):
        with pytest.raises(InputError, match="unified kernel image already"):
            build_uki(replace(request_, **change))


def test_stub_whose_sections_overlap_is_refused(request_: UkiRequest) -> None:
    data = bytearray(request_.stub.read_bytes())
    at = parse_pe(bytes(data)).section_table_offset
    data[at + 40 + 12 : at + 40 + 16] = struct.pack("<I", 0x1010)
    request_.stub.write_bytes(bytes(data))
    with pytest.raises(InputError, match="overlap in memory"):
        build_uki(request_)


def test_missing_stub_names_the_package(request_: UkiRequest) -> None:
    with pytest.raises(ToolMissingError, match="systemd-boot-efi"):
        build_uki(replace(request_, stub=None, architecture="riscv64"))


def test_image_that_would_be_too_large_is_refused() -> None:
    image = parse_pe(efi())
    data = bytearray(image.data)
    at = image.section_table_offset
    data[at + 12 : at + 16] = struct.pack("<I", (1 << 31) - 4096)
    with pytest.raises(InputError, match="wanted at most 2147483648"):
        with_sections(parse_pe(bytes(data)), [NewSection(".linux", b"x" * 5000)])


def test_command_line_can_be_exchanged_and_nothing_else_changes(request_: UkiRequest) -> None:
    made = build_uki(request_)
    longer = with_command_line(made, "init=/probe " * 100)
    assert uki_parts(longer).command_line == ("init=/probe " * 100)
    before, after = parse_pe(made), parse_pe(longer)
    for old, new in zip(before.sections, after.sections, strict=True):
        assert (old.name, old.virtual_address) == (new.name, new.virtual_address)
        assert old.name == ".cmdline" or before.content(old) == after.content(new)
    assert uncovered_ranges(after) == ()
    with pytest.raises(InputError, match="overlap in memory"):
        with_command_line(made, "x" * 5000)


def test_debians_stub_gives_an_image_that_is_opened_as_a_kernel(
    request_: UkiRequest, test_kernel, need_file: Callable[[Path, str], Path]
) -> None:
    need_file(STUB, "systemd-boot-efi")
    assert stub_path("x86-64") == STUB
    made = build_uki(replace(request_, kernel=test_kernel.image, stub=None, uname=None))
    image = parse_pe(made)
    assert image.content(image.section(".uname")).decode() == test_kernel.release == release_of(test_kernel.image.read_bytes())
    assert open_kernel(made).layers[:2] == ("UKI", "bzImage")
    assert not any(image.data[image.header_offset + 12 : image.header_offset + 20]), "the stub's symbol table is left out"


def test_verb_makes_a_signed_image(request_: UkiRequest, uefi_keys: KeySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair, out = uefi_keys.pair("secure-boot"), tmp_path / "demo.efi"
    words = ["image", "uki", "--kernel", request_.kernel, "--initramfs", request_.initrds[0], "--command-line", COMMAND_LINE]
    words += ["--stub", request_.stub, "--key", pair.uri, "--cert", pair.certificate, "-o", out, "--json"]
    assert main([str(word) for word in words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["signed"] is True
    assert told["authenticode_sha256"] == authenticode_digest(out.read_bytes()).hex()
    assert [row["name"] for row in told["sections"]][-2:] == [".initrd", ".linux"]
    assert main([str(word) for word in words]) == 2, "an output that exists is left as it is"
    assert main([str(word) for word in words if word not in ("--cert", pair.certificate)]) == 2
    capsys.readouterr()
