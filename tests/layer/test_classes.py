"""The classes' real tasks, on BitBake's engine, with the real mkfs.erofs, mke2fs, veritysetup and openssl."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.formats.verity_sig import parse_verity_signature

IMAGE = (
    ("small-image", "do_rootfs"),
    ("small-image", "do_image_erofs"),
    ("small-image", "do_image_ext4"),
    ("small-image", "do_image_complete"),
)
SIGN = ("small-image", "do_ipe_sign")
SIDECARS = ("verity", "roothash", "verity.env")
SIGNED = ("roothash.p7s", "verity-sig")


def smime_verifies(openssl: Path, signature: Path, certificate: Path, content: Path | None = None) -> bytes:
    """The content that openssl finds signed. Fails the test when the signature does not verify."""
    words = [openssl, "smime", "-verify", "-binary", "-inform", "der", "-in", signature, "-certfile", certificate, "-noverify", "-nointern"]
    done = subprocess.run([*words, *(["-content", content] if content else [])], capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


MKSQUASHFS = "mksquashfs ${IMAGE_ROOTFS} ${IMGDEPLOYDIR}/${IMAGE_NAME}.squashfs -quiet -no-progress -noappend"
ENV_NAMES = {"ROOT_HASH", "DATA_BLOCK_SIZE", "DATA_SIZE", "SEPARATE_HASH", "ROOT_UUID", "RHASH_UUID"}
"""What meta-security's dm-verity-img writes, and its users read."""


@pytest.mark.parametrize("filesystem", ["erofs", "ext4", "squashfs"])
def test_verity_conversion_makes_what_others_accept(build_folder, need, test_keys, tmp_path, filesystem) -> None:
    need({"erofs": "mkfs.erofs", "ext4": "mke2fs", "squashfs": "mksquashfs"}[filesystem])
    settings = {"IMAGE_FSTYPES": f"{filesystem} {filesystem}.verity", "IPE_ROOT_FILESYSTEM": filesystem, "IMAGE_CMD__squashfs": MKSQUASHFS}
    image_task = ("small-image", f"do_image_{filesystem}")
    build_folder.built(IMAGE[0], image_task, IMAGE[-1], SIGN, **settings)
    image = build_folder.deploy / f"small-image-small.{filesystem}"
    root_hash = Path(f"{image}.roothash").read_text().strip()
    subprocess.run([need("veritysetup"), "verify", image, f"{image}.verity", root_hash], check=True)
    payload = tmp_path / "payload"
    payload.write_text(root_hash)
    smime_verifies(need("openssl"), Path(f"{image}.roothash.p7s"), test_keys.pair("verity").certificate, payload)
    told = dict(line.split("=", 1) for line in Path(f"{image}.verity.env").read_text().splitlines())
    assert told.keys() >= ENV_NAMES and told["ROOT_HASH"] == root_hash and int(told["DATA_SIZE"]) == image.stat().st_size
    assert told["ROOT_UUID"].replace("-", "") + told["RHASH_UUID"].replace("-", "") == root_hash
    assert parse_verity_signature(Path(f"{image}.verity-sig").read_bytes()).root_hash.hex() == root_hash
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xff")
    changed = subprocess.run([need("veritysetup"), "verify", image, f"{image}.verity", root_hash], capture_output=True)
    assert changed.returncode != 0


def test_image_that_would_be_removed_is_asked_for(build_folder) -> None:
    answer = build_folder.bitbake(parse=("small-image",), IMAGE_FSTYPES="erofs.verity")
    assert not answer.ok and "IMAGE_FSTYPES has erofs.verity without erofs" in answer.log


