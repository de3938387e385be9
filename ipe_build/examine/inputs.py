"""What each input of an audit is, told from its bytes: one row a kind. Nothing is believed because of a file's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from ipe_build.audit.facts import Region
from ipe_build.errors import InputError, IpeBuildError
from ipe_build.formats.cpio import MAGIC, MAGIC_CHECKED
from ipe_build.formats.fat import is_fat
from ipe_build.formats.filesystem import HEAD_BYTES, filesystem_kind
from ipe_build.formats.initramfs import compression_at, unpack_initramfs
from ipe_build.formats.kernel_image import open_kernel
from ipe_build.formats.pe import is_pe, parse_pe
from ipe_build.formats.verity_sig import parse_verity_signature

MAX_BOOT_FILE_BYTES = 1 << 30
"""No kernel, initramfs or UKI is larger; more is not read into memory."""
_MAX_SMALL_BYTES = 1 << 20
_ROOT_HASH = re.compile(rb"\s*(?:[a-z0-9-]+:)?([0-9a-fA-F]{64,128})\s*")


class Kind(StrEnum):
    """What an input is."""

    DISK = "disk image"
    ROOT = "root filesystem"
    HASH_TREE = "verity hash tree"
    SIGNATURE = "signed root hash"
    ROOT_HASH = "root hash"
    ESP = "EFI system partition"
    UKI = "unified kernel image"
    INITRAMFS = "initramfs"
    KERNEL = "kernel"


class _Input:
    """A file, read as far as its kind needs."""

    def __init__(self, path: Path) -> None:
        try:
            if not path.is_file():
                raise InputError("is no file" if path.exists() else "wanted an image, there is no such file", where=str(path))
            self.path, self.size_bytes = path, path.stat().st_size
            with path.open("rb") as file:
                self.head = file.read(HEAD_BYTES)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error

    def small(self) -> bytes:
        """Returns the whole content of a small file, nothing of a larger one."""
        return self.head[: self.size_bytes] if self.size_bytes <= len(self.head) else self._read(_MAX_SMALL_BYTES)

    def whole(self) -> bytes:
        """Returns the whole content of what may be a kernel or an initramfs, nothing of something larger."""
        return self._read(MAX_BOOT_FILE_BYTES)

    def _read(self, limit: int) -> bytes:
        return self.path.read_bytes() if self.size_bytes <= limit else b""


class _Row(NamedTuple):
    """A row: a kind and how its bytes are known."""

    kind: Kind
    is_it: Callable[[_Input], bool]


def _has_table(one: _Input) -> bool:
    return one.head[512:520] == b"EFI PART"


def _is_kernel(one: _Input) -> bool:
    data = one.whole()
    return bool(data) and _parses(open_kernel, data)


def _is_disk(one: _Input) -> bool:
    # A protective record (type 0xee) in the MBR: the table itself may be damaged, which is then said of it.
    records = (one.head[446 + 16 * number + 4 : 446 + 16 * number + 5] for number in range(4))
    return b"EFI PART" in (one.head[512:520], one.head[4096:4104]) or (one.head[510:512] == b"\x55\xaa" and b"\xee" in records)


def _is_signature(one: _Input) -> bool:
    return one.head[:1] == b"{" and _parses(parse_verity_signature, one.small())


def _is_uki(one: _Input) -> bool:
    if not is_pe(one.head):
        return False
    try:
        return parse_pe(one.whole()).is_uki
    except IpeBuildError:
        return False


def _is_initramfs(one: _Input) -> bool:
    if one.head[:6] in (MAGIC, MAGIC_CHECKED):
        return True
    if compression_at(memoryview(one.head), 0) is None:
        return False
    return bool(unpack_initramfs(one.whole()).entries)


def _parses(parse: Callable[[bytes], object], data: bytes) -> bool:
    try:
        parse(data)
    except IpeBuildError:
        return False
    return True


KINDS: tuple[_Row, ...] = (
    _Row(Kind.HASH_TREE, lambda one: one.head[:8] == b"verity\0\0"),
    _Row(Kind.ROOT, lambda one: filesystem_kind(one.head) is not None),
    _Row(Kind.SIGNATURE, _is_signature),
    _Row(Kind.ROOT_HASH, lambda one: one.size_bytes < 200 and _ROOT_HASH.fullmatch(one.small()) is not None),
    _Row(Kind.UKI, _is_uki),
    _Row(Kind.INITRAMFS, _is_initramfs),
    _Row(Kind.DISK, _has_table),  # else every disk would be read into memory, twice, to see that it is no kernel
    _Row(Kind.KERNEL, _is_kernel),
    _Row(Kind.DISK, _is_disk),
    _Row(Kind.ESP, lambda one: is_fat(one.head[:512])),
)
"""Most exact first: a bzImage carries the mark of a boot sector too."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs by their kinds. What is of no known kind is taken for a disk, whose table then says what is wrong with it."""

    first: Path
    disk: Path | None = None
    root: Region | None = None
    hash_tree: Region | None = None
    signature: bytes | None = None
    root_hash: bytes | None = None
    esp: Region | None = None
    ukis: tuple[Path, ...] = ()
    kernel: Path | None = None
    initramfs: tuple[Path, ...] = ()
    command_line: str | None = None


