"""Secure Boot, seen: firmware starts what our keys signed and nothing else; Debian's own kernel enforces with keys that firmware holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.boot.entry import read_entry
from ipe_build.boot.guest_files import probe_files
from ipe_build.boot.probe_disk import PolicyMaterial
from ipe_build.boot.prove import BootRequest, boot_image
from ipe_build.boot.qemu import Boot, Ended, Machine, boot
from ipe_build.boot.secure_boot import refusals, secure_firmware
from ipe_build.boot.secure_boot_proof import SecureBoot
from ipe_build.errors import SignatureError
from ipe_build.formats.cms import signer_identity
from ipe_build.formats.pe import authenticode_digest, parse_pe
from ipe_build.formats.spc import encode_spc, signed_attributes
from ipe_build.formats.uki import uki_parts
from ipe_build.formats.verity_sig import VeritySignature
from ipe_build.host import Host
from ipe_build.image.disk import DiskRequest, make_disk, read_disk
from ipe_build.image.esp import make_esp
from ipe_build.image.filesystem import FilesystemRequest, FilesystemType, make_filesystem
from ipe_build.image.initramfs import InitramfsRequest, make_initramfs
from ipe_build.image.rootfs import Entry
from ipe_build.image.uki import UkiRequest, build_uki, uki_file
from ipe_build.integrity.verity import VerityParameters, format_image
from ipe_build.kernel.build import Kernel
from ipe_build.policy.render import render
from ipe_build.signing.algorithms import algorithm_of
from ipe_build.signing.authenticode import attach_signatures, unsigned
from ipe_build.signing.certificates import KeySet, fingerprint
from ipe_build.signing.efi_image import SignatureDatabase, sign_image, verify_image
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload
from ipe_build.signing.signer import Signer
from tests.fixtures.demo import ipe_build
from tests.fixtures.efi import STUB, StockKernel

pytestmark = pytest.mark.boot

COMMAND_LINE = "console=ttyS0 panic=-1 loglevel=7"
POLICY = render("signed-verity", {"name": "ipe-policy", "version": "1.0.0", "role": "device"})
NEVER_STARTED = ("EFI stub:", "Linux version")
MACHINE = Machine(memory_mib=1024, timeout_s=240)


@pytest.fixture(scope="module", autouse=True)
def tools(need: Callable[[str], Path], need_file: Callable[[Path, str], Path]) -> None:
    for tool in ("qemu-system-x86_64", "mkfs.vfat", "mcopy", "mdir", "fakeroot", "busybox"):
        need(tool)
    need_file(STUB, "systemd-boot-efi")
    need_file(Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"), "ovmf")


@pytest.fixture(scope="module")
def signer(uefi_keys: KeySet, host: Host) -> Signer:
    return uefi_keys.pair("secure-boot").signer(host)


@pytest.fixture(scope="module")
def foreign(foreign_uefi_keys: KeySet, host: Host) -> Signer:
    return foreign_uefi_keys.pair("secure-boot").signer(host)


@pytest.fixture(scope="module")
def stock_image(
    stock_kernel: StockKernel, test_keys: KeySet, signer: Signer, host: Host, tmp_path_factory: pytest.TempPathFactory
) -> BootRequest:
    """An image around Debian's signed kernel, unchanged: what a verity root needs is loaded as Debian's own signed modules."""
    folder = tmp_path_factory.mktemp("stock")
    signed = sign_payload(PROFILES["ipe-policy"], POLICY, test_keys.pair("policy").signer(host))
    additions = [Entry.folder(name) for name in ("dev", "proc", "sys", "run", "tmp", "bin", "etc", "etc/ipe")]
    additions += [Entry.file("bin/busybox", host.tool("busybox").read_bytes(), mode=0o755), Entry.link("bin/sh", "busybox")]
    additions += [Entry.file("etc/ipe/ipe-policy.p7b", signed)]
    additions += [Entry.file(file.path.lstrip("/"), file.data, mode=file.mode) for file in probe_files(host, modules=None)]
    (folder / "empty").mkdir()
    root, tree_file, initrd = folder / "root.img", folder / "root.verity", folder / "initrd"
    request = FilesystemRequest(folder / "empty", UUID(int=7), FilesystemType.EROFS, additions=tuple(additions))
    make_filesystem(request, root, host)
    tree = format_image(root, tree_file, VerityParameters(salt=bytes(range(32))), host)
    verity = test_keys.pair("verity").signer(host)
    signature = sign_payload(PROFILES["dm-verity-root-hash"], root_hash_payload(tree.root_hash), verity)
    content = VeritySignature(tree.root_hash, bytes.fromhex(fingerprint(verity.certificate)), signature).build()
    init = InitramfsRequest(
        tree.root_hash,
        "erofs",
        init="/bin/sh",
        init_from_command_line=True,
        policies=("/etc/ipe/ipe-policy.p7b",),
        modules=stock_kernel.modules,
    )
    make_initramfs(init, initrd, host)
    uki = sign_image(build_uki(UkiRequest(stock_kernel.image, (initrd,), COMMAND_LINE, os_release=b"ID=test\n")), signer)
    files = (uki_file(uki, "x86-64"),)
    make_disk(DiskRequest(root, tree_file, tree.root_hash, content, UUID(int=8), files=files, boot_loader=False), folder / "disk.raw", host)
    return BootRequest(folder / "disk.raw", MACHINE, modules=False, application=("/bin/busybox", "true"), destructive=False)


def test_debians_own_kernel_enforces_with_keys_that_only_firmware_holds(
    stock_image: BootRequest,
    stock_kernel: StockKernel,
    test_keys: KeySet,
    foreign_keys: KeySet,
    signer: Signer,
    foreign: Signer,
    host: Host,
) -> None:
    """The kernel is signed by Debian and holds no key of ours: db does. Every probe, and firmware's refusals, in one go."""
    policy, verity = (test_keys.pair(role).signer(host) for role in ("policy", "verity"))
    enrolled = (signer.certificate, policy.certificate, verity.certificate)
    request = replace(
        stock_image,
        policy=PolicyMaterial(POLICY, policy, foreign_keys.pair("policy").signer(host)),
        foreign=foreign_keys.pair("verity").signer(host),
        secure_boot=SecureBoot(enrolled, signer, foreign, has_keys=True),
    )
    evidence = boot_image(request, host)
    results = {one.id: one for one in (*evidence.probes, *evidence.boots)}
    assert evidence.as_expected, [(one.id, one.problems) for one in results.values() if one.problems]
    assert evidence.subject.kernel_release == stock_kernel.release
    assert "+deb12-amd64" in evidence.subject.kernel_release
    done = {name for name, one in results.items() if not one.skipped}
    assert {"secure-boot", "uki-unsigned", "uki-foreign", "uki-flipped", "keys-not-enrolled"} <= done
    assert {"run-program", "run-copy", "policy-newer", "policy-foreign", "policy-tampered"} <= done
    assert results["policy-foreign"].observed == "denied: ENOKEY"


