"""Real kernel builds: dropped symbols are found, new trust only links, the same inputs give the same bytes, the booted kernel agrees."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.boot.qemu import DirectKernel, Ended, Machine, boot
from ipe_build.errors import InputError
from ipe_build.formats.cpio import directory, regular_file, write_cpio
from ipe_build.formats.dotconfig import parse_dotconfig
from ipe_build.formats.kernel_image import open_kernel
from ipe_build.host import Host, Progress
from ipe_build.kernel.build import Kernel, build_kernel, resolve_config
from ipe_build.kernel.check import compare
from ipe_build.kernel.inspect import KernelFacts, inspect_kernel
from ipe_build.kernel.needs import Need
from ipe_build.kernel.prebuilt import take_kernel
from ipe_build.kernel.profiles import demo_kernel_request
from ipe_build.kernel.source import source_tree
from ipe_build.kernel.trust import KernelTrust
from ipe_build.signing.certificates import KeySet
from tests.fixtures.kernel import PERMISSIVE_POLICY, KernelFactory

pytestmark = pytest.mark.slow

POLICY = b"# comments stay in it\npolicy_name=of-this-test policy_version=1.2.3\nDEFAULT action=ALLOW\nop=KMODULE action=DENY\n"
STEP = re.compile(r"^  (CC|AS|LD|HOSTCC) +(?:\[M\] +)?(\S+)", re.MULTILINE)
TRUST_ALONE = re.compile(
    r"security/ipe/boot_policy\.o|certs/\S+|kernel/configs\.o|init/version(-timestamp)?\.o|usr/initramfs_data\.o|vmlinux(\.o)?|arch/x86/boot/\S+"
)
"""What may be made again when only the trust (and with it the configuration's text, and the banner's date) changes."""


def der(pem: bytes) -> tuple[bytes, ...]:
    return tuple(row.public_bytes(Encoding.DER) for row in x509.load_pem_x509_certificates(pem))


@pytest.fixture(scope="module")
def trust(test_keys: KeySet, foreign_keys: KeySet) -> KernelTrust:
    return KernelTrust(POLICY, (test_keys.bundle.read_bytes(),), (foreign_keys.bundle.read_bytes(),))


@pytest.fixture(scope="module")
def linked(kernel_factory: KernelFactory, trust: KernelTrust) -> Kernel:
    return kernel_factory(trust)


@pytest.fixture(scope="module")
def facts(linked: Kernel) -> KernelFacts:
    return inspect_kernel(linked.image)


def test_new_trust_links_and_compiles_nothing_else(linked: Kernel) -> None:
    made = [target for _, target in STEP.findall((linked.image.parent / "make.log").read_text())]
    assert "security/ipe/boot_policy.o" in made
    assert "certs/system_certificates.o" in made
    assert [target for target in made if not TRUST_ALONE.fullmatch(target)] == []


def test_the_resolved_configuration_holds_all_that_was_wanted(linked: Kernel, trust: KernelTrust) -> None:
    resolved = parse_dotconfig(linked.config.read_bytes())
    assert compare(demo_kernel_request().fragment(), resolved) == ()
    assert resolved.text("IPE_BOOT_POLICY") == "ipe-build/boot-policy"
    assert resolved.text("SYSTEM_TRUSTED_KEYS") == "ipe-build/certificates.pem"
    assert resolved.text("MODULE_SIG_KEY") == ""


def test_the_image_holds_the_trust_it_was_given_and_no_other(facts: KernelFacts, trust: KernelTrust) -> None:
    assert facts.boot_policy == POLICY
    assert facts.certificates == der(trust.certificates[0])
    assert facts.revoked == der(trust.revoked[0])
    assert facts.version.startswith("6.12.")


def test_an_image_without_symbols_says_the_same_as_vmlinux_with_them(linked: Kernel, facts: KernelFacts) -> None:
    assert linked.vmlinux is not None
    exact = inspect_kernel(linked.vmlinux)
    assert (exact.exact, facts.exact) == (True, False)
    assert replace(exact, exact=False, layers=facts.layers) == facts


def test_the_configuration_in_the_image_is_the_resolved_one(linked: Kernel, facts: KernelFacts) -> None:
    assert facts.config is not None
    assert facts.config.values == parse_dotconfig(linked.config.read_bytes()).values


def test_a_kernel_without_trust_has_neither_certificates_nor_a_module_key(test_kernel: Kernel) -> None:
    facts = inspect_kernel(test_kernel.image)
    assert (facts.certificates, facts.revoked, facts.boot_policy) == ((), (), PERMISSIVE_POLICY)
    assert test_kernel.vmlinux is not None
    assert inspect_kernel(test_kernel.vmlinux).certificates == ()
    assert not list(test_kernel.image.parent.rglob("signing_key*"))


def test_the_same_inputs_give_the_same_bytes_in_another_folder(linked: Kernel, trust: KernelTrust, host: Host, tmp_path: Path) -> None:
    for kind in ("kernel-base", "kernel-config", "kernel-source"):
        (tmp_path / kind).symlink_to(host.cache.root / kind)
    other = Host(env={**host.env, "IPE_BUILD_CACHE": str(tmp_path)}, progress=Progress(io.StringIO()))
    again = build_kernel(demo_kernel_request(), trust, other)
    assert again.image != linked.image
    assert again.image.read_bytes() == linked.image.read_bytes()
    assert again.config.read_bytes() == linked.config.read_bytes()
    assert str(tmp_path).encode() not in open_kernel(again.image.read_bytes()).kernel


def test_modules_are_built_unsigned_and_fit_the_kernel(linked: Kernel) -> None:
    assert [path.name for path in linked.modules] == ["michael_mic.ko", "dummy.ko", "test_firmware.ko"]
    for path in linked.modules:
        data = path.read_bytes()
        assert not data.endswith(b"~Module signature appended~\n")
        assert f"vermagic={linked.release} ".encode() in data
    assert linked.modules_folder is not None
    assert (linked.modules_folder / "modules.dep").is_file()
    assert not (linked.modules_folder / "build").is_symlink()


def test_symbols_that_kconfig_drops_are_listed_with_why_and_what_they_depend_on(kernel_factory: KernelFactory, host: Host) -> None:
    request = replace(demo_kernel_request(), needs=(Need.IPE, Need.DM_VERITY_SIGNATURE), properties=())
    with pytest.raises(InputError) as raised:
        resolve_config(request, source_tree(request.source, host), host)
    text = str(raised.value)
    assert "1 symbol did not come out as wanted" in text
    assert "CONFIG_DM_VERITY_VERIFY_ROOTHASH_SIG is not there, wanted y" in text
    assert "depends on" in text
    assert "DM_VERITY" in text.split("depends on")[1]


def test_settings_of_ones_own_are_kept_and_what_gives_way_is_told(kernel_factory: KernelFactory, host: Host, tmp_path: Path) -> None:
    mine = tmp_path / "mine.config"
    mine.write_text('CONFIG_LOCALVERSION="-mine"\n# CONFIG_SECURITY_IPE is not set\nCONFIG_LSM="yama"\n')
    request = replace(demo_kernel_request(), needs=(Need.IPE,), properties=(), fragments=(mine,))
    resolved, conflicts = resolve_config(request, source_tree(request.source, host), host)
    assert resolved.text("LOCALVERSION") == "-mine"
    assert resolved.text("LSM") == "yama,ipe"
    assert resolved.get("SECURITY_IPE") == "y"
    assert [(row.symbol, row.theirs, row.ours) for row in conflicts] == [("SECURITY_IPE", "n", "y")]


def test_the_booted_kernel_has_the_policy_and_keys_that_inspection_found(
    linked: Kernel, facts: KernelFacts, host: Host, need: Callable[[str], Path], tmp_path: Path
) -> None:
    need("qemu-system-x86_64")
    busybox = need("busybox")
    init = (
        "#!/bin/busybox sh\nset -e\nb=/bin/busybox\n$b mkdir /proc /sys\n$b mount -t proc p /proc\n$b mount -t sysfs s /sys\n"
        "$b mount -t securityfs s /sys/kernel/security\ncd /sys/kernel/security/ipe\n"
        "$b echo POLICY $($b base64 policies/*/policy | $b tr -d '\\n')\n$b echo LSM $($b cat ../lsm)\n"
        "$b grep X509 /proc/keys | $b sed 's/^/KEY /'\n$b echo RELEASE $($b uname -r)\n$b poweroff -f\n"
    )
    initrd = tmp_path / "initrd"
    files = [
        directory("bin"),
        regular_file("bin/busybox", busybox.read_bytes(), mode=0o755),
        regular_file("init", init.encode(), mode=0o755),
    ]
    initrd.write_bytes(write_cpio(files))
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    direct = DirectKernel(linked.image, initrd, "console=ttyS0 panic=-1 loglevel=4")
    result = boot(disk, Machine(), host, kernel=direct)
    assert result.ended is not Ended.PANIC, "\n".join(result.console)
    said = {
        word: [line.split(" ", 1)[1] for line in result.console if line.startswith(f"{word} ")]
        for word in ("POLICY", "LSM", "KEY", "RELEASE")
    }
    assert base64.b64decode(said["POLICY"][0]) == facts.boot_policy
    assert said["RELEASE"] == [facts.version] == [linked.release]
    assert facts.lsms is not None
    running = said["LSM"][0].split(",")
    assert [name for name in running if name in facts.lsms] == [name for name in facts.lsms if name in running]
    assert "ipe" in running
    key_ids = [x509.load_der_x509_certificate(raw) for raw in facts.certificates]
    for certificate in key_ids:
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()
        assert any(identifier in line for line in said["KEY"]), said["KEY"]
    trusted = {line.split(": ")[-2].rsplit(" ", 1)[-1] for line in said["KEY"] if ": X509" in line}
    assert len(trusted) == len(facts.certificates) + len(facts.revoked)


COMPRESSORS: tuple[tuple[str, list[str]], ...] = (
    ("gzip", ["gzip", "-n", "-9"]),
    ("xz", ["xz", "--check=crc32", "--x86", "--lzma2=dict=1MiB"]),
    ("lzma", ["lzma", "-1"]),
    ("bzip2", ["bzip2", "-1"]),
    ("zstd", ["zstd", "-3"]),
    ("lz4", ["lz4", "-l", "-1"]),
    ("lzo", ["lzop", "-1"]),
)
"""As scripts/Makefile.lib calls them, at lower levels."""


@pytest.mark.parametrize(("name", "command"), COMPRESSORS, ids=[name for name, _ in COMPRESSORS])
def test_the_kernel_is_found_in_every_compression(
    name: str, command: list[str], linked: Kernel, facts: KernelFacts, need: Callable[[str], Path]
) -> None:
    kernel = open_kernel(linked.image.read_bytes()).kernel
    packed = subprocess.run([need(command[0]), *command[1:], "-c"], input=kernel, stdout=subprocess.PIPE, check=True).stdout
    size = len(kernel).to_bytes(4, "little")
    for data in (packed, packed + size):
        found = inspect_kernel(data)
        assert found.layers == (name, "ELF")
        assert replace(found, layers=facts.layers) == facts


def test_the_kernel_is_found_in_a_uki(
    linked: Kernel, facts: KernelFacts, need: Callable[[str], Path], need_file: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    stub = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
    need_file(stub, "systemd-boot-efi")
    uki = tmp_path / "uki.efi"
    section = ["--add-section", f".linux={linked.image}", "--change-section-vma", ".linux=0x2000000"]
    subprocess.run([need("objcopy"), *section, stub, uki], check=True)
    found = inspect_kernel(uki)
    assert found.layers == ("UKI", *facts.layers)
    assert replace(found, layers=facts.layers) == facts


def test_a_kernel_that_is_built_already_is_taken(linked: Kernel, trust: KernelTrust, host: Host) -> None:
    for config in (linked.config, None):
        taken = take_kernel(linked.image, config, linked.modules_folder, demo_kernel_request(), trust, host)
        assert (taken.image, taken.release, taken.modules) == (linked.image, linked.release, linked.modules)
        assert parse_dotconfig(taken.config.read_bytes()).values == parse_dotconfig(linked.config.read_bytes()).values


def test_a_built_kernel_that_does_not_trust_the_signers_is_refused(
    linked: Kernel, trust: KernelTrust, host: Host, foreign_keys: KeySet
) -> None:
    foreign = replace(trust, certificates=(foreign_keys.bundle.read_bytes(),))
    with pytest.raises(InputError, match="of the signing certificates are not built into it"):
        take_kernel(linked.image, None, None, demo_kernel_request(), foreign, host)


def test_a_built_kernel_with_another_configuration_than_said_is_refused(
    linked: Kernel, trust: KernelTrust, host: Host, tmp_path: Path
) -> None:
    wrong = tmp_path / "config"
    wrong.write_bytes(linked.config.read_bytes().replace(b"CONFIG_SQUASHFS=y", b"# CONFIG_SQUASHFS is not set"))
    with pytest.raises(InputError, match="differ in SQUASHFS"):
        take_kernel(linked.image, wrong, None, demo_kernel_request(), trust, host)


def test_a_built_kernel_that_lacks_a_needed_symbol_is_refused(linked: Kernel, trust: KernelTrust, host: Host) -> None:
    request = replace(demo_kernel_request(), needs=(*demo_kernel_request().needs, Need.PLATFORM_KEYRING))
    with pytest.raises(InputError, match="CONFIG_INTEGRITY_PLATFORM_KEYRING is off"):
        take_kernel(linked.image, None, None, request, trust, host)


def test_the_verb_build_writes_the_kernel_and_its_modules_and_replaces_only_its_own_output(
    test_kernel: Kernel, host: Host, tmp_path: Path
) -> None:
    policy, out = tmp_path / "boot.pol", tmp_path / "out"
    policy.write_bytes(PERMISSIVE_POLICY)
    words = [sys.executable, "-m", "ipe_build", "kernel", "build", "--boot-policy", policy, "-o", out, "--json"]
    for _ in range(2):
        value = json.loads(subprocess.run(words, env=dict(host.env), stdout=subprocess.PIPE, check=True).stdout)
        assert Path(value["image"]).read_bytes() == test_kernel.image.read_bytes()
        assert Path(value["config"]).read_bytes() == test_kernel.config.read_bytes()
        assert sorted(path.name for path in Path(value["modules"]).rglob("*.ko")) == sorted(path.name for path in test_kernel.modules)
    (out / "kernel.config").unlink()
    refused = subprocess.run(words, env=dict(host.env), capture_output=True)
    assert refused.returncode == 2
    assert Path(value["image"]).is_file()


def test_the_verb_inspect_prints_the_facts(linked: Kernel, facts: KernelFacts) -> None:
    done = subprocess.run([sys.executable, "-m", "ipe_build", "kernel", "inspect", linked.image, "--json"], capture_output=True, check=True)
    value = json.loads(done.stdout)
    assert value["boot_policy"] == POLICY.decode()
    assert [row["sha256"] for row in value["certificates"]] == [_sha256(raw) for raw in facts.certificates]
    assert value["config"]["SECURITY_IPE"] == "y"
    text = subprocess.run(
        [sys.executable, "-m", "ipe_build", "kernel", "inspect", linked.image], capture_output=True, check=True
    ).stdout.decode()
    assert f"trusts        {len(facts.certificates)} certificates" in text
    assert "policy_name=of-this-test" in text


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def test_damage_in_the_compressed_kernel_is_one_error(linked: Kernel) -> None:
    data = bytearray(linked.image.read_bytes())
    data[len(data) // 2] ^= 1
    with pytest.raises(InputError, match="the gzip data is damaged"):
        inspect_kernel(bytes(data))