def kind_of(path: Path) -> Kind:
    """Returns what a file is. Raises: InputError when it is not there or cannot be read."""
    one = _Input(path)
    return next((row.kind for row in KINDS if row.is_it(one)), Kind.DISK)


def sort_inputs(
    paths: Sequence[Path], *, kernel: Path | None = None, initramfs: Sequence[Path] = (), command_line: str | None = None
) -> Inputs:
    """Returns the inputs by their kinds; `kernel`, `initramfs` and `command_line` are what the caller names as such.

    Several archives are one initramfs, in their order. Raises: InputError for a second input of a kind that an image has once.
    """
    if not paths and kernel is None:
        raise InputError("wanted an image to audit", where="audit")
    sorted_ones = Inputs(paths[0] if paths else kernel or Path(), command_line=command_line)
    for path in paths:
        sorted_ones = _add(sorted_ones, path, kind_of(path))
    for path in (*((kernel,) if kernel else ()), *initramfs):
        if not path.is_file():
            raise InputError("wanted a file, there is none", where=str(path))
    if kernel is not None:
        sorted_ones = replace(sorted_ones, kernel=kernel)
    return replace(sorted_ones, initramfs=tuple(initramfs) or sorted_ones.initramfs)


def _add(inputs: Inputs, path: Path, kind: Kind) -> Inputs:
    """Returns the inputs with one more."""
    match kind:
        case Kind.UKI:
            return replace(inputs, ukis=(*inputs.ukis, path))
        case Kind.INITRAMFS:
            return replace(inputs, initramfs=(*inputs.initramfs, path))
        case Kind.SIGNATURE:
            return replace(_once(inputs, inputs.signature, path, kind), signature=path.read_bytes())
        case Kind.ROOT_HASH:
            found = _ROOT_HASH.fullmatch(path.read_bytes())
            assert found is not None
            value = bytes.fromhex(found[1].decode()) if len(found[1]) % 2 == 0 else b""
            return replace(_once(inputs, inputs.root_hash, path, kind), root_hash=value)
        case Kind.DISK:
            return replace(_once(inputs, inputs.disk, path, kind), disk=path)
        case Kind.KERNEL:
            return replace(_once(inputs, inputs.kernel, path, kind), kernel=path)
        case Kind.ROOT:
            return replace(_once(inputs, inputs.root, path, kind), root=_whole(path))
        case Kind.HASH_TREE:
            return replace(_once(inputs, inputs.hash_tree, path, kind), hash_tree=_whole(path))
        case Kind.ESP:
            return replace(_once(inputs, inputs.esp, path, kind), esp=_whole(path))


def _once(inputs: Inputs, there: object, path: Path, kind: Kind) -> Inputs:
    if there is not None:
        raise InputError(f"is a second {kind}; one image has one", where=str(path), hint="audit each image by itself")
    return inputs


def _whole(path: Path) -> Region:
    return Region(path, 0, path.stat().st_size)
