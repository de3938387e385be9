"""What runs again and what comes from sstate: BitBake's own run queue, setscene, hash equivalence and multiconfig over the whole layer.

Every builder has a folder of its own; they share one sstate mirror and one hash equivalence store, as an organisation's do. `ran` is what
BitBake said it started. The deny twin of "runs nothing again" is each test's exact set of what does run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ipe_build.attest.dsse import parse_envelope
from ipe_build.cli import main
from tests.fixtures.bitbake import Builder, make_rootfs, processes_of, wait_for_processes_of

pytestmark = pytest.mark.slow

DISK = {"small-image:do_ipe_disk", "small-image:do_ipe_audit"}
SIGN = {"small-image:do_ipe_sign"}
ROOT = {"small-image:do_rootfs", "small-image:do_image_erofs", "small-image:do_image_complete"}
POLICY = {"ipe-policy:do_compile", "ipe-policy:do_deploy"}
UPDATE = {"small-image:do_ipe_update"}
UPDATE_POLICY = {"small-image:do_ipe_update_policy"}
INITRAMFS = {"ipe-initramfs:do_compile", "ipe-initramfs:do_deploy"}
UNSHARED = "do_configure", "do_compile", "do_install"
"""Tasks that OE-core too leaves out of sstate: on a new builder they run for each recipe that something else makes run."""


def shared(ran: set[str]) -> set[str]:
    """Those of the tasks whose results go to sstate, or are a step of the image."""
    return {task for task in ran if not task.endswith(UNSHARED)}


def test_second_builder_runs_none_of_our_tasks(first_builder, second) -> None:
    run = second.built("small-image")
    assert run.ran == set()
    assert run.reused >= DISK | SIGN | {"small-image:do_image_complete", "ipe-policy:do_deploy", "linux-yocto:do_deploy"}
    for name in ("small-image-small.ipedisk", "small-image-small.erofs.roothash.p7s", "small-image-small.audit.json", "ipe-policy.p7b"):
        assert (second.deploy / name).read_bytes() == (first_builder.deploy / name).read_bytes(), name


def test_second_builder_without_the_mirror_makes_the_same_bytes(first_builder, second) -> None:
    run = second.with_settings(SSTATE_MIRROR="").built("small-image")
    assert run.ran >= ROOT | SIGN | DISK and not run.reused
    for name in ("small-image-small.ipedisk", "small-image-small.erofs.verity", "small-image-small.audit.json"):
        assert (second.deploy / name).read_bytes() == (first_builder.deploy / name).read_bytes(), name


def test_build_again_runs_nothing_and_no_process_outlives_a_run(second) -> None:
    second.built("small-image")
    assert processes_of(second.topdir) == {}
    assert second.built("small-image").tasks == ()
    assert processes_of(second.topdir) == {}


def test_process_that_outlives_a_run_would_be_found(tmp_path) -> None:
    for words, folder in ((["sleep", "60"], tmp_path), (["sh", "-c", "sleep 60; :", str(tmp_path)], Path("/"))):
        with subprocess.Popen(words, cwd=folder, start_new_session=True) as process:
            try:
                while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # in the middle of its exec it has no words yet
                    time.sleep(0.01)
                assert process.pid in processes_of(tmp_path)
                with pytest.raises(AssertionError, match="left over by a run"):
                    wait_for_processes_of(tmp_path, 0.2)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
    assert processes_of(tmp_path) == {}


def test_changed_policy_makes_policy_initramfs_and_disk_never_rootfs_or_kernel(first_builder, second) -> None:
    run = second.with_settings(**{"IPE_POLICY_VERSION__pn-ipe-policy": "0.0.2"}).built("small-image")
    assert shared(run.ran) == shared(POLICY | INITRAMFS | DISK)
    assert not any(task.startswith("linux-yocto:") for task in run.ran)
    assert run.reused >= SIGN | {"small-image:do_image_complete", "linux-yocto:do_deploy"}
    assert (second.deploy / "small-image-small.ipedisk").read_bytes() != (first_builder.deploy / "small-image-small.ipedisk").read_bytes()
    assert (second.deploy / "small-image-small.erofs").read_bytes() == (first_builder.deploy / "small-image-small.erofs").read_bytes()


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


def test_offline_signing_pauses_and_resumes_where_it_stopped(first_builder, second, test_keys, need, tmp_path) -> None:
    need("openssl")
    wanted = tmp_path / "wanted"
    settings = {"SSTATE_MIRROR": "", "IPE_SIGNING": "plan", "IPE_SIGNATURES": str(wanted)}
    settings |= {f"IPE_{role}_KEY": "" for role in ("POLICY", "VERITY", "MODULE")}
    offline = second.with_settings(**settings)
    paused = offline.bitbake("small-image", "-k")
    assert not paused.ok and "IPE_SIGNING is plan:" in paused.output and str(wanted) in paused.output
    assert paused.ran >= ROOT and not paused.ran & (DISK | INITRAMFS)
    assert answer(wanted, test_keys) == 2
    resumed = offline.built("small-image")
    assert resumed.ran == SIGN | DISK | POLICY | INITRAMFS
    for name in ("small-image-small.ipedisk", "small-image-small.erofs.verity-sig"):
        assert (second.deploy / name).read_bytes() == (first_builder.deploy / name).read_bytes(), name


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


def test_sealed_image_has_no_key_and_a_new_root_seals_the_same_kernel_again(second, sealed_kernel, need, tmp_path) -> None:
    none = {f"IPE_{role}_{kind}": "" for role in ("POLICY", "VERITY", "MODULE") for kind in ("KEY", "CERT")}
    settings = {"IPE_SEALED": "1", "IPE_TRUSTED_CERTS": "", "SMALL_KERNEL": str(sealed_kernel.image), "SSTATE_MIRROR": ""}
    builder = second.with_settings(**none, **settings)
    refused = builder.bitbake("small-image")
    assert not refused.ok and "set IPE_ROOT_IMAGE" in refused.output
    builder = builder.with_settings(IPE_ROOT_IMAGE="small-image")
    run = builder.built("small-image")
    assert run.ran >= ROOT | DISK | {"small-image:do_ipe_seal", "linux-yocto:do_configure"}
    assert not any(task.startswith("ipe-policy:") for task in run.ran) and not run.ran & SIGN
    kernel = (builder.deploy / "small-image-small.kernel").read_bytes()
    changed = builder.with_settings(SMALL_ROOTFS=str(make_rootfs(tmp_path / "rootfs", need("busybox"), "changed\n")))
    assert changed.built("small-image").ran == ROOT | DISK | INITRAMFS | {"small-image:do_ipe_seal"}
    assert (builder.deploy / "small-image-small.kernel").read_bytes() != kernel
    assert (builder.deploy / "bzImage").read_bytes() == sealed_kernel.image.read_bytes()


def test_uki_is_signed_after_the_image_and_a_new_certificate_reruns_only_it(second, test_keys, foreign_keys, need) -> None:
    stub = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
    sbverify = need("sbverify")
    pairs = test_keys.pair("policy"), foreign_keys.pair("policy")
    for number, pair in enumerate(pairs):
        settings = {"IPE_SECUREBOOT_KEY": pair.uri, "IPE_SECUREBOOT_CERT": str(pair.certificate), "IPE_UKI_STUB": str(stub)}
        settings |= {"IMAGE_CLASSES": "ipe-image ipe-uki ipe-disk ipe-audit"}
        run = second.with_settings(**settings).built("small-image")
        assert shared(run.ran) == DISK | {"small-image:do_ipe_uki"}
        uki = second.deploy / "small-image-small.uki.efi"
        signed = [subprocess.run([sbverify, "--cert", one.certificate, uki], capture_output=True).returncode == 0 for one in pairs]
        assert signed == [number == 0, number == 1]


ATTEST = {"small-image:do_ipe_attest"}


def attesting(builder: Builder, keys, **more: str) -> Builder:
    """The same builder, which signs a statement too."""
    pair = keys.pair("verity")
    settings = {"IPE_ATTESTATION_KEY": pair.uri, "IPE_ATTESTATION_CERT": str(pair.certificate)}
    return builder.with_settings(IMAGE_CLASSES="ipe-image ipe-disk ipe-audit ipe-attest", **(settings | more))


def statement_verifies(builder: Builder, trusted: Path) -> bool:
    place = builder.deploy / "small-image-small.provenance.dsse.json"
    return (
        main(["attest", "statement", str(builder.deploy), "--statement", str(place), "--verify", "--others", "--trusted", str(trusted)])
        == 0
    )


def test_statement_is_signed_last_shared_and_names_what_was_made_from_what(second, test_keys, foreign_keys, tmp_path) -> None:
    builder = attesting(second, test_keys)
    assert shared(builder.built("small-image").ran) == ATTEST
    place = builder.deploy / "small-image-small.provenance.dsse.json"
    statement = json.loads(parse_envelope(place.read_bytes()).payload)
    subjects = {one["name"].removeprefix("small-image-small.") for one in statement["subject"]}
    assert subjects == {
        *("ipedisk", "ipedisk.bmap", "ipedisk.zst", "erofs.roothash.p7s", "erofs.verity-sig", "audit.json", "audit.sarif"),
    }
    materials = {one["name"] for one in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert materials == {"root-filesystem", "hash-tree", "boot-policy", "kernel", "initramfs", "device-policy"}
    assert str(builder.topdir) not in json.dumps(statement)
    assert statement_verifies(builder, test_keys.root.certificate) and not statement_verifies(builder, foreign_keys.root.certificate)
    # Another certificate: another statement, and nothing else.
    foreign = attesting(builder, foreign_keys)
    assert foreign.built("small-image").ran == ATTEST and statement_verifies(foreign, foreign_keys.root.certificate)
    # A third builder has the first statement from sstate, and it holds for the files that it has.
    third = Builder(
        tmp_path / "third",
        builder.tree,
        {**builder.settings, "SSTATE_MIRROR": f"{builder.topdir}/sstate-cache {second.settings['SSTATE_MIRROR']}"},
    )
    assert third.built("small-image").ran == set() and statement_verifies(third, test_keys.root.certificate)
    disk = third.deploy / "small-image-small.ipedisk"
    disk.write_bytes(disk.read_bytes()[:-1] + b"\1")
    assert not statement_verifies(third, test_keys.root.certificate)


def test_statement_signed_offline_is_the_same_statement(second, test_keys, need, tmp_path) -> None:
    need("openssl")
    wanted = tmp_path / "wanted"
    offline = attesting(second, test_keys, IPE_SIGNING="plan", IPE_SIGNATURES=str(wanted), IPE_ATTESTATION_KEY="")
    paused = offline.bitbake("small-image")
    assert not paused.ok and "IPE_SIGNING is plan:" in paused.output and shared(paused.ran) == ATTEST
    assert answer(wanted, test_keys) == 1
    assert shared(offline.built("small-image").ran) == ATTEST
    place = offline.deploy / "small-image-small.provenance.dsse.json"
    first = place.read_bytes()
    online = attesting(second.with_settings(SSTATE_MIRROR=second.settings["SSTATE_MIRROR"]), test_keys)
    assert online.built("small-image", "-C", "ipe_attest").ran == ATTEST and place.read_bytes() == first


def test_missing_attestation_key_is_named(second, test_keys) -> None:
    for name in ("KEY", "CERT"):
        run = attesting(second, test_keys, **{f"IPE_ATTESTATION_{name}": ""}).bitbake("small-image", "-c", "ipe_attest")
        assert not run.ok and f"IPE_ATTESTATION_{name} is not set" in run.output


def test_spdx_document_lists_what_the_tasks_after_the_image_made(second, tmp_path) -> None:
    builder = second.with_settings(IMAGE_CLASSES="ipe-image ipe-disk ipe-audit create-spdx-image-3.0")
    for _builder in range(2):
        run = builder.built("small-image")
        assert run.ran == {"small-image:do_create_image_spdx"}
        rows = json.loads((builder.topdir / "tmp/deploy/spdx/small-image.image.json").read_text())
        listed = {row["name"].removeprefix("small-image-small."): row for row in rows}
        assert {"erofs.roothash.p7s", "erofs.verity-sig", "ipedisk", "ipedisk.bmap", "ipedisk.zst"} < listed.keys()
        assert any(name.endswith(".erofs.roothash") for name in listed) and not any("audit" in name for name in listed)
        assert (listed["ipedisk"]["build"], listed["ipedisk"]["purpose"]) == ("ipe_disk", "diskImage")
        for row in rows:
            assert hashlib.sha256((builder.deploy / row["name"]).read_bytes()).hexdigest() == row["sha256"]
        # A second one, which has the image's list from sstate.
        builder = Builder(tmp_path / "third", builder.tree, {**builder.settings, "SSTATE_MIRROR": second.settings["SSTATE_MIRROR"]})


def rauc_info(rauc: Path, bundle: Path, root: Path, keyring: Path) -> subprocess.CompletedProcess[str]:
    """What RAUC says of a bundle, by the device's own system.conf with another keyring; it checks the signature first."""
    text = (root / "etc/rauc/system.conf").read_text()
    config = bundle.with_suffix(".conf")
    config.write_text(re.sub("^path=.*$", f"path={keyring}", text, flags=re.MULTILINE))
    return subprocess.run([rauc, "-c", config, "info", "--output-format=json", bundle], capture_output=True, text=True)