def test_every_sidecar_has_its_link_and_is_in_the_image_manifest(build_folder, need) -> None:
    need("mkfs.erofs"), need("mke2fs")
    build_folder.built(*IMAGE, SIGN)
    for filesystem in ("erofs", "ext4"):
        for suffix in SIDECARS:
            link = build_folder.deploy / f"small-image-small.{filesystem}.{suffix}"
            assert link.is_symlink() and link.resolve().is_file(), link
        for suffix in SIGNED:
            assert (build_folder.deploy / f"small-image-small.{filesystem}.{suffix}").is_file()
        rows = json.loads((build_folder.topdir / f"tmp/work/small-image/image-task-manifest/do_image_ipe_{filesystem}.json").read_text())
        listed = {row["filename"] for row in rows[0]["images"]}
        assert listed == {f"small-image-small-20260101000000.{filesystem}.{suffix}" for suffix in SIDECARS if suffix != "verity"}


def test_two_builders_make_the_same_bytes(build_folder, need, tmp_path) -> None:
    need("mkfs.erofs")
    first = [IMAGE[0], IMAGE[1], IMAGE[-1], SIGN]
    build_folder.settings["IMAGE_FSTYPES"] = "erofs erofs.verity"

    def made() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in build_folder.deploy.iterdir() if path.name.startswith("small-image-small.")}

    build_folder.built(*first)
    kept = made()
    build_folder.topdir = tmp_path / "another/top"
    build_folder.built(*first, DATETIME="20270202020202")
    assert made() == kept and len(kept) == 6


def test_device_policy_is_checked_signed_packaged_and_deployed(build_folder, need, test_keys) -> None:
    build_folder.built(*(("ipe-policy", f"do_{task}") for task in ("compile", "install", "deploy")), IPE_POLICY_KERNEL_CONFIG="")
    text = (build_folder.deploy / "ipe-policy.pol").read_bytes()
    assert b"\npolicy_name=ipe-policy policy_version=0.0.1\n" in text
    assert b"op=KMODULE dmverity_signature=TRUE action=ALLOW" in text
    signed = build_folder.deploy / "ipe-policy.p7b"
    assert smime_verifies(need("openssl"), signed, test_keys.pair("policy").certificate) == text
    packaged = build_folder.topdir / "tmp/work/ipe-policy/image/usr/lib/ipe/ipe-policy.p7b"
    assert packaged.read_bytes() == signed.read_bytes()


def test_boot_policy_is_not_signed(build_folder) -> None:
    build_folder.built(("ipe-boot-policy", "do_compile"), ("ipe-boot-policy", "do_deploy"), IPE_POLICY_KEY="", IPE_POLICY_CERT="")
    assert {path.name for path in build_folder.deploy.iterdir()} == {"ipe-boot.pol"}


def test_policy_that_the_kernel_cannot_judge_fails_the_build(build_folder, tmp_path) -> None:
    config = tmp_path / "kernel.config"
    config.write_text("# Linux/x86 6.12.117 Kernel Configuration\nCONFIG_SECURITY_IPE=y\nCONFIG_DM_VERITY=y\n")
    answer = build_folder.bitbake(("ipe-policy", "do_compile"), IPE_POLICY_KERNEL_CONFIG=str(config))
    assert not answer.ok
    assert "policy failed" in answer.fatal and "DM_VERITY_VERIFY_ROOTHASH_SIG" in answer.log
    assert not (build_folder.topdir / "tmp/work/ipe-policy/build/ipe-policy.p7b").exists()


def test_modules_are_signed_where_they_will_be_packaged(build_folder, test_keys, foreign_keys, unsigned_module, tmp_path, capsys) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "demo.ko").write_bytes(unsigned_module)
    build_folder.built(("small-module", "do_install"), ("small-module", "do_package"), SMALL_MODULES=str(modules))
    packaged = build_folder.topdir / "tmp/work/small-module/package/lib/demo.ko"
    assert main(["modules", "verify", str(packaged), "--trusted", str(test_keys.bundle)]) == 0
    assert main(["modules", "verify", str(packaged), "--trusted", str(foreign_keys.bundle)]) == 1
    assert packaged.read_bytes().startswith(unsigned_module)


