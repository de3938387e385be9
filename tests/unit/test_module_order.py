"""Which modules an initramfs must load first, read from what depmod prints."""

from __future__ import annotations

import pytest

from ipe_build.errors import InputError
from ipe_build.kernel.module_order import load_order, read_index

DEPMOD = """\
kernel/drivers/md/dm-mod.ko.xz:
kernel/drivers/md/dm-bufio.ko.xz: kernel/drivers/md/dm-mod.ko.xz
kernel/lib/rs/reed_solomon.ko.xz:
kernel/drivers/md/dm-verity.ko.xz: kernel/drivers/md/dm-bufio.ko.xz kernel/drivers/md/dm-mod.ko.xz kernel/lib/rs/reed_solomon.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz
kernel/crypto/crc32c_generic.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/circle/a.ko: kernel/circle/b.ko
kernel/circle/b.ko: kernel/circle/a.ko
alias crypto-crc32c crc32c_intel
alias crc32c crc32c_intel
alias crc32c crc32c_generic
softdep libcrc32c pre: crc32c
softdep dm_verity post: no-such-module
"""
BUILTIN = ("kernel/drivers/virtio/virtio_pci.ko",)
INDEX = read_index(DEPMOD, BUILTIN)


def names(*wanted: str) -> list[str]:
    return [file.rpartition("/")[2].partition(".")[0] for file in load_order(wanted, INDEX)]


def test_each_module_comes_after_what_it_needs() -> None:
    assert names("dm-verity") == ["reed_solomon", "dm-mod", "dm-bufio", "dm-verity"]


def test_dash_and_underscore_are_one() -> None:
    assert names("dm_verity") == names("dm-verity")


def test_a_soft_dependency_is_loaded_before_and_the_generic_driver_is_taken() -> None:
    assert names("erofs") == ["crc32c_generic", "libcrc32c", "erofs"]


def test_each_file_is_loaded_once() -> None:
    assert names("dm-mod", "dm-verity", "dm-mod", "erofs") == [
        "dm-mod",
        "reed_solomon",
        "dm-bufio",
        "dm-verity",
        "crc32c_generic",
        "libcrc32c",
        "erofs",
    ]


def test_what_is_built_in_needs_no_file() -> None:
    assert names("virtio-pci") == []


def test_a_circle_ends() -> None:
    assert sorted(names("a")) == ["a", "b"]


def test_unknown_module_is_an_error() -> None:
    with pytest.raises(InputError, match="no module 'nothing'"):
        names("nothing")