def test_slots_bring_their_files_into_the_root_and_make_the_updates(second, test_keys, foreign_keys, need) -> None:
    need("sfdisk")
    pair = test_keys.pair("module")
    settings = {"IPE_SLOTS": "1", "IPE_UPDATE_COMPATIBLE": "board", "IPE_UPDATE_KEYRING": str(test_keys.root.certificate)}
    settings |= {"IPE_UPDATE_FORMATS": "rauc swupdate", "IPE_UPDATE_KEY": pair.uri, "IPE_UPDATE_CERT": str(pair.certificate)}
    settings |= {"ASSUME_PROVIDED__append": " rauc-native"}
    builder = second.with_settings(**settings)
    run = builder.built("small-image")
    assert shared(run.ran) == ROOT | SIGN | DISK | UPDATE | {"ipe-slot:do_package"}
    table = json.loads(
        subprocess.run(["sfdisk", "--json", builder.deploy / "small-image-small.ipedisk"], capture_output=True, check=True).stdout
    )
    parts = ("esp", "root", "root-verity", "root-verity-sig")
    assert [one["name"] for one in table["partitiontable"]["partitions"]] == [f"{part}-{slot}" for slot in "ab" for part in parts]
    root = builder.topdir / "tmp/work/small-image/rootfs"
    assert (root / "usr/lib/ipe/ipe-slot").stat().st_mode & 0o111
    assert "compatible=board" in (root / "etc/rauc/system.conf").read_text() and (root / "etc/hwrevision").read_text() == "board 1.0\n"
    assert (root / "etc/rauc/keyring.pem").read_bytes() == test_keys.root.certificate.read_bytes()
    update = builder.deploy / "small-image-small.update"
    assert {"manifest.raucm", "sw-description", "root.img", "esp.img", "root-verity.img", "root-verity-sig.img"} <= {
        one.name for one in update.iterdir()
    }
    assert (update / "root.img").read_bytes() == (builder.deploy / "small-image-small.erofs").read_bytes()
    assert (builder.deploy / "small-image-small.swu").read_bytes()[:6] == b"070702"
    bundle = builder.deploy / "small-image-small.raucb"
    said = rauc_info(need("rauc"), bundle, root, test_keys.root.certificate)
    assert said.returncode == 0, said.stderr
    info = json.loads(said.stdout)
    assert (info["compatible"], info["version"]) == ("board", "1")
    assert {name for image in info["images"] for name in image} == {"esp", "root", "verity", "signature"}
    assert rauc_info(need("rauc"), bundle, root, foreign_keys.root.certificate).returncode != 0
    # A new version of the same build: the update alone.
    again = builder.with_settings(IPE_UPDATE_VERSION="2").built("small-image")
    assert again.ran == UPDATE and b'version = "2"' in (update / "sw-description").read_bytes()
    wrong = builder.with_settings(IPE_UPDATE_FORMATS="zip").bitbake("small-image")
    assert not wrong.ok and "IPE_UPDATE_FORMATS is 'zip'; wanted" in wrong.output


