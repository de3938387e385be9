"""THE table of what the device checks: one row a signed thing, with the exact payload and the exact envelope.

Sources: security/ipe/policy.c (ipe_new_policy), drivers/md/dm-verity-verify-sig.c (verity_verify_root_hash),
fs/verity/signature.c (fsverity_verify_signature), kernel/module/signing.c (mod_verify_sig), scripts/sign-file.c,
security/integrity/digsig_asymmetric.c; for EFI programs `signing.authenticode`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ipe_build.errors import InputError
from ipe_build.formats.cms import Layout
from ipe_build.formats.ima_signature import XattrType
from ipe_build.signing.authenticode import AuthenticodeEnvelope, check_efi_image
from ipe_build.signing.envelopes import CmsEnvelope, Envelope
from ipe_build.signing.ima import ImaEnvelope, check_evm_payload, check_file_content
from ipe_build.signing.loading import algorithm_for
from ipe_build.signing.signer import DigestSigner, Signer
from ipe_build.signing.target import ANY_KERNEL, KernelTarget, require

_HEX = frozenset(b"0123456789abcdef")
_FSVERITY_DIGEST_SIZES = {1: 32, 2: 64}
_DIGEST_SIZES = (20, 28, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class Profile:
    """A row: what is signed, over which bytes, in which envelope, by which role's key, and which keyrings the kernel looks in.

    `payload` says the exact bytes; `check` raises InputError for bytes that cannot be such a payload.
    """

    name: str
    what: str
    payload: str
    role: str
    suffix: str
    envelope: Envelope
    keyrings: tuple[str, ...]
    check: Callable[[bytes], None]


def root_hash_payload(root_hash: bytes) -> bytes:
    """Returns the bytes that are signed for a dm-verity root hash: its lower-case hex text, without a newline."""
    return root_hash.hex().encode()


def sign_payload(
    profile: Profile, payload: bytes, signer: Signer, digest_name: str | None = None, target: KernelTarget = ANY_KERNEL
) -> bytes:
    """Returns the signature file's bytes as the kernel takes them. `digest_name` is the key's preferred one unless given.

    Raises: InputError for bytes that cannot be such a payload, SigningKeyError, also when `target` cannot check such a signature.
    """
    return payload_signer(profile, signer, digest_name, target)(payload)


def payload_signer(
    profile: Profile, signer: Signer, digest_name: str | None = None, target: KernelTarget = ANY_KERNEL
) -> Callable[[bytes], bytes]:
    """Returns `sign_payload` for many payloads; that key, digest and target go together is checked once, now. Raises: SigningKeyError."""
    algorithm = algorithm_for(signer.certificate)
    digest = digest_name or algorithm.digests[0]
    require(algorithm, digest, target)
    envelope = profile.envelope
    seal = envelope.sealer(signer, digest) if isinstance(envelope, CmsEnvelope) else lambda payload: envelope.seal(payload, signer, digest)

    def sign(payload: bytes) -> bytes:
        profile.check(payload)
        return seal(payload)

    return sign


def digest_signer(
    profile: Profile, signer: Signer, digest_name: str | None = None, target: KernelTarget = ANY_KERNEL
) -> Callable[[bytes], bytes] | None:
    """Returns `payload_signer` for payloads given as their digests, which the caller made and checked; None when key or envelope need more.

    Raises: SigningKeyError.
    """
    algorithm, envelope = algorithm_for(signer.certificate), profile.envelope
    if not isinstance(envelope, CmsEnvelope) or envelope.attached:
        return None
    if algorithm.sign_digest is None or not isinstance(signer, DigestSigner):
        return None
    digest = digest_name or algorithm.digests[0]
    require(algorithm, digest, target)
    return envelope.digest_sealer(signer, digest)


def _check_policy(payload: bytes) -> None:
    """A policy is text; whether the kernel accepts it is for the policy room to say."""
    if not payload.strip():
        raise InputError("the policy is empty", where="ipe-policy payload")
    if payload[:1] == b"\x30" and b"\x2a\x86\x48\x86\xf7\x0d\x01\x07" in payload[:32]:
        raise InputError("is a signed policy (CMS) already", where="ipe-policy payload", hint="sign the plain text of the policy")


def _check_root_hash(payload: bytes) -> None:
    """The kernel compares the text that the mapping's table gives, which veritysetup writes in lower case."""
    if not set(payload) <= _HEX or len(payload) not in {2 * size for size in _DIGEST_SIZES}:
        raise InputError(
            f"wanted a root hash as lower-case hex text of a whole digest and no newline, got {len(payload)} bytes",
            where="dm-verity-root-hash payload",
        )