def test_policy_by_a_key_that_is_not_in_db_is_refused(
    stock_image: BootRequest, test_keys: KeySet, signer: Signer, host: Host, tmp_path: Path
) -> None:
    """The deny twin: the root hash's key is enrolled and accepted, the policy's is not."""
    verity = test_keys.pair("verity").signer(host).certificate
    firmware = secure_firmware([signer.certificate, verity], tmp_path, host)
    done = boot(stock_image.disk, MACHINE, host, firmware=firmware, stop_at="Kernel panic")
    assert any("ipe-init: verity device:" in line and "signed" in line for line in done.console)
    assert any("FATAL: policy: /etc/ipe/ipe-policy.p7b: signed by a key that the kernel does not trust" in line for line in done.console)
    assert done.ended is Ended.PANIC


@pytest.fixture(scope="module")
def plain_uki(test_kernel: Kernel) -> bytes:
    """A UKI without an initramfs: its kernel starts and then panics, which is all that is asked here."""
    return build_uki(UkiRequest(test_kernel.image, (), COMMAND_LINE, os_release=b"ID=test\n"))


def started(image: bytes, db: SignatureDatabase, dbx: SignatureDatabase, folder: Path, host: Host) -> Boot:
    """Boots a disk that holds this program alone, with these databases."""
    make_esp([uki_file(image, "x86-64")], folder / "esp.raw", 32 << 20, UUID(int=5), host)
    firmware = secure_firmware(db.certificates, folder, host, dbx=dbx.certificates, forbidden=tuple(dbx.digests))
    return boot(folder / "esp.raw", Machine(timeout_s=180), host, firmware=firmware, stop_at="Kernel panic|No bootable option")