def test_recipe_without_modules_needs_no_module_key(build_folder, tmp_path) -> None:
    (tmp_path / "modules").mkdir()
    run = ("small-module", "do_install"), ("small-module", "do_package")
    build_folder.built(*run, SMALL_MODULES=str(tmp_path / "modules"), IPE_MODULE_KEY="")


def test_initramfs_carries_the_signed_policy(build_folder, need) -> None:
    need("gcc")
    run = (("ipe-policy", "do_compile"), ("ipe-policy", "do_deploy"), ("ipe-initramfs", "do_compile"), ("ipe-initramfs", "do_deploy"))
    build_folder.built(*run, IPE_POLICY_KERNEL_CONFIG="", CC="gcc -O2", IPE_INITRAMFS_ARGS="--compression none")
    archive = (build_folder.deploy / "ipe-initrd-small").read_bytes()
    assert archive.startswith(b"070701")
    assert (build_folder.deploy / "ipe-policy.p7b").read_bytes() in archive
    assert b"etc/ipe/ipe-policy.p7b\0" in archive


@pytest.mark.parametrize("recipe", ["python3-ipe-build", "python3-dissect-cstruct", "python3-pyelftools"])
@pytest.mark.parametrize(
    ("variant", "pn"), [("", "{}"), ("native:", "{}-native"), ("nativesdk:", "nativesdk-{}")], ids=["target", "native", "sdk"]
)
def test_package_is_there_for_target_build_machine_and_sdk(build_folder, recipe, variant, pn) -> None:
    answer = build_folder.bitbake(parse=(f"{variant}{recipe}",))
    facts = answer.recipes[recipe]
    assert facts["pn"] == pn.format(recipe) and not facts["skipped"] and "do_compile" in facts["tasks"]


@pytest.mark.parametrize(("target", "signature_type"), [("x86_64", "41092b05"), ("aarch64", "6db69de6"), ("riscv64", "efe0f087")])
def test_initramfs_looks_for_the_signature_of_the_target_s_architecture(build_folder, need, target, signature_type) -> None:
    need("gcc")
    run = (("ipe-policy", "do_compile"), ("ipe-policy", "do_deploy"), ("ipe-initramfs", "do_compile"), ("ipe-initramfs", "do_deploy"))
    build_folder.built(*run, IPE_POLICY_KERNEL_CONFIG="", TARGET_ARCH=target, IPE_INITRAMFS_ARGS="--compression none")
    archive = (build_folder.deploy / "ipe-initrd-small").read_bytes()
    assert f"signature_type = {signature_type}-".encode() in archive


def test_test_keys_are_made_once_and_only_when_allowed(build_folder) -> None:
    refused = build_folder.bitbake(parse=("ipe-keys-test",))
    assert "IPE_ALLOW_TEST_KEYS is not 1" in refused.recipes["ipe-keys-test"]["skipped"]
    run = ("ipe-keys-test", "do_create_keys")
    build_folder.built(run, IPE_ALLOW_TEST_KEYS="1")
    keys = build_folder.topdir / "ipe-test-keys"
    first = {path.name: path.read_bytes() for path in keys.iterdir()}
    build_folder.built(run, IPE_ALLOW_TEST_KEYS="1")
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == first
    settings = (build_folder.topdir / "conf/local.conf").read_text()
    named = (Path(__file__).parents[2] / "meta-ipe/conf/ipe-test-keys.inc").read_text()
    for name in ("policy.key.pem", "policy.cert.pem", "verity.key.pem", "module.key.pem", "trusted-keys.pem"):
        assert name in first and f"/{name}" in named
    assert settings


