"""What a kernel binary says about itself: version, boot policy, certificates, configuration; nothing is run and no tree is needed.

A vmlinux with symbols says it exactly. A stripped kernel is searched: each thing has a shape that nothing else in a kernel has
(see each function), and what cannot be told is None rather than a guess.
"""

from __future__ import annotations

import itertools
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig
from ipe_build.formats.kernel_elf import KernelElf
from ipe_build.formats.kernel_image import KernelImage, open_kernel
from ipe_build.kernel.embedded import CertificateLists, find_boot_policies, find_certificate_lists
from ipe_build.kernel.fragment import LSM_ORDER
from ipe_build.kernel.signs import signs_in
from ipe_build.policy.properties import PROPERTIES

_MAX_CONFIG = 8 * 1024 * 1024
_MAX_CONFIGS = 16
_BANNER = re.compile(rb"Linux version (\d{1,4}\.\d{1,4}[^\s\x00-\x1f\x7f-\xff]{0,80}) \([^\0\n]{1,400}\) #[^\0\n]{1,200}")
_IKCONFIG = re.compile(rb"IKCFG_ST(\x1f\x8b\x08)")
_LSM_NAMES = frozenset((*LSM_ORDER, "capability", "ima", "evm", "integrity", "bpf", "lockdown"))
_LSM_LIST = re.compile(rb"(?<=\0)[a-z]{2,16}(?:,[a-z]{2,16}){0,20}(?=\0)")
_IPE_AUDIT = b"ipe_op=%s ipe_hook=%s"
"""A format string of IPE's audit records: in every kernel that has IPE. Source: security/ipe/audit.c, ipe_audit_match."""


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What was found in a kernel.

    `boot_policy` is the text compiled in, None when there is none. `certificates` and `revoked` are DER, in the kernel's order.
    `config` is None without IKCONFIG, `lsms` None when the order was not found, `command_line` None when it cannot be told.
    `properties` are the IPE properties that can match, None when it cannot be told. `signs` are Kconfig symbols that are seen to be built
    in, whether or not there is a configuration. `exact` says that symbols were used.
    """

    version: str
    banner: str
    architecture: str
    layers: tuple[str, ...]
    ipe: bool
    boot_policy: bytes | None
    certificates: tuple[bytes, ...]
    revoked: tuple[bytes, ...]
    config: DotConfig | None
    lsms: tuple[str, ...] | None
    command_line: str | None
    properties: tuple[str, ...] | None
    signs: frozenset[str]
    exact: bool


def inspect_kernel(source: Path | bytes) -> KernelFacts:
    """Returns what the kernel in this file, or these bytes, says about itself.

    Raises: InputError when the file cannot be read, FormatError when it is no kernel image that we know, or is damaged.
    """
    where = str(source) if isinstance(source, Path) else "kernel image"
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise InputError(error.strerror or str(error), where=where) from error
    try:
        image = open_kernel(data)
    except FormatError as error:
        raise FormatError(error.message, where=where, hint=error.hint) from None
    elf = KernelElf.of_image(image.kernel) if image.is_elf else None
    banner = _banner(image, where)
    config = _config(image.kernel)
    ipe = _IPE_AUDIT in image.kernel
    lists = _certificates(image, elf)
    return KernelFacts(
        version=banner[0],
        banner=banner[1],
        architecture=image.architecture,
        layers=image.layers,
        ipe=ipe,
        boot_policy=_boot_policy(image, elf) if ipe else None,
        certificates=lists.trusted,
        revoked=lists.revoked,
        config=config,
        lsms=_lsms(image.kernel, config),
        command_line=_command_line(config, elf),
        properties=_properties(config) if ipe else (),
        signs=signs_in(image.kernel),
        exact=elf is not None and elf.has_symbols,
    )


def _banner(image: KernelImage, where: str) -> tuple[str, str]:
    """Returns the release and the whole banner (linux_banner, init/version.c)."""
    found = _BANNER.search(image.kernel)
    if found is None:
        raise InputError("holds no version banner (Linux version …)", where=where, hint="is it really a Linux kernel?")
    return found[1].decode("ascii"), found[0].decode("utf-8", "replace")


def _config(kernel: bytes) -> DotConfig | None:
    """Returns the configuration that CONFIG_IKCONFIG put in: gzip between IKCFG_ST and IKCFG_ED (kernel/configs.c)."""
    for found in itertools.islice(_IKCONFIG.finditer(kernel), _MAX_CONFIGS):
        stream = zlib.decompressobj(wbits=31)
        try:
            text = stream.decompress(kernel[found.start(1) : found.start(1) + _MAX_CONFIG], _MAX_CONFIG)
        except zlib.error:
            continue
        if stream.eof and stream.unused_data.startswith(b"IKCFG_ED"):
            return parse_dotconfig(text, where="the kernel's IKCONFIG")
    return None


def _boot_policy(image: KernelImage, elf: KernelElf | None) -> bytes | None:
    """Returns the boot policy: what ipe_boot_policy points to; without symbols, the one string that is a policy."""
    if elf is not None:
        pointed = elf.string_at_pointer("ipe_boot_policy")
        if pointed.known:
            return pointed.text
    found = find_boot_policies(image.kernel)
    return found[0] if found else None


def _certificates(image: KernelImage, elf: KernelElf | None) -> CertificateLists:
    if elf is not None:
        trusted = elf.sized("system_certificate_list", "system_certificate_list_size")
        if trusted is not None:
            return CertificateLists.of_bytes(trusted, elf.sized("revocation_certificate_list", "revocation_certificate_list_size") or b"")
    return find_certificate_lists(image.kernel)


def _lsms(kernel: bytes, config: DotConfig | None) -> tuple[str, ...] | None:
    """Returns CONFIG_LSM: from the configuration, else the longest string that is a list of two or more security modules' names."""
    if config is not None:
        text = config.text("LSM")
        return tuple(name for name in text.split(",") if name) if text is not None else ()
    lists = [tuple(found[0].decode().split(",")) for found in _LSM_LIST.finditer(kernel) if b"," in found[0]]
    lists = [names for names in lists if set(names) <= _LSM_NAMES]
    return max(lists, key=len, default=None)


def _command_line(config: DotConfig | None, elf: KernelElf | None) -> str | None:
    """Returns the built-in command line; empty when there is none."""
    if config is not None:
        return config.text("CMDLINE") or ""
    return None if elf is None else elf.string_in("builtin_cmdline")


def _properties(config: DotConfig | None) -> tuple[str, ...] | None:
    """Returns the names of the IPE properties whose symbol is on."""
    if config is None:
        return None
    return tuple(row.name for row in PROPERTIES if row.kconfig is None or config.enabled(row.kconfig))
