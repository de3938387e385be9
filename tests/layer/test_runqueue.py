"""What runs again and what comes from sstate: BitBake's own run queue, setscene, hash equivalence and multiconfig over the whole layer.

Every builder has a folder of its own; they share one sstate mirror and one hash equivalence store, as an organisation's do. `ran` is what
BitBake said it started. The deny twin of "runs nothing again" is each test's exact set of what does run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ipe_build.host.cache import cache_key
from ipe_build.kernel.profiles import DEBIAN_SOURCE
from ipe_build.kernel.source import source_tree
from ipe_build.kernel.trust import KernelTrust
from tests.fixtures.bitbake import Builder

DISK = {"small-image:do_ipe_disk", "small-image:do_ipe_audit"}
SIGN = {"small-image:do_ipe_sign"}
ROOT = {"small-image:do_rootfs", "small-image:do_image_erofs", "small-image:do_image_complete"}
POLICY = {"ipe-policy:do_compile", "ipe-policy:do_deploy"}
INITRAMFS = {"ipe-initramfs:do_compile", "ipe-initramfs:do_deploy"}
UNSHARED = "do_configure", "do_compile", "do_install"
"""Tasks that OE-core too leaves out of sstate: on a new builder they run for each recipe that something else makes run."""

IMAGE = "small-image.erofs"


def make_rootfs(folder: Path, busybox: Path, text: str = "") -> Path:
    (folder / "sbin").mkdir(parents=True)
    shutil.copyfile(busybox, folder / "sbin/init")
    (folder / "sbin/init").chmod(0o755)
    (folder / "etc").mkdir()
    (folder / "etc/motd").write_text(f"a device\n{text}")
    return folder


@pytest.fixture(scope="module")
def first(bitbake_tree, shared_tmp, host, need, test_keys, kernel_factory) -> Builder:
    """The first builder, which made everything; once for all workers. Its folder is not to be written to."""
    for tool in ("make", "gcc", "bison", "flex", "mkfs.erofs", "mkfs.vfat", "mcopy"):
        need(tool)
    folder = shared_tmp / "runqueue"
    tree = source_tree(DEBIAN_SOURCE, host).folder
    pairs = {role: test_keys.pair(role) for role in ("policy", "verity", "module")}
    settings = {
        "IPE_BUILD_CMD": f"{sys.executable} -m ipe_build",
        "IPE_BUILD_DEPENDS": "",
        "IMAGE_FSTYPES": "erofs erofs.verity",
        "SMALL_ROOTFS": str(folder / "rootfs"),
        "SMALL_KERNEL_SOURCE": str(tree),
        "IPE_TRUSTED_CERTS": str(test_keys.bundle),
        "BB_SIGNATURE_HANDLER": "TestEquivHash",
        "BB_HASHSERVE": "auto",
        "BB_HASHSERVE_DB_DIR": str(folder / "hashes"),
        **{f"IPE_{role.upper()}_KEY": pair.uri for role, pair in pairs.items()},
        **{f"IPE_{role.upper()}_CERT": str(pair.certificate) for role, pair in pairs.items()},
    }
    builder = Builder(folder / "first", bitbake_tree, settings)
    with host.cache.lock("pytest-runqueue", cache_key(str(folder))):
        if not (folder / "done").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            make_rootfs(folder / "rootfs", need("busybox"))
            builder.built("ipe-boot-policy")
        boot_policy = (builder.deploy / "ipe-boot.pol").read_bytes()
        kernel = kernel_factory(KernelTrust(boot_policy, (test_keys.bundle.read_bytes(),)))
        builder = builder.with_settings(SMALL_KERNEL=str(kernel.image))
        if not (folder / "done").is_file():
            run = builder.built("small-image", "linux-yocto")
            assert run.ran >= ROOT | SIGN | DISK | POLICY | {"linux-yocto:do_compile"} and not run.reused
            (folder / "done").touch()
    return builder


@pytest.fixture
def second(first: Builder, tmp_path: Path) -> Builder:
    """Another builder: an empty folder, the first one's sstate as its mirror, what is known of equivalent hashes."""
    shutil.copytree(first.topdir.parent / "hashes", tmp_path / "hashes")
    settings = {"SSTATE_MIRROR": str(first.topdir / "sstate-cache"), "BB_HASHSERVE_DB_DIR": str(tmp_path / "hashes")}
    return Builder(tmp_path / "second", first.tree, {**first.settings, **settings})


def shared(ran: set[str]) -> set[str]:
    """Those of the tasks whose results go to sstate, or are a step of the image."""
    return {task for task in ran if not task.endswith(UNSHARED)}


def test_second_builder_runs_none_of_our_tasks(first, second) -> None:
    run = second.built("small-image")
    assert run.ran == set()
    assert run.reused >= DISK | SIGN | {"small-image:do_image_complete", "ipe-policy:do_deploy", "linux-yocto:do_deploy"}
    for name in ("small-image-small.ipedisk", "small-image-small.erofs.roothash.p7s", "small-image-small.audit.json", "ipe-policy.p7b"):
        assert (second.deploy / name).read_bytes() == (first.deploy / name).read_bytes(), name