KERNEL_POLICY = (("ipe-boot-policy", "do_compile"), ("ipe-boot-policy", "do_deploy"))
KERNEL = (*KERNEL_POLICY, ("linux-yocto", "do_compile"), ("linux-yocto", "ipe_configure_kernel"))
SLOT = (("ipe-slot", "do_compile"), ("ipe-slot", "do_install"))
MODULES = (("small-module", "do_install"), ("small-module", "do_package"))
FATALS = (
    ("IPE_VERITY_KEY", "", (*IMAGE, SIGN), "IPE_VERITY_KEY is not set"),
    ("IPE_VERITY_CERT", "", (*IMAGE, SIGN), "IPE_VERITY_CERT is not set"),
    ("IPE_VERITY_CERT", "/nowhere.pem", (*IMAGE, SIGN), "IPE_VERITY_CERT names '/nowhere.pem'"),
    ("IPE_POLICY_KEY", "", (("ipe-policy", "do_compile"),), "IPE_POLICY_KEY is not set"),
    ("IPE_POLICY_CERT", "/nowhere.pem", (("ipe-policy", "do_compile"),), "IPE_POLICY_CERT names '/nowhere.pem'"),
    ("IPE_POLICY_KERNEL_CONFIG", "/nowhere", (("ipe-policy", "do_compile"),), "IPE_POLICY_KERNEL_CONFIG names '/nowhere'"),
    ("IPE_INITRAMFS_POLICY", "/nowhere.p7b", (("ipe-initramfs", "do_compile"),), "IPE_INITRAMFS_POLICY names '/nowhere.p7b'"),
    ("IPE_BOOT_POLICY", "/nowhere.pol", (("linux-yocto", "ipe_configure_kernel"),), "IPE_BOOT_POLICY names '/nowhere.pol'"),
    ("IPE_AUDIT_IMAGE", "/nowhere.raw", (("small-image", "do_ipe_audit"),), "IPE_AUDIT_IMAGE names '/nowhere.raw'"),
    ("IPE_EVIDENCE_IMAGE", "/nowhere.raw", (("small-image", "do_ipe_evidence"),), "IPE_EVIDENCE_IMAGE names '/nowhere.raw'"),
    ("IPE_KERNEL_IMAGE", "/nowhere", (*IMAGE, SIGN, ("small-image", "do_ipe_disk")), "IPE_KERNEL_IMAGE names '/nowhere'"),
    ("IPE_INITRAMFS_IMAGE", "/nowhere", (*IMAGE, SIGN, ("small-image", "do_ipe_disk")), "IPE_INITRAMFS_IMAGE names '/nowhere'"),
    ("IPE_BOOT_LOADER", "/nowhere.efi", (*IMAGE, SIGN, ("small-image", "do_ipe_disk")), "IPE_BOOT_LOADER names '/nowhere.efi'"),
    ("IPE_UKI", "/nowhere.efi", (*IMAGE, SIGN, ("small-image", "do_ipe_disk")), "IPE_UKI names '/nowhere.efi'"),
    ("IPE_TRUSTED_CERTS", "", KERNEL, "IPE_TRUSTED_CERTS is not set"),
    ("IPE_TRUSTED_CERTS", "/nowhere.pem", KERNEL, "IPE_TRUSTED_CERTS names '/nowhere.pem'"),
    ("IPE_UPDATE_KEYRING", "/nowhere.pem", SLOT, "IPE_UPDATE_KEYRING names '/nowhere.pem'"),
    ("IPE_MODULE_KEY", "", MODULES, "IPE_MODULE_KEY is not set"),
    ("IPE_MODULE_CERT", "/nowhere.pem", MODULES, "IPE_MODULE_CERT names '/nowhere.pem'"),
)
WITH_UKI = {"IMAGE_CLASSES": "ipe-image ipe-uki ipe-disk", "IPE_UKI_STUB": "${DEPLOY_DIR_IMAGE}/bzImage"}
WITH_UPDATES = {"IPE_SLOTS": "1", "IPE_UPDATE_FORMATS": "swupdate"}
WITH_POLICIES = {"IMAGE_CLASSES": "ipe-image ipe-update-policy", "IPE_UPDATE_OLD_ROOTHASH": "sha256:00", "IPE_UPDATE_LEDGER": "/nowhere"}
BY_CLASS = (
    ("IPE_UKI_STUB", "/nowhere.stub", "do_ipe_uki", WITH_UKI, "IPE_UKI_STUB names '/nowhere.stub'"),
    ("IPE_SECUREBOOT_CERT", "/nowhere.pem", "do_ipe_uki", {**WITH_UKI, "IPE_SECUREBOOT_KEY": "file:k"}, "IPE_SECUREBOOT_CERT names"),
    ("IPE_SECUREBOOT_KEY", "", "do_ipe_uki", {**WITH_UKI, "IPE_SECUREBOOT_CERT": "/nowhere.pem"}, "IPE_SECUREBOOT_KEY is not set"),
    ("IPE_UPDATE_KEY", "", "do_ipe_update", WITH_UPDATES, "IPE_UPDATE_KEY is not set"),
    ("IPE_UPDATE_CERT", "/nowhere", "do_ipe_update", {**WITH_UPDATES, "IPE_UPDATE_KEY": "file:k"}, "IPE_UPDATE_CERT names '/nowhere'"),
    ("IPE_UPDATE_OLD_ROOTHASH", "", "do_ipe_update_policy", WITH_POLICIES, "IPE_UPDATE_OLD_ROOTHASH is not set"),
    ("IPE_UPDATE_LEDGER", "/nowhere", "do_ipe_update_policy", WITH_POLICIES, "IPE_UPDATE_LEDGER names '/nowhere'"),
    ("IPE_UNSEALED_KERNEL", "/nowhere", "do_ipe_seal", {"IPE_SEALED": "1"}, "IPE_UNSEALED_KERNEL names '/nowhere'"),
    ("IPE_EVIDENCE_POLICY", "/nowhere.pol", "do_ipe_evidence", {}, "IPE_EVIDENCE_POLICY names '/nowhere.pol'"),
)


