"""The initramfs: one program of ours (`guest/*.c`, static), its configuration, and nothing that could run anything else.

The program opens the dm-verity root with its signature, mounts it, loads and activates the signed policies and switches root;
see `guest/ipe-init.h`. The same inputs (and the same compiler) give the same bytes.
"""

from __future__ import annotations

import gzip
import lzma
import re
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from ipe_build.errors import InputError
from ipe_build.formats.cpio import CpioEntry, character_device, directory, regular_file, write_cpio
from ipe_build.formats.ipe_init import CAPABILITIES as CAPABILITIES
from ipe_build.formats.ipe_init import VERITY_OPTIONS as VERITY_OPTIONS
from ipe_build.formats.ipe_init import parse_ipe_init
from ipe_build.formats.partition_types import PARTITION_TYPES
from ipe_build.image.integrity import IntegrityRequest

if TYPE_CHECKING:
    from ipe_build.host import Host

GUEST = Path(__file__).parent / "guest"
SOURCES = ("ipe-init.c", "config.c", "parse.c", "files.c", "devices.c", "verity.c", "policy.c", "integrity.c", "tpm.c", "root.c")
CONFIG_PATH = "etc/ipe-init.conf"
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wformat=2", "-Wstrict-prototypes", "-Wmissing-prototypes")
_FLAGS = (
    "-std=gnu11",
    "-D_GNU_SOURCE",
    "-static",
    "-Os",
    "-s",
    "-fstack-protector-strong",
    "-Wl,--build-id=none",
    "-frandom-seed=ipe-init",
)
_FOLDERS = ("dev", "etc", "proc", "sys", "sysroot")


class OnFailure(StrEnum):
    """What ends a boot in which a step failed."""

    PANIC = "panic"
    REBOOT = "reboot"
    POWEROFF = "poweroff"
    RECOVERY = "recovery"


class Compression(StrEnum):
    """How the archive is compressed; the kernel must have the decompressor (RD_GZIP, RD_XZ, RD_ZSTD)."""

    NONE = "none"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class InitramfsRequest:
    """What the initramfs does. Paths in text are the device's.

    `root_hash` None: `roothash=` of the kernel's command line names it, and a signature is needed. `signature` is `partition`
    (the one of type `signature_type` that is for this root hash), `partuuid:UUID`, `file:/PATH` (DER, among `extra`) or `none`.
    `policies` are loaded and activated in order from the verity root (`/etc/ipe/NAME.p7b`) or from here (`initramfs:/PATH`).
    `success_audit` None leaves it as it is. `modules` are loaded in order before anything else is looked for. `freeze` makes the
    emptied initramfs immutable before init is started, so that a policy that still allows `boot_verified=TRUE` allows nothing any more;
    it takes dropping CAP_LINUX_IMMUTABLE.
    """

    root_hash: bytes | None
    filesystem: str
    init: str = "/sbin/init"
    init_from_command_line: bool = False
    signature: str = "partition"
    signature_type: UUID = PARTITION_TYPES["x86-64"].root_verity_sig
    verity_options: tuple[str, ...] = ()
    mount_options: str = ""
    wait_s: int = 10
    policies: tuple[str, ...] = ()
    delete_policies: tuple[str, ...] = ()
    success_audit: bool | None = None
    drop_capabilities: tuple[str, ...] = ()
    freeze: bool = False
    moves: tuple[str, ...] = ("/dev", "/proc", "/sys")
    on_failure: OnFailure = OnFailure.PANIC
    recovery: Path | None = None
    modules: tuple[Path, ...] = ()
    extra: tuple[CpioEntry, ...] = ()
    integrity: IntegrityRequest | None = None
    compression: Compression = Compression.GZIP
    compiler: str = "gcc"


@dataclass(frozen=True, slots=True)
class Initramfs:
    """A finished initramfs; `entries` is how many members its archive has."""

    path: Path
    size_bytes: int
    compression: Compression
    entries: int


