"""What BitBake's tasks and Buildroot's scripts make is booted and probed, like the demo's image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ipe_build.image.disk import read_disk
from ipe_build.kernel.trust import KernelTrust
from tests.fixtures.efi import STUB, SYSTEMD_BOOT
from tests.fixtures.layer import DROPPED, ROOT, BuildFolder, boot_and_probe

BUILDROOT = ROOT / "conf/buildroot"


def rows(evidence: dict) -> dict[str, str]:
    """Probe to what was observed; those that the image has nothing for are left out."""
    return {row["id"]: row["observed"] for row in evidence["probes"] if not row["skipped"]}


@pytest.mark.boot
@pytest.mark.slow
def test_image_made_by_bitbake_boots_and_denies(build_folder, probe_rootfs, kernel_factory, need, test_keys) -> None:
    for tool in ("qemu-system-x86_64", "mkfs.erofs", "mkfs.vfat", "mcopy", "gcc"):
        need(tool)
    build_folder.settings |= {"SMALL_ROOTFS": str(probe_rootfs), "IMAGE_FSTYPES": "erofs erofs.verity"}
    build_folder.built(("ipe-boot-policy", "do_compile"), ("ipe-boot-policy", "do_deploy"))
    boot_policy = (build_folder.deploy / "ipe-boot.pol").read_bytes()
    kernel = kernel_factory(KernelTrust(boot_policy, (test_keys.bundle.read_bytes(),)))
    shutil.copyfile(kernel.image, build_folder.deploy / "bzImage")
    shutil.copyfile(kernel.config, build_folder.deploy / "ipe-kernel-small.config")
    policy = (("ipe-policy", "do_compile"), ("ipe-policy", "do_deploy"))
    initramfs = (("ipe-initramfs", "do_compile"), ("ipe-initramfs", "do_deploy"))
    names = ("rootfs", "image_erofs", "image_complete", "ipe_sign", "ipe_disk", "ipe_audit", "ipe_evidence")
    image = tuple(("small-image", f"do_{name}") for name in names)
    dropped = " ".join(f"--dropped {name}" for name in DROPPED)
    settings = {
        "IPE_INITRAMFS_DROP": " ".join(DROPPED),
        "IPE_INITRAMFS_ARGS": "--init-override",
        "IMAGE_CLASSES": "ipe-image ipe-disk ipe-audit ipe-evidence",
        "IPE_EVIDENCE_ARGS": f"--no-modules --no-destructive --application '/bin/busybox true' {dropped}",
    }
    build_folder.built(*policy, *initramfs, *image, **settings)
    report = json.loads((build_folder.topdir / "tmp/work/small-image/ipe-audit/small-image-small.audit.json").read_text())
    assert report
    disk = build_folder.deploy / "small-image-small.ipedisk"
    seen = rows(json.loads((build_folder.deploy / "small-image-small.evidence.json").read_text()))
    assert len(seen) > 10 and sum(value.startswith("denied") for value in seen.values()) >= 3, seen
    # The deny twin of the audit: one flipped byte of the root fails the build.
    root_hash = (build_folder.deploy / "small-image-small.erofs.roothash").read_text().strip()
    content = bytearray(disk.read_bytes())
    content[content.index(bytes.fromhex("e2e1f5e0"), 0)] ^= 1
    disk.unlink()
    disk.write_bytes(content)
    answer = build_folder.bitbake(("small-image", "do_ipe_audit"), **settings)
    assert not answer.ok and "IPE_AUDIT_IMAGE" in answer.fatal and root_hash


IMAGE_TASKS = ("rootfs", "image_erofs", "image_complete")


def image_tasks(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple(("small-image", f"do_{name}") for name in names)


def evidence_of(folder: BuildFolder) -> dict:
    return json.loads((folder.deploy / "small-image-small.evidence.json").read_text())


@pytest.mark.boot
@pytest.mark.slow
def test_sealed_image_in_a_signed_uki_starts_from_firmware_and_denies(
    build_folder, probe_rootfs, sealed_kernel, need, need_file, uefi_keys
) -> None:
    """No key but firmware's: the root hash is in the kernel, the kernel in a UKI, and db says who signed that."""
    for tool in ("qemu-system-x86_64", "mkfs.erofs", "mkfs.vfat", "mcopy", "gcc", "xz"):
        need(tool)
    need_file(STUB, "systemd-boot-efi")
    need_file(Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"), "ovmf")
    none = {f"IPE_{role}_{kind}": "" for role in ("POLICY", "VERITY", "MODULE") for kind in ("KEY", "CERT")}
    pair = uefi_keys.pair("secure-boot")
    build_folder.settings |= none | {
        "SMALL_ROOTFS": str(probe_rootfs),
        "IMAGE_FSTYPES": "erofs erofs.verity",
        "IMAGE_CLASSES": "ipe-image ipe-uki ipe-disk ipe-audit ipe-attest ipe-evidence",
        "IPE_SEALED": "1",
        "IPE_ROOT_IMAGE": "small-image",
        "IPE_TRUSTED_CERTS": "",
        "IPE_UKI_STUB": str(STUB),
        "IPE_SECUREBOOT_KEY": pair.uri,
        "IPE_SECUREBOOT_CERT": str(pair.certificate),
        "IPE_INITRAMFS_ARGS": "--init-override",
        "IPE_EVIDENCE_ARGS": f"--no-modules --no-destructive --application '/bin/busybox true' --db {pair.certificate} "
        + " ".join(f"--dropped {name}" for name in ("CAP_MAC_ADMIN", *DROPPED)),
    }
    build_folder.deploy.mkdir(parents=True)
    shutil.copyfile(sealed_kernel.image, build_folder.deploy / "bzImage")
    initramfs = (("ipe-initramfs", "do_compile"), ("ipe-initramfs", "do_deploy"))
    made = image_tasks("ipe_seal", "ipe_uki", "ipe_disk", "ipe_audit", "ipe_measure", "ipe_evidence")
    build_folder.built(*image_tasks(*IMAGE_TASKS), *initramfs, *made)
    evidence = evidence_of(build_folder)
    seen = rows(evidence)
    assert seen["run-application"] == "allowed" and seen["run-copy"].startswith("denied") and seen["enforce-off"].startswith("denied"), seen
    boots = {one["id"]: one["observed"] for one in evidence["boots"] if not one["skipped"]}
    assert {"secure-boot", "uki-unsigned", "uki-foreign", "uki-flipped"} <= boots.keys() and evidence["as_expected"]
    values = json.loads((build_folder.deploy / "small-image-small.reference.json").read_text())
    assert {"4", "9", "11"} <= values["pcrs"]["sha256"].keys()


@pytest.mark.boot
@pytest.mark.slow
def test_slot_disk_made_by_bitbake_starts_from_firmware_knows_its_slot_and_denies(
    build_folder, probe_rootfs, kernel_factory, need, need_file, test_keys
) -> None:
    for tool in ("qemu-system-x86_64", "mkfs.erofs", "mkfs.vfat", "mcopy", "gcc"):
        need(tool)
    need_file(SYSTEMD_BOOT, "systemd-boot-efi")
    for name in ("sed", "grep", "readlink"):
        (probe_rootfs / "bin" / name).symlink_to("busybox")
    build_folder.settings |= {
        "SMALL_ROOTFS": str(probe_rootfs),
        "IMAGE_FSTYPES": "erofs erofs.verity",
        "IMAGE_CLASSES": "ipe-image ipe-disk ipe-audit ipe-evidence",
        "IPE_SLOTS": "1",
        "MACHINE_FEATURES": "efi",
        "IPE_INITRAMFS_DROP": " ".join(DROPPED),
        "IPE_INITRAMFS_ARGS": "--init-override",
        "IPE_EVIDENCE_ARGS": "--no-modules --no-destructive --firmware --application '/usr/lib/ipe/ipe-slot booted' "
        + " ".join(f"--dropped {name}" for name in DROPPED),
    }
    build_folder.built(("ipe-boot-policy", "do_compile"), ("ipe-boot-policy", "do_deploy"))
    shutil.copyfile(SYSTEMD_BOOT, build_folder.deploy / "systemd-bootx64.efi")  # as systemd-boot:do_deploy names it
    trust = KernelTrust((build_folder.deploy / "ipe-boot.pol").read_bytes(), (test_keys.bundle.read_bytes(),))
    kernel = kernel_factory(trust)
    shutil.copyfile(kernel.image, build_folder.deploy / "bzImage")
    shutil.copyfile(kernel.config, build_folder.deploy / "ipe-kernel-small.config")
    policy = (("ipe-policy", "do_compile"), ("ipe-policy", "do_deploy"))
    initramfs = (("ipe-initramfs", "do_compile"), ("ipe-initramfs", "do_deploy"))
    slot = tuple(("ipe-slot", f"do_{name}") for name in ("compile", "install", "package"))
    made = image_tasks(*IMAGE_TASKS, "ipe_sign", "ipe_disk", "ipe_audit", "ipe_update", "ipe_evidence")
    build_folder.built(*policy, *initramfs, *slot, *made)
    evidence = evidence_of(build_folder)
    seen = rows(evidence)
    assert seen["run-application"] == "allowed" and seen["run-copy"].startswith("denied"), seen
    (firmware,) = (one for one in evidence["boots"] if one["id"] == "firmware")
    assert firmware["observed"] == firmware["expected"] and not firmware["skipped"]
    assert (build_folder.deploy / "small-image-small.update/manifest.raucm").is_file()


@pytest.fixture
def buildroot(tmp_path: Path, probe_rootfs: Path, test_keys) -> dict[str, str]:
    """The environment that Buildroot gives its scripts, with a .config and the folders of a finished build."""
    base = tmp_path / "output"
    (base / "images").mkdir(parents=True)
    lines = ['BR2_ARCH="x86_64"', "BR2_IPE=y", 'BR2_IPE_FILESYSTEM="erofs"', f'BR2_IPE_TRUSTED_CERTS="{test_keys.bundle}"']
    lines += [f'BR2_IPE_DROP_CAPABILITIES="{" ".join(DROPPED)}"', 'BR2_IPE_INITRAMFS_ARGS="--init-override"']
    lines += ['BR2_IPE_COMMAND_LINE="console=ttyS0 panic=-1"']
    for role in ("policy", "verity", "module"):
        pair = test_keys.pair(role)
        lines += [f'BR2_IPE_{role.upper()}_KEY="{pair.uri}"', f'BR2_IPE_{role.upper()}_CERT="{pair.certificate}"']
    (base / ".config").write_text("\n".join(lines) + "\n")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        "PATH": path,
        "BASE_DIR": str(base),
        "BR2_CONFIG": str(base / ".config"),
        "HOST_DIR": str(base / "host"),
        "LINUX_DIR": str(base / "build/linux-6.12"),
        "SOURCE_DATE_EPOCH": "1700000000",
    }


