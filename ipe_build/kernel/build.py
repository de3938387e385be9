"""A kernel built from source, in two steps that are cached apart: all without its trust (minutes), and its trust linked in (seconds).

The first step's build tree is kept as it was, and never worked in again: a link for new trust works in a copy of it, so an
interrupted one leaves nothing behind, and several can work at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError
from ipe_build.formats.dotconfig import DotConfig, line_of, parse_dotconfig, quote, render_dotconfig
from ipe_build.kernel.check import compare, explain, require
from ipe_build.kernel.fragment import BOOT_POLICY, REVOKED_KEYS, TRUSTED_KEYS, Conflict, merge, overlay
from ipe_build.kernel.make import Make
from ipe_build.kernel.needs import Need
from ipe_build.kernel.patches import are_late, patched_tree
from ipe_build.kernel.profiles import KernelRequest
from ipe_build.kernel.source import SourceTree, cache_key, source_tree
from ipe_build.kernel.trust import KernelTrust, certificate_bundle, check_trust

if TYPE_CHECKING:
    from ipe_build.host import Host

_SCHEME = "2"
_LINK_SCHEME = "3"
"""Part of the cache keys, of all and of the link's: raise it when what is cached, or how it is built, changes."""
_TRUST_FOLDER = "ipe-build"
"""Below the build tree, so that the paths in the configuration are the same wherever it is: make runs there."""
_FILES = ((BOOT_POLICY, "boot-policy"), (TRUSTED_KEYS, "certificates.pem"), (REVOKED_KEYS, "revoked.pem"))
_COMPRESSIONS = {name: f"KERNEL_{name.upper()}" for name in ("gzip", "bzip2", "lzma", "xz", "lzo", "lz4", "zstd")}
"""Kconfig's choice of how the image is packed. Source: init/Kconfig, "Kernel compression mode"."""
_CONFIG = "kernel.config"
_BUILT_AT = "built-at"
_KEPT_S = 86400
_KEPT_LINKS = 16
_KEPT_BASES = 4
_CCACHE = Path("/usr/lib/ccache")
"""Where Debian's ccache puts the compilers' names."""
_MADE_ANEW = ("vmlinux", "vmlinux.o", "vmlinux.bin*", ".tmp_vmlinux*", "piggy.o", "bzImage", "System.map", "*.ko")
"""Files of the build tree that a link makes anew in any case, or does not need: not copied."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A built kernel. `modules` are its .ko files, unsigned, below `modules_folder` (the `lib/modules/RELEASE` of an install, or None)."""

    image: Path
    config: Path
    modules: tuple[Path, ...]
    release: str
    modules_folder: Path | None = None
    vmlinux: Path | None = None


@dataclass(frozen=True, slots=True)
class _Base:
    """The first step's result: `folder/build` is the build tree, `folder/modules` the installed modules."""

    folder: Path
    key: str
    release: str


def build_kernel(request: KernelRequest, trust: KernelTrust, host: Host) -> Kernel:
    """Returns the kernel for this request with this trust linked in: from the cache where it was built before.

    Bit for bit the same for the same source, configuration, compiler, trust and SOURCE_DATE_EPOCH. No key is made or embedded.
    Raises: InputError (source, boot policy, certificates, symbols that Kconfig dropped), ToolMissingError, ToolFailedError.
    """
    if Need.SEALED in request.needs and (trust.certificates or trust.revoked):
        raise InputError(
            "a sealed kernel trusts no certificate", where="trusted certificates", hint="leave them out, or the feature sealed"
        )
    for tool in ("make", "gcc", "ld", "bc", "bison", "flex"):
        host.tool(tool)
    tree = linked_tree = source_tree(request.source, host)
    check_trust(trust, tree.version)
    if request.patches:
        linked_tree = patched_tree(tree, request.patches, host)
        tree = tree if are_late(request.patches) else linked_tree
    config, _ = resolve_config(request, tree, host)
    base = _base(request, tree, config, host)
    late = [f"compression {request.compression}"] if request.compression else []
    late += [f"source {linked_tree.digest}"] if linked_tree != tree else []
    key = cache_key(_LINK_SCHEME, base.key, trust.digest(), str(host.source_date_epoch), *late)
    folder = host.cache.entry("kernel", key, lambda place: _link(request, (tree, linked_tree), base, trust, place, host))
    _forget_old(folder, _KEPT_LINKS)
    _forget_old(base.folder, _KEPT_BASES)
    modules = base.folder / "modules" / "lib" / "modules" / base.release
    return Kernel(
        image=folder / Path(request.board.image).name,
        config=folder / _CONFIG,
        modules=tuple(sorted(modules.rglob("*.ko"))) if modules.is_dir() else (),
        release=base.release,
        modules_folder=modules if modules.is_dir() else None,
        vmlinux=folder / "vmlinux",
    )


