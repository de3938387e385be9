"""The hash algorithms of dm-verity and fs-verity: one row each, under the name that the kernel and veritysetup use."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ipe_build.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from hashlib import _Hash


class HashAlgorithm(NamedTuple):
    """A row: the kernel's name, digest size and internal block size in bytes, OpenSSL's name (empty: not in OpenSSL at this length)."""

    name: str
    digest_size: int
    input_block_size: int
    openssl: str


HASHES: tuple[HashAlgorithm, ...] = (
    HashAlgorithm("sha1", 20, 64, "SHA1"),
    HashAlgorithm("sha224", 28, 64, "SHA224"),
    HashAlgorithm("sha256", 32, 64, "SHA256"),
    HashAlgorithm("sha384", 48, 128, "SHA384"),
    HashAlgorithm("sha512", 64, 128, "SHA512"),
    HashAlgorithm("sha3-224", 28, 144, "SHA3-224"),
    HashAlgorithm("sha3-256", 32, 136, "SHA3-256"),
    HashAlgorithm("sha3-384", 48, 104, "SHA3-384"),
    HashAlgorithm("sha3-512", 64, 72, "SHA3-512"),
    HashAlgorithm("blake2b-160", 20, 128, ""),
    HashAlgorithm("blake2b-256", 32, 128, ""),
    HashAlgorithm("blake2b-384", 48, 128, ""),
    HashAlgorithm("blake2b-512", 64, 128, "BLAKE2B-512"),
    HashAlgorithm("blake2s-128", 16, 64, ""),
    HashAlgorithm("blake2s-160", 20, 64, ""),
    HashAlgorithm("blake2s-224", 28, 64, ""),
    HashAlgorithm("blake2s-256", 32, 64, "BLAKE2S-256"),
)
_BY_NAME = {row.name: row for row in HASHES}


def find_hash(name: str, *, where: str = "") -> HashAlgorithm:
    """Returns the row of the algorithm `name`, which may be in capitals (veritysetup takes those too).

    Raises: InputError naming those that exist.
    """
    row = _BY_NAME.get(name.lower())
    if row is None:
        raise InputError(f"no hash algorithm is named {name!r}", where=where, hint=f"one of {', '.join(_BY_NAME)}")
    return row


def constructor(algorithm: HashAlgorithm) -> Callable[[bytes | memoryview], _Hash]:
    """Returns hashlib's constructor of an algorithm: called with the first bytes, it gives an object to update."""
    import functools
    import hashlib

    family, _, bits = algorithm.name.partition("-")
    if family in ("blake2b", "blake2s"):
        return functools.partial(getattr(hashlib, family), digest_size=int(bits) // 8)
    made: Callable[[bytes | memoryview], _Hash] = getattr(hashlib, algorithm.name.replace("-", "_"))
    return made