def script(environment: dict[str, str], name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUILDROOT / f"board/ipe/{name}.sh", *words], capture_output=True, text=True, env=environment)


@pytest.mark.boot
@pytest.mark.slow
def test_image_made_by_buildroots_scripts_boots_and_denies(buildroot, probe_rootfs, kernel_factory, need, need_file, test_keys) -> None:
    for tool in ("qemu-system-x86_64", "mkfs.erofs", "mkfs.vfat", "mcopy", "mdir", "gcc"):
        need(tool)
    base = Path(buildroot["BASE_DIR"])
    prepared = script(buildroot, "prepare-kernel")
    assert prepared.returncode == 0, prepared.stderr
    assert f'CONFIG_IPE_BOOT_POLICY="{base}/ipe/ipe-boot.pol"' in (base / "ipe/kernel.config").read_text()
    kernel = kernel_factory(KernelTrust((base / "ipe/ipe-boot.pol").read_bytes(), ((base / "ipe/trusted.pem").read_bytes(),)))
    shutil.copyfile(kernel.image, base / "images/bzImage")
    for name, config in (("linux-6.11", "CONFIG_A=y\n"), ("linux-6.12", kernel.config.read_text())):  # an older one was left behind
        (base / "build" / name).mkdir(parents=True)
        (base / "build" / name / ".config").write_text(config)
    built = script(buildroot, "post-build", probe_rootfs)
    assert built.returncode == 0, built.stderr
    subprocess.run([need("mkfs.erofs"), "-T1700000000", base / "images/rootfs.erofs", probe_rootfs], check=True, capture_output=True)
    for loader in ("", "BR2_PACKAGE_SYSTEMD_BOOT=y\n"):
        if loader:
            place = base / "images/efi-part/EFI/BOOT/bootx64.efi"
            place.parent.mkdir(parents=True)
            shutil.copyfile(need_file(SYSTEMD_BOOT, "systemd-boot-efi"), place)
            (base / ".config").write_text((base / ".config").read_text() + loader)
        made = script(buildroot, "post-image", base / "images")
        assert made.returncode == 0, made.stderr
        esp = read_disk(base / "images/ipe.raw").esp
        words = ["mdir", "-i", f"{base}/images/ipe.raw@@{esp.offset_bytes}", "::EFI/BOOT/BOOTX64.EFI"]
        assert (subprocess.run(words, capture_output=True).returncode == 0) is bool(loader)
    assert json.loads((base / "images/ipe-audit.json").read_text()) and (base / "images/ipe-audit.sarif").is_file()
    assert boot_and_probe(base / "images/ipe.raw", base / "images/ipe-policy.pol", test_keys)


