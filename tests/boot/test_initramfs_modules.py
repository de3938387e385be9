"""Modules that the initramfs loads before it looks for the root, and capabilities that it takes from everyone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.image.initramfs import CAPABILITIES
from ipe_build.kernel.module_compression import find_compression
from ipe_build.kernel.module_signing import sign_module
from ipe_build.signing.certificates import KeySet
from tests.boot.test_initramfs_boot import assert_stopped, said
from tests.fixtures.image import BootableImage

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


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_signed_module_is_loaded(erofs_image: BootableImage, test_keys: KeySet, compression: str, tmp_path: Path) -> None:
    module = module_of(erofs_image, test_keys, compression, tmp_path)
    result = erofs_image.boot(initramfs=erofs_image.changed(modules=(module,)), scratch=tmp_path)
    assert said(result, f"ipe-init: module /lib/modules/{module.name}") and said(result, "ROOT: done")


def test_unsigned_module_stops(erofs_image: BootableImage, tmp_path: Path) -> None:
    module = module_of(erofs_image, None, "none", tmp_path)
    result = erofs_image.boot(initramfs=erofs_image.changed(modules=(module,)), scratch=tmp_path)
    assert_stopped(result, "module: /lib/modules/dummy.ko: Key was rejected by service")


def test_foreign_module_stops(erofs_image: BootableImage, foreign_keys: KeySet, tmp_path: Path) -> None:
    module = module_of(erofs_image, foreign_keys, "none", tmp_path)
    result = erofs_image.boot(initramfs=erofs_image.changed(modules=(module,)), scratch=tmp_path)
    assert_stopped(result, "module: /lib/modules/dummy.ko: Key was rejected by service")


def test_all_capabilities_can_be_dropped_and_a_failure_is_still_said(erofs_image: BootableImage, tmp_path: Path) -> None:
    """The kernel limits how many lines user space may log at once; the last one must be among them."""
    changed = erofs_image.changed(drop_capabilities=CAPABILITIES, init_from_command_line=True)
    reached = erofs_image.boot(initramfs=changed, scratch=tmp_path)
    assert said(reached, "ROOT: reached")
    bounding = next(line for line in reached.console if "ROOT: status: CapBnd:" in line)
    assert int(bounding.rpartition("\t")[2], 16) == 0
    stopped = erofs_image.boot(initramfs=changed, command_line="init=/nonexistent", scratch=tmp_path)
    assert_stopped(stopped, "init: /nonexistent: No such file or directory")
