"""Buildroot: kconfig reads the external tree, its packages are the checkout, its scripts make slots, flash files and updates."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kconfiglib
import pytest

from ipe_build import __version__
from ipe_build.image.disk import read_disk
from ipe_build.kernel.trust import KernelTrust
from tests.fixtures.layer import DROPPED, ROOT, boot_and_probe

BUILDROOT = ROOT / "conf/buildroot"
WRAPPER = """
config BR2_LINUX_KERNEL
	bool "kernel"
config BR2_PACKAGE_HOST_RUSTC_ARCH_SUPPORTS
	bool
	default y
config BR2_PACKAGE_HOST_PYTHON3
	bool "python"
config BR2_PACKAGE_HOST_PYTHON3_BZIP2
	bool "bzip2"
config BR2_PACKAGE_HOST_PYTHON3_XZ
	bool "xz"
source "$BR2_EXTERNAL_IPE_PATH/Config.in"
"""


def configuration(lines: str, tmp_path: Path) -> dict[str, str]:
    """Symbols to values as kconfig resolves them, for the lines of a defconfig."""
    names = {"BR2_EXTERNAL_IPE_PATH": str(BUILDROOT), "CONFIG_": ""}
    os.environ.update(names)
    try:
        (tmp_path / "Kconfig").write_text(WRAPPER)
        (tmp_path / "defconfig").write_text(lines)
        kconfig = kconfiglib.Kconfig(str(tmp_path / "Kconfig"), warn=True, warn_to_stderr=False)
        parsing = list(kconfig.warnings)
        kconfig.load_config(str(tmp_path / "defconfig"))
    finally:
        for name in names:
            del os.environ[name]
    assert parsing == []
    assert not [one for one in kconfig.warnings if "BR2_IPE" in one or "BR2_PACKAGE_HOST_IPE" in one]
    return {symbol.name: symbol.str_value for symbol in kconfig.unique_defined_syms}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_defconfigs_keep_our_symbols_and_build_the_host_package(machine: str, tmp_path: Path) -> None:
    text = (BUILDROOT / f"configs/qemu_{machine}_ipe_defconfig").read_text()
    found = configuration(text, tmp_path)
    for name, value in re.findall(r'^(BR2_IPE\w*)="?([^"\n]*)"?$', text, re.MULTILINE):
        assert found[name] == value, name
    assert found["BR2_PACKAGE_HOST_IPE_BUILD"] == found["BR2_PACKAGE_HOST_PYTHON3_XZ"] == "y"
    assert found["BR2_IPE_BMAP"] == found["BR2_IPE_ZSTD"] == "y"
    assert f"BR2_{machine}=y\n" in text and "BR2_TARGET_ROOTFS_EROFS=y\n" in text


def test_symbols_depend_on_what_they_need(tmp_path: Path) -> None:
    wanted = "BR2_IPE=y\nBR2_IPE_SPARSE=y\nBR2_IPE_SLOT_ROOT_MIB=7\n"
    without_kernel = configuration(wanted, tmp_path)
    assert without_kernel["BR2_IPE"] == without_kernel["BR2_PACKAGE_HOST_IPE_BUILD"] == "n"
    some = configuration("BR2_LINUX_KERNEL=y\n" + wanted, tmp_path)
    assert (some["BR2_IPE"], some["BR2_IPE_SPARSE"], some["BR2_IPE_SLOT_ROOT_MIB"]) == ("y", "n", "")
    more = configuration("BR2_LINUX_KERNEL=y\nBR2_IPE_PARTITIONS=y\nBR2_IPE_SLOTS=y\n" + wanted, tmp_path)
    assert (more["BR2_IPE_SPARSE"], more["BR2_IPE_SLOT_ROOT_MIB"], more["BR2_IPE_UPDATE_BOOTLOADER"]) == ("y", "7", "efi")


def test_every_symbol_has_help() -> None:
    for path in (BUILDROOT / "Config.in", *BUILDROOT.glob("package/*/Config.in*")):
        for block in re.split(r"^config ", path.read_text(), flags=re.MULTILINE)[1:]:
            assert "\thelp\n\t  " in block, f"{path}: {block.splitlines()[0]}"
            assert all(len(line.expandtabs()) <= 80 for line in block.splitlines()), block


@pytest.mark.parametrize("name", ["ipe-build", "python-dissect-cstruct"])
def test_packages_have_the_parts_that_buildroot_wants(name: str) -> None:
    folder = BUILDROOT / "package" / name
    lines = (folder / f"{name}.mk").read_text().splitlines()
    assert lines[:5] == ["#" * 80, "#", f"# {name}", "#", "#" * 80] and lines[-1] == "$(eval $(host-python-package))"
    prefix = name.upper().replace("-", "_")
    for variable in ("VERSION", "SITE", "SITE_METHOD", "SETUP_TYPE", "LICENSE", "LICENSE_FILES"):
        assert any(line.startswith(f"{prefix}_{variable} = ") for line in lines), variable
    for line in (folder / f"{name}.hash").read_text().splitlines():
        assert re.fullmatch(r"#.*|sha256  [0-9a-f]{64}  \S+", line), line


def test_the_host_package_is_this_checkout(host) -> None:
    text = (BUILDROOT / "package/ipe-build/ipe-build.mk").read_text()
    assert f"IPE_BUILD_VERSION = {__version__}\n" in text
    assert (BUILDROOT / "../..").resolve() == ROOT
    for name in re.findall(r"--include=/(\S+)", text):
        assert (ROOT / name).exists(), name
    import hashlib

    licence = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert f"sha256  {licence}  LICENSE\n" in (BUILDROOT / "package/ipe-build/ipe-build.hash").read_text()
    import tomllib

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^a-z0-9.]", one.lower())[0].replace(".", "-") for one in wanted if "python_version < '3.14'" not in one}
    assert {f"host-python-{name}" for name in names} <= set(re.findall(r"host-python-\S+", text)), "Buildroot's Python is 3.14"


PARTS_OF_BUILDROOT = r"""
# What our makefiles build on: Buildroot's own rules of the same names, in small (package/pkg-generic.mk, package/pkg-kconfig.mk).
BR2_IPE = y
BASE_DIR = $(CURDIR)
BR2_CONFIG = $(CURDIR)/.config
BR_PATH = "$(CURDIR)/host/bin:$(PATH)"
define prepare-per-package-directory
	@echo "for $(PKG): $(1)" >> order
