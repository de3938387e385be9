"""Images in any mix of parts, with several boot entries, with unified kernel images, sealed: each is read from its bytes and judged."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.audit.findings import Answer, AuditReport, Stage, Verdict
from ipe_build.audit.html import render_html
from ipe_build.examine.inputs import Kind, kind_of
from ipe_build.host import Host, Progress
from ipe_build.image.disk import Disk, read_disk
from ipe_build.image.uki import UkiRequest, make_uki, stub_path
from ipe_build.pipeline import audit_image
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.efi_image import sign_image
from tests.fixtures.audit_breaks import read
from tests.fixtures.demo import ipe_build


@pytest.fixture
def quiet(host: Host) -> Host:
    return Host(env=host.env, progress=Progress(io.StringIO(), quiet=True))


@pytest.fixture
def image(demo_build: Path, tmp_path: Path) -> Path:
    """A copy of the demo's disk that may be changed."""
    copy = tmp_path / "demo.raw"
    shutil.copyfile(demo_build / "demo.raw", copy)
    return copy


@pytest.fixture
def uki(demo_build: Path, tmp_path: Path, quiet: Host, need_file: Callable[[Path, str], Path]) -> Path:
    """A unified kernel image of the demo's kernel and initramfs."""
    need_file(stub_path("x86-64"), "systemd-boot-efi")
    out = tmp_path / "demo.efi"
    make_uki(UkiRequest(demo_build / "vmlinuz", (demo_build / "initrd",), "console=ttyS0 panic=-1 loglevel=7"), out, quiet)
    return out


def put(image: Path, name: str, content: bytes, host: Host) -> None:
    """Puts a file into the EFI system partition."""
    place = f"{image}@@{esp(image)}"
    content_file = image.with_name("content")
    content_file.write_bytes(content)
    folder = ""
    for part in name.strip("/").split("/")[:-1]:
        folder += f"/{part}"
        host.run(["mmd", "-i", place, f"::{folder}"], ok=(0, 1))
    host.run(["mcopy", "-o", "-i", place, content_file, f"::{name}"])


def esp(image: Path) -> int:
    partition = read_disk(image).esp
    assert partition is not None
    return partition.offset_bytes


def entry(image: Path, host: Host) -> bytes:
    return host.run(["mcopy", "-i", f"{image}@@{esp(image)}", "::/loader/entries/demo.conf", "-"]).stdout


def failed(report: AuditReport) -> dict[str, tuple[str, ...]]:
    """The checks of severity error that failed, with the entries that each is true of."""
    return {one.check: one.entries for one in report.findings if one.verdict is Verdict.FAIL and one.severity == "error"}


def parts_of(disk: Disk, folder: Path) -> dict[str, Path]:
    """The partitions of a disk as files."""
    found = {}
    for name in ("esp", "root", "root_verity", "root_verity_sig"):
        partition = getattr(disk, name)
        found[name] = folder / f"part-{name}"
        found[name].write_bytes(read(disk.path, partition.offset_bytes, partition.size_bytes))
    return found


def test_partitions_as_files_are_judged_like_the_disk(image: Path, tmp_path: Path, quiet: Host) -> None:
    parts = parts_of(read_disk(image), tmp_path)
    assert {name: kind_of(path) for name, path in parts.items()} == {
        "esp": Kind.ESP,
        "root": Kind.ROOT,
        "root_verity": Kind.HASH_TREE,
        "root_verity_sig": Kind.SIGNATURE,
    }
    whole, of_parts = audit_image(image, quiet)[0], audit_image(list(parts.values()), quiet)[0]
    assert failed(whole) == failed(of_parts) == {}
    assert {one.check for one in of_parts.findings if one.verdict is Verdict.UNKNOWN} == {"device-policy-ledger"}
    assert (of_parts.predictions[0].boots, of_parts.predictions[0].enforces) == (Answer.YES, Answer.YES)


def test_a_damaged_part_is_found_in_a_file_too(image: Path, tmp_path: Path, quiet: Host) -> None:
    parts = parts_of(read_disk(image), tmp_path)
    raw = bytearray(parts["root"].read_bytes())
    raw[2000] ^= 1
    parts["root"].write_bytes(raw)
    report = audit_image(list(parts.values()), quiet)[0]
    assert "hash-tree" in failed(report)
    assert report.predictions[0].stage is Stage.MOUNT


def test_kernel_and_initramfs_alone_are_judged_as_far_as_they_go(demo_build: Path, quiet: Host) -> None:
    assert kind_of(demo_build / "vmlinuz") is Kind.KERNEL
    assert kind_of(demo_build / "initrd") is Kind.INITRAMFS
    report = audit_image([demo_build / "vmlinuz", demo_build / "initrd"], quiet, command_line="console=ttyS0")[0]
    verdicts = {one.check: one.verdict for one in report.findings}
    assert verdicts["kernel-ipe"] is verdicts["boot-policy-parses"] is verdicts["initramfs-init"] is Verdict.PASS
    assert verdicts["hash-tree"] is verdicts["root-programs"] is Verdict.UNKNOWN
    assert report.predictions[0].boots is Answer.NO
    assert report.predictions[0].stage is Stage.VERITY


def test_everything_named_by_hand_is_one_entry(demo_build: Path, image: Path, tmp_path: Path, quiet: Host) -> None:
    parts = parts_of(read_disk(image), tmp_path)
    report = audit_image(
        [parts["root"], parts["root_verity"], parts["root_verity_sig"]],
        quiet,
        kernel=demo_build / "vmlinuz",
        initramfs=[demo_build / "initrd"],
        command_line="console=ttyS0 ipe.enforce=0",
    )[0]
    assert set(failed(report)) == {"command-line-enforce", "foreseen-boot"}
    assert report.predictions[0].stage is Stage.IPE