def resolve_config(request: KernelRequest, tree: SourceTree, host: Host) -> tuple[DotConfig, tuple[Conflict, ...]]:
    """Returns the resolved configuration without trust, and what of the owner's own settings had to give way.

    Raises: InputError with the symbols that Kconfig dropped or changed, each with why it was wanted and what it depends on.
    """
    wanted = request.fragment()
    named = request.base.removeprefix("file:") if request.base.startswith("file:") else None
    own = [_read_config(Path(named))] if named is not None else []
    own += [_read_config(path) for path in request.fragments]
    parts = [_SCHEME, tree.digest, request.board.arch, request.base if named is None else "", _compiler(request, host)]
    for piece in (*own, *(DotConfig({row.symbol: row.value}) for row in wanted.wanted)):
        parts.append(render_dotconfig(sorted(piece.values.items())).decode())

    def resolve(folder: Path) -> None:
        make = _make(request, tree, folder / "build", folder / "make.log", 0)
        make.output.mkdir()
        with host.progress.step("kernel: resolve the configuration"):
            if named is None:
                make.run([request.base], host)
            target = make.output / ".config"
            base = overlay(_read_config(target) if named is None else DotConfig({}), *own)
            target.write_bytes(render_dotconfig(merge(base, wanted)[0].values.items()))
            make.run(["olddefconfig"], host)
        shutil.copyfile(target, folder / _CONFIG)
        shutil.rmtree(make.output)

    folder = host.cache.entry("kernel-config", cache_key(*parts), resolve)
    resolved = _read_config(folder / _CONFIG)
    differences = explain(compare(wanted, resolved), resolved, tree.folder, request.board.srcarch)
    require(differences, where=f"kernel configuration ({request.base} for {request.board.name})")
    conflicts = merge(overlay(DotConfig({}), *own), wanted)[1]
    for conflict in conflicts:
        host.progress.note(f"CONFIG_{conflict.symbol}={conflict.theirs} of your configuration became {conflict.ours}: {conflict.why}")
    return resolved, conflicts


def _base(request: KernelRequest, tree: SourceTree, config: DotConfig, host: Host) -> _Base:
    """Returns everything compiled and linked without trust, and the modules."""
    text = render_dotconfig(config.values.items())
    key = cache_key(_SCHEME, tree.digest, request.board.arch, str(tree.folder), _compiler(request, host), text)

    def compile_all(folder: Path) -> None:
        make = _make(request, tree, folder / "build", folder / "make.log", 0)
        make.output.mkdir()
        (make.output / ".config").write_bytes(text)
        with host.progress.step(f"kernel: compile {tree.version} for {request.board.name} (cached afterwards)"):
            has_modules = config.enabled("MODULES")
            make.run([request.board.target, *(["modules"] if has_modules else [])], host, jobs=host.jobs, env=compiler_cache(host))
            if has_modules:
                make.run(["modules_install", f"INSTALL_MOD_PATH={folder / 'modules'}", f"DEPMOD={host.tool('depmod')}"], host)
        for link in (folder / "modules").glob("lib/modules/*/build"):
            link.unlink()
        (folder / _BUILT_AT).write_text(str(make.output), "utf-8")

    folder = host.cache.entry("kernel-base", key, compile_all)
    release = (folder / "build/include/config/kernel.release").read_text("utf-8").strip()
    return _Base(folder, key, release)