endef
include $(BR2_EXTERNAL_IPE_PATH)/linux/linux-ext-ipe.mk
all: $(CURDIR)/linux/.stamp_dotconfig
LINUX_DIR = $(CURDIR)/linux
LINUX_KCONFIG_FRAGMENT_FILES = $(CURDIR)/ipe/kernel.config
$(LINUX_DIR)/.stamp_patched: | $(patsubst %,%-patch,$(LINUX_PATCH_DEPENDENCIES))
	mkdir -p $(@D) && echo patched >> order && touch $@
linux-patch: $(LINUX_DIR)/.stamp_patched
$(LINUX_KCONFIG_FRAGMENT_FILES): | linux-patch
	test -f $@
$(LINUX_DIR)/.stamp_dotconfig: $(LINUX_KCONFIG_FRAGMENT_FILES) | linux-patch $(LINUX_KCONFIG_DEPENDENCIES)
	grep -q CONFIG_SECURITY_IPE=y $(LINUX_KCONFIG_FRAGMENT_FILES) && echo configured >> order && touch $@
host-ipe-build-patch:
	echo source >> order
host/.stamp_installed: | host-ipe-build-patch
	mkdir -p host/bin && ln -sf $(IPE_BUILD_PROGRAM) host/bin/ipe-build && echo installed >> order && touch $@
host-ipe-build: host/.stamp_installed
linux-dirclean:
	rm -rf linux
