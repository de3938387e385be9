"""ipe-wic on BitBake's engine: the disk that wic puts together is a device like ipe-disk's. wic is tests/layer/wic, or IPE_TEST_WIC."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from ipe_build.image.disk import read_disk
from ipe_build.kernel.trust import KernelTrust
from tests.fixtures.layer import DROPPED, LAYER, BuildFolder, task_hashes

CANNED = sorted((LAYER / "files/wic").glob("*.wks.in"))
CLASSES = "ipe-image ipe-wic ipe-audit ipe-evidence"
IMAGE = tuple(("small-image", f"do_{name}") for name in ("rootfs", "image_erofs", "image_complete", "ipe_sign", "ipe_disk", "ipe_wic"))


@pytest.fixture
def wic_folder(build_folder: BuildFolder, wic_program: Path, need, monkeypatch) -> BuildFolder:
    """A build folder whose image recipe inherits ipe-wic, with files in the place of kernel and initramfs."""
    for tool in ("mkfs.erofs", "mkfs.vfat", "mcopy"):
        need(tool)
    monkeypatch.setenv("PATH", f"{wic_program.parent}:{os.environ['PATH']}")
    build_folder.settings |= {"IMAGE_FSTYPES": "erofs erofs.verity", "IMAGE_CLASSES": CLASSES, "IPE_FLASH": "--bmap", "IPE_BOOT_LOADER": ""}
    folders = dict.fromkeys(("RECIPE_SYSROOT_NATIVE", "STAGING_DATADIR", "HOSTTOOLS_DIR"), str(build_folder.topdir))
    build_folder.settings |= {**folders, "WICVARS": f"DEPLOY_DIR_IMAGE ASSUME_PROVIDED {' '.join(folders)}"}
    build_folder.settings |= {"ASSUME_PROVIDED__append": " parted-native util-linux-native gptfdisk-native"}
    build_folder.deploy.mkdir(parents=True)
    for name in ("bzImage", "ipe-initrd-small"):
        (build_folder.deploy / name).write_bytes(b"a program")
    return build_folder


def test_canned_files_ask_for_what_the_class_tells_wic() -> None:
    given = set(re.findall(r'values\["(\w+)"\]', (LAYER / "classes-recipe/ipe-wic.bbclass").read_text()))
    assert "IPE_WKS" in given and CANNED
    for path in CANNED:
        text = path.read_text()
        assert text.startswith("# short-description: ") and "bootloader --ptable gpt\n" in text
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert set(re.findall(r"\$\{(\w+)\}", "\n".join(lines))) <= given
        assert not any(line.startswith("part ") for line in lines), "the root hash says their UUIDs"


def test_wic_puts_the_signed_root_on_the_disk(wic_folder: BuildFolder) -> None:
    wic_folder.built(*IMAGE)
    disk = read_disk(wic_folder.deploy / "small-image-small.wic")
    root_hash = (wic_folder.deploy / "small-image-small.erofs.roothash").read_text().strip()
    assert disk.root and disk.root_verity and disk.root_verity_sig and disk.esp
    assert disk.root.uuid.hex == root_hash[:32] and disk.root_verity.uuid.hex == root_hash[-32:]
    signature = (wic_folder.deploy / "small-image-small.erofs.verity-sig").read_bytes()
    at = disk.root_verity_sig.offset_bytes
    assert disk.path.read_bytes()[at : at + len(signature)] == signature
    made = {path.name for path in wic_folder.deploy.iterdir() if path.name.startswith("small-image-small.w")}
    assert made == {"small-image-small.wic", "small-image-small.wic.bmap", "small-image-small.wks.d"}
    assert not list(wic_folder.deploy.glob("*.ipedisk*"))


def test_own_kickstart_file_is_found_in_a_layer(wic_folder: BuildFolder) -> None:
    own = wic_folder.topdir / "wic/board.wks.in"
    own.parent.mkdir(parents=True)
    own.write_text("bootloader --ptable gpt\ninclude ${IPE_WKS}/root.wks\ninclude ${IPE_WKS}/esp.wks\n")
    wic_folder.built(*IMAGE, IPE_WKS_FILE="board.wks.in")
    names = [one.name for one in read_disk(wic_folder.deploy / "small-image-small.wic").table.partitions]
    assert names == ["root-x86-64", "root-x86-64-verity", "root-x86-64-verity-sig", "esp"]


def test_what_reads_the_disk_waits_for_wic(wic_folder: BuildFolder) -> None:
    settings = {"IMAGE_CLASSES": f"{CLASSES} ipe-attest create-spdx-image-3.0", "IPE_REFERENCE_VALUES": "1", "IPE_SLOTS": "1"}
    tasks = wic_folder.bitbake(parse=("small-image",), **settings).recipes["small-image"]["tasks"]
    readers = {name for name, task in tasks.items() if "do_ipe_wic" in task["deps"]}
    wanted = {
        f"do_{name}" for name in ("ipe_audit", "ipe_evidence", "ipe_update", "ipe_measure", "ipe_attest", "create_image_spdx", "build")
    }
    assert readers == wanted and "do_ipe_disk" in tasks["do_ipe_wic"]["deps"]


def test_content_of_the_kickstart_file_counts_and_not_its_place(wic_folder: BuildFolder) -> None:
    def hashed(folder: str, text: str) -> str:
        path = wic_folder.topdir / folder / "board.wks.in"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        answer = wic_folder.bitbake(parse=("small-image",), IPE_WKS_FILE="board.wks.in")
        path.unlink()
        return task_hashes(answer)["small-image:do_ipe_wic"]

    first = hashed("wic", "bootloader --ptable gpt\n")
    assert hashed("files/wic", "bootloader --ptable gpt\n") == first
    assert hashed("wic", "bootloader --ptable gpt\n# changed\n") != first


def test_file_that_no_layer_has_fails_with_the_variables_name(wic_folder: BuildFolder) -> None:
    answer = wic_folder.bitbake(*IMAGE, IPE_WKS_FILE="nowhere.wks.in")
    assert not answer.ok and "IPE_WKS_FILE names 'nowhere.wks.in'" in answer.fatal


def test_file_that_wic_refuses_fails_with_the_variables_name(wic_folder: BuildFolder) -> None:
    own = wic_folder.topdir / "files/wic/broken.wks.in"
    own.parent.mkdir(parents=True)
    own.write_text("bootloader --ptable gpt\npart --source nothing --fixed-size 1M --align 1024\n")
    answer = wic_folder.bitbake(*IMAGE, IPE_WKS_FILE="broken.wks.in")
    assert not answer.ok and "wic failed with the kickstart file of IPE_WKS_FILE, broken.wks.in" in answer.fatal
    assert not list(wic_folder.deploy.glob("*.wic"))


def test_image_type_wic_beside_the_class_is_refused(wic_folder: BuildFolder) -> None:
    answer = wic_folder.bitbake(parse=("small-image",), IMAGE_FSTYPES="erofs erofs.verity wic.zst", IMAGE_CMD__wic=":")
    assert not answer.ok and "IMAGE_FSTYPES has wic, which is made before the root hash is signed" in answer.log


@pytest.mark.boot
@pytest.mark.slow
def test_disk_that_wic_put_together_passes_the_audit_boots_and_denies(
    wic_folder: BuildFolder, probe_rootfs, kernel_factory, need, test_keys
) -> None:
    need("qemu-system-x86_64"), need("gcc")
    dropped = " ".join(f"--dropped {name}" for name in DROPPED)
    wic_folder.settings |= {
        "SMALL_ROOTFS": str(probe_rootfs),
        "IPE_INITRAMFS_DROP": " ".join(DROPPED),
        "IPE_INITRAMFS_ARGS": "--init-override",
        "IPE_EVIDENCE_ARGS": f"--no-modules --no-destructive --application '/bin/busybox true' {dropped}",
    }
    wic_folder.built(("ipe-boot-policy", "do_compile"), ("ipe-boot-policy", "do_deploy"))
    kernel = kernel_factory(KernelTrust((wic_folder.deploy / "ipe-boot.pol").read_bytes(), (test_keys.bundle.read_bytes(),)))
    shutil.copyfile(kernel.image, wic_folder.deploy / "bzImage")
    shutil.copyfile(kernel.config, wic_folder.deploy / "ipe-kernel-small.config")
    (wic_folder.deploy / "ipe-initrd-small").unlink()
    others = [(recipe, f"do_{task}") for recipe in ("ipe-policy", "ipe-initramfs") for task in ("compile", "deploy")]
    wic_folder.built(*others, *IMAGE, ("small-image", "do_ipe_audit"), ("small-image", "do_ipe_evidence"))
    evidence = json.loads((wic_folder.deploy / "small-image-small.evidence.json").read_text())
    seen = [row["observed"] for row in evidence["probes"] if not row["skipped"]]
    assert len(seen) > 10 and sum(value.startswith("denied") for value in seen) >= 3, seen