@pytest.mark.parametrize(("variable", "value", "task", "settings", "message"), BY_CLASS, ids=[f"{row[0]}={row[1]}" for row in BY_CLASS])
def test_missing_value_of_a_class_fails_with_the_variables_name(build_folder, variable, value, task, settings, message) -> None:
    build_folder.deploy.mkdir(parents=True)
    for name in ("bzImage", "ipe-initrd-small", "small-image-small.ipedisk"):
        (build_folder.deploy / name).write_bytes(b"a file")
    base = {"IMAGE_CLASSES": "ipe-image ipe-disk ipe-evidence", **settings}
    answer = build_folder.bitbake(("small-image", task), **(base | {variable: value}))
    assert not answer.ok and message in answer.fatal


@pytest.mark.parametrize(("variable", "value", "run", "message"), FATALS, ids=[f"{row[0]}={row[1]}" for row in FATALS])
def test_missing_value_fails_with_the_variables_name(build_folder, need, tmp_path, variable, value, run, message) -> None:
    need("mkfs.erofs")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/demo.ko").write_bytes(b"a module")
    build_folder.deploy.mkdir(parents=True)
    for name in ("bzImage", "ipe-initrd-small") if variable != "IPE_POLICY_KERNEL_CONFIG" else ():
        (build_folder.deploy / name).write_bytes(b"a file")
    settings = {"IPE_POLICY_KERNEL_CONFIG": "", "SMALL_KERNEL_SOURCE": str(tmp_path), "SMALL_MODULES": str(tmp_path / "modules")}
    settings |= {"IMAGE_CLASSES": "ipe-image ipe-disk ipe-audit ipe-evidence", variable: value}
    answer = build_folder.bitbake(*run, **settings)
    assert not answer.ok
    assert message in answer.fatal


