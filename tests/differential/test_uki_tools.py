"""Our unified kernel images against binutils: the same sections, addresses and contents. The arm64 one is looked at, not booted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.formats.pe import parse_pe, uncovered_ranges
from ipe_build.host import Host
from ipe_build.image.uki import UkiRequest, build_uki
from ipe_build.kernel.build import Kernel
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.efi_image import SignatureDatabase, sign_image, verify_image
from tests.fixtures.efi import STUB, make_pe

_ROW = re.compile(r"^\s*\d+ (\S+)\s+([0-9a-f]{8})\s+([0-9a-f]{16})\s+[0-9a-f]{16}\s+([0-9a-f]{8})", re.MULTILINE)


@pytest.fixture(scope="module")
def uki(
    test_kernel: Kernel, need_file: Callable[[Path, str], Path], host: Host, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, UkiRequest]:
    """A UKI around Debian's stub and the tests' kernel."""
    need_file(STUB, "systemd-boot-efi")
    folder = tmp_path_factory.mktemp("uki")
    (folder / "initrd").write_bytes(b"initramfs" * 5000)
    request = UkiRequest(test_kernel.image, (folder / "initrd",), "console=ttyS0", os_release=b"ID=test\n", sbat="ours,1,us,ours,1,url")
    (folder / "uki.efi").write_bytes(build_uki(request))
    return folder / "uki.efi", request


def test_objdump_sees_the_sections_where_we_put_them(uki: tuple[Path, UkiRequest], need: Callable[[str], Path], host: Host) -> None:
    need("objdump")
    image = parse_pe(uki[0].read_bytes())
    seen = [(name, int(size, 16), int(address, 16), int(at, 16)) for name, size, address, at in _ROW.findall(_headers(uki[0], host))]
    assert seen == [(one.name, one.virtual_size, one.virtual_address, one.raw_offset) for one in image.sections]


def test_objcopy_takes_out_what_went_in(uki: tuple[Path, UkiRequest], need: Callable[[str], Path], host: Host, tmp_path: Path) -> None:
    need("objcopy")
    path, request = uki
    wanted = {".linux": request.kernel.read_bytes(), ".initrd": request.initrds[0].read_bytes(), ".cmdline": b"console=ttyS0"}
    for name, content in wanted.items():
        host.run(["objcopy", "-O", "binary", f"--only-section={name}", path, tmp_path / "out"])
        assert (tmp_path / "out").read_bytes() == content, name


def test_stubs_own_sections_are_untouched(uki: tuple[Path, UkiRequest]) -> None:
    made, stub = parse_pe(uki[0].read_bytes()), parse_pe(STUB.read_bytes())
    for section in stub.sections:
        if section.name != ".sbat":
            kept = made.section(section.name)
            assert kept is not None
            assert (kept.virtual_address, made.content(kept)) == (section.virtual_address, stub.content(section))


def test_arm64_image_is_laid_out_and_signed_the_same_way(
    arm64_stub: Path, uefi_keys: KeySet, host: Host, need: Callable[[str], Path], tmp_path: Path
) -> None:
    """Around Debian's own arm64 stub. It is not booted: the kernel in it is none."""
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(make_pe(((b".text", b"\0" * 4096),), machine=0xAA64))
    initrd.write_bytes(b"initramfs")
    made = build_uki(UkiRequest(kernel, (initrd,), "console=ttyAMA0", "arm64", arm64_stub, b"ID=test\n", "6.12.0-arm64"))
    image, stub = parse_pe(made), parse_pe(arm64_stub.read_bytes())
    assert image.architecture == stub.architecture == "arm64"
    names = [section.name for section in image.sections]
    assert names == [section.name for section in stub.sections] + [".osrel", ".cmdline", ".uname", ".initrd", ".linux"]
    assert uncovered_ranges(image) == ()
    signer = uefi_keys.pair("secure-boot").signer(host)
    signed = tmp_path / "signed.efi"
    signed.write_bytes(sign_image(made, signer))
    assert verify_image(signed.read_bytes(), SignatureDatabase((signer.certificate,))) == signer.certificate
    assert host.run([need("sbverify"), "--cert", uefi_keys.pair("secure-boot").certificate, signed]).status == 0


def _headers(path: Path, host: Host) -> str:
    return host.run(["objdump", "-h", path]).text
