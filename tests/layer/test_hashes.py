"""What runs again: the hashes of all tasks of the layer, by BitBake's own base hashes, after each kind of change."""

from __future__ import annotations

import shutil

import pytest

from tests.fixtures.layer import BuildFolder, task_hashes

RECIPES = ("ipe-boot-policy", "linux-yocto", "ipe-policy", "ipe-initramfs", "small-image", "small-module")
SETTINGS = {"IMAGE_FSTYPES": "erofs erofs.verity ext4 ext4.verity", "SMALL_KERNEL_SOURCE": "/nowhere", "SMALL_MODULES": "/nowhere"}
DISK = {"small-image:do_ipe_disk", "small-image:do_ipe_audit"}
SIGNED = {"small-image:do_ipe_sign"}
POLICY = {"ipe-policy:do_compile", "ipe-policy:do_deploy"}
INITRAMFS = {"ipe-initramfs:do_compile", "ipe-initramfs:do_deploy"}


def hashes(folder: BuildFolder, **changes: str) -> dict[str, str]:
    answer = folder.bitbake(parse=RECIPES, **{**SETTINGS, **changes})
    assert answer.ok, answer.log
    assert not any(facts["skipped"] for facts in answer.recipes.values())
    return task_hashes(answer)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {task for task in before if before[task] != after[task]}


def reruns(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """The tasks that run again and do something: not do_build, do_install and packaging, which follow do_compile everywhere."""
    return {one for one in changed(before, after) if not one.endswith((":do_build", ":do_install", ":do_package", "_setscene"))}


def test_another_builder_with_another_way_to_the_same_keys_has_the_same_hashes(build_folder, tmp_path, test_keys) -> None:
    first = hashes(build_folder)
    keys = tmp_path / "elsewhere"
    shutil.copytree(test_keys.folder, keys)
    settings = {}
    for role in ("policy", "verity", "module"):
        settings[f"IPE_{role.upper()}_KEY"] = f"pkcs11:token=t;object={role}"
        settings[f"IPE_{role.upper()}_CERT"] = str(keys / test_keys.pair(role).certificate.name)
    build_folder.topdir = tmp_path / "another/builder"
    again = hashes(build_folder, **settings, IPE_TRUSTED_CERTS=str(keys / test_keys.bundle.name))
    assert len(first) > 50
    assert changed(first, again) == set()


@pytest.mark.parametrize(
    ("variable", "value"), [("IPE_POLICY_VERSION", "0.0.2"), ("IPE_POLICY_VARIABLES", "allow_modules=true"), ("IPE_POLICY_CERT", "")]
)
def test_policy_change_reruns_policy_initramfs_and_disk_never_rootfs_or_kernel(build_folder, test_keys, variable, value) -> None:
    before = hashes(build_folder)
    value = value or str(test_keys.pair("verity").certificate)
    after = reruns(before, hashes(build_folder, **{f"{variable}__pn-ipe-policy": value}))
    assert after == POLICY | INITRAMFS | DISK


def test_initramfs_option_reruns_initramfs_and_disk(build_folder) -> None:
    before = hashes(build_folder)
    assert reruns(before, hashes(build_folder, IPE_INITRAMFS_ARGS="--on-failure panic")) == INITRAMFS | DISK


def test_verity_certificate_reruns_what_is_signed_with_it(build_folder, foreign_keys) -> None:
    before = hashes(build_folder)
    after = reruns(before, hashes(build_folder, IPE_VERITY_CERT=str(foreign_keys.pair("verity").certificate)))
    assert after == SIGNED | DISK


def test_module_certificate_reruns_packaging_of_modules_only(build_folder, foreign_keys) -> None:
    before = hashes(build_folder)
    after = changed(before, hashes(build_folder, IPE_MODULE_CERT=str(foreign_keys.pair("module").certificate)))
    assert {one for one in after if not one.endswith(":do_build")} == {"linux-yocto:do_package", "small-module:do_package"}


def test_command_line_reruns_the_disk_only(build_folder) -> None:
    before = hashes(build_folder)
    assert reruns(before, hashes(build_folder, IPE_COMMAND_LINE="quiet")) == DISK


def test_trusted_certificates_rerun_the_kernel(build_folder, foreign_keys) -> None:
    before = hashes(build_folder)
    after = reruns(before, hashes(build_folder, IPE_TRUSTED_CERTS=str(foreign_keys.bundle)))
    assert {"linux-yocto:do_configure", "linux-yocto:do_compile", "linux-yocto:do_deploy"} <= after
    assert not after & {"ipe-boot-policy:do_compile", "small-image:do_rootfs", *SIGNED}


def test_without_the_distro_feature_the_kernel_is_untouched_and_every_recipe_skipped(build_folder) -> None:
    settings = {**SETTINGS, "DISTRO_FEATURES": "systemd"}
    with_layer = build_folder.bitbake(parse=("linux-yocto", "ipe-policy", "ipe-boot-policy", "ipe-initramfs", "ipe-keys-test"), **settings)
    assert all("distro feature" in with_layer.recipes[one]["skipped"] for one in with_layer.recipes if one != "linux-yocto")
    variables = with_layer.recipes["linux-yocto"]["doc"]
    assert variables == {}
    with_feature = build_folder.bitbake(parse=("linux-yocto",), **SETTINGS)
    assert "IPE_BOOT_POLICY" in with_feature.recipes["linux-yocto"]["doc"]
    untouched = with_layer.recipes["linux-yocto"]["tasks"]["do_configure"]
    assert untouched["files"] == [] and "ipe-boot-policy:do_deploy" not in untouched["depends"]
    assert untouched["basehash"] != with_feature.recipes["linux-yocto"]["tasks"]["do_configure"]["basehash"]