@pytest.mark.parametrize("name", ["VERITY_KEY", "VERITY_CERT", "POLICY_KEY", "POLICY_CERT"])
def test_buildroots_script_names_the_missing_symbol(buildroot, name) -> None:
    base = Path(buildroot["BASE_DIR"])
    for file in ("rootfs.erofs", "bzImage"):
        (base / "images" / file).write_bytes(bytes(4096))
    config = base / ".config"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if f"BR2_IPE_{name}=" not in line))
    made = script(buildroot, "post-image", base / "images")
    assert made.returncode != 0 and f"BR2_IPE_{name} is not set" in made.stderr
    assert not (base / "images/ipe.raw").exists()


def test_buildroots_script_says_when_the_kernel_was_not_given_the_fragment(buildroot) -> None:
    base = Path(buildroot["BASE_DIR"])
    for file in ("rootfs.erofs", "bzImage"):
        (base / "images" / file).write_bytes(bytes(4096))
    made = script(buildroot, "post-image", base / "images")
    assert made.returncode != 0 and "ipe/kernel.config is not in BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES" in made.stderr


def test_buildroots_script_stops_at_a_kernel_without_the_fragments_symbols(buildroot) -> None:
    base = Path(buildroot["BASE_DIR"])
    for file in ("rootfs.erofs", "bzImage"):
        (base / "images" / file).write_bytes(bytes(4096))
    assert script(buildroot, "prepare-kernel").returncode == 0
    (base / "build/linux-6.12").mkdir(parents=True)
    (base / "build/linux-6.12/.config").write_text("CONFIG_SECURITY_IPE=y\n")
    made = script(buildroot, "post-image", base / "images")
    assert made.returncode != 0 and "ipe-build kernel failed" in made.stderr and not (base / "images/ipe.raw").exists()