def compiler_cache(host: Host) -> dict[str, str]:
    """Returns the variables that put ccache before the compiler, where it is installed.

    A kernel with other features then takes the objects that do not depend on them from an earlier one. The commands that make records
    stay the same, so that a link may do without.
    """
    if not _CCACHE.is_dir():
        return {}
    return {"PATH": f"{_CCACHE}:{host.env.get('PATH', '')}", "CCACHE_DIR": str(host.cache.root / "ccache"), "CCACHE_MAXSIZE": "2G"}


def _link(request: KernelRequest, trees: tuple[SourceTree, SourceTree], base: _Base, trust: KernelTrust, folder: Path, host: Host) -> None:
    """Fills `folder` with the image, vmlinux, System.map and configuration that have this trust linked in.

    `trees` are the source that the base was compiled of, and the one to link with: the same, or with late patches applied.
    """
    make = _make(request, trees[1], folder / "build", folder / "make.log", host.source_date_epoch)
    with host.progress.step("kernel: link the boot policy and certificates in"):
        shutil.copytree(base.folder / "build", make.output, symlinks=True, ignore=shutil.ignore_patterns(*_MADE_ANEW))
        _move_paths(make.output, (base.folder / _BUILT_AT).read_text("utf-8"))
        if trees[0] != trees[1]:
            _move_source(make.output, trees[0].folder, trees[1].folder)
        paths = _write_trust(make.output / _TRUST_FOLDER, trust)
        target = make.output / ".config"
        _set_strings(target, paths)
        if request.compression:
            _set_compression(target, request.compression)
        make.run([request.board.target], host, jobs=host.jobs)
        wanted = request.fragment(
            boot_policy=paths[BOOT_POLICY], trusted_keys=paths[TRUSTED_KEYS], revoked_keys=paths[REVOKED_KEYS] if trust.revoked else None
        )
        different = compare(wanted, _read_config(target))
        require(
            tuple(row for row in different if not (request.compression and row.symbol in _COMPRESSIONS.values())),
            where="kernel configuration",
        )
    shutil.copyfile(target, folder / _CONFIG)
    for name in (request.board.image, "vmlinux", "System.map"):
        shutil.copyfile(make.output / name, folder / Path(name).name)
    shutil.rmtree(make.output)


def _forget_old(used: Path, kept: int) -> None:
    """Marks a cache entry as used now, and removes those of its kind that nobody used for a day, but for the `kept` last used ones.

    Each is a whole kernel: without this, tests with new keys each time would fill the disk. What a killed build left goes too.
    """
    os.utime(used)
    ages: list[tuple[float, Path]] = []
    for place in used.parent.iterdir():
        with contextlib.suppress(OSError):
            age = time.time() - place.stat().st_mtime
            if place.name.startswith("."):
                if place.name.endswith(".tmp") and age > _KEPT_S:
                    shutil.rmtree(place, ignore_errors=True)
            elif place.is_dir():
                ages.append((age, place))
    for age, place in sorted(ages)[kept:]:
        if age > _KEPT_S:
            gone = place.with_name(f".{place.name}.old.tmp")
            with contextlib.suppress(OSError):
                place.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)


def _write_trust(folder: Path, trust: KernelTrust) -> dict[str, str]:
    """Writes the files of the trust and returns, for each symbol, the path as the build finds it; empty where there is nothing."""
    folder.mkdir()
    contents = {
        BOOT_POLICY: trust.boot_policy,
        TRUSTED_KEYS: certificate_bundle(trust.certificates),
        REVOKED_KEYS: certificate_bundle(trust.revoked),
    }
    paths = {}
    for symbol, name in _FILES:
        if contents[symbol]:
            (folder / name).write_bytes(contents[symbol])
        paths[symbol] = f"{_TRUST_FOLDER}/{name}" if contents[symbol] else ""
    return paths