def test_two_inputs_of_one_kind_are_bad_input(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    shutil.copyfile(image, other)
    done = ipe_build("audit", image, other, "--quiet")
    assert done.returncode == 2
    assert "second disk image" in done.stderr


def test_each_boot_entry_is_judged_and_named(image: Path, quiet: Host) -> None:
    put(image, "/loader/entries/aa-rescue.conf", entry(image, quiet).replace(b"panic=-1", b"panic=-1 ipe.enforce=0"), quiet)
    report, portrait = audit_image(image, quiet)
    assert report.failed
    rescue = ("/loader/entries/aa-rescue.conf",)
    assert failed(report) == {"command-line-enforce": rescue, "foreseen-boot": rescue}
    foreseen = {one.entry: (one.default, one.boots, one.enforces) for one in report.predictions}
    assert foreseen["/loader/entries/demo.conf"] == (True, Answer.YES, Answer.YES)
    assert foreseen["/loader/entries/aa-rescue.conf"] == (False, Answer.NO, Answer.UNKNOWN)
    page = render_html(report, portrait)
    assert page.count("/loader/entries/aa-rescue.conf") >= 3
    assert "2 boot entries" in page


def test_loader_conf_says_which_entry_is_the_default(image: Path, quiet: Host) -> None:
    put(image, "/loader/entries/zz-new.conf", entry(image, quiet), quiet)
    put(image, "/loader/loader.conf", b"editor no\n", quiet)
    assert audit_image(image, quiet)[0].predictions[0].entry == "/loader/entries/zz-new.conf"
    put(image, "/loader/loader.conf", b"default demo*\neditor no\n", quiet)
    assert audit_image(image, quiet)[0].predictions[0].entry == "/loader/entries/demo.conf"


def test_an_entry_whose_kernel_is_missing_is_said_and_the_others_are_judged(image: Path, quiet: Host) -> None:
    put(image, "/loader/entries/aa-old.conf", entry(image, quiet).replace(b"/ipe-build/linux", b"/ipe-build/gone"), quiet)
    report = audit_image(image, quiet)[0]
    assert "image-readable" in failed(report)
    assert [one.entry for one in report.predictions] == ["/loader/entries/demo.conf"]


def test_uki_in_efi_linux_is_an_entry(image: Path, uki: Path, quiet: Host) -> None:
    put(image, "/EFI/Linux/demo.efi", uki.read_bytes(), quiet)
    report = audit_image(image, quiet)[0]
    assert failed(report) == {}
    kinds = {one.entry: one.kind for one in report.predictions}
    assert kinds["/EFI/Linux/demo.efi"] == "unified kernel image"
    assert all((one.boots, one.enforces) == (Answer.YES, Answer.YES) for one in report.predictions)
    unsigned = [one for one in report.findings if one.check == "uki-signed" and one.verdict is Verdict.FAIL]
    assert [one.entries for one in unsigned] == [("/EFI/Linux/demo.efi",)]


def test_uki_as_the_boot_loader_starts_first_and_its_signer_is_named(image: Path, uki: Path, quiet: Host, test_keys: KeySet) -> None:
    signed = sign_image(uki.read_bytes(), test_keys.pair("module").signer(quiet))
    put(image, "/EFI/BOOT/BOOTX64.EFI", signed, quiet)
    report, portrait = audit_image(image, quiet)
    assert (report.predictions[0].entry, report.predictions[0].default) == ("/EFI/BOOT/BOOTX64.EFI", True)
    verdicts = {one.check: one.verdict for one in report.findings if "/EFI/BOOT/BOOTX64.EFI" in one.entries}
    assert verdicts["uki-signed"] is verdicts["command-line-signed"] is Verdict.PASS
    assert "Signed by" in dict(portrait.entries[0].facts)


def test_a_flipped_byte_breaks_the_signature_of_a_uki(image: Path, uki: Path, quiet: Host, test_keys: KeySet) -> None:
    signed = bytearray(sign_image(uki.read_bytes(), test_keys.pair("module").signer(quiet)))
    signed[200_000] ^= 1
    put(image, "/EFI/Linux/demo.efi", bytes(signed), quiet)
    report = audit_image(image, quiet)[0]
    found = [one for one in report.findings if one.check == "uki-signed" and "/EFI/Linux/demo.efi" in one.entries]
    assert [one.verdict for one in found] == [Verdict.FAIL]
    assert "another image" in found[0].why


def test_what_the_stub_would_add_to_a_uki_is_found(image: Path, uki: Path, quiet: Host) -> None:
    put(image, "/EFI/Linux/demo.efi", uki.read_bytes(), quiet)
    put(image, "/EFI/Linux/demo.efi.extra.d/shell.cred", b"x", quiet)
    report = audit_image(image, quiet)[0]
    found = [one for one in report.findings if one.check == "uki-extras" and one.verdict is Verdict.FAIL]
    assert [one.entries for one in found] == [("/EFI/Linux/demo.efi",)]


def test_a_uki_in_a_file_of_its_own(image: Path, uki: Path, tmp_path: Path, quiet: Host) -> None:
    assert kind_of(uki) is Kind.UKI
    parts = parts_of(read_disk(image), tmp_path)
    report = audit_image([uki, parts["root"], parts["root_verity"], parts["root_verity_sig"]], quiet)[0]
    assert failed(report) == {}
    assert (report.predictions[0].entry, report.predictions[0].boots) == ("demo.efi", Answer.YES)