def test_second_builder_without_the_mirror_makes_the_same_bytes(first, second) -> None:
    run = second.with_settings(SSTATE_MIRROR="").built("small-image")
    assert run.ran >= ROOT | SIGN | DISK and not run.reused
    for name in ("small-image-small.ipedisk", "small-image-small.erofs.verity", "small-image-small.audit.json"):
        assert (second.deploy / name).read_bytes() == (first.deploy / name).read_bytes(), name


def test_build_again_runs_nothing(second) -> None:
    second.built("small-image")
    assert second.built("small-image").tasks == ()


def test_changed_policy_makes_policy_initramfs_and_disk_never_rootfs_or_kernel(first, second) -> None:
    run = second.with_settings(**{"IPE_POLICY_VERSION__pn-ipe-policy": "0.0.2"}).built("small-image")
    assert shared(run.ran) == shared(POLICY | INITRAMFS | DISK)
    assert not any(task.startswith("linux-yocto:") for task in run.ran)
    assert run.reused >= SIGN | {"small-image:do_image_complete", "linux-yocto:do_deploy"}
    assert (second.deploy / "small-image-small.ipedisk").read_bytes() != (first.deploy / "small-image-small.ipedisk").read_bytes()
    assert (second.deploy / "small-image-small.erofs").read_bytes() == (first.deploy / "small-image-small.erofs").read_bytes()


def test_policy_that_comes_out_the_same_stops_there_by_hash_equivalence(second) -> None:
    run = second.with_settings(**{"IPE_POLICY_CHECK_ARGS__pn-ipe-policy": "--strict"}).built("small-image")
    assert shared(run.ran) == shared(POLICY)
    assert run.reused >= DISK


def test_without_hash_equivalence_the_same_change_reaches_the_disk(second) -> None:
    without = second.with_settings(BB_SIGNATURE_HANDLER="basichash", SSTATE_MIRROR="")
    without.built("small-image")
    run = without.with_settings(**{"IPE_POLICY_CHECK_ARGS__pn-ipe-policy": "--strict"}).built("small-image")
    assert run.ran == POLICY | INITRAMFS | DISK


def test_changed_rootfs_reruns_verity_signing_disk_and_audit(second, need, tmp_path) -> None:
    changed = make_rootfs(tmp_path / "rootfs", need("busybox"), "changed\n")
    run = second.with_settings(SMALL_ROOTFS=str(changed)).built("small-image")
    assert shared(run.ran) == ROOT | SIGN | DISK
    assert run.reused >= {"ipe-initramfs:do_deploy", "linux-yocto:do_deploy"}


def test_new_certificate_reruns_signing_only_and_the_audit_says_whether_the_kernel_trusts_it(second, foreign_keys) -> None:
    pair = foreign_keys.pair("verity")
    run = second.with_settings(IPE_VERITY_KEY=pair.uri, IPE_VERITY_CERT=str(pair.certificate)).bitbake("small-image")
    assert not run.ok and "root-hash-signature" in run.output
    assert run.ran == SIGN | DISK


def test_new_policy_certificate_reruns_the_policy(second, foreign_keys) -> None:
    pair = foreign_keys.pair("policy")
    run = second.with_settings(IPE_POLICY_KEY=pair.uri, IPE_POLICY_CERT=str(pair.certificate)).built("small-image", "-c", "ipe_disk")
    assert shared(run.ran) == shared(POLICY | INITRAMFS | DISK) - {"small-image:do_ipe_audit"}


def test_new_module_certificate_reruns_the_packaging_of_modules(second, foreign_keys) -> None:
    pair = foreign_keys.pair("module")
    run = second.with_settings(IPE_MODULE_KEY=pair.uri, IPE_MODULE_CERT=str(pair.certificate)).built("linux-yocto")
    assert shared(run.ran) == {"linux-yocto:do_package"}


def answer(folder: Path, keys) -> int:
    """Signs every open request as people with openssl would; returns how many."""
    requests = [path for path in folder.glob("*.json") if not path.with_suffix(".sig").exists()]
    for path in requests:
        request = json.loads(path.read_text())
        role = next(
            role for role in ("policy", "verity", "module") if f"{role.title()} signing" in request["subject"] or role in request["subject"]
        )
        words = ["openssl", "pkeyutl", "-sign", "-inkey", keys.pair(role).uri.removeprefix("file:")]
        words += ["-pkeyopt", f"digest:{request['digest_name']}", "-in", path.with_suffix(".digest"), "-out", folder / request["answer"]]
        subprocess.run(words, check=True)
    return len(requests)


