"""What a kernel trusts from its first instruction on: its boot policy and its built-in certificates."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.errors import InputError
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.versions import DEFAULT_KERNEL, KernelVersion

MAX_BOOT_POLICY = 1024 * 1024
"""Bytes: more than enough for a policy that is compiled into the kernel."""


@dataclass(frozen=True, slots=True)
class KernelTrust:
    """What is linked into the kernel: the boot policy's text, the certificates of the .builtin_trusted_keys keyring, and the revoked ones.

    A certificate is DER, or PEM with one or more of them. An empty boot policy means that nothing is enforced until one is loaded.
    """

    boot_policy: bytes
    certificates: tuple[bytes, ...] = ()
    revoked: tuple[bytes, ...] = ()

    def digest(self) -> str:
        """Returns 64 hex digits that change when anything that is linked in changes; certificates count as DER, in their order."""
        digest = hashlib.sha256()
        for part in (self.boot_policy, certificate_bundle(self.certificates), certificate_bundle(self.revoked)):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def check_trust(trust: KernelTrust, kernel: KernelVersion = DEFAULT_KERNEL) -> None:
    """Raises InputError when the kernel would refuse the boot policy, or a certificate cannot be read.

    A boot policy that does not parse makes ipe_init() fail, and the system then boots with nothing enforced; so it is refused here.
    """
    certificate_bundle(trust.certificates)
    certificate_bundle(trust.revoked)
    if not trust.boot_policy:
        return
    where = "boot policy"
    if len(trust.boot_policy) > MAX_BOOT_POLICY:
        raise InputError(f"wanted at most {MAX_BOOT_POLICY} bytes, got {len(trust.boot_policy)}", where=where)
    if b"\0" in trust.boot_policy:
        raise InputError("holds a NUL byte, and the kernel would see only what stands before it", where=where)
    result = parse(trust.boot_policy, kernel, Role.BOOT)
    if not result.accepted:
        problem = result.problem
        raise InputError(
            f"the kernel would refuse it ({result.errno}: {problem.message if problem else 'refused'}) and boot with nothing enforced",
            where=f"{where}:{problem.line}" if problem and problem.line else where,
            hint=(problem.hint if problem else "") or "ipe-build policy check FILE says which line and why",
        )


def certificate_bundle(certificates: tuple[bytes, ...]) -> bytes:
    """Returns one PEM text with these certificates in their order, each once: what CONFIG_SYSTEM_TRUSTED_KEYS takes. Empty for none.

    Written from the DER, so the same certificates give the same bytes whatever stood around them. Raises: InputError.
    """
    return b"".join(map(_pem, certificates_der(certificates)))


def certificates_der(certificates: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Returns each certificate once, as DER, in their order. Raises: InputError when one is neither DER nor PEM."""
    seen: dict[bytes, None] = {}
    for number, data in enumerate(certificates, 1):
        try:
            loaded = x509.load_pem_x509_certificates(data) if b"-----BEGIN" in data else [x509.load_der_x509_certificate(data)]
        except (ValueError, x509.InvalidVersion) as error:
            first = str(error).split(".")[0].split("\n")[0]
            raise InputError(f"wanted an X.509 certificate (DER or PEM): {first}", where=f"trusted certificate {number}") from None
        seen.update((certificate.public_bytes(Encoding.DER), None) for certificate in loaded)
    return tuple(seen)


def _pem(der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = b"".join(text[at : at + 64] + b"\n" for at in range(0, len(text), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"-----END CERTIFICATE-----\n"
