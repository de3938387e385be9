"""Modules that the initramfs loads before it looks for the root, and capabilities that it takes from everyone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.audit.findings import Answer, Prediction, Stage
from ipe_build.image.initramfs import CAPABILITIES
from ipe_build.kernel.module_compression import find_compression
from ipe_build.kernel.module_signing import sign_module
from ipe_build.pipeline import audit_image
from ipe_build.signing.certificates import KeySet
from tests.boot.test_initramfs_boot import assert_stopped, said
from tests.fixtures.image import COMMAND_LINE, BootableImage

pytestmark = pytest.mark.boot


def module_of(image: BootableImage, keys: KeySet | None, name: str, folder: Path) -> Path:
    """The kernel's module `dummy`, signed by the set's module key (or not at all), compressed in this way."""
    compression = find_compression(name)
    source = next(path for path in image.kernel.modules if path.name == "dummy.ko")
    out = folder / f"dummy.ko{compression.suffix}"
    if keys is None:
        out.write_bytes(compression.compress(source.read_bytes()))
    else:
        signer = keys.pair("module").signer(image.host)
        out.write_bytes(sign_module(source.read_bytes(), signer, "sha512", compression, str(source)))
    return out


def foreseen(image: BootableImage, folder: Path) -> Prediction:
    """What the audit foresees of the boot whose initramfs lies in the folder."""
    given = {"kernel": image.kernel.image, "initramfs": (folder / "initrd",), "command_line": COMMAND_LINE}
    return audit_image(image.disk.path, image.host, **given)[0].predictions[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_signed_module_is_loaded(erofs_image: BootableImage, test_keys: KeySet, compression: str, tmp_path: Path) -> None:
    module = module_of(erofs_image, test_keys, compression, tmp_path)
    result = erofs_image.boot(initramfs=erofs_image.changed(modules=(module,)), scratch=tmp_path)
    assert said(result, f"ipe-init: module /lib/modules/{module.name}") and said(result, "ROOT: done")
    assert foreseen(erofs_image, tmp_path).boots is Answer.YES


def test_unsigned_module_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    module = module_of(erofs_image, None, "none", tmp_path)
    result = erofs_image.boot(initramfs=erofs_image.changed(modules=(module,)), scratch=tmp_path)
    assert_stopped(result, "module: /lib/modules/dummy.ko: Key was rejected by service")
    ends = foreseen(erofs_image, tmp_path)
    assert (ends.boots, ends.stage) == (Answer.NO, Stage.IPE) and "EKEYREJECTED" in ends.why


def test_foreign_module_stops(erofs_image: BootableImage, foreign_keys: KeySet, tmp_path: Path) -> None:
    module = module_of(erofs_image, foreign_keys, "none", tmp_path)
    result = erofs_image.boot(initramfs=erofs_image.changed(modules=(module,)), scratch=tmp_path)
    assert_stopped(result, "module: /lib/modules/dummy.ko: Key was rejected by service")
    ends = foreseen(erofs_image, tmp_path)
    assert (ends.boots, ends.stage) == (Answer.NO, Stage.IPE) and "EKEYREJECTED" in ends.why


def test_all_capabilities_can_be_dropped_and_a_failure_is_still_said(erofs_image: BootableImage, tmp_path: Path) -> None:
    """The kernel limits how many lines user space may log at once; the last one must be among them."""
    changed = erofs_image.changed(drop_capabilities=CAPABILITIES, init_from_command_line=True)
    reached = erofs_image.boot(initramfs=changed, scratch=tmp_path)
    assert said(reached, "ROOT: reached")
    bounding = next(line for line in reached.console if "ROOT: status: CapBnd:" in line)
    assert int(bounding.rpartition("\t")[2], 16) == 0
    stopped = erofs_image.boot(initramfs=changed, command_line="init=/nonexistent", scratch=tmp_path)
    assert_stopped(stopped, "init: /nonexistent: No such file or directory")