def _set_strings(config: Path, texts: Mapping[str, str]) -> None:
    """Sets string symbols that the resolved configuration has already, each in its line, so that Kconfig has nothing to resolve."""
    lines = config.read_text("utf-8").split("\n")
    for number, line in enumerate(lines):
        symbol = line.partition("=")[0].removeprefix("CONFIG_")
        if symbol in texts and line.startswith("CONFIG_"):
            lines[number] = line_of(symbol, quote(texts[symbol]))
    config.write_text("\n".join(lines), "utf-8")


def _set_compression(config: Path, name: str) -> None:
    """Sets the choice of how the image is packed. Raises: InputError for a name that Kconfig has not."""
    if name not in _COMPRESSIONS:
        raise InputError(f"no kernel compression is called {name!r}", where="kernel compression", hint=f"known: {', '.join(_COMPRESSIONS)}")
    lines = config.read_text("utf-8").split("\n")
    for number, line in enumerate(lines):
        for other, symbol in _COMPRESSIONS.items():
            if line in (f"CONFIG_{symbol}=y", f"# CONFIG_{symbol} is not set"):
                lines[number] = line_of(symbol, "y" if other == name else "n")
    config.write_text("\n".join(lines), "utf-8")


def _move_paths(output: Path, built_at: str) -> None:
    """Writes the copy's own path for the original's into make's records of commands.

    Only those of tools/ (objtool) hold an absolute path of the build tree; left alone, objtool would be built anew, and then, since
    every object depends on it, the whole kernel.
    """
    old, new = f"{built_at}/".encode(), f"{output}/".encode()
    for record in (output / "tools").rglob(".*.cmd"):
        text = record.read_bytes()
        if old in text:
            record.write_bytes(text.replace(old, new))


def _move_source(output: Path, old: Path, new: Path) -> None:
    """Writes another source tree's path into make's records of commands and dependencies, so that only what differs is made anew."""
    before, after = f"{old}/".encode(), f"{new}/".encode()
    for pattern in (".*.cmd", ".*.d", "*.cmd"):
        for record in output.rglob(pattern):
            text = record.read_bytes()
            if before in text:
                times = record.stat()
                record.write_bytes(text.replace(before, after))
                os.utime(record, ns=(times.st_atime_ns, times.st_mtime_ns))


def _make(request: KernelRequest, tree: SourceTree, output: Path, log: Path, epoch: int) -> Make:
    """Returns the kernel's make with everything fixed that would otherwise come from this machine or the clock."""
    stamp = time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime(epoch))
    variables = (
        ("ARCH", request.board.arch),
        ("CROSS_COMPILE", request.cross_compile),
        ("LOCALVERSION", ""),
        ("KBUILD_BUILD_TIMESTAMP", stamp),
        ("KBUILD_BUILD_USER", "ipe-build"),
        ("KBUILD_BUILD_HOST", "ipe-build"),
        ("KBUILD_BUILD_VERSION", "1"),
    )
    return Make(tree.folder, output.resolve(), variables, log)


def _compiler(request: KernelRequest, host: Host) -> str:
    """Returns the first lines of what compiler and linker say about themselves."""
    names = [f"{request.cross_compile}{name}" for name in ("gcc", "ld")]
    return "\n".join(host.run([name, "--version"]).text.split("\n")[0] for name in names)


def _read_config(path: Path) -> DotConfig:
    """Returns the configuration in a file. Raises: InputError, FormatError."""
    try:
        return parse_dotconfig(path.read_bytes(), where=str(path))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path), hint="name an existing kernel configuration") from error