"""


def test_fragment_is_made_by_the_installed_program_before_the_kernel_is_configured(tmp_path: Path, need, monkeypatch) -> None:
    """A patch dependency of Buildroot is only patched, not built, when the kernel is: not enough for a program that has to run."""
    make = need("make")
    # external.mk comes after the kernel's rules, and includes packages that want more of Buildroot: their folder is not there.
    external = tmp_path / "external"
    for name in ("linux", "board"):
        (external / name).parent.mkdir(exist_ok=True)
        (external / name).symlink_to(BUILDROOT / name)
    (external / "external.mk").symlink_to(BUILDROOT / "external.mk")
    (tmp_path / "Makefile").write_text(f"{PARTS_OF_BUILDROOT}include $(BR2_EXTERNAL_IPE_PATH)/external.mk\n")
    (tmp_path / ".config").write_text("BR2_IPE=y\nBR2_IPE_TEST_KEYS=y\n")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    words = [make, "-C", tmp_path, f"BR2_EXTERNAL_IPE_PATH={external}", "BR2_PACKAGE_HOST_IPE_BUILD=y"]
    words += [f"IPE_BUILD_PROGRAM={Path(sys.executable).with_name('ipe-build')}"]

    def made(*targets: str) -> list[str]:
        (tmp_path / "order").write_text("")
        done = subprocess.run([*words, *targets], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return (tmp_path / "order").read_text().splitlines()

    first = made()
    assert sorted(first) == sorted(["source", "installed", "patched", "for LINUX: host-ipe-build", "configured"])
    assert first.index("installed") < first.index("for LINUX: host-ipe-build") < first.index("configured") == 4
    assert first.index("patched") < 4
    assert (tmp_path / "ipe/linux-dir").read_text() == f"{tmp_path}/linux\n"
    assert made() == ["source"], "a phony target here; nothing else runs again"
    made("linux-dirclean")
    assert [one for one in made() if one != "source"] == ["patched", "for LINUX: host-ipe-build", "configured"]


OLD_ROOT = f"sha256:{bytes(32).hex()}"


@pytest.fixture
def environment(tmp_path: Path, test_keys) -> dict[str, str]:
    """What Buildroot gives its scripts, with everything switched on."""
    base = tmp_path / "output"
    (tmp_path / "ledger.json").write_text(
        json.dumps({"format": 1, "policies": {"ipe-policy": [{"version": "4.0.0", "sha256": "ab" * 32}]}})
    )
    (base / "images").mkdir(parents=True)
    settings = {
        "IPE_FILESYSTEM": "erofs",
        "IPE_TRUSTED_CERTS": test_keys.bundle,
        "IPE_DROP_CAPABILITIES": " ".join(DROPPED),
        "IPE_INITRAMFS_ARGS": "--init-override",
        "IPE_COMMAND_LINE": "console=ttyS0 panic=-1",
        "IPE_UPDATE_COMPATIBLE": "board",
        "IPE_UPDATE_VERSION": "7",
        "IPE_UPDATE_BOOTLOADER": "uboot",
        "IPE_UPDATE_KEY": test_keys.pair("module").uri,
        "IPE_UPDATE_CERT": test_keys.pair("module").certificate,
        "IPE_UPDATE_OLD_ROOTHASH": OLD_ROOT,
        "IPE_UPDATE_LEDGER": tmp_path / "ledger.json",
        "ARCH": "x86_64",
    }
    for role in ("policy", "verity", "module"):
        settings[f"IPE_{role.upper()}_KEY"] = test_keys.pair(role).uri
        settings[f"IPE_{role.upper()}_CERT"] = test_keys.pair(role).certificate
    lines = [f'BR2_{name}="{value}"' for name, value in settings.items()]
    lines += [f"BR2_{name}=y" for name in ("IPE", "IPE_SLOTS", "IPE_BMAP", "IPE_ZSTD", "IPE_PARTITIONS", "IPE_SPARSE")]
    lines += ["BR2_IPE_SLOT_ROOT_MIB=24", "BR2_PACKAGE_RAUC=y", "BR2_PACKAGE_SWUPDATE=y"]
    (base / ".config").write_text("\n".join(lines) + "\n")
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BASE_DIR": str(base),
        "BR2_CONFIG": str(base / ".config"),
        "HOST_DIR": str(base / "host"),
        "LINUX_DIR": str(base / "build/linux-6.12"),
        "SOURCE_DATE_EPOCH": "1700000000",
    }


@pytest.mark.boot
@pytest.mark.slow
def test_slots_flash_files_and_updates_of_the_scripts(environment, probe_rootfs, kernel_factory, need, test_keys, tmp_path) -> None:
    for tool in ("qemu-system-x86_64", "mkfs.erofs", "mkfs.vfat", "mcopy", "gcc", "rauc", "swupdate", "simg2img", "bmaptool"):
        need(tool)
    base = Path(environment["BASE_DIR"])
    images = base / "images"
    shell = {"capture_output": True, "text": True, "env": environment}
    for name, words in (("prepare-kernel", ()), ("post-build", (probe_rootfs,))):
        done = subprocess.run([BUILDROOT / f"board/ipe/{name}.sh", *words], **shell)
        assert done.returncode == 0, done.stderr
    slot_program = probe_rootfs / "usr/lib/ipe/ipe-slot"
    assert os.access(slot_program, os.X_OK)
    assert subprocess.run([need("shellcheck"), slot_program], capture_output=True).returncode == 0
    assert "bootloader=uboot" in (probe_rootfs / "etc/rauc/system.conf").read_text()
    kernel = kernel_factory(KernelTrust((base / "ipe/ipe-boot.pol").read_bytes(), ((base / "ipe/trusted.pem").read_bytes(),)))
    (images / "bzImage").write_bytes(kernel.image.read_bytes())
    (base / "build/linux-6.12").mkdir(parents=True)
    (base / "build/linux-6.12/.config").write_text(kernel.config.read_text())
    subprocess.run([need("mkfs.erofs"), "-T1700000000", images / "rootfs.erofs", probe_rootfs], check=True, capture_output=True)
    for _again in range(2):
        made = subprocess.run([BUILDROOT / "board/ipe/post-image.sh", images], **shell)
        assert made.returncode == 0, made.stderr
    table = {one.name: one for one in read_disk(images / "ipe.raw").table.partitions}
    assert table["root-a"].size_bytes == table["root-b"].size_bytes == 24 << 20
    copied = subprocess.run([need("bmaptool"), "copy", images / "ipe.raw.zst", tmp_path / "card"], capture_output=True)
    assert copied.returncode == 0, copied.stderr
    assert (tmp_path / "card").read_bytes() == (images / "ipe.raw").read_bytes()
    sparse = images / "ipe.raw.partitions/root-a.simg"
    assert subprocess.run([need("simg2img"), sparse, tmp_path / "root"], capture_output=True).returncode == 0
    assert (tmp_path / "root").read_bytes() == (images / "rootfs.erofs").read_bytes()
    assert (images / "ipe.update/manifest.raucm").read_text().startswith("[update]\ncompatible=board\nversion=7\n")
    check = [need("swupdate"), "-c", "-i", images / "ipe.swu", "-H", "board:1.0", "-k", test_keys.root.certificate, "-e", "stable,b"]
    small = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*check, "--cert-purpose", "codeSigning"], capture_output=True, env=small, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stdout
    assert (images / "ipe.raucb").stat().st_size > (images / "rootfs.erofs").stat().st_size // 2
    new_root = f"sha256:{(images / 'rootfs.erofs.roothash').read_text().strip()}"
    for state, version, roots in (("in-flight", "4.0.1", {OLD_ROOT, new_root}), ("final", "4.0.2", {new_root})):
        text = (images / f"ipe.policies/{state}/ipe-policy.pol").read_text()
        assert f"policy_version={version}\n" in text and set(re.findall(r"dmverity_roothash=(\S+)", text)) == roots
        assert (images / f"ipe.policies/{state}/ipe-policy.p7b").stat().st_size > len(text)
    entered = json.loads((images / "ipe.policies.json").read_text())["policies"]["ipe-policy"]
    assert [one["version"] for one in entered] == ["4.0.0", "4.0.1", "4.0.2"], "the second run begins with the same ledger"
    assert "4.0.1" not in (tmp_path / "ledger.json").read_text()
    assert boot_and_probe(images / "ipe.raw", images / "ipe-policy.pol", test_keys)


@pytest.mark.parametrize("symbol", ["UPDATE_CERT", "UPDATE_LEDGER"])
def test_a_value_without_the_other_that_it_needs_names_the_symbol(environment, probe_rootfs, need, test_keys, symbol) -> None:
    need("mkfs.erofs")
    base = Path(environment["BASE_DIR"])
    config = base / ".config"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if symbol not in line))
    (base / "images/bzImage").write_bytes(bytes(4096))
    subprocess.run(["mkfs.erofs", base / "images/rootfs.erofs", probe_rootfs], check=True, capture_output=True)
    done = subprocess.run([BUILDROOT / "board/ipe/post-image.sh", base / "images"], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert f"BR2_IPE_{symbol} is not set" in done.stderr
    assert not (base / "images/ipe.raw").exists()