def _check_fsverity(payload: bytes) -> None:
    """The payload is struct fsverity_formatted_digest: magic, le16 algorithm, le16 size, digest."""
    algorithm, size = int.from_bytes(payload[8:10], "little"), int.from_bytes(payload[10:12], "little")
    if payload[:8] != b"FSVerity" or size != _FSVERITY_DIGEST_SIZES.get(algorithm) or len(payload) != 12 + size:
        raise InputError(
            'wanted struct fsverity_formatted_digest ("FSVerity", le16 algorithm, le16 size, digest)', where="fs-verity-builtin payload"
        )


def _check_module(payload: bytes) -> None:
    """A module is an ELF file; what is signed is the file without a signature at its end."""
    if payload[:4] != b"\x7fELF":
        raise InputError("is not an ELF file", where="module payload", hint="decompress the module first")


_SYSTEM = (".builtin_trusted_keys", ".secondary_trusted_keys", ".platform")

PROFILES: dict[str, Profile] = {
    row.name: row
    for row in (
        Profile(
            name="ipe-policy",
            what="an IPE policy",
            payload="the policy's text",
            role="policy",
            suffix=".p7b",
            envelope=CmsEnvelope(Layout.SMIME, attached=True, certificates=True),
            keyrings=_SYSTEM,
            check=_check_policy,
        ),
        Profile(
            name="dm-verity-root-hash",
            what="a dm-verity root hash",
            payload="the root hash as lower-case hex text, no newline",
            role="verity",
            suffix=".roothash.p7s",
            envelope=CmsEnvelope(Layout.SMIME, attached=False, certificates=False),
            keyrings=(*_SYSTEM, ".dm-verity"),
            check=_check_root_hash,
        ),
        Profile(
            name="fs-verity-builtin",
            what="an fs-verity digest",
            payload='struct fsverity_formatted_digest: "FSVerity", le16 algorithm, le16 size, digest',
            role="verity",
            suffix=".fsverity.p7s",
            envelope=CmsEnvelope(Layout.SMIME, attached=False, certificates=False),
            keyrings=(".fs-verity",),
            check=_check_fsverity,
        ),
        Profile(
            name="module",
            what="a kernel module",
            payload="the module's ELF file, without a signature",
            role="module",
            suffix=".p7s",
            envelope=CmsEnvelope(Layout.CMS, attached=False, certificates=False, attributes_allowed=False),
            keyrings=_SYSTEM,
            check=_check_module,
        ),
        Profile(
            name="ima-file",
            what="a file's content for IMA (security.ima)",
            payload="the file's content",
            role="ima",
            suffix=".sig",
            envelope=ImaEnvelope(XattrType.IMA),
            keyrings=(".ima",),
            check=check_file_content,
        ),
        Profile(
            name="evm-portable",
            what="a file's attributes for EVM (security.evm, portable)",
            payload="the values of the protected attributes in the kernel's order, then struct h_misc with inode and generation 0",
            role="ima",
            suffix=".evm",
            envelope=ImaEnvelope(XattrType.EVM_PORTABLE),
            keyrings=(".evm",),
            check=check_evm_payload,
        ),
        Profile(
            name="efi-image",
            what="an EFI program (a UKI, a boot loader, a kernel)",
            payload="the PE image without certificate table, padded with zeros to a multiple of 8; signed over its Authenticode digest",
            role="secure-boot",
            suffix=".efi.p7s",
            envelope=AuthenticodeEnvelope(),
            keyrings=("UEFI db", *_SYSTEM),
            check=check_efi_image,
        ),
    )
}