def make_initramfs(request: InitramfsRequest, out: Path, host: Host, *, force: bool = False) -> Initramfs:
    """Returns the initramfs made at `out`.

    Raises: InputError for a request that ipe-init would refuse, OutputError, ToolMissingError, ToolFailedError (the compiler).
    """
    configuration = render_config(request)
    with host.scratch() as scratch:
        program = scratch / "init"
        compile_init(program, host, compiler=request.compiler)
        entries = _entries(request, configuration, program.read_bytes(), host.source_date_epoch)
    archive = write_cpio(entries)
    with host.output(out, force=force) as temporary:
        temporary.write_bytes(_compressed(archive, request.compression, host))
        size = temporary.stat().st_size
    return Initramfs(out, size, request.compression, len(entries))


def compile_init(out: Path, host: Host, *, compiler: str = "gcc", flags: tuple[str, ...] = ()) -> None:
    """Compiles ipe-init. Names are relative and there is no build id, so the folder it is built in does not show."""
    words: list[str | Path] = [compiler, *_FLAGS, *WARNINGS, *flags, f"-ffile-prefix-map={GUEST}=.", "-o", out.absolute(), *SOURCES]
    host.run(words, cwd=GUEST, env={"TMPDIR": str(out.absolute().parent)})  # what a stopped compiler leaves goes with the scratch folder


def render_config(request: InitramfsRequest) -> bytes:
    """Returns /etc/ipe-init.conf: lines `key = value`, as `guest/config.c` reads them.

    Raises: InputError naming the setting that ipe-init would refuse; so that is found out here and not on the device.
    """
    _check(request)
    rows: list[tuple[str, str]] = [
        ("root_hash", request.root_hash.hex() if request.root_hash is not None else "cmdline"),
        ("signature", request.signature),
        ("signature_type", str(request.signature_type)),
        ("filesystem", request.filesystem),
        *((("mount_options", request.mount_options),) if request.mount_options else ()),
        *(("verity_option", option) for option in request.verity_options),
        ("wait_s", str(request.wait_s)),
        *(("module", f"/lib/modules/{module.name}") for module in request.modules),
        *(("policy", policy) for policy in request.policies),
        *(("delete_policy", name) for name in request.delete_policies),
        ("success_audit", "keep" if request.success_audit is None else str(int(request.success_audit))),
        *(request.integrity.settings() if request.integrity is not None else ()),
        *(("drop_capability", name) for name in request.drop_capabilities),
        *((("freeze_initramfs", "yes"),) if request.freeze else ()),
        *(("move", place) for place in request.moves),
        ("init", request.init),
        ("init_from_command_line", "yes" if request.init_from_command_line else "no"),
        ("on_failure", request.on_failure),
        *((("recovery", "/recovery"),) if request.recovery is not None else ()),
    ]
    for key, value in rows:
        if not value or value != value.strip() or any(character in value for character in "\0\r\n"):
            raise InputError(f"wanted one line of text, got {value!r}", where=f"initramfs: {key}")
    text = "".join(f"{key} = {value}\n" for key, value in rows).encode("utf-8", "surrogateescape")
    if problem := parse_ipe_init(text).problem:
        raise InputError(f"ipe-init would refuse its configuration: {problem}", where="initramfs")
    return text


_SIGNATURES = re.compile(r"partition|none|partuuid:[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|file:/.+")


