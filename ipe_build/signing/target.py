"""Which signatures a target kernel takes: asked before anything is signed, so that no device refuses what a build called done.

Sources: crypto/asymmetric_keys/pkcs7_parser.c and its history (ECDSA: 5.13; ML-DSA: 7.0), crypto/Kconfig.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ipe_build.errors import InputError, SigningKeyError
from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig
from ipe_build.signing.algorithms import Algorithm, KernelVersion

_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})(?:[.\-+ ].*)?")
_HEADER = re.compile(rb"^# Linux/\S+ (\S+) Kernel Configuration", re.MULTILINE)
_DIGEST_SYMBOLS = {"sha256": "CRYPTO_SHA256", "sha384": "CRYPTO_SHA512", "sha512": "CRYPTO_SHA512"}
_ALWAYS = ("ASYMMETRIC_KEY_TYPE", "ASYMMETRIC_PUBLIC_KEY_SUBTYPE", "X509_CERTIFICATE_PARSER", "PKCS7_MESSAGE_PARSER")


@dataclass(frozen=True, slots=True)
class KernelTarget:
    """A kernel that will check signatures; what is None is not known and not judged by."""

    version: KernelVersion | None = None
    config: DotConfig | None = None


ANY_KERNEL = KernelTarget()
"""Nothing is known of the kernel: only what no kernel takes is refused."""


def read_target(version: str | None, config: Path | None) -> KernelTarget:
    """Returns the target of a version (`6.12`, `6.12.117-foo`) and a resolved `.config`, whose header also says a version.

    Raises: InputError when they contradict each other or cannot be read.
    """
    named = parse_version(version) if version is not None else None
    if config is None:
        return KernelTarget(named)
    raw = config.read_bytes()
    found = _HEADER.search(raw)
    said = parse_version(found[1].decode("ascii", "replace")) if found else None
    if named is not None and said is not None and named != said:
        raise InputError(f"is of Linux {said[0]}.{said[1]}, not of {named[0]}.{named[1]}", where=str(config), hint="leave the version out")
    return KernelTarget(named or said, parse_dotconfig(raw, where=str(config)))


def parse_version(text: str) -> KernelVersion:
    """Returns (major, minor) of a kernel's version or release. Raises: InputError."""
    found = _VERSION.fullmatch(text)
    if found is None:
        raise InputError(f"wanted a kernel version such as 6.12, got {text[:40]!r}", where="kernel version")
    return int(found[1]), int(found[2])


def why_refused(algorithm: Algorithm, digest_name: str, target: KernelTarget) -> str | None:
    """Returns why the target kernel cannot check such a signature, None when it can (as far as is known)."""
    if algorithm.first_kernel is None:
        return f"no mainline kernel takes {algorithm.name} signatures"
    since = f"{algorithm.first_kernel[0]}.{algorithm.first_kernel[1]}"
    if target.version is not None and target.version < algorithm.first_kernel:
        return (
            f"Linux {target.version[0]}.{target.version[1]} does not take {algorithm.name} signatures; Linux {since} is the first that does"
        )
    if target.config is not None:
        needed = (*_ALWAYS, *algorithm.symbols, _DIGEST_SYMBOLS[digest_name])
        missing = [symbol for symbol in needed if target.config.get(symbol) != "y"]
        if missing:
            names = ", ".join(f"CONFIG_{symbol}" for symbol in missing)
            return f"the kernel's configuration lacks {names}=y, which {algorithm.name} with {digest_name} needs"
    return None


def require(algorithm: Algorithm, digest_name: str, target: KernelTarget) -> None:
    """Checks that the target kernel takes such a signature. Raises: SigningKeyError that says why not and since when."""
    algorithm.identifier(digest_name)
    reason = why_refused(algorithm, digest_name, target)
    if reason is not None:
        raise SigningKeyError(reason, where="target kernel", hint="sign with an RSA key (rsa3072), which every kernel takes")
