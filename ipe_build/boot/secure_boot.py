"""UEFI firmware with Secure Boot on and keys of our choice enrolled, and what it says when it refuses to start a program.

The firmware is Debian's OVMF built for SMM: the guest's operating system cannot write the variables behind the firmware's back.
Source: UEFI specification 2.10, section 32; OvmfPkg/README.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.boot.qemu import Firmware
from ipe_build.errors import InputError, ToolMissingError

if TYPE_CHECKING:
    from ipe_build.host import Host

OWNER = UUID("6dc8d9c5-1b5e-5b0b-8d0a-2f1f3f5b7a11")
"""The owner in the enrolled entries: ours, made up once; nothing depends on it."""
CODE, VARIABLES = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
REFUSED = re.compile(r'BdsDxe: failed to load (?P<entry>Boot\d+) "(?P<name>[^"]*)".*: (?:Access Denied|Security Violation)')
"""What the firmware prints for each boot option that it does not start because of its signature."""
KERNEL_SAYS_ON = "Secure boot enabled"
"""What Linux says when it found the variables so."""


def secure_firmware(
    db: Sequence[x509.Certificate],
    folder: Path,
    host: Host,
    *,
    platform: x509.Certificate | None = None,
    dbx: Sequence[x509.Certificate] = (),
    forbidden: Sequence[bytes] = (),
) -> Firmware:
    """Returns firmware with Secure Boot on: `platform` is PK and KEK (the first of `db` unless given), `db` may sign programs.

    `dbx` certificates and `forbidden` (SHA-256 Authenticode digests) may not. The variables are written to a file in `folder`.
    Raises: InputError, ToolMissingError (OVMF, or the Python package virt-firmware), ToolFailedError.
    """
    if not db and platform is None:
        raise InputError("wants a certificate", where="Secure Boot: db")
    for path in (CODE, VARIABLES):
        if not path.is_file():
            raise ToolMissingError(f"the UEFI firmware {path} is needed and was not found", hint="on Debian: apt-get install ovmf")
    if importlib.util.find_spec("virt") is None or importlib.util.find_spec("virt.firmware") is None:
        raise ToolMissingError(
            "the Python package virt-firmware, which writes the firmware's variables, was not found",
            hint="pip install 'ipe-build[secure-boot]'",
        )
    out = folder / "secure-boot-variables.fd"
    owner = str(OWNER)
    argv: list[str | Path] = [sys.executable, "-m", "virt.firmware.vars", "--loglevel", "warning", "-i", VARIABLES, "-o", out]
    rows = [("--set-pk", platform or db[0]), ("--add-kek", platform or db[0])]
    rows += [*(("--add-db", one) for one in db), *(("--add-dbx-cert", one) for one in dbx)]
    for number, (option, certificate) in enumerate(rows):
        path = folder / f"secure-boot-{number}.pem"
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
        argv += [option, owner, path]
    for digest in forbidden:
        argv += ["--add-dbx-hash", owner, digest.hex()]
    host.run([*argv, "--secure-boot"])
    return Firmware(CODE, out, smm=True)


def refusals(console: Sequence[str]) -> tuple[str, ...]:
    """Returns the console lines in which firmware says that it does not start a program because of its signature."""
    return tuple(line for line in console if REFUSED.search(line))
