"""What is built into a kernel that does not carry its configuration: told from texts and parameters that only that code has.

A sign that is there proves its symbol. One that is not there proves nothing: another version may say it in other words.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SIGNS: Mapping[str, tuple[bytes, ...]] = MappingProxyType(
    {
        "BLK_DEV_INITRD": (b"Unpacking initramfs...\n", b"Trying to unpack rootfs image as initramfs...\n"),
        "RD_GZIP": (b"Not a gzip file\0",),
        "RD_XZ": (b"XZ-compressed data is corrupt\0",),
        "RD_ZSTD": (b"ZSTD-compressed data is corrupt\0",),
        "RD_BZIP2": (b"Data integrity error when decompressing.\0",),
        "RD_LZMA": (b"LZMA data is corrupt\0",),
        "BLK_DEV_DM": (b"dm_mod.dm_numa_node\0",),
        "DM_VERITY": (b"dm_verity.prefetch_cluster\0",),
        "DM_VERITY_VERIFY_ROOTHASH_SIG": (b"dm_verity.require_signatures\0",),
        "EROFS_FS": (b"erofs: (device %s): ", b"erofs (device %s): "),
        "SQUASHFS": (b"squashfs: version 4.0 ",),
        "EXT4_FS": (b"EXT4-fs (%s): ",),
        "CRYPTO_SHA256": (b"\0sha256-generic\0", b"\0sha256-lib\0"),
        "CRYPTO_SHA512": (b"\0sha512-generic\0", b"\0sha512-lib\0"),
    }
)
"""For each Kconfig symbol, bytes of which a kernel has one when it is built in. `module.parameter` is a name of built-in code only.

Source: init/initramfs.c, lib/decompress_*.c, drivers/md, fs/*/super.c, crypto/sha*; include/linux/moduleparam.h (MODULE_PARAM_PREFIX).
"""


def signs_in(kernel: bytes) -> frozenset[str]:
    """Returns the Kconfig symbols that this kernel (unpacked, as it runs) shows to be built in."""
    return frozenset(symbol for symbol, signs in SIGNS.items() if any(sign in kernel for sign in signs))