def test_policies_of_an_update_name_the_old_root_and_the_new_one_and_rise_above_the_ledger(first_builder, second, tmp_path) -> None:
    ledger, old = tmp_path / "ledger.json", tmp_path / "old.roothash"
    ledger.write_text(json.dumps({"format": 1, "policies": {"ipe-policy": [{"version": "4.0.0", "sha256": "ab" * 32}]}}))
    old.write_text("0" * 64 + "\n")
    settings = {"IMAGE_CLASSES__append": " ipe-update-policy", "IPE_UPDATE_LEDGER": str(ledger), "IPE_UPDATE_OLD_ROOTHASH": str(old)}
    builder = second.with_settings(**settings)
    assert builder.built("small-image").ran == UPDATE_POLICY
    new = (builder.deploy / "small-image-small.erofs.roothash").read_text().strip()
    folder = builder.deploy / "small-image-small.policies"

    def roots(state: str) -> tuple[str, set[str]]:
        text = (folder / state / "ipe-policy.pol").read_text()
        assert (folder / state / "ipe-policy.p7b").stat().st_size > len(text)
        return re.findall(r"policy_version=(\S+)", text)[0], set(re.findall(r"dmverity_roothash=sha256:(\w+)", text))

    assert roots("in-flight") == ("4.0.1", {"0" * 64, new}) and roots("final") == ("4.0.2", {new})
    assert '"4.0.2"' in (builder.deploy / "small-image-small.policies.json").read_text() and "4.0.1" not in ledger.read_text()
    # Another image in the field, another ledger: the policies again, and nothing else; the same of both: nothing.
    assert builder.built("small-image").tasks == ()
    old.write_text("1" * 64 + "\n")
    assert builder.built("small-image").ran == UPDATE_POLICY and roots("in-flight") == ("4.0.1", {"1" * 64, new})
    ledger.write_text(ledger.read_text().replace("4.0.0", "7.0.0"))
    assert builder.built("small-image").ran == UPDATE_POLICY and roots("final")[0] == "7.0.2"


def test_flash_files_lie_beside_the_disk(first_builder) -> None:
    names = {path.name for path in first_builder.deploy.iterdir()}
    assert {"small-image-small.ipedisk", "small-image-small.ipedisk.bmap", "small-image-small.ipedisk.zst"} <= names


def test_multiconfig_shares_root_policy_and_kernel_and_makes_two_disks(first_builder, tmp_path) -> None:
    configurations = {
        name: {"TMPDIR": f"{tmp_path}/multi/tmp-{name}", "IPE_COMMAND_LINE": f"console=ttyS0 panic=-1 systemd.machine_id={name}"}
        for name in ("slot-a", "slot-b")
    }
    settings = {**first_builder.settings, "BBMULTICONFIG": "slot-a slot-b", "BB_HASHSERVE_DB_DIR": str(tmp_path / "hashes")}
    builder = Builder(tmp_path / "multi", first_builder.tree, settings, configurations)
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
