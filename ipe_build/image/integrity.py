"""What ipe-init does for IMA and EVM: certificates that the kernel reads at boot, the IMA policy, and EVM's HMAC key from TPM or TEE."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from ipe_build.errors import InputError
from ipe_build.formats.cpio import CpioEntry, regular_file

IMA_CERTIFICATE_PATH = "etc/keys/x509_ima.der"
"""Where the kernel reads the certificate for .ima, in the initramfs, before the first program (CONFIG_IMA_X509_PATH)."""
EVM_CERTIFICATE_PATH = "etc/keys/x509_evm.der"
"""The same for .evm (CONFIG_EVM_X509_PATH). With a certificate there, every file that IMA appraises must carry security.evm too."""
_INITRAMFS = "initramfs:"


class TrustedSource(StrEnum):
    """What seals the key that EVM's key lies encrypted under (the kernel's `trusted.source=`)."""

    TPM = "tpm"
    TEE = "tee"


@dataclass(frozen=True, slots=True)
class IntegrityRequest:
    """Certificates are DER. `ima_policy` is a path on the verity root, or `initramfs:/PATH`; loaded when the IPE policies are active.

    A keyring whose certificate is given must hold a key by then, or the boot ends: the kernel itself goes on without. `evm_key` is the
    UUID of the partition (at least 8 KiB) with the sealed HMAC key; with `evm_provision` an empty one gets a new key at its first boot.
    `evm_pcrs` (TPM only): the key is unsealed only while these PCRs of the SHA-256 bank are as they were when it was made; without any,
    whatever boots on this device can unseal it.
    The Kconfig features are `ima`, `evm`, `trusted-keys-tpm` and `trusted-keys-tee`.
    """

    ima_certificate: bytes | None = None
    evm_certificate: bytes | None = None
    ima_policy: str = ""
    evm_key: UUID | None = None
    evm_provision: bool = False
    trusted_source: TrustedSource = TrustedSource.TPM
    evm_pcrs: tuple[int, ...] = ()

    def settings(self) -> tuple[tuple[str, str], ...]:
        """Returns the lines of ipe-init's configuration. Raises: InputError for a path that is none."""
        if self.ima_policy and not self.ima_policy.removeprefix(_INITRAMFS).startswith("/"):
            raise InputError(f"wanted an absolute path, got {self.ima_policy!r}", where="initramfs: ima_policy")
        if self.evm_pcrs and (self.trusted_source is not TrustedSource.TPM or not {*self.evm_pcrs} <= {*range(24)}):
            raise InputError(f"wanted PCRs 0 to 23 of a TPM, got {self.evm_pcrs}", where="initramfs: evm_pcrs")
        return (
            *((("keyring", ".ima"),) if self.ima_certificate is not None else ()),
            *((("keyring", ".evm"),) if self.evm_certificate is not None else ()),
            *(
                (
                    ("evm_key", str(self.evm_key)),
                    ("evm_provision", "yes" if self.evm_provision else "no"),
                    ("trusted_source", self.trusted_source),
                )
                if self.evm_key is not None
                else ()
            ),
            *((("evm_pcr", str(number)) for number in self.evm_pcrs) if self.evm_key is not None else ()),
            *((("ima_policy", self.ima_policy),) if self.ima_policy else ()),
        )

    def files(self) -> tuple[CpioEntry, ...]:
        """Returns the certificates as members of the initramfs."""
        found = ((IMA_CERTIFICATE_PATH, self.ima_certificate), (EVM_CERTIFICATE_PATH, self.evm_certificate))
        return tuple(regular_file(path, data, mode=0o400) for path, data in found if data is not None)