EVERYTHING = "ipe-image ipe-uki ipe-disk ipe-audit ipe-attest ipe-evidence ipe-update-policy"
WRONG = (
    ("small-image", "IPE_ROOT_FILESYSTEM", "squashfs", "IPE_ROOT_FILESYSTEM is squashfs, and IMAGE_FSTYPES has no squashfs.verity"),
    ("small-image", "IPE_ROOT_FILESYSTEM", "btrfs", "wanted erofs|squashfs|ext4"),
    ("small-image", "IPE_SEALED", "yes", "wanted 0|1"),
    ("small-image", "IPE_SEALED", "1", "a sealed image has no signed policy"),
    ("linux-yocto", "IPE_SEALED", "true", "wanted 0|1"),
    ("small-image", "IPE_SLOTS", "2", "wanted 0|1"),
    ("small-image", "IPE_VERITY_HASH", "md5", "wanted sha"),
    ("small-image", "IPE_VERITY_SALT", "xyz", "wanted -|"),
    ("small-image", "IPE_VERITY_BLOCK_SIZE", "4k", "wanted [0-9]+"),
    ("small-image", "IPE_ESP_MIB", "0", "wanted [1-9]"),
    ("small-image", "IPE_FLASH", "--bmp", "wanted ( *--(bmap"),
    ("small-image", "IPE_REFERENCE_VALUES", "on", "wanted 0|1"),
    ("small-image", "IPE_UPDATE_FORMATS", "zip", "wanted ( *(rauc|swupdate))* *"),
    ("small-image", "IPE_UPDATE_BOOTLOADER", "lilo", "wanted efi|"),
    ("ipe-policy", "IPE_POLICY_ROLE__pn-ipe-policy", "devcie", "wanted device|boot|reserved"),
    ("ipe-policy", "IPE_POLICY_VERSION", "1.0", "wanted [0-9]+"),
    ("ipe-policy", "IPE_SIGNING", "later", "wanted key|plan"),
    ("ipe-keys-test", "IPE_ALLOW_TEST_KEYS", "yes", "wanted 0|1"),
    ("ipe-initramfs", "IPE_INITRAMFS_DROP", "MAC_ADMIN", "wanted ( *CAP_"),
    ("linux-yocto", "IPE_MODULE_DIGEST", "sha1", "wanted sha256|sha384|sha512"),
    ("linux-yocto", "IPE_POLICY_BY_PATH", "on", "wanted 0|1"),
)


@pytest.mark.parametrize(("recipe", "variable", "value", "message"), WRONG, ids=[f"{row[1]}={row[2]}" for row in WRONG])
def test_wrong_value_stops_the_parse_with_the_variables_name(build_folder, recipe, variable, value, message) -> None:
    settings = {"IMAGE_CLASSES": EVERYTHING, "IPE_UKI_STUB": "/nowhere", "IPE_SLOTS": "1" if "UPDATE" in variable else "0"}
    answer = build_folder.bitbake(parse=(recipe,), **(settings | {variable: value}))
    assert not answer.ok and message in answer.log and variable.partition("__")[0] in answer.log


def test_every_task_behind_the_image_comes_from_sstate_where_it_can(build_folder) -> None:
    tasks = build_folder.bitbake(parse=("small-image",), IMAGE_CLASSES=f"{EVERYTHING} ipe-wic", IPE_SLOTS="1").recipes["small-image"][
        "tasks"
    ]
    ours = {name for name in tasks if name.startswith("do_ipe_") and not name.endswith("_setscene")}
    assert ours == {
        f"do_ipe_{one}" for one in ("sign", "uki", "disk", "wic", "audit", "measure", "attest", "evidence", "update", "update_policy")
    }
    assert {f"{name}_setscene" for name in ours} <= tasks.keys()


def test_pin_in_a_key_uri_is_refused(build_folder) -> None:
    answer = build_folder.bitbake(parse=("ipe-policy",), IPE_POLICY_KEY="pkcs11:token=t?pin-value=1234")
    assert not answer.ok
    assert "IPE_POLICY_KEY holds a PIN" in answer.log and "1234" not in answer.log


