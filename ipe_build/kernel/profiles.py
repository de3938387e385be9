"""Which kernel is asked for: the boards, what each feature brings with it, and the request that the demo and all tests share."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from ipe_build.errors import InputError
from ipe_build.kernel.fragment import Fragment, fragment
from ipe_build.kernel.needs import Need, without_keys
from ipe_build.policy.properties import PROPERTIES

_Row = TypeVar("_Row")

DEBIAN_SOURCE = Path("/usr/src/linux-source-6.12.tar.xz")
"""What Debian's package linux-source-6.12 installs."""


class Board(NamedTuple):
    """A row: a device that a kernel is built for. `arch` is make's ARCH, `srcarch` the folder below arch/, `image` the file made.

    `cross_compile` is the prefix of a compiler for it on a machine of another kind.
    """

    name: str
    arch: str
    srcarch: str
    target: str
    image: str
    needs: tuple[Need, ...]
    cross_compile: str = ""


_MACHINE_OF_ARCH = {"arm64": "aarch64"}
_QEMU = (Need.QEMU_X86_64, Need.EFI, Need.USERSPACE, Need.INSPECTION)
_QEMU_ARM64 = (Need.QEMU_ARM64, Need.USERSPACE, Need.INSPECTION)
BOARDS: tuple[Board, ...] = (
    Board("qemu-x86_64", "x86_64", "x86", "bzImage", "arch/x86/boot/bzImage", _QEMU),
    Board("qemu-arm64", "arm64", "arm64", "Image", "arch/arm64/boot/Image", _QEMU_ARM64, "aarch64-linux-gnu-"),
)

ALWAYS = (Need.IPE, Need.DM_VERITY, Need.DM_VERITY_SIGNATURE, Need.INITRAMFS, Need.MODULES)
"""What every image of ours needs."""

BRINGS: Mapping[Need, tuple[Need, ...]] = MappingProxyType(
    {
        Need.DM_VERITY_SIGNATURE: (Need.DM_VERITY,),
        Need.FS_VERITY_SIGNATURE: (Need.FS_VERITY,),
        Need.SECONDARY_KEYRING: (Need.DM_VERITY_SIGNATURE,),
        Need.PLATFORM_KEYRING: (Need.DM_VERITY_SIGNATURE, Need.EFI),
        Need.MODULES_GZIP: (Need.MODULES,),
        Need.MODULES_XZ: (Need.MODULES,),
        Need.MODULES_ZSTD: (Need.MODULES,),
        Need.IMA: (Need.SECONDARY_KEYRING,),
        Need.IMA_ENFORCED: (Need.IMA,),
        Need.EVM: (Need.IMA,),
        Need.TRUSTED_KEYS_TPM: (Need.TPM,),
        Need.PROBES: (
            Need.MODULES,
            Need.EROFS,
            Need.SQUASHFS,
            Need.EXT4,
            Need.FS_VERITY_SIGNATURE,
            Need.REVOCATION,
            Need.FIRMWARE,
            Need.IMA,
            Need.KEXEC,
        ),
    }
)
"""What a feature brings with it. `probes` brings all that IPE can be asked about, so that one kernel serves every probe and test."""
KEYED_PROPERTIES = frozenset({"dmverity_signature", "fsverity_signature"})
"""IPE's properties that can match only where a keyring holds a key."""

