"""A second person builds the sealed image's kernel: another folder for the source, another for the build; all comes out the same."""

from __future__ import annotations

import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

import ipe_build.kernel
from ipe_build.host import Host
from ipe_build.host.cache import cache_key
from ipe_build.kernel.build import Kernel, build_kernel
from ipe_build.kernel.compare import compare_kernels
from ipe_build.kernel.profiles import DEBIAN_SOURCE, sealed_kernel_request
from ipe_build.kernel.slot import reserved_policy
from ipe_build.kernel.trust import KernelTrust

_HOW = ("build.py", "make.py", "source.py")
"""What of our code decides how a kernel is built."""


@pytest.fixture(scope="session")
def rebuilt(host: Host, sealed_kernel: Kernel) -> Path:
    """The folder with the second build's image, vmlinux and modules, compiled from nothing in a cache of its own.

    It is kept by what it follows from (source, configuration, compiler, our code), never by what the first build gave.
    """
    code = [(Path(ipe_build.kernel.__path__[0]) / name).read_bytes() for name in _HOW]
    compiler = host.run(["gcc", "--version"]).text.split("\n")[0] + host.run(["ld", "--version"]).text.split("\n")[0]
    source = sha256(DEBIAN_SOURCE.read_bytes()).hexdigest()
    key = cache_key("1", source, compiler, sealed_kernel.config.read_bytes(), *code)

    def rebuild(folder: Path) -> None:
        other = folder / "quite-another-place" / "cache"
        second = Host(env={**os.environ, "SOURCE_DATE_EPOCH": str(host.source_date_epoch), "IPE_BUILD_CACHE": str(other)})
        kernel = build_kernel(sealed_kernel_request(), KernelTrust(reserved_policy()), second)
        assert other in kernel.image.parents
        assert kernel.vmlinux is not None
        for path in (kernel.image, kernel.vmlinux, *kernel.modules):
            shutil.copyfile(path, folder / path.name)
        shutil.rmtree(folder / "quite-another-place")

    return host.cache.entry("test-rebuilt-kernel", key, rebuild)


@pytest.mark.slow
def test_kernels_built_in_different_folders_are_the_same_byte_for_byte(sealed_kernel: Kernel, rebuilt: Path) -> None:
    found = compare_kernels(sealed_kernel.image.read_bytes(), (rebuilt / sealed_kernel.image.name).read_bytes())
    assert found.same_file, found
    assert sealed_kernel.vmlinux is not None
    assert sealed_kernel.vmlinux.read_bytes() == (rebuilt / "vmlinux").read_bytes()
    assert sealed_kernel.modules
    for module in sealed_kernel.modules:
        assert module.read_bytes() == (rebuilt / module.name).read_bytes(), module.name


@pytest.mark.slow
def test_no_folder_of_the_builder_is_in_the_kernel(sealed_kernel: Kernel, host: Host) -> None:
    assert sealed_kernel.vmlinux is not None
    for path in (sealed_kernel.vmlinux, *sealed_kernel.modules):
        data = path.read_bytes()
        for folder in (str(host.cache.root), str(Path.home() / ".cache"), "/ipe-build/kernel-"):
            assert folder.encode() not in data, f"{path.name} holds {folder}"
