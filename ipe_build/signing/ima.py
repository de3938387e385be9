"""IMA and EVM signatures, made and checked without the file system that will hold them.

Source: security/integrity/digsig_asymmetric.c (asymmetric_verify), security/integrity/evm/evm_crypto.c (hmac_add_misc,
evm_calc_hmac_or_hash), security/integrity/evm/evm_main.c (evm_config_default_xattrnames).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509

from ipe_build.errors import InputError, SigningKeyError, VerificationError
from ipe_build.formats.cms import SignerIdentity
from ipe_build.formats.ima_signature import ImaSignature, XattrType, parse_ima_signature
from ipe_build.signing.algorithms import algorithm_of
from ipe_build.signing.envelopes import Claim
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.signer import Signer

EVM_XATTRS = (
    "security.selinux",
    "security.SMACK64",
    "security.SMACK64EXEC",
    "security.SMACK64TRANSMUTE",
    "security.SMACK64MMAP",
    "security.apparmor",
    "security.ima",
    "security.capability",
)
"""The attributes that EVM protects, in the kernel's order."""
_MISC = {64: struct.Struct("<QIIIH2x"), 32: struct.Struct("<IIIIH2x")}
_SMALLEST_MISC = 20


@dataclass(frozen=True, slots=True)
class ImaEnvelope:
    """Header and raw signature, for one kind of attribute. The signer is named by 4 bytes of its key id, and RSA and ECDSA are taken."""

    type: XattrType

    def seal(self, payload: bytes, signer: Signer, digest_name: str) -> bytes:
        """Returns the attribute's value. Raises: SigningKeyError."""
        algorithm = algorithm_of(public_key_of(signer.certificate))
        if not algorithm.prehashed:
            raise SigningKeyError(f"IMA and EVM take no {algorithm.name} signatures", where="IMA", hint="use an RSA or ECDSA key")
        raw = signer.sign(payload, digest_name)
        return ImaSignature(self.type, digest_name, key_id(signer.certificate), raw).build()

    def message(self, payload: bytes, _digest_name: str) -> bytes:
        """Returns the payload, which is what the key signs."""
        return payload

    def open(self, payload: bytes, signature: bytes) -> tuple[Claim, ...]:
        """Returns the claim. Raises: FormatError, VerificationError."""
        found = parse_ima_signature(signature)
        if found.type is not self.type:
            raise VerificationError(f"is a signature for attribute type {found.type}, wanted {self.type}", where="signature")
        identity = SignerIdentity(b"", 0, found.key_id)
        return (Claim(identity, payload, found.hash_name, "", found.signature),)


def key_id(certificate: x509.Certificate) -> bytes:
    """Returns the last 4 bytes of the subject key identifier. Raises: SigningKeyError when the certificate has none."""
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest[-4:]
    except x509.ExtensionNotFound as error:
        raise SigningKeyError("has no subject key identifier, by which IMA finds keys", where="certificate") from error


def evm_payload(xattrs: Mapping[str, bytes], *, uid: int, gid: int, mode: int, word_bits: int = 64) -> bytes:
    """Returns the bytes that a portable EVM signature is over: the attributes' values in the kernel's order, then owner and mode.

    `mode` holds the file's type too (st_mode); `word_bits` is the target's: struct h_misc begins with an unsigned long.
    Raises: InputError when security.ima is missing (the kernel refuses a portable signature without it) or a value is out of range.
    """
    unknown = sorted(set(xattrs) - set(EVM_XATTRS))
    if unknown:
        raise InputError(f"EVM does not protect the attribute {unknown[0]}", where="EVM", hint=f"it protects {', '.join(EVM_XATTRS)}")
    if not xattrs.get("security.ima"):
        raise InputError("a portable EVM signature wants security.ima on the file", where="EVM", hint="sign the content first")
    if not stat.S_IFMT(mode):
        raise InputError(f"mode {mode:o} lacks the file's type", where="EVM", hint="give all of st_mode, for instance 0100644")
    try:
        misc = _MISC[word_bits].pack(0, 0, uid, gid, mode)
    except struct.error as error:
        raise InputError(f"owner {uid}:{gid} or mode {mode:o} is out of range", where="EVM") from error
    return b"".join(xattrs.get(name, b"") for name in EVM_XATTRS) + misc


def check_file_content(_payload: bytes) -> None:
    """Any file may be signed, an empty one too."""


def check_evm_payload(payload: bytes) -> None:
    """Refuses what is too short to hold an attribute and struct h_misc. Raises: InputError."""
    if len(payload) <= _SMALLEST_MISC:
        raise InputError(f"wanted attributes and struct h_misc, got {len(payload)} bytes", where="evm-portable payload")
