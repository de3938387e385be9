"""`kernel seal`: the real boot policy written over the reserved one, in a kernel that is built already. No kernel tree is needed.

What a kernel image is made of is in `formats.kernel_image`; what is written over, in `kernel.slot`. Nothing else in the kernel changes:
`seal_kernel` opens its own result and compares.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipe_build.errors import FormatError, InputError, IpeBuildError, VerificationError
from ipe_build.formats.bzimage import find_payload, is_bzimage, with_payload
from ipe_build.formats.kernel_compression import KernelCompression, compression_of, unpack
from ipe_build.formats.kernel_image import ImageFormat, open_kernel
from ipe_build.formats.pe import is_pe, parse_pe
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.kernel.repack import repack
from ipe_build.kernel.slot import find_slot, noise, plain, policy_of, sealed_policy

if TYPE_CHECKING:
    from ipe_build.host import Host

_WHERE = "kernel image"
_NO_SLOT_IN: dict[str, str] = {
    ImageFormat.UKI: "seal the kernel first, then make the UKI",
    ImageFormat.ZBOOT: "seal arch/arm64/boot/Image or Image.gz",
}
"""Formats that are not sealed, and what to do instead."""
_ROOT_HASH = re.compile(rb"\bdmverity_roothash=([a-z0-9-]+):([0-9a-fA-F]+)")
_Padding = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class SealedKernel:
    """A sealed kernel image. `replaced` is the policy that had been sealed in before, None in a fresh one."""

    image: bytes
    policy: bytes
    replaced: bytes | None
    reserved_bytes: int
    layers: tuple[str, ...]
    signature_removed: bool


def seal_kernel(data: bytes, policy: bytes, host: Host, *, again: bool = False, strip_signature: bool = False) -> SealedKernel:
    """Returns the image with `policy` as its boot policy: bzImage, arm64 or riscv Image, vmlinux; each also compressed as a whole.

    `again` lets a sealed kernel be sealed anew; `strip_signature` takes an Authenticode signature off, which would not fit any more.
    Raises: InputError (no reserved policy, the policy is refused by the kernel or too long, it does not fit packed, sealed before,
    signed), FormatError, ToolMissingError, ToolFailedError, VerificationError when the result is not what it must be.
    """
    policy = policy if policy.endswith(b"\n") else policy + b"\n"
    opened = open_kernel(data)
    for name, hint in _NO_SLOT_IN.items():
        if name in opened.layers:
            raise InputError(f"{'a' if name == ImageFormat.UKI else 'an'} {name} is not sealed", where=_WHERE, hint=hint)
    slot = find_slot(opened.kernel)
    if slot.policy is not None and slot.policy != policy and not again:
        raise InputError(
            "was sealed already, with another policy", where=_WHERE, hint="say --again to seal it anew, or take the unsealed one"
        )
    plain_image, removed = _unsigned(data, strip_signature)
    sealed = _first_that_fits(plain_image, policy, slot.size, host)
    _check(sealed, open_kernel(plain_image).kernel if removed else opened.kernel, slot.offset, slot.size, policy)
    return SealedKernel(sealed, policy, slot.policy, slot.size, opened.layers, removed)


def boot_policy_of(data: bytes) -> bytes | None:
    """Returns the policy that was sealed into this kernel image; None when it is not sealed. Raises: FormatError, InputError."""
    text = inspect_kernel(data).boot_policy
    return policy_of(text) if text is not None else None


def root_hashes_of(policy: bytes) -> frozenset[tuple[str, bytes]]:
    """Returns algorithm and root hash of every `dmverity_roothash=` in a policy that the kernel accepts."""
    lines = (line.split(b"#", 1)[0] for line in policy.splitlines())
    return frozenset((found[1].decode(), bytes.fromhex(found[2].decode())) for line in lines for found in _ROOT_HASH.finditer(line))


def _first_that_fits(data: bytes, policy: bytes, size: int, host: Host) -> bytes:
    """Returns the sealed image; padded so that it packs well, or badly where it would become too short.

    Raises: the error of the first try.
    """
    first: IpeBuildError | None = None
    for padding in (plain, noise):
        text = sealed_policy(policy, size, padding)
        try:
            return _sealed(data, text, host)
        except InputError as error:
            first = first or error
    assert first is not None
    raise first


def _sealed(data: bytes, text: bytes, host: Host) -> bytes:
    """Returns the image with the reserved policy's bytes replaced, layer by layer."""
    if is_bzimage(data):
        place = find_payload(data)
        payload = data[place.offset : place.offset + place.length]
        kernel = unpack(payload, _compression(payload))
        return with_payload(data, repack(_sealed(kernel, text, host), _compression(payload).name, host), len(kernel))
    compression = compression_of(data)
    if compression is not None:
        return repack(_sealed(unpack(data, compression), text, host), compression.name, host)
    slot = find_slot(data)
    return data[: slot.offset] + text + data[slot.offset + slot.size :]


def _compression(payload: bytes) -> KernelCompression:
    found = compression_of(payload)
    if found is None:
        raise FormatError(f"wanted a compressed kernel, got bytes {payload[:8].hex(' ')}", where=_WHERE)
    return found


def _unsigned(data: bytes, strip: bool) -> tuple[bytes, bool]:
    """Returns the image without its Authenticode signature, and whether it had one. Raises: InputError when it may not be taken off."""
    if not is_pe(data):
        return data, False
    pe = parse_pe(data, _WHERE)
    if not pe.is_signed:
        return data, False
    if not strip:
        raise InputError(
            "is signed (Authenticode), and the signature would not fit the sealed kernel",
            where=_WHERE,
            hint="say --strip-signature, and sign the sealed one",
        )
    if pe.certificate_table_offset + pe.certificate_table_size != len(data):
        raise FormatError("its signature is not at the end of the file", where=_WHERE)
    kept = bytearray(data[: pe.certificate_table_offset])
    kept[pe.certificate_entry_offset : pe.certificate_entry_offset + 8] = bytes(8)
    kept[pe.checksum_offset : pe.checksum_offset + 4] = bytes(4)
    return bytes(kept), True


def _check(sealed: bytes, before: bytes, offset: int, size: int, policy: bytes) -> None:
    """Raises VerificationError unless the result, opened again, differs from what was before in the reserved bytes alone."""
    after = open_kernel(sealed).kernel
    same = after[:offset] == before[:offset] and after[offset + size :] == before[offset + size :]
    if not same or policy_of(after[offset : offset + size]) != policy:
        raise VerificationError("the sealed kernel does not hold what was written into it", where=_WHERE, hint="report this")