@pytest.mark.parametrize("value", ['a "quoted" word', "back\\slash", "plain", "$HOME `date` %s"])
def test_value_of_a_symbol_is_read_as_kconfig_wrote_it(buildroot, value) -> None:
    written = value.replace("\\", "\\\\").replace('"', '\\"')
    config = Path(buildroot["BASE_DIR"]) / ".config"
    config.write_text(f'BR2_IPE_COMMAND_LINE="{written}"\n')
    command = f". {BUILDROOT}/board/ipe/common.sh; br2 COMMAND_LINE default; br2 ABSENT default"
    done = subprocess.run(["sh", "-euc", command], capture_output=True, text=True, env=buildroot)
    assert done.stdout == f"{value}\ndefault\n", done.stderr


def test_buildroot_modules_are_signed_in_the_target_folder(buildroot, test_keys, unsigned_module, tmp_path) -> None:
    from ipe_build.cli import main

    modules = tmp_path / "target/lib/modules/6.12.0/kernel"
    modules.mkdir(parents=True)
    (modules / "demo.ko").write_bytes(unsigned_module)
    done = script(buildroot, "post-build", tmp_path / "target")
    assert done.returncode == 0, done.stderr
    assert main(["modules", "verify", str(modules / "demo.ko"), "--trusted", str(test_keys.bundle)]) == 0


def test_buildroot_test_keys_are_made_once(buildroot, tmp_path) -> None:
    base = Path(buildroot["BASE_DIR"])
    (base / ".config").write_text('BR2_ARCH="x86_64"\nBR2_IPE=y\nBR2_IPE_TEST_KEYS=y\n')
    assert script(buildroot, "prepare-kernel").returncode == 0
    first = (base / "ipe/trusted.pem").read_bytes()
    assert script(buildroot, "prepare-kernel").returncode == 0
    assert (base / "ipe/trusted.pem").read_bytes() == first and b"BEGIN CERTIFICATE" in first


def test_scripts_are_clean_under_shellcheck(need) -> None:
    scripts = sorted((BUILDROOT / "board/ipe").glob("*.sh"))
    assert len(scripts) == 4
    done = subprocess.run([need("shellcheck"), *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_follow_buildroots_rules() -> None:
    for path in sorted(path for path in BUILDROOT.rglob("*") if path.is_file()):
        text = path.read_text()
        assert text.endswith("\n") and not text.endswith("\n\n"), path
        for number, line in enumerate(text.splitlines(), 1):
            assert line == line.rstrip(), f"{path}:{number}"
    makefile = (BUILDROOT / "external.mk").read_text().splitlines()
    assert makefile[0] == makefile[4] == "#" * 80
    config = (BUILDROOT / "Config.in").read_text()
    for block in config.split("\nconfig ")[1:]:
        assert "\thelp\n\t  " in block, block.splitlines()[0]
    named = set()
    for path in (BUILDROOT / "board/ipe").glob("*.sh"):
        import re

        named |= {f"BR2_IPE_{name}" for name in re.findall(r"\$\((?:br2|need) ([A-Z_]+)\b", path.read_text())}
    assert named and all(f"config {name}\n" in config for name in named)
