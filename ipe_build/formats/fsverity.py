"""The two structures of fs-verity: the 256-byte descriptor whose hash is the file's digest, and what a builtin signature signs.

Source: kernel include/uapi/linux/fsverity.h; Documentation/filesystems/fsverity.rst, "File digest computation".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ipe_build.errors import FormatError, InputError

DESCRIPTOR_SIZE = 256
MAX_SALT = 32
MIN_LOG_BLOCK_SIZE = 10
MAX_LOG_BLOCK_SIZE = 16
_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144s")
_FORMATTED = struct.Struct("<8sHH")
FORMATTED_MAGIC = b"FSVerity"

ALGORITHMS: tuple[tuple[int, str, int], ...] = ((1, "sha256", 32), (2, "sha512", 64))
"""FS_VERITY_HASH_ALG_…: number, name, digest size in bytes."""


def algorithm_number(name: str) -> int:
    """Returns the number of a hash algorithm. Raises: InputError for one that fs-verity does not have."""
    for number, known, _ in ALGORITHMS:
        if known == name.lower():
            return number
    raise InputError(f"fs-verity has no hash algorithm {name!r}", hint="sha256 or sha512")


def algorithm_name(number: int, *, where: str = "") -> tuple[str, int]:
    """Returns the name and digest size of an algorithm's number. Raises: FormatError for an unknown one."""
    for known, name, size in ALGORITHMS:
        if known == number:
            return name, size
    raise FormatError(f"wanted fs-verity hash algorithm 1 (sha256) or 2 (sha512), got {number}", where=where)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """struct fsverity_descriptor, version 1. `root_hash` is the tree's; all zeros for an empty file. Sizes in bytes.

    `signature_size` is not part of what is hashed: on disk the descriptor is followed by the builtin signature of that size.
    """

    hash_name: str
    block_size: int
    salt: bytes
    data_size: int
    root_hash: bytes
    signature_size: int = 0

    def build(self) -> bytes:
        """Returns the 256 bytes, little-endian."""
        return _DESCRIPTOR.pack(
            1,
            algorithm_number(self.hash_name),
            self.block_size.bit_length() - 1,
            len(self.salt),
            self.signature_size,
            self.data_size,
            self.root_hash,
            self.salt,
            b"",
        )


def parse_descriptor(data: bytes, *, where: str = "") -> Descriptor:
    """Returns the descriptor that `data` begins with. Raises: FormatError as the kernel would refuse it (fs/verity/open.c)."""
    if len(data) < DESCRIPTOR_SIZE:
        raise FormatError(f"wanted an fs-verity descriptor of {DESCRIPTOR_SIZE} bytes, got {len(data)}", where=where)
    version, number, log_size, salt_size, signature_size, data_size, root_hash, salt, reserved = _DESCRIPTOR.unpack_from(data)
    if version != 1:
        raise FormatError(f"wanted fs-verity descriptor version 1, got {version}", where=where)
    name, digest_size = algorithm_name(number, where=where)
    if not MIN_LOG_BLOCK_SIZE <= log_size <= MAX_LOG_BLOCK_SIZE or salt_size > MAX_SALT or any(reserved):
        raise FormatError(f"the block size 2^{log_size}, salt size {salt_size} or the reserved bytes cannot be", where=where)
    return Descriptor(name, 1 << log_size, salt[:salt_size], data_size, root_hash[:digest_size], signature_size)


def formatted_digest(hash_name: str, digest: bytes) -> bytes:
    """Returns what a builtin signature signs: "FSVerity", u16 algorithm, u16 size (both little-endian), the file's digest.

    Raises: InputError when the digest's length is not the algorithm's.
    """
    number = algorithm_number(hash_name)
    _, size = algorithm_name(number)
    if len(digest) != size:
        raise InputError(f"a {hash_name} digest has {size} bytes, got {len(digest)}")
    return _FORMATTED.pack(FORMATTED_MAGIC, number, size) + digest


def parse_formatted_digest(data: bytes, *, where: str = "") -> tuple[str, bytes]:
    """Returns the algorithm's name and the digest in a builtin signature's payload. Raises: FormatError."""
    if len(data) < _FORMATTED.size or data[:8] != FORMATTED_MAGIC:
        raise FormatError(f'wanted "FSVerity" and a digest, got {data[:12]!r}', where=where)
    _, number, size = _FORMATTED.unpack_from(data)
    name, wanted = algorithm_name(number, where=where)
    if size != wanted or len(data) != _FORMATTED.size + size:
        raise FormatError(f"wanted a digest of {wanted} bytes, got {size} in {len(data)}", where=where)
    return name, data[_FORMATTED.size :]
