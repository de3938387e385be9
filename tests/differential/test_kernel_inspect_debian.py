"""Debian's own 6.12 kernels, x86-64 and arm64, read without symbols or IKCONFIG, against the configuration that their packages carry."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig
from ipe_build.host import Host
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.kernel.signs import SIGNS
from tests.missing import missing

ARCHITECTURES = {"amd64": ("x86-64", ("bzImage", "zstd", "ELF")), "arm64": ("arm64", ("arm64 Image",))}
_VERSION = re.compile(r"linux-image-(6\.12\.\d+)\S*-cloud-\w+-unsigned")


def apt(folder: Path, architecture: str, *words: str) -> str:
    """Runs apt for another architecture, with lists and state of its own; what the system has installed is not touched."""
    options = {
        "APT::Architecture": architecture,
        "Dir::State": str(folder),
        "Dir::State::status": str(folder / "status"),
        "Dir::Cache": str(folder / "cache"),
        "APT::Sandbox::User": "",
    }
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    words = (words[0], *flags, "-o", f"APT::Architectures::={architecture}", *words[1:])
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def debian_kernel(host: Host, need: Callable[[str], Path]) -> Callable[[str], tuple[Path, DotConfig]]:
    """`debian_kernel("arm64")`: kernel and configuration out of Debian's package, downloaded once into the user's cache."""
    for tool in ("apt-get", "apt-cache", "dpkg-deb", "tar"):
        need(tool)

    def got(architecture: str) -> tuple[Path, DotConfig]:
        folder = Path(os.path.expanduser(host.env.get("XDG_CACHE_HOME", "~/.cache"))) / "ipe-build" / "pytest-debian-kernel" / architecture
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not list(folder.glob("boot/vmlinuz-*")):
                _download(folder, architecture)
        kernel, config = next(folder.glob("boot/vmlinuz-*")), next(folder.glob("boot/config-*"))
        return kernel, parse_dotconfig(config.read_bytes(), where=str(config))

    def _download(folder: Path, architecture: str) -> None:
        try:
            apt(folder, architecture, "apt-get", "update")
            listing = apt(folder, architecture, "apt-cache", "search", "linux-image-6.12.*-cloud-")
            names = [line.split()[0] for line in listing.splitlines()]
            found = sorted(filter(_VERSION.match, names), key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
            if not found:
                missing(f"the package sources have no 6.12 kernel for {architecture}")
            apt(folder, architecture, "apt-get", "download", found[-1])
        except AssertionError as error:
            missing(f"Debian's packages cannot be had here: {error}")
        package = next(folder.glob("*.deb"))
        unpack = f'dpkg-deb --fsys-tarfile "{package.name}" | tar -x --wildcards "./boot/vmlinuz*" "./boot/config*"'
        subprocess.run(["bash", "-o", "pipefail", "-c", unpack], cwd=folder, check=True)
        package.unlink()

    return got


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_stock_kernel_says_what_its_package_says(debian_kernel: Callable[[str], tuple[Path, DotConfig]], architecture: str) -> None:
    kernel, config = debian_kernel(architecture)
    facts = inspect_kernel(kernel)
    name, layers = ARCHITECTURES[architecture]
    assert (facts.architecture, facts.layers) == (name, layers)
    assert f"vmlinuz-{facts.version}" == kernel.name
    assert facts.ipe is config.enabled("SECURITY_IPE")
    assert facts.lsms == tuple((config.text("LSM") or "").split(","))
    assert facts.config is None
    assert not config.enabled("IKCONFIG")
    assert (config.text("IPE_BOOT_POLICY") or "", facts.boot_policy) == ("", None)
    assert len(facts.certificates) == 1, "the key that the package's build made for its modules"
    assert facts.signs == {symbol for symbol in SIGNS if config.get(symbol) == "y"} - {"DM_VERITY_VERIFY_ROOTHASH_SIG"}, (
        "dm-verity is a module there, and its option's code is in it"
    )


@pytest.mark.slow
def test_a_kernel_without_ipe_in_it_is_not_taken_for_one(debian_kernel: Callable[[str], tuple[Path, DotConfig]], tmp_path: Path) -> None:
    kernel, _ = debian_kernel("arm64")
    stripped = kernel.read_bytes().replace(b"ipe_op=%s ipe_hook=%s", b"xxx_op=%s xxx_hook=%s")
    (tmp_path / "Image").write_bytes(stripped)
    assert inspect_kernel(tmp_path / "Image").ipe is False
