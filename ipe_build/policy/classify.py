"""What one file of a root filesystem is to the kernel, and what about it will not work as before under IPE."""

from __future__ import annotations

import mmap
import re
from typing import NamedTuple

from ipe_build.policy.properties import Operation
from ipe_build.policy.survey import Kind, Trait

Content = bytes | memoryview | mmap.mmap

_ELF = b"\x7fELF"
_ET_EXEC, _ET_DYN = 2, 3


class KindRow(NamedTuple):
    """A row: a kind of file and the operation by which the kernel judges it."""

    kind: Kind
    operation: Operation


KINDS: tuple[KindRow, ...] = (
    KindRow(Kind.ELF, Operation.EXECUTE),
    KindRow(Kind.SCRIPT, Operation.EXECUTE),
    KindRow(Kind.MODULE, Operation.KMODULE),
    KindRow(Kind.COMPRESSED_MODULE, Operation.KMODULE),
    KindRow(Kind.FIRMWARE, Operation.FIRMWARE),
    KindRow(Kind.POLICY, Operation.POLICY),
    KindRow(Kind.CERTIFICATE, Operation.X509_CERT),
    KindRow(Kind.KERNEL, Operation.KEXEC_IMAGE),
)
OPERATION_OF_KIND = {row.kind: row.operation for row in KINDS}


class _PathRow(NamedTuple):
    """A row: paths (in the image, without the first /) that are of a kind whatever is in them."""

    kind: Kind
    pattern: re.Pattern[str]


_PATHS: tuple[_PathRow, ...] = (
    _PathRow(Kind.MODULE, re.compile(r".*\.ko")),
    _PathRow(Kind.COMPRESSED_MODULE, re.compile(r".*\.ko\.(gz|xz|zst|bz2|lzma)")),
    _PathRow(Kind.FIRMWARE, re.compile(r"(usr/)?lib/firmware/.+")),
    _PathRow(Kind.POLICY, re.compile(r"etc/ima/ima[-_]?policy")),
    _PathRow(Kind.CERTIFICATE, re.compile(r"etc/keys/.+\.der")),
    _PathRow(Kind.KERNEL, re.compile(r"(boot|usr/lib/modules/[^/]+|lib/modules/[^/]+)/(vmlinuz|bzImage|Image|vmlinux)[^/]*")),
)


class TraitRow(NamedTuple):
    """A row: a trait and the base names of programs and libraries that have it."""

    trait: Trait
    names: re.Pattern[str]


TRAITS: tuple[TraitRow, ...] = (
    TraitRow(
        Trait.JIT,
        re.compile(
            r"libjavascriptcoregtk.*\.so.*|libmozjs.*\.so.*|libv8.*\.so.*|node|nodejs|deno|bun|java|libjvm\.so|luajit.*|libluajit.*\.so.*|pypy.*|"
            r"libcoreclr\.so|libclrjit\.so|dotnet|mono(-sgen)?|libmonosgen.*\.so.*|libmono.*\.so.*|beam\.smp|qemu-\w+(-static)?|wasmtime|wasmer|"
            r"libLLVM.*\.so.*|libgallium.*\.so|swrast_dri\.so|liborc-0\.4\.so.*|libQt\dQml\.so.*|QtWebEngineProcess|chrome|chromium|firefox(-bin)?|"
            r"libxul\.so|julia|libgccjit\.so.*|opcache\.so|libpcre2-\d+\.so.*|dart|flutter-\w+|libflutter.*\.so"
        ),
    ),
    TraitRow(Trait.LIBFFI, re.compile(r"libffi\.so.*")),
    TraitRow(
        Trait.INTERPRETER,
        re.compile(
            r"python[\d.]*|perl[\d.]*|ruby[\d.]*|lua[\d.]*|luajit.*|node|nodejs|php[\d.]*(-cgi|-cli)?|bash|dash|sh|ash|zsh|ksh|fish|mksh|busybox.*|"
            r"toybox|gawk|mawk|awk|tclsh[\d.]*|expect|guile[\d.]*|java|gdb|qjs|micropython|Rscript|pypy.*|ocaml|erl|escript|ucode"
        ),
    ),
    TraitRow(Trait.LOADER, re.compile(r"systemd|ipe-init|ipe-load.*|switch_root|veritysetup|busybox.*")),
)
_INITS = ("init", "sbin/init", "usr/sbin/init", "bin/init", "etc/init", "usr/lib/systemd/systemd", "lib/systemd/systemd")


def classify(path: str, executable: bool, content: Content) -> tuple[Kind, frozenset[Trait]] | None:
    """Returns kind and traits of a file, None for one that IPE is never asked about. `path` has no leading slash."""
    by_path = next((row.kind for row in _PATHS if row.pattern.fullmatch(path)), None)
    if by_path is not None:
        return by_path, frozenset()
    head = bytes(content[:20])
    if head[:4] == _ELF and len(head) == 20:
        machine_order = "big" if head[5] == 2 else "little"
        if int.from_bytes(head[16:18], "big" if machine_order == "big" else "little") not in (_ET_EXEC, _ET_DYN):
            return None
        return Kind.ELF, _traits(path) | _elf_traits(content)
    if head[:2] == b"#!" and executable:
        return Kind.SCRIPT, _traits(path)
    return None


def _traits(path: str) -> frozenset[Trait]:
    """Returns the traits that a file's name tells."""
    name = path.rpartition("/")[2]
    found = {row.trait for row in TRAITS if row.names.fullmatch(name)}
    if path in _INITS:
        found.add(Trait.INIT)
    return frozenset(found)


def _elf_traits(content: Content) -> frozenset[Trait]:
    """Returns the traits that an ELF file's bytes tell: names of symbols and libraries, and UPX's mark."""
    whole = bytes(content) if isinstance(content, memoryview) else content
    marks = ((Trait.MEMFD, b"\0memfd_create\0"), (Trait.LIBFFI, b"\0libffi.so."), (Trait.UPX, b"UPX!"))
    return frozenset(trait for trait, mark in marks if whole.find(mark) >= 0 and (trait is not Trait.UPX or _is_packed(whole)))


def _is_packed(content: Content) -> bool:
    """Returns whether it is a file that UPX packed, not one that speaks of UPX: its mark stands among the headers."""
    return b"UPX!" in bytes(content[:1024])
