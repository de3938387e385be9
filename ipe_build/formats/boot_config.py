"""Boot configuration ("bootconfig") behind an initramfs: text from which the kernel makes more words of its command line.

The text, its size and the sum of its bytes (32 bits each, little-endian), then the magic, behind which boot loaders may pad to four bytes.
Source: Linux init/main.c (get_boot_config_from_initrd), Documentation/admin-guide/bootconfig.rst.
"""

from __future__ import annotations

import struct

_MAGIC = b"#BOOTCONFIG\n"
_TAIL = struct.Struct("<II")
_MAX_BYTES = 32767
_PADDINGS = 4


def split_boot_config(initramfs: bytes) -> tuple[int, bytes | None]:
    """Returns how many bytes of an initramfs the kernel unpacks, and the boot configuration behind them; None without one that it takes."""
    for padding in range(_PADDINGS):
        at = len(initramfs) - padding - len(_MAGIC)
        if at < _TAIL.size or initramfs[at : at + len(_MAGIC)] != _MAGIC:
            continue
        size, checksum = _TAIL.unpack_from(initramfs, at - _TAIL.size)
        start = at - _TAIL.size - size
        text = initramfs[max(start, 0) : at - _TAIL.size]
        if size > _MAX_BYTES or start < 0 or sum(text) & 0xFFFFFFFF != checksum:
            break
        return start, text
    return len(initramfs), None
