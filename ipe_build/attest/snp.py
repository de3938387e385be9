"""AMD SEV-SNP: the launch digest of a confidential virtual machine, and the ID block that makes the processor insist on it.

Computed, never run: nobody here has such a processor. The digest is sev-snp-measure's; the ID block and its authentication are laid out
here, so that the key may be anywhere a Signer reaches. QEMU loads kernel, initramfs and command line itself and the firmware checks
their digests (`kernel-hashes=on`), which a firmware built for it (OVMF's AmdSev) has a page for.

Source: AMD "SEV Secure Nested Paging Firmware ABI" (56860), 7.3 (SNP_LAUNCH_FINISH: ID_BLOCK, ID_AUTH_INFO), chapter 10 (signatures).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ipe_build.errors import InputError, SigningKeyError, ToolMissingError
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.signer import Signer

DEFAULT_POLICY = 0x30000
"""SMT allowed, bit 17 which must be one; no debugging, no migration agent."""
_ECDSA_P384_SHA384, _CURVE_P384 = 1, 2
_FIELD_BYTES = 72
_DIGEST_BYTES = 48


@dataclass(frozen=True, slots=True)
class Launch:
    """What is launched: files, the command line, and the virtual machine as the hypervisor is told to make it."""

    firmware: Path
    kernel: Path
    initrd: Path | None
    command_line: str
    processors: int = 1
    processor_type: str = "EPYC-v4"
    guest_features: int = 0x1


@dataclass(frozen=True, slots=True)
class IdBlock:
    """ID_BLOCK (96 bytes), ID_AUTH_INFO (4096 bytes), and the digest of the key that an attestation report then names (48 bytes)."""

    block: bytes
    authentication: bytes
    id_key_digest: bytes


def launch_digest(launch: Launch) -> bytes:
    """Returns the launch digest (48 bytes): the field MEASUREMENT of an attestation report.

    Raises: InputError for a firmware without the pages that are needed, ToolMissingError when sev-snp-measure is not installed.
    """
    try:
        from sevsnpmeasure import guest, vcpu_types
        from sevsnpmeasure.sev_mode import SevMode
    except ImportError as error:
        hint = "pip install 'ipe-build[attest]'"
        raise ToolMissingError("the Python package sev-snp-measure is needed for launch digests", hint=hint) from error
    signature = vcpu_types.CPU_SIGS.get(launch.processor_type)
    if signature is None:
        raise InputError(f"unknown processor type {launch.processor_type!r}", hint=f"one of {', '.join(vcpu_types.CPU_SIGS)}")
    for path in (launch.firmware, launch.kernel, *([launch.initrd] if launch.initrd else [])):
        if not path.is_file():
            raise InputError("there is no such file", where=str(path))
    files = (str(launch.firmware), str(launch.kernel), str(launch.initrd or ""), launch.command_line)
    try:
        digest: bytes = guest.calc_launch_digest(SevMode.SEV_SNP, launch.processors, signature, *files, launch.guest_features)
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise InputError(
            f"no launch digest can be computed: {error}",
            where=str(launch.firmware),
            hint="give a firmware that is built for SEV-SNP with kernel hashes (OVMF's AmdSev target)",
        ) from error
    return digest


def make_id_block(digest: bytes, signer: Signer, *, guest_svn: int = 0, policy: int = DEFAULT_POLICY) -> IdBlock:
    """Returns the ID block for a launch digest, signed: the processor launches nothing else with it. The author key is left out.

    Raises: SigningKeyError for a key that is not ECDSA P-384.
    """
    public = public_key_of(signer.certificate)
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP384R1):
        raise SigningKeyError("SEV-SNP takes ECDSA P-384 keys only", where="ID key", hint="ipe-build keys create --type p384")
    if len(digest) != _DIGEST_BYTES:
        raise InputError(f"wanted a launch digest of {_DIGEST_BYTES} bytes, got {len(digest)}")
    block = digest + bytes(32) + struct.pack("<IIQ", 1, guest_svn, policy)
    r, s = decode_dss_signature(signer.sign(block, "sha384"))
    signature = (_little(r) + _little(s)).ljust(512, b"\0")
    numbers = public.public_numbers()
    key = (struct.pack("<I", _CURVE_P384) + _little(numbers.x) + _little(numbers.y)).ljust(1028, b"\0")
    head = struct.pack("<II", _ECDSA_P384_SHA384, 0).ljust(64, b"\0")
    return IdBlock(block, (head + signature + key).ljust(4096, b"\0"), hashlib.sha384(key).digest())


def _little(number: int) -> bytes:
    """Returns a number of a key or signature as the processor has it: 72 bytes, little-endian."""
    return number.to_bytes(_FIELD_BYTES, "little")
