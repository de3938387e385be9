"""Where other programs are and which Debian package brings each: one row a program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ipe_build.errors import ToolMissingError

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/systemd", "/usr/lib/qemu")
"""Searched after PATH: an unprivileged user's PATH lacks sbin, where mke2fs, debugfs and fdisk's tools live."""


class Tool(NamedTuple):
    """A program and the Debian package that installs it."""

    program: str
    package: str


TOOLS: tuple[Tool, ...] = (
    Tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    Tool("bc", "bc"),
    Tool("bison", "bison"),
    Tool("blkid", "util-linux"),
    Tool("bmaptool", "bmap-tools"),
    Tool("busybox", "busybox-static"),
    Tool("bzip2", "bzip2"),
    Tool("chromium", "chromium"),
    Tool("cpio", "cpio"),
    Tool("dbus-daemon", "dbus-daemon"),
    Tool("debugfs", "e2fsprogs"),
    Tool("depmod", "kmod"),
    Tool("dump.erofs", "erofs-utils"),
    Tool("e2fsck", "e2fsprogs"),
    Tool("evmctl", "ima-evm-utils"),
    Tool("fakeroot", "fakeroot"),
    Tool("fastboot", "fastboot"),
    Tool("flex", "flex"),
    Tool("fsck.erofs", "erofs-utils"),
    Tool("fsck.fat", "dosfstools"),
    Tool("fsverity", "fsverity"),
    Tool("gcc", "gcc"),
    Tool("img2simg", "android-sdk-libsparse-utils"),
    Tool("ld", "binutils"),
    Tool("lz4", "lz4"),
    Tool("lzma", "xz-utils"),
    Tool("lzop", "lzop"),
    Tool("make", "make"),
    Tool("mcopy", "mtools"),
    Tool("mdir", "mtools"),
    Tool("mke2fs", "e2fsprogs"),
    Tool("mkfs.erofs", "erofs-utils"),
    Tool("mkfs.vfat", "dosfstools"),
    Tool("mksquashfs", "squashfs-tools"),
    Tool("openssl", "openssl"),
    Tool("osslsigncode", "osslsigncode"),
    Tool("patch", "patch"),
    Tool("qemu-aarch64", "qemu-user"),
    Tool("qemu-system-aarch64", "qemu-system-arm"),
    Tool("qemu-system-x86_64", "qemu-system-x86"),
    Tool("rauc", "rauc"),
    Tool("resize2fs", "e2fsprogs"),
    Tool("sbattach", "sbsigntool"),
    Tool("sbsign", "sbsigntool"),
    Tool("sbverify", "sbsigntool"),
    Tool("setpriv", "util-linux"),
    Tool("sfdisk", "fdisk"),
    Tool("shellcheck", "shellcheck"),
    Tool("simg2img", "android-sdk-libsparse-utils"),
    Tool("softhsm2-util", "softhsm2"),
    Tool("swtpm", "swtpm"),
    Tool("swtpm_setup", "swtpm-tools"),
    Tool("swupdate", "swupdate"),
    Tool("systemd-dissect", "systemd-container"),
    Tool("tar", "tar"),
    Tool("tpm2_createek", "tpm2-tools"),
    Tool("unsquashfs", "squashfs-tools"),
    Tool("veritysetup", "cryptsetup-bin"),
    Tool("xz", "xz-utils"),
    Tool("zstd", "zstd"),
)
_PACKAGES = {row.program: row.package for row in TOOLS}


def find_tool(name: str, env: Mapping[str, str]) -> Path:
    """Returns the absolute path of program `name`: from `env`'s PATH first, then the system folders.

    Raises: ToolMissingError naming the Debian package to install.
    """
    path = env.get("PATH", "")
    if env.get("IPE_BUILD_ONLY_PATH") != "1":
        path = ":".join([path, *SYSTEM_FOLDERS]) if path else ":".join(SYSTEM_FOLDERS)
    import shutil

    found = shutil.which(name, path=path)
    if found is None:
        package = _PACKAGES.get(name)
        hint = f"on Debian: apt-get install {package}" if package else f"install {name} or put it into PATH"
        raise ToolMissingError(f"the program {name} is needed and was not found in PATH", hint=hint)
    return Path(found).absolute()
