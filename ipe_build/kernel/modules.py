"""Finds and reads kernel modules, plain or compressed, and says what a kernel that enforces signatures answers to each.

Source: kernel/module/signing.c (module_sig_check), kernel/module/main.c (check_modinfo).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from ipe_build.errors import (
    FormatError,
    InputError,
    IpeBuildError,
    SignatureError,
    VerificationError,
)
from ipe_build.formats.cms import decode_signed_data
from ipe_build.formats.module_signature import OtherSignatureKindError, split_signature
from ipe_build.kernel.module_compression import MODULE_SUFFIXES, Compression, unpack
from ipe_build.signing.algorithms import name_of_oid
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.verify import describe_signer, verify_signature

if TYPE_CHECKING:
    pass

_CHUNK = 16
_PROFILE = PROFILES["module"]


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What a module says of itself. `signer` and what follows are empty when it carries no signature."""

    path: Path
    compression: str
    vermagic: str
    payload: bytes
    signature: bytes | None
    signer: str
    algorithm: str
    digest_name: str


@dataclass(frozen=True, slots=True)
class ModuleVerdict:
    """What a kernel that enforces signatures answers. `errno` is empty when it accepts; `intact` is None when nobody can tell."""

    facts: ModuleFacts | None
    path: Path
    certificate: x509.Certificate | None
    intact: bool | None
    errno: str
    reason: str

    @property
    def accepted(self) -> bool:
        """Returns whether the kernel loads it."""
        return not self.errno


def find_modules(places: Iterable[Path]) -> tuple[Path, ...]:
    """Returns the module files among files and below folders, each folder's in sorted order; symbolic links are not followed.

    Raises: InputError when a place does not exist, or a folder holds no module; OSError when a folder cannot be read.
    """
    found: list[str] = []
    for place in places:
        if place.is_dir():
            inside = sorted(_below(str(place)), key=lambda path: path.split("/"))
            if not inside:
                raise InputError("holds no kernel modules", where=str(place), hint="modules end in .ko, .ko.gz, .ko.xz or .ko.zst")
            found.extend(inside)
        elif place.is_file():
            found.append(str(place))
        else:
            raise InputError("is neither a file nor a folder", where=str(place))
    return tuple(map(Path, dict.fromkeys(found)))


def _below(folder: str) -> Iterator[str]:
    """Yields the modules below a folder, regular files only; in text, for a path as an object costs as much as reading the entry."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(entry.path)
            elif entry.name.endswith(MODULE_SUFFIXES) and entry.is_file(follow_symlinks=False):
                yield entry.path


def read_module(path: Path) -> ModuleFacts:
    """Returns what a module's file says. Raises: FormatError when it is not a module or its signature block is damaged."""
    return _facts(path, *unpack(path.read_bytes(), str(path)))


def _facts(path: Path, unpacked: bytes, compression: Compression) -> ModuleFacts:
    """Returns the facts of an unpacked module."""
    payload, signature = split_signature(unpacked, str(path))
    signer, algorithm, digest_name = "", "", ""
    if signature is not None:
        info = decode_signed_data(signature, f"{path}: signature").signer_infos[0]
        signer, algorithm, digest_name = describe_signer(info.signer), name_of_oid(info.algorithm.oid), info.digest_name
    return ModuleFacts(path, compression.name, _vermagic(payload, str(path)), payload, signature, signer, algorithm, digest_name)


def _vermagic(payload: bytes, where: str) -> str:
    """Returns the vermagic= of section .modinfo (strings ended by NUL), empty when there is none. Raises: FormatError."""
    try:
        section = ELFFile(io.BytesIO(payload)).get_section_by_name(".modinfo")
        data: bytes = section.data() if section is not None else b""
    except (ELFError, ConstructError, ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError, AttributeError) as error:
        raise FormatError(f"is a damaged ELF file: {' '.join(str(error).split())}", where=where) from error
    for item in data.split(b"\0"):
        if item.startswith(b"vermagic="):
            return item.removeprefix(b"vermagic=").decode("utf-8", "replace")
    return ""


def verify_module(
    path: Path,
    certificates: Sequence[x509.Certificate],
    vermagic: str | None = None,
    *,
    revoked: Sequence[x509.Certificate] = (),
    release: str | None = None,
) -> ModuleVerdict:
    """Returns what a kernel with these trusted certificates that enforces module signatures answers when it loads the file.

    `vermagic` is that kernel's, where known, `release` its first word: a module of another kernel is refused (ENOEXEC) even when it is
    well signed. Give no `release` for a kernel with CONFIG_MODVERSIONS, which does not compare it (same_magic).
    Raises: OSError when the file cannot be read.
    """
    try:
        unpacked, compression = unpack(path.read_bytes(), str(path))
    except FormatError as error:
        return ModuleVerdict(None, path, None, False, "ENOEXEC", error.message)
    try:
        facts = _facts(path, unpacked, compression)
    except OtherSignatureKindError as error:
        return ModuleVerdict(None, path, None, None, "EKEYREJECTED", error.message)
    except FormatError as error:
        return ModuleVerdict(None, path, None, False, "EBADMSG", error.message)
    if facts.signature is None:
        # The kernel's inner answer is ENODATA; where signatures are enforced it gives EKEYREJECTED (module_sig_check).
        return ModuleVerdict(facts, path, None, None, "EKEYREJECTED", "unsigned: never signed, or stripped or changed at its end since")
    try:
        certificate = verify_signature(_PROFILE, facts.payload, facts.signature, certificates, revoked)
    except SignatureError as error:
        intact = None if error.errno == "ENOKEY" else False
        return ModuleVerdict(facts, path, None, intact, "EKEYREJECTED", error.message)
    except (VerificationError, FormatError) as error:
        return ModuleVerdict(facts, path, None, False, "EBADMSG", error.message)
    except IpeBuildError as error:
        return ModuleVerdict(facts, path, None, None, "EKEYREJECTED", error.message)
    fits = facts.vermagic == vermagic if vermagic is not None else release is None or facts.vermagic.split(" ")[0] == release
    if not fits:
        reason = f"built for another kernel: vermagic {facts.vermagic!r}, wanted {vermagic or release!r}"
        return ModuleVerdict(facts, path, certificate, True, "ENOEXEC", reason)
    return ModuleVerdict(facts, path, certificate, True, "", "")
