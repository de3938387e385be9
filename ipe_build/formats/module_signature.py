"""Signed kernel modules: the ELF file, the signature, a 12-byte block, a marker. Bytes <-> values.

Source: scripts/sign-file.c, include/linux/module_signature.h, kernel/module_signature.c (mod_check_sig).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dissect.cstruct import cstruct

from ipe_build.errors import FormatError
from ipe_build.formats.c_module_signature import C_MODULE_SIGNATURE

MARKER = b"~Module signature appended~\n"
BLOCK_BYTES = 12
_PKCS7 = 2
_C = cstruct(endian=">")
_C.load(C_MODULE_SIGNATURE)


class OtherSignatureKindError(FormatError):
    """The module is signed with something else than PKCS#7 (the kernel: ENOPKG, as if it were unsigned)."""


class SplitModule(NamedTuple):
    """A module taken apart: what is signed, and the signature (None when the module has none)."""

    payload: bytes
    signature: bytes | None


def append_signature(payload: bytes, signature: bytes) -> bytes:
    """Returns the signed module: payload, PKCS#7 signature, struct module_signature (big-endian length, id type 2), marker."""
    return payload + signature_trailer(signature)


def signature_trailer(signature: bytes) -> bytes:
    """Returns what follows a signed module's payload: PKCS#7 signature, struct module_signature, marker."""
    return b"".join((signature, _block(len(signature)), MARKER))


@lru_cache(maxsize=64)
def _block(signature_bytes: int) -> bytes:
    """Returns struct module_signature for a signature of that length."""
    block: Any = _C.module_signature(id_type=_PKCS7, sig_len=signature_bytes)
    return bytes(block.dumps())


def split_signature(module: bytes, where: str = "module") -> SplitModule:
    """Returns payload and signature as the kernel would tell them apart: only the last signature counts.

    Raises: FormatError (the kernel: EBADMSG or ENOPKG) when the marker is there and the block before it is wrong.
    """
    if not module.endswith(MARKER):
        return SplitModule(module, None)
    end = len(module) - len(MARKER)
    start = end - BLOCK_BYTES
    if start <= 0:
        raise FormatError(f"wanted {BLOCK_BYTES} bytes of struct module_signature before the marker, got {end}", where=where)
    block: Any = _C.module_signature(module[start:end])
    if block.id_type != _PKCS7:
        offset = f"{where}: offset {start + 2:#x}"
        raise OtherSignatureKindError(f"wanted signature type {_PKCS7} (PKCS#7), got {block.id_type}", where=offset)
    if any((block.algo, block.hash, block.signer_len, block.key_id_len, *block.pad)):
        raise FormatError("wanted zeros in struct module_signature beside type and length", where=f"{where}: offset {start:#x}")
    if not 0 < block.sig_len < start:
        raise FormatError(f"wanted a signature of 1 to {start - 1} bytes, got {block.sig_len}", where=f"{where}: offset {start + 8:#x}")
    return SplitModule(module[: start - block.sig_len], module[start - block.sig_len : start])


def strip_signatures(module: bytes, where: str = "module") -> bytes:
    """Returns the module without any signature, also when it was signed more than once. Raises: FormatError."""
    payload, signature = split_signature(module, where)
    while signature is not None:
        payload, signature = split_signature(payload, where)
    return payload
