"""The dm-verity superblock: 512 bytes, little-endian, at the hash area's start.

Read with `struct`, not dissect.cstruct, whose import alone takes longer than hashing a small image.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import FormatError, InputError

if TYPE_CHECKING:
    from uuid import UUID

SUPERBLOCK_SIZE = 512
MAGIC = b"verity\0\0"
VERSION = 1
MAX_SALT = 256
MIN_BLOCK_SIZE = 512
MAX_BLOCK_SIZE = 512 * 1024
_LAYOUT = struct.Struct("<8sII16s32sIIQH6s256s168s")
"""signature, version, hash_type, uuid, algorithm, data_block_size, hash_block_size, data_blocks, salt_size, padding, salt, padding."""
_OFFSETS = {
    "version": 8,
    "hash_type": 12,
    "algorithm": 32,
    "data_block_size": 64,
    "hash_block_size": 68,
    "data_blocks": 72,
    "salt_size": 80,
}


class Superblock(NamedTuple):
    """What a dm-verity superblock says. `hash_type` 1 is the normal format, 0 the original of Chrome OS.

    Source: cryptsetup lib/verity/verity.c (struct verity_sb).
    """

    uuid: UUID
    hash_type: int
    algorithm: str
    data_block_size: int
    hash_block_size: int
    data_blocks: int
    salt: bytes

    def build(self) -> bytes:
        """Returns the 512 bytes. Raises: InputError when a field does not fit."""
        name = self.algorithm.encode()
        if len(name) > 31 or len(self.salt) > MAX_SALT:
            raise InputError(f"a superblock holds a name of 31 and a salt of {MAX_SALT} bytes, got {len(name)} and {len(self.salt)}")
        return _LAYOUT.pack(
            MAGIC,
            VERSION,
            self.hash_type,
            self.uuid.bytes,
            name,
            self.data_block_size,
            self.hash_block_size,
            self.data_blocks,
            len(self.salt),
            bytes(6),
            self.salt,
            bytes(168),
        )


def parse_superblock(data: bytes, *, where: str = "", offset: int = 0) -> Superblock:
    """Returns the superblock that `data` (at least 512 bytes, taken from byte `offset` of `where`) begins with.

    Bytes after the salt and in the padding are ignored, as veritysetup does.
    Raises: FormatError naming the offset of what is wrong.
    """
    from uuid import UUID

    place = f"{where}: offset {offset:#x}" if where else f"offset {offset:#x}"
    if len(data) < SUPERBLOCK_SIZE:
        raise FormatError(f"wanted a verity superblock of {SUPERBLOCK_SIZE} bytes, got {len(data)}", where=place)
    fields = _LAYOUT.unpack_from(data)
    magic, version, hash_type, uuid, raw_name, data_block_size, hash_block_size, data_blocks, salt_size, _, salt, _ = fields
    if magic != MAGIC:
        raise FormatError(
            f"wanted the verity signature {MAGIC!r}, got {magic!r}", where=place, hint="is this the hash area, and --hash-offset right?"
        )
    name = raw_name.split(b"\0", 1)[0].decode("ascii", "backslashreplace")
    wrong = {
        "version": version != VERSION,
        "hash_type": hash_type not in (0, 1),
        "algorithm": not (name and b"\0" in raw_name and name.isprintable()),
        "data_block_size": not is_block_size(data_block_size),
        "hash_block_size": not is_block_size(hash_block_size),
        "salt_size": salt_size > MAX_SALT,
    }
    values = {
        "version": version,
        "hash_type": hash_type,
        "algorithm": name,
        "data_block_size": data_block_size,
        "hash_block_size": hash_block_size,
        "salt_size": salt_size,
    }
    for field, bad in wrong.items():
        if bad:
            at = offset + _OFFSETS[field]
            raise FormatError(f"the superblock's {field} cannot be {values[field]!r}", where=f"{where}: offset {at:#x}" if where else place)
    return Superblock(UUID(bytes=uuid), hash_type, name, data_block_size, hash_block_size, data_blocks, salt[:salt_size])


def is_block_size(size: int) -> bool:
    """Returns whether a block size is a power of two within veritysetup's bounds (512 bytes to 512 KiB)."""
    return MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE and size & (size - 1) == 0