def test_offline_signing_pauses_and_resumes_where_it_stopped(first, second, test_keys, need, tmp_path) -> None:
    need("openssl")
    wanted = tmp_path / "wanted"
    settings = {"SSTATE_MIRROR": "", "IPE_SIGNING": "plan", "IPE_SIGNATURES": str(wanted)}
    settings |= {f"IPE_{role}_KEY": "" for role in ("POLICY", "VERITY", "MODULE")}
    offline = second.with_settings(**settings)
    paused = offline.bitbake("small-image", "-k")
    assert not paused.ok and "IPE_SIGNING is plan and" in paused.output and str(wanted) in paused.output
    assert paused.ran >= ROOT and not paused.ran & (DISK | INITRAMFS)
    assert answer(wanted, test_keys) == 2
    resumed = offline.built("small-image")
    assert resumed.ran == SIGN | DISK | POLICY | INITRAMFS
    for name in ("small-image-small.ipedisk", "small-image-small.erofs.verity-sig"):
        assert (second.deploy / name).read_bytes() == (first.deploy / name).read_bytes(), name


def test_wrong_answer_of_offline_signing_is_refused(second, foreign_keys, need, tmp_path) -> None:
    need("openssl")
    wanted = tmp_path / "wanted"
    offline = second.with_settings(**{"SSTATE_MIRROR": "", "IPE_SIGNING": "plan", "IPE_SIGNATURES": str(wanted)})
    assert not offline.bitbake("small-image", "-c", "ipe_sign").ok
    assert answer(wanted, foreign_keys) == 1
    again = offline.bitbake("small-image", "-c", "ipe_sign")
    assert not again.ok and again.ran == SIGN and not (second.deploy / "small-image-small.erofs.roothash.p7s").exists()


def test_signatures_made_offline_serve_builders_that_have_the_keys(second) -> None:
    offline = second.with_settings(IPE_SIGNING="plan", IPE_POLICY_KEY="", IPE_VERITY_KEY="", IPE_MODULE_KEY="")
    assert offline.built("small-image").ran == set()


def test_multiconfig_shares_root_policy_and_kernel_and_makes_two_disks(first, tmp_path) -> None:
    configurations = {
        name: {"TMPDIR": f"{tmp_path}/multi/tmp-{name}", "IPE_COMMAND_LINE": f"console=ttyS0 panic=-1 systemd.machine_id={name}"}
        for name in ("slot-a", "slot-b")
    }
    settings = {**first.settings, "BBMULTICONFIG": "slot-a slot-b", "BB_HASHSERVE_DB_DIR": str(tmp_path / "hashes")}
    builder = Builder(tmp_path / "multi", first.tree, settings, configurations)
    run = builder.built("mc:slot-a:small-image", "mc:slot-b:small-image")
    names = [task.split(":", 1)[1] for task in run.ran]
    assert sorted(names.count(task) for task in DISK) == [2, 2]
    for task in (*ROOT, *SIGN, "ipe-policy:do_deploy", "linux-yocto:do_compile", "ipe-initramfs:do_deploy"):
        assert names.count(task) == 1, (task, run.output)
    disks = [builder.topdir / f"tmp-{name}/deploy/images/small/small-image-small.ipedisk" for name in configurations]
    assert disks[0].read_bytes() != disks[1].read_bytes()
    roots = [disk.with_name("small-image-small.erofs").read_bytes() for disk in disks]
    assert roots[0] == roots[1]


def test_test_keys_do_not_make_the_kernel_again(second) -> None:
    keys = {f"IPE_{role}_{kind}": "" for role in ("POLICY", "VERITY", "MODULE") for kind in ("KEY", "CERT")}
    builder = second.with_settings(SSTATE_MIRROR="", IPE_ALLOW_TEST_KEYS="1", IPE_POLICY_KERNEL_CONFIG="")
    settings = {name: value for name, value in builder.settings.items() if name not in keys and name != "IPE_TRUSTED_CERTS"}
    builder = Builder(builder.topdir, builder.tree, settings)
    include = second.topdir / "conf/test-keys.inc"
    include.parent.mkdir(parents=True)
    shutil.copyfile(Path(__file__).parents[2] / "meta-ipe/conf/ipe-test-keys.inc", include)
    builder = builder.with_settings(TEST_KEYS="conf/test-keys.inc")
    assert builder.built("ipe-keys-test", "-c", "create_keys").ran == {"ipe-keys-test:do_create_keys"}
    made = builder.built("small-image", "-c", "ipe_disk")
    assert "linux-yocto:do_configure" in made.ran
    assert builder.built("small-image", "-c", "ipe_disk").tasks == ()


def test_initramfs_images_and_other_images_get_none_of_our_tasks(second) -> None:
    run = second.with_settings(IMAGE_FSTYPES="ext4", SSTATE_MIRROR="").built("small-image")
    assert "small-image:do_image_ext4" in run.ran and not any("ipe" in task for task in run.ran)
