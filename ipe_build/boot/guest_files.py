"""The files that a root filesystem needs so that the probes can run in it: our programs, compiled here, and module fixtures."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.boot import layout
from ipe_build.errors import InputError, ToolMissingError
from ipe_build.formats.module_signature import append_signature
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.signer import Signer

if TYPE_CHECKING:
    from ipe_build.host import Host

_FLAGS = ("-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-s", "-Wl,--build-id=none")


class _Toolchain(NamedTuple):
    """A row: the compiler, and its name for the dynamic loader."""

    compiler: str
    loader: str


TOOLCHAINS: dict[str, _Toolchain] = {"x86-64": _Toolchain("gcc", "ld-linux-x86-64.so.2")}


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file for the root filesystem: absolute path on the device, content, permissions; owner root:root."""

    path: str
    data: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class ModuleFixtures:
    """One loadable module (uncompressed ELF, needs no other module): signed by a trusted key, unsigned, signed by a foreign key.

    `signed` is None where the kernel trusts no key.
    """

    signed: bytes | None
    unsigned: bytes
    foreign: bytes


def module_fixtures(unsigned: bytes, signer: Signer, foreign: Signer) -> ModuleFixtures:
    """Returns the fixtures made of an uncompressed module without a signature. Raises: InputError, SigningKeyError."""
    profile = PROFILES["module"]
    return ModuleFixtures(
        signed=append_signature(unsigned, sign_payload(profile, unsigned, signer)),
        unsigned=unsigned,
        foreign=append_signature(unsigned, sign_payload(profile, unsigned, foreign)),
    )


def probe_files(host: Host, *, modules: ModuleFixtures | None, architecture: str = "x86-64") -> tuple[GuestFile, ...]:
    """Returns what the root filesystem needs, in order of path. The same compiler gives the same bytes.

    That is the probe program, a dynamically linked application with its loader and libraries (the compiler's), and the modules.

    Raises: InputError, ToolMissingError, ToolFailedError.
    """
    toolchain = TOOLCHAINS.get(architecture)
    if toolchain is None:
        raise InputError(f"the probe program is not compiled for {architecture!r} yet", hint=f"known are {', '.join(TOOLCHAINS)}")
    with host.progress.step("compile the probe program"), host.scratch("ipe-build-probe-") as folder:
        _compile(folder, toolchain, host)
        found = {
            layout.PROBE: (folder / "ipe-probe").read_bytes(),
            layout.APPLICATION: (folder / "probe-app").read_bytes(),
            layout.LIBRARY: (folder / "libipe-probe.so").read_bytes(),
            layout.LOADER: _compilers_file(toolchain, toolchain.loader, host),
            layout.C_LIBRARY: _compilers_file(toolchain, "libc.so.6", host),
        }
    files = [GuestFile(path, data, 0o755) for path, data in found.items()]
    if modules is not None:
        files += [GuestFile(layout.SIGNED_MODULE, modules.signed, 0o644)] if modules.signed is not None else []
        files += [
            GuestFile(layout.UNSIGNED_MODULE, modules.unsigned, 0o644),
            GuestFile(layout.FOREIGN_MODULE, modules.foreign, 0o644),
        ]
    return tuple(sorted(files, key=lambda file: file.path))


def _compile(folder: Path, toolchain: _Toolchain, host: Host) -> None:
    """Compiles our three sources into `folder`, named relative to it so that no path of this machine gets into the programs."""
    sources = resources.files("ipe_build.boot") / "guest"
    for name in ("ipe-probe.c", "probe-app.c", "probe-library.c"):
        (folder / name).write_bytes((sources / name).read_bytes())
    compiler, env = toolchain.compiler, {"TMPDIR": str(folder)}  # what a stopped compiler leaves goes with the folder
    host.run([compiler, "-static", *_FLAGS, "-o", "ipe-probe", "ipe-probe.c"], cwd=folder, env=env)
    library = Path(layout.LIBRARY).name
    host.run([compiler, "-shared", "-fPIC", *_FLAGS, f"-Wl,-soname,{library}", "-o", library, "probe-library.c"], cwd=folder, env=env)
    places = (f"-Wl,--dynamic-linker={layout.LOADER}", f"-Wl,-rpath,{layout.FIXTURES}", "-Wl,--enable-new-dtags")
    host.run([compiler, *_FLAGS, *places, "-o", "probe-app", "probe-app.c", library], cwd=folder, env=env)


def _compilers_file(toolchain: _Toolchain, name: str, host: Host) -> bytes:
    """Returns a file of the compiler's C library. Raises: ToolMissingError when the compiler has none."""
    path = Path(host.run([toolchain.compiler, f"-print-file-name={name}"]).text.strip())
    if not path.is_absolute() or not path.is_file():
        raise ToolMissingError(f"{toolchain.compiler} has no {name}", hint="on Debian: apt-get install libc6-dev")
    return path.read_bytes()