def test_wrong_key_leaves_no_signature(build_folder, need, foreign_keys) -> None:
    need("mkfs.erofs")
    answer = build_folder.bitbake(*IMAGE, SIGN, IPE_VERITY_KEY=foreign_keys.pair("verity").uri)
    assert not answer.ok
    assert not list(build_folder.topdir.rglob("*.p7s"))


@pytest.mark.parametrize("name", ["certs/signing_key.pem", "certs/signing_key.priv", "signing_key.priv"])
def test_key_that_the_kernel_made_for_itself_fails_the_build_before_it_is_shared(build_folder, name) -> None:
    key = build_folder.topdir / "tmp/work/linux-yocto/build" / name
    build_folder.built(("linux-yocto", "do_compile"), SMALL_KERNEL_SOURCE="/nowhere")
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_text("a key")
    answer = build_folder.bitbake(("linux-yocto", "do_compile"), SMALL_KERNEL_SOURCE="/nowhere")
    assert not answer.ok and f"{key}: the kernel made a private key of its own" in answer.fatal


def test_private_keys_are_nowhere_below_tmpdir(build_folder, need, test_keys) -> None:
    need("mkfs.erofs"), need("mke2fs")
    build_folder.built(*IMAGE, SIGN, ("ipe-policy", "do_compile"), ("ipe-policy", "do_deploy"), IPE_POLICY_KERNEL_CONFIG="")
    secrets = [path.read_bytes().splitlines()[5] for path in test_keys.folder.glob("*.key.pem")]
    assert len(secrets) >= 4
    for path in (build_folder.topdir / "tmp").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"PRIVATE KEY" not in content and not any(secret in content for secret in secrets), path


def test_kernel_gets_policy_and_certificates_and_a_dropped_symbol_fails(build_folder, host, need, test_keys) -> None:
    from ipe_build.kernel.profiles import DEBIAN_SOURCE
    from ipe_build.kernel.source import source_tree

    for tool in ("make", "gcc", "bison", "flex"):
        need(tool)
    if not DEBIAN_SOURCE.is_file():
        need(str(DEBIAN_SOURCE))
    tree = source_tree(DEBIAN_SOURCE, host).folder
    build = build_folder.topdir / "tmp/work/linux-yocto/build"
    boot = (("ipe-boot-policy", "do_compile"), ("ipe-boot-policy", "do_deploy"))
    build_folder.built(*boot, ("linux-yocto", "do_configure"), ("linux-yocto", "do_deploy"), SMALL_KERNEL_SOURCE=str(tree))
    config = (build_folder.deploy / "ipe-kernel-small.config").read_text()
    for line in ('CONFIG_IPE_BOOT_POLICY="ipe-boot.pol"', 'CONFIG_SYSTEM_TRUSTED_KEYS="ipe-trusted.pem"', "CONFIG_SECURITY_IPE=y"):
        assert line in config
    assert 'CONFIG_MODULE_SIG_KEY=""' in config and str(build_folder.topdir) not in config
    assert (build / "ipe-boot.pol").read_bytes() == (build_folder.deploy / "ipe-boot.pol").read_bytes()
    assert (build / "ipe-trusted.pem").read_bytes() == test_keys.bundle.read_bytes()
    build_folder.built(("ipe-policy", "do_compile"))
    # User Mode Linux has no EFI: kconfig drops the symbol without a word, the class must not.
    dropped = {"SMALL_KERNEL_SOURCE": str(tree), "export ARCH": "um", "IPE_KERNEL_FEATURES": "ipe efi"}
    answer = build_folder.bitbake(("linux-yocto", "do_configure"), **dropped)
    assert not answer.ok and "kernel failed" in answer.fatal and "EFI" in answer.log