def _check(request: InitramfsRequest) -> None:
    """Raises InputError for the first setting that ipe-init would refuse."""
    root_hash = request.root_hash
    rules: tuple[tuple[str, bool, str], ...] = (
        ("root_hash", root_hash is None or 32 <= len(root_hash) <= 64, "wanted 32 to 64 bytes: the partitions' UUIDs are taken from it"),
        ("signature", bool(_SIGNATURES.fullmatch(request.signature)), "wanted partition, partuuid:UUID, file:/PATH or none"),
        ("signature", root_hash is not None or request.signature != "none", "a root hash from the command line needs a signature"),
        ("verity_options", VERITY_OPTIONS.issuperset(request.verity_options), f"wanted some of {', '.join(sorted(VERITY_OPTIONS))}"),
        ("wait_s", 0 <= request.wait_s <= 9999, "wanted 0 to 9999 seconds"),
        ("init", request.init.startswith("/"), "wanted an absolute path"),
        ("moves", all(place.startswith("/") for place in request.moves), "wanted absolute paths"),
        ("policies", all(path.removeprefix("initramfs:").startswith("/") for path in request.policies), "wanted absolute paths"),
        ("policies", all(_stem(path) for path in request.policies), "wanted /FOLDER/policy_name.p7b"),
        ("drop_capabilities", set(CAPABILITIES).issuperset(request.drop_capabilities), "wanted names such as CAP_MAC_ADMIN"),
        ("freeze", not request.freeze or "CAP_LINUX_IMMUTABLE" in request.drop_capabilities, "wanted CAP_LINUX_IMMUTABLE dropped with it"),
        ("recovery", request.on_failure is not OnFailure.RECOVERY or request.recovery is not None, "on_failure = recovery needs a program"),
        ("modules", len({module.name for module in request.modules}) == len(request.modules), "wanted modules with different names"),
    )
    for setting, fine, wanted in rules:
        if not fine:
            raise InputError(f"{wanted}, got {getattr(request, setting)!r}", where=f"initramfs: {setting}")


def _stem(path: str) -> str:
    """Returns the policy's name that ipe-init takes from a path: without folder and last suffix."""
    base = path.rpartition("/")[2]
    return base.rpartition(".")[0] if "." in base else base


def _entries(request: InitramfsRequest, configuration: bytes, program: bytes, epoch: int) -> list[CpioEntry]:
    """Returns the archive's members, each folder before what is in it."""
    wanted: list[CpioEntry] = [
        *(directory(folder) for folder in _FOLDERS),
        character_device("dev/console", 5, 1),
        regular_file(CONFIG_PATH, configuration, mode=0o400),
        regular_file("init", program, mode=0o500),
    ]
    if request.recovery is not None:
        wanted.append(regular_file("recovery", _read(request.recovery), mode=0o500))
    if request.modules:
        wanted += [regular_file(f"lib/modules/{module.name}", _read(module), mode=0o400) for module in request.modules]
    wanted += request.extra
    if request.integrity is not None:
        wanted += request.integrity.files()
    found: dict[str, CpioEntry] = {}
    for entry in wanted:
        parts = entry.path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            found.setdefault(parent, directory(parent))
        if entry.path in found and not (stat.S_ISDIR(entry.mode) and stat.S_ISDIR(found[entry.path].mode)):
            raise InputError("is there twice", where=f"initramfs: {entry.path}", hint="name another path for the extra file")
        found[entry.path] = entry
    ordered = sorted(found.values(), key=lambda entry: entry.path.split("/"))
    mtime = min(epoch, 0xFFFFFFFF)
    return [CpioEntry(entry.path, entry.mode, entry.data, entry.uid, entry.gid, mtime, entry.nlink, entry.rdev) for entry in ordered]


def _read(path: Path) -> bytes:
    """Returns a file's content. Raises: InputError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _compressed(archive: bytes, compression: Compression, host: Host) -> bytes:
    """Returns the archive compressed as the kernel unpacks it: xz with CRC32, gzip without name and time."""
    if compression is Compression.GZIP:
        return gzip.compress(archive, 9, mtime=0)
    if compression is Compression.XZ:
        return lzma.compress(archive, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, preset=9)
    if compression is Compression.ZSTD:
        return host.run(["zstd", "-q", "-19", "--single-thread", "-c"], stdin=archive).stdout
    return archive
