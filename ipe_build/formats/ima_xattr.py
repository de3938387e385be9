"""What lies in security.ima and security.evm of a file: a hash, an HMAC, or a signature. Bytes -> values, for reading finished images.

`formats.ima_signature` is what we write; this reads whatever the kernel can meet.
Source: security/integrity/integrity.h (enum evm_ima_xattr_type, struct signature_v2_hdr), ima_appraise.c (xattr_verify),
evm_main.c (evm_verify_hmac), include/uapi/linux/hash_info.h, crypto/hash_info.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ipe_build.errors import FormatError
from ipe_build.formats.ima_signature import parse_signature_body

SECURITY_IMA = "security.ima"
SECURITY_EVM = "security.evm"
HASHES: tuple[tuple[str, int], ...] = (
    ("md4", 16),
    ("md5", 16),
    ("sha1", 20),
    ("rmd160", 20),
    ("sha256", 32),
    ("sha384", 48),
    ("sha512", 64),
    ("sha224", 28),
    ("rmd128", 16),
    ("rmd256", 32),
    ("rmd320", 40),
    ("wp256", 32),
    ("wp384", 48),
    ("wp512", 64),
    ("tgr128", 16),
    ("tgr160", 20),
    ("tgr192", 24),
    ("sm3", 32),
    ("streebog256", 32),
    ("streebog512", 64),
    ("sha3-256", 32),
    ("sha3-384", 48),
    ("sha3-512", 64),
)
"""Name and digest size in bytes of each HASH_ALGO_…, by its number."""
_SHA1_BYTES = 20


class IntegrityKind(StrEnum):
    """What a value is, by its first byte."""

    SHORT_HASH = "short-hash"
    """IMA_XATTR_DIGEST (1): SHA-1 or MD5 of the content, from kernels before 3.13."""
    HMAC = "hmac"
    """EVM_XATTR_HMAC (2): HMAC-SHA1 over attributes, inode and owner, made on the device by its own key."""
    SIGNATURE = "signature"
    """EVM_IMA_XATTR_DIGSIG (3): of the content (security.ima); of attributes and inode, replaced by an HMAC later (security.evm)."""
    HASH = "hash"
    """IMA_XATTR_DIGEST_NG (4): hash of the content with the algorithm's number; anyone who may write attributes can make it."""
    PORTABLE_SIGNATURE = "portable-signature"
    """EVM_XATTR_PORTABLE_DIGSIG (5): of attributes, owner and mode, without inode and filesystem."""
    VERITY_SIGNATURE = "verity-signature"
    """IMA_VERITY_DIGSIG (6): of the file's fs-verity digest (signature version 3)."""


_TYPES: dict[str, dict[int, IntegrityKind]] = {
    SECURITY_IMA: {1: IntegrityKind.SHORT_HASH, 3: IntegrityKind.SIGNATURE, 4: IntegrityKind.HASH, 6: IntegrityKind.VERITY_SIGNATURE},
    SECURITY_EVM: {2: IntegrityKind.HMAC, 3: IntegrityKind.SIGNATURE, 5: IntegrityKind.PORTABLE_SIGNATURE},
}
_VERSIONS = {
    IntegrityKind.SIGNATURE: 2,
    IntegrityKind.PORTABLE_SIGNATURE: 2,
    IntegrityKind.VERITY_SIGNATURE: 3,
}


@dataclass(frozen=True, slots=True)
class IntegrityXattr:
    """A parsed value. `digest` is the hash or HMAC, empty for a signature; `key_id` (4 bytes) and `signature` (raw) are empty otherwise.

    `key_id` is the end of the signer's subject key identifier. `hash_name` is the digest that is stored, or that was signed.
    """

    name: str
    kind: IntegrityKind
    hash_name: str
    digest: bytes = b""
    key_id: bytes = b""
    signature: bytes = b""

    @property
    def is_signed(self) -> bool:
        """Returns whether a private key was needed to make the value, so that `appraise_type=imasig` or EVM's certificates can judge it."""
        return self.kind in _VERSIONS


def parse_integrity_xattr(name: str, value: bytes, where: str = "") -> IntegrityXattr:
    """Returns what the value of `security.ima` or `security.evm` is. Raises: FormatError with the offset of what is wrong."""
    place = where or name
    if not value:
        raise FormatError("is empty", where=place)
    kind = _TYPES[name].get(value[0])
    if kind is None:
        known = ", ".join(str(number) for number in _TYPES[name])
        raise FormatError(f"wanted a first byte of {known}, got {value[0]}", where=f"{place}: offset 0x0")
    if kind in _VERSIONS:
        return _signature(name, kind, value, place)
    if kind is IntegrityKind.HMAC:
        return IntegrityXattr(name, kind, "sha1", _sized(value[1:], _SHA1_BYTES, 1, place))
    if kind is IntegrityKind.SHORT_HASH:
        return IntegrityXattr(name, kind, "sha1", _sized(value[1:], _SHA1_BYTES, 1, place))
    if len(value) < 2 or value[1] >= len(HASHES):
        raise FormatError(
            f"wanted the number of a hash below {len(HASHES)}, got {value[1:2].hex() or 'nothing'}", where=f"{place}: offset 0x1"
        )
    hash_name, size = HASHES[value[1]]
    return IntegrityXattr(name, kind, hash_name, _sized(value[2:], size, 2, place))


def _sized(data: bytes, size: int, offset: int, where: str) -> bytes:
    """Returns the digest. Raises: FormatError when it is not `size` bytes long."""
    if len(data) != size:
        raise FormatError(f"wanted {size} bytes of digest, got {len(data)}", where=f"{where}: offset {offset:#x}")
    return data


def _signature(name: str, kind: IntegrityKind, value: bytes, where: str) -> IntegrityXattr:
    """Returns a signature."""
    body = parse_signature_body(value, _VERSIONS[kind], where)
    if body.hash_number >= len(HASHES):
        raise FormatError(f"wanted the number of a hash below {len(HASHES)}, got {body.hash_number}", where=f"{where}: offset 0x2")
    return IntegrityXattr(name, kind, HASHES[body.hash_number][0], b"", body.key_id, body.signature)
