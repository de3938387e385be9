"""What goes wrong in a kernel build: one clear error, nothing half built in the cache, and the next try works.

The tree is a few lines of make, so that real make runs fail where they are told to.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipe_build.errors import InputError, ToolFailedError, ToolMissingError
from ipe_build.host import Host, Progress
from ipe_build.kernel.build import build_kernel
from ipe_build.kernel.profiles import KernelRequest, demo_kernel_request
from ipe_build.kernel.trust import KernelTrust

PERMISSIVE = KernelTrust(b"policy_name=p policy_version=0.0.1\nDEFAULT action=ALLOW\n")
MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 9
tinyconfig:
\tprintf 'CONFIG_BASE=y\\nCONFIG_IPE_BOOT_POLICY=""\\nCONFIG_SYSTEM_TRUSTED_KEYS=""\\n' > $(O)/.config
olddefconfig:
\t@true
bzImage:
\t@test ! -e broken || { echo 'drivers/x.c:1: error: no such luck'; exit 1; }
\t@test ! -e slow || sleep 60
\tmkdir -p $(O)/arch/x86/boot $(O)/include/config $(O)/tools
\techo 6.12.9 > $(O)/include/config/kernel.release
\tcat $(O)/ipe-build/* > $(O)/arch/x86/boot/bzImage 2>/dev/null || echo base > $(O)/arch/x86/boot/bzImage
\techo "$(KBUILD_BUILD_TIMESTAMP)" >> $(O)/arch/x86/boot/bzImage
\techo compiled >> counted
\ttouch $(O)/vmlinux $(O)/System.map
modules:
\t@true
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "linux"
    (folder / "scripts/kconfig").mkdir(parents=True)
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "Kconfig").write_text("config BASE\n\tbool\n")
    (folder / "scripts/kconfig/Makefile").touch()
    return folder


@pytest.fixture
def local(tmp_path: Path, need: Callable[[str], Path]) -> Host:
    for tool in ("make", "gcc", "ld", "bc", "bison", "flex", "tar"):
        need(tool)
    environment = {**os.environ, "IPE_BUILD_CACHE": str(tmp_path / "cache"), "SOURCE_DATE_EPOCH": "0"}
    return Host(env=environment, progress=Progress(io.StringIO()))


def request(source: Path) -> KernelRequest:
    return replace(demo_kernel_request(source), needs=(), properties=())


def built(host: Host) -> list[str]:
    """The names of the entries that the cache has: those of steps that ended well, and what is left of others."""
    entries = [path for kind in host.cache.root.glob("*") for path in kind.iterdir() if path.is_dir()]
    assert not [path for path in entries if path.name.endswith(".tmp")]
    return sorted(path.parent.name for path in entries)


def test_a_missing_source_names_the_package(local: Host, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="apt-get install linux-source"):
        build_kernel(request(tmp_path / "absent.tar.xz"), PERMISSIVE, local)


def test_a_missing_compiler_is_named_before_anything_is_done(tree: Path, tmp_path: Path) -> None:
    bare = Host(env={"PATH": "", "IPE_BUILD_ONLY_PATH": "1", "IPE_BUILD_CACHE": str(tmp_path / "cache")}, progress=Progress(io.StringIO()))
    with pytest.raises(ToolMissingError, match="the program make is needed"):
        build_kernel(request(tree), PERMISSIVE, bare)
    assert not (tmp_path / "cache").exists()


def test_a_tar_that_is_no_kernel_is_refused_and_not_kept(local: Host, tmp_path: Path) -> None:
    archive = tmp_path / "other.tar"
    with tarfile.open(archive, "w") as writer:
        writer.add(__file__, "other/file.py")
    with pytest.raises(InputError, match="is no kernel source: it lacks Makefile"):
        build_kernel(request(archive), PERMISSIVE, local)
    assert built(local) == []


def test_a_tar_that_is_cut_short_is_one_error_and_not_kept(local: Host, tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "cut.tar.xz"
    with tarfile.open(archive, "w:xz") as writer:
        writer.add(tree, "linux")
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"cut\.tar\.xz: cannot be unpacked: xz: .*Unexpected end of input"):
        build_kernel(request(archive), PERMISSIVE, local)
    assert built(local) == []


def test_a_tree_that_was_built_in_is_refused(local: Host, tree: Path) -> None:
    (tree / ".config").touch()
    with pytest.raises(InputError, match=r"somebody built in this tree.*\n.*mrproper"):
        build_kernel(request(tree), PERMISSIVE, local)


def test_a_boot_policy_that_the_kernel_would_refuse_is_refused_before_any_build(local: Host, tree: Path) -> None:
    broken = KernelTrust(b"policy_name=p policy_version=0.0.1\nDEFAULT action=ALLOW\nop=EXECUTE action=PERHAPS\n")
    with pytest.raises(InputError, match=r"boot policy:3: the kernel would refuse it \(\w+: .*nothing enforced"):
        build_kernel(request(tree), broken, local)
    assert built(local) == []


@pytest.mark.parametrize("text", [b"policy_name=p policy_version=0.0.1\nDEFAULT action=ALLOW\n\0hidden", b"#" * (1 << 20) + b"\n"])
def test_a_boot_policy_that_cannot_be_compiled_in_whole_is_refused(text: bytes, local: Host, tree: Path) -> None:
    with pytest.raises(InputError, match="boot policy: "):
        build_kernel(request(tree), KernelTrust(text), local)


def test_a_certificate_that_is_none_is_refused_before_any_build(local: Host, tree: Path) -> None:
    with pytest.raises(InputError, match=r"trusted certificate 1: wanted an X\.509 certificate"):
        build_kernel(request(tree), replace(PERMISSIVE, certificates=(b"no certificate",)), local)
    assert built(local) == []


def test_a_failed_compile_shows_the_error_line_and_leaves_nothing_and_the_next_one_works(local: Host, tree: Path) -> None:
    (tree / "broken").touch()
    with pytest.raises(ToolFailedError, match=r"failed at bzImage:(.|\n)*drivers/x.c:1: error: no such luck"):
        build_kernel(request(tree), PERMISSIVE, local)
    assert "kernel-base" not in built(local)
    (tree / "broken").unlink()
    assert PERMISSIVE.boot_policy in build_kernel(request(tree), PERMISSIVE, local).image.read_bytes()


def test_a_configuration_that_has_no_place_for_the_trust_is_not_linked(local: Host, tree: Path) -> None:
    makefile = tree / "Makefile"
    makefile.write_text(makefile.read_text().replace('CONFIG_IPE_BOOT_POLICY=""\\n', ""))
    with pytest.raises(InputError, match="CONFIG_IPE_BOOT_POLICY is not there"):
        build_kernel(request(tree), PERMISSIVE, local)
    assert "kernel" not in built(local)


def test_an_interrupted_compile_leaves_nothing_and_the_next_one_works(local: Host, tree: Path) -> None:
    (tree / "slow").touch()

    def interrupt() -> None:
        while not list(local.cache.root.glob("kernel-base/.*.tmp/make.log")):
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(os.getpid(), 2)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        build_kernel(request(tree), PERMISSIVE, local)
    thread.join()
    assert "kernel-base" not in built(local)
    (tree / "slow").unlink()
    assert build_kernel(request(tree), PERMISSIVE, local).release == "6.12.9"


def test_each_trust_is_linked_once_and_the_base_compiled_once(local: Host, tree: Path) -> None:
    request_ = request(tree)
    other = replace(PERMISSIVE, boot_policy=PERMISSIVE.boot_policy.replace(b"0.0.1", b"0.0.2"))
    archive = tree.with_name("linux.tar")
    with tarfile.open(archive, "w") as writer:
        writer.add(tree, "linux")
    images = [build_kernel(replace(request_, source=archive), trust, local).image for trust in (PERMISSIVE, other, PERMISSIVE)]
    assert images[0] == images[2] != images[1]
    counted = next(local.cache.root.glob("kernel-source/*/counted")).read_text().splitlines()
    assert len(counted) == 3
    assert built(local).count("kernel-base") == 1
    assert b"0.0.2" in images[1].read_bytes()


def test_the_date_of_the_build_is_the_one_given(local: Host, tree: Path) -> None:
    dated = Host(env={**local.env, "SOURCE_DATE_EPOCH": "1700000000"}, progress=local.progress)
    assert b"Tue Nov 14 22:13:20 UTC 2023" in build_kernel(request(tree), PERMISSIVE, dated).image.read_bytes()


def test_an_edit_of_the_tree_compiles_anew(local: Host, tree: Path) -> None:
    build_kernel(request(tree), PERMISSIVE, local)
    (tree / "counted").unlink()
    (tree / "new.c").write_text("int x;\n")
    build_kernel(request(tree), PERMISSIVE, local)
    assert built(local).count("kernel-base") == 2


def test_what_nobody_used_for_a_day_is_forgotten_but_for_the_last_sixteen(local: Host, tree: Path) -> None:
    first = build_kernel(request(tree), PERMISSIVE, local).image.parent
    now = time.time()
    stale = [first.with_name(f"{number:032x}") for number in range(20)]
    for number, folder in enumerate(stale):
        shutil.copytree(first, folder)
        os.utime(folder, (now, now - 90_000 - number))
    left, running = first.with_name(".left.tmp"), first.with_name(".running.tmp")
    left.mkdir()
    running.mkdir()
    os.utime(left, (now, now - 90_000))
    (tree / "counted").unlink()
    build_kernel(request(tree), PERMISSIVE, local)
    assert (left.exists(), running.exists()) == (False, True)
    assert [folder.exists() for folder in stale] == [True] * 15 + [False] * 5
    for number, folder in enumerate(stale[:15]):
        os.utime(folder, (now, now - number))
    build_kernel(request(tree), PERMISSIVE, local)
    assert all(folder.exists() for folder in stale[:15])