FILESYSTEMS: Mapping[str, Need] = MappingProxyType({"erofs": Need.EROFS, "squashfs": Need.SQUASHFS, "ext4": Need.EXT4})
MODULE_COMPRESSIONS: Mapping[str, Need | None] = MappingProxyType(
    {"none": None, "gzip": Need.MODULES_GZIP, "xz": Need.MODULES_XZ, "zstd": Need.MODULES_ZSTD}
)
"""A kernel can unpack modules of one compression only. Source: kernel/module/Kconfig, choice MODULE_COMPRESS_TYPE."""


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """A kernel to build: all but its trust. `base` is a make target (`tinyconfig`, `defconfig`, …) or `file:PATH`.

    `compression` is how the image is packed (a name of `kernel.repack.PACKERS`), whatever the board's row says; it is chosen when the
    kernel is linked, so that another one costs no new compilation. `patches` are applied to the source, in order; those that touch
    security/ipe alone at the link as well.
    """

    source: Path
    board: Board
    needs: tuple[Need, ...]
    properties: tuple[str, ...] = ()
    base: str = "tinyconfig"
    fragments: tuple[Path, ...] = ()
    cross_compile: str = ""
    compression: str = ""
    patches: tuple[Path, ...] = ()

    def fragment(self, *, boot_policy: str | None = None, trusted_keys: str | None = None, revoked_keys: str | None = None) -> Fragment:
        """Returns what the configuration must hold; the paths are as in `fragment.fragment`."""
        return fragment(self.needs, self.properties, boot_policy=boot_policy, trusted_keys=trusted_keys, revoked_keys=revoked_keys)


def kernel_request(
    source: Path = DEBIAN_SOURCE,
    *,
    board: str = "qemu-x86_64",
    features: Iterable[str] = ("hardening", "probes"),
    properties: Iterable[str] = (),
    filesystem: str = "erofs",
    module_compression: str = "none",
    base: str = "tinyconfig",
    fragments: tuple[Path, ...] = (),
    patches: tuple[Path, ...] = (),
) -> KernelRequest:
    """Returns the request for a board: what every image needs, the board's needs, the named features and what they bring.

    `properties` are the IPE properties that the policies use. Raises: InputError for a name that is not in its table.
    """
    chosen = board_of_name(board)
    asked = {need_of_name(name) for name in features} | {*ALWAYS, *chosen.needs, _row(FILESYSTEMS, filesystem, "filesystem")}
    asked = with_brought(asked)
    compression = _row(MODULE_COMPRESSIONS, module_compression, "module compression")
    if compression is None and Need.PROBES in asked:
        compression = Need.MODULES_ZSTD
    if compression is not None:
        asked.add(compression)
    names = set(properties)
    if Need.PROBES in asked:
        names |= {row.name for row in PROPERTIES}
    if Need.SEALED in asked:
        names -= KEYED_PROPERTIES
    order = tuple(Need)
    return KernelRequest(
        source=source,
        board=chosen,
        needs=tuple(sorted(without_keys(asked), key=order.index)),
        properties=tuple(sorted(names)),
        base=base,
        fragments=fragments,
        patches=patches,
        cross_compile=chosen.cross_compile if platform.machine() != _MACHINE_OF_ARCH.get(chosen.arch, chosen.arch) else "",
    )


def demo_kernel_request(source: Path = DEBIAN_SOURCE) -> KernelRequest:
    """Returns the request that conf/demo.toml gives and that all tests use, so that this kernel is compiled once."""
    return kernel_request(source)


def sealed_kernel_request(source: Path = DEBIAN_SOURCE) -> KernelRequest:
    """Returns the request that conf/sealed.toml gives, and the tests of sealed images use."""
    return kernel_request(source, features=("hardening", "probes", "sealed"))


def with_brought(needs: Iterable[Need]) -> set[Need]:
    """Returns the needs, what they bring, and what that brings."""
    found: set[Need] = set()
    waiting = list(needs)
    while waiting:
        need = waiting.pop()
        if need not in found:
            found.add(need)
            waiting += BRINGS.get(need, ())
    return found


def board_of_name(name: str) -> Board:
    """Returns the board's row. Raises: InputError naming the boards there are."""
    for board in BOARDS:
        if board.name == name:
            return board
    raise InputError(f"no board is called {name!r}", where="board", hint=f"known: {', '.join(board.name for board in BOARDS)}")


def need_of_name(name: str) -> Need:
    """Returns the need. Raises: InputError naming the needs there are."""
    try:
        return Need(name)
    except ValueError:
        raise InputError(f"no feature is called {name!r}", where="features", hint=f"known: {', '.join(Need)}") from None


def _row(table: Mapping[str, _Row], name: str, what: str) -> _Row:
    if name not in table:
        raise InputError(f"no {what} is called {name!r}", where=what, hint=f"known: {', '.join(table)}")
    return table[name]