def curve_signed(image: bytes, signer: Signer) -> bytes:
    """The image with an ECDSA signature, which `sign_image` refuses to make."""
    payload, certificate = unsigned(image), signer.certificate.public_bytes(Encoding.DER)
    digest = authenticode_digest(payload)
    raw = signer.sign(signed_attributes(digest, "sha256"), "sha256")
    identifier = algorithm_of(public_key_of(signer.certificate)).identifier("sha256")
    return attach_signatures(payload, [encode_spc(digest, "sha256", signer_identity(certificate), identifier, raw, (certificate,))])


@pytest.mark.parametrize("case", ["second of two signatures, root in db", "one of two signers in dbx", "curve key"])
def test_verify_says_what_firmware_does(
    case: str,
    plain_uki: bytes,
    signer: Signer,
    foreign: Signer,
    uefi_keys: KeySet,
    curve_keys: dict[str, KeySet],
    host: Host,
    tmp_path: Path,
) -> None:
    """`sign verify efi-image` and OVMF agree about images that are not as simple as signed or not."""
    curve = curve_keys["p256"].pair("policy").signer(host)
    image, db, dbx = sign_image(plain_uki, signer), SignatureDatabase((signer.certificate,)), SignatureDatabase()
    if case.startswith("second"):
        image, db = (
            sign_image(sign_image(plain_uki, foreign), signer, keep=True),
            SignatureDatabase((uefi_keys.root.signer(host).certificate,)),
        )
    elif case.startswith("one"):
        image, dbx = sign_image(image, foreign, keep=True), SignatureDatabase((foreign.certificate,))
    else:
        image, db = curve_signed(plain_uki, curve), SignatureDatabase((curve.certificate,))
    done = started(image, db, dbx, tmp_path, host)
    if case.startswith("second"):
        assert verify_image(image, db, dbx) == signer.certificate
        assert any("Secure boot enabled" in line for line in done.console)
        assert not refusals(done.console)
        return
    with pytest.raises(SignatureError, match="EFI_SECURITY_VIOLATION"):
        verify_image(image, db, dbx)
    assert refusals(done.console)
    assert not any(word in line for line in done.console for word in NEVER_STARTED)


def test_build_with_a_uki_is_reproducible_and_holds_nothing_unsigned_to_boot(
    demo_config: Path, need: Callable[[str], Path], host: Host, tmp_path: Path
) -> None:
    text = demo_config.read_text()
    for old, new in (('boot = "loader"', 'boot = "uki"'), ("probes = true", "probes = false")):
        assert old in text
        text = text.replace(old, new, 1)
    config = demo_config.with_name(f"{tmp_path.name}-uki.toml")
    config.write_text(text)
    for name in ("one", "two"):
        done = ipe_build("build", "-c", config, "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr + done.stdout
    first, second = (tmp_path / name / "demo.raw" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    esp = read_disk(first).esp
    assert esp is not None
    listing = host.run(["mdir", "-i", f"{first}@@{esp.offset_bytes}", "-/", "-b", "::/"], env={"MTOOLS_SKIP_CHECK": "1"}).text
    assert [line for line in listing.split() if not line.endswith("/")] == ["::/EFI/BOOT/BOOTX64.EFI"]
    entry = read_entry(first, tmp_path, host)
    assert entry.uki is not None
    uki = entry.uki.read_bytes()
    assert uki == (tmp_path / "one/demo.efi").read_bytes()
    assert parse_pe(uki).is_signed
    assert uki_parts(uki).kernel == (tmp_path / "one/vmlinuz").read_bytes()
    assert uki_parts(uki).initrd == (tmp_path / "one/initrd").read_bytes()
    assert uki_parts(uki).command_line == "console=ttyS0 panic=-1 loglevel=7"
