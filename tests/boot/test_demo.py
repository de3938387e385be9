"""The whole flow on the demo: what it makes, what others' tools say of it, that it is reproducible, that it boots and denies."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.attest.manifest import verify_folder
from ipe_build.errors import VerificationError
from tests.fixtures.demo import EPOCH, ipe_build, lay_demo

ROOT_TYPES = {
    "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709": "root",
    "2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5": "root-verity",
    "41092B05-9FC8-4523-994F-2DEF0408B176": "root-verity-sig",
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B": "esp",
}


def call(*words: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)  # type: ignore[call-overload,no-any-return]


def test_the_demo_boots_allows_and_denies_as_expected(
    demo_build: Path, demo_config: Path, need: Callable[[str], Path], tmp_path: Path
) -> None:
    need("qemu-system-x86_64")
    output = tmp_path / "demo"
    done = ipe_build("build", "-c", demo_config, "-o", output)
    assert done.returncode == 0, done.stderr + done.stdout
    evidence = json.loads((output / "evidence.json").read_text())
    assert evidence["as_expected"] is True
    assert evidence["subject"]["image_sha256"] == hashlib.sha256((output / "demo.raw").read_bytes()).hexdigest()
    probes = {probe["id"]: probe for probe in evidence["probes"]}
    boots = {boot["id"]: boot for boot in evidence["boots"]}
    skipped = {one["id"]: one["skipped"] for one in (*probes.values(), *boots.values()) if one["skipped"]}
    assert skipped.keys() == {"initramfs-frozen", "policy-any-key"}, "only what is for sealed images"
    for allowed in ("run-program", "run-dynamic", "run-application", "module-signed", "policy-newer"):
        assert probes[allowed]["observed"] == "allowed"
    for denied in (
        "run-copy", "loader-maps-library", "protect-copy", "module-unsigned", "module-foreign", "module-copy",
        "policy-unsigned", "policy-foreign", "policy-older", "policy-same",
    ):  # fmt: skip
        assert probes[denied]["observed"].startswith("denied"), denied
    assert "ipe_op=EXECUTE" in " ".join(probes["run-copy"]["measured"]["records"])
    assert set(boots) >= {"flip-init", "flip-application", "flip-hash-tree", "flip-signature", "foreign-signature"}
    assert f"{len(probes) + len(boots) - 2} as expected, 0 not as expected, 2 skipped" in done.stdout


def test_two_builds_in_different_folders_give_the_same_bytes(demo_build: Path, tmp_path: Path) -> None:
    config = lay_demo(tmp_path / "elsewhere")
    output = tmp_path / "again"
    done = ipe_build("build", "-c", config, "-o", output, "--no-boot")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in demo_build.iterdir())
    assert sorted(path.name for path in output.iterdir()) == names
    audits = [json.loads((folder / "audit.json").read_text()) for folder in (demo_build, output)]
    assert audits[0]["findings"] == audits[1]["findings"]
    for name in names:
        assert (demo_build / name).read_bytes() == (output / name).read_bytes(), name


def test_another_source_date_epoch_gives_another_image(demo_build: Path, demo_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "later"
    text = demo_config.read_text().replace('source = "../build', f'source = "{demo_config.parents[1]}/build')
    config = tmp_path / "demo.toml"
    shutil.copy(demo_config, tmp_path)
    config.write_text(text.replace("[verity]", '[verity]\nsalt = "00ff"'))
    done = ipe_build("build", "-c", config, "-o", output, "--no-boot")
    assert done.returncode == 0, done.stderr
    assert (output / "demo.erofs.roothash").read_text() != (demo_build / "demo.erofs.roothash").read_text()


def test_the_manifest_binds_every_file(demo_build: Path, tmp_path: Path) -> None:
    verify_folder(demo_build)
    manifest = json.loads((demo_build / "manifest.json").read_text())
    bound = {one["path"] for one in manifest["artefacts"]}
    assert bound == {path.name for path in demo_build.iterdir()} - {"manifest.json", "provenance.dsse.json"}
    assert manifest["verity"]["root_hash"] == (demo_build / "demo.erofs.roothash").read_text().strip()
    assert manifest["source_date_epoch"] == int(EPOCH)
    copy = tmp_path / "copy"
    shutil.copytree(demo_build, copy)
    with (copy / "ipe-policy.pol").open("ab") as file:
        file.write(b"#\n")
    with pytest.raises(VerificationError, match=r"ipe-policy\.pol"):
        verify_folder(copy)
    assert ipe_build("attest", "manifest", demo_build).returncode == 0
    refused = ipe_build("attest", "manifest", copy)
    assert refused.returncode == 1
    assert "ipe-policy.pol" in refused.stderr


def test_veritysetup_agrees_with_tree_and_root_hash(demo_build: Path, need: Callable[[str], Path]) -> None:
    tool = need("veritysetup")
    root_hash = (demo_build / "demo.erofs.roothash").read_text().strip()
    data, tree = demo_build / "demo.erofs", demo_build / "demo.erofs.verity"
    assert call(tool, "verify", data, tree, root_hash).returncode == 0
    wrong = root_hash[:-1] + ("0" if root_hash[-1] != "0" else "1")
    assert call(tool, "verify", data, tree, wrong).returncode != 0


def test_openssl_verifies_root_hash_and_policy(demo_build: Path, need: Callable[[str], Path], tmp_path: Path) -> None:
    openssl = need("openssl")
    payload = tmp_path / "payload"
    payload.write_text((demo_build / "demo.erofs.roothash").read_text().strip())
    bundle = demo_build / "certificates.pem"
    options = ["-inform", "der", "-noverify", "-certfile", bundle, "-nointern", "-binary"]
    signature = demo_build / "demo.erofs.roothash.p7s"
    assert call(openssl, "smime", "-verify", "-in", signature, "-content", payload, *options).returncode == 0
    payload.write_text("0" * 64)
    assert call(openssl, "smime", "-verify", "-in", signature, "-content", payload, *options).returncode != 0
    out = tmp_path / "policy"
    assert call(openssl, "smime", "-verify", "-in", demo_build / "ipe-policy.p7b", *options, "-out", out).returncode == 0
    assert out.read_bytes() == (demo_build / "ipe-policy.pol").read_bytes()
    assert (
        call(
            openssl, "smime", "-verify", "-in", demo_build / "ipe-policy.p7b", "-inform", "der", "-CAfile", bundle, "-purpose", "any"
        ).returncode
        == 0
    )


def test_sfdisk_reads_the_partitions_and_their_uuids(demo_build: Path, need: Callable[[str], Path]) -> None:
    sfdisk = need("sfdisk")
    table = json.loads(call(sfdisk, "--json", demo_build / "demo.raw").stdout)["partitiontable"]
    by_kind = {ROOT_TYPES[one["type"]]: one for one in table["partitions"]}
    assert set(by_kind) == {"esp", "root", "root-verity", "root-verity-sig"}
    root_hash = bytes.fromhex((demo_build / "demo.erofs.roothash").read_text())
    assert UUID(by_kind["root"]["uuid"]) == UUID(bytes=root_hash[:16])
    assert UUID(by_kind["root-verity"]["uuid"]) == UUID(bytes=root_hash[16:])
    assert call(sfdisk, "--verify", demo_build / "demo.raw").returncode == 0
    raw = (demo_build / "demo.raw").read_bytes()
    for kind, name in (("root", "demo.erofs"), ("root-verity", "demo.erofs.verity"), ("root-verity-sig", "demo.erofs.verity-sig")):
        start, content = by_kind[kind]["start"] * 512, (demo_build / name).read_bytes()
        assert raw[start : start + len(content)] == content


def test_the_signature_partition_is_what_the_specification_wants(demo_build: Path) -> None:
    raw = (demo_build / "demo.erofs.verity-sig").read_bytes()
    assert len(raw) % 4096 == 0
    value = json.loads(raw.rstrip(b"\0"))
    assert value["rootHash"] == (demo_build / "demo.erofs.roothash").read_text().strip()
    assert base64.b64decode(value["signature"]) == (demo_build / "demo.erofs.roothash.p7s").read_bytes()
    manifest = json.loads((demo_build / "manifest.json").read_text())
    signer = next(one for one in manifest["certificates"] if "root hash" in one["signs"])
    assert value["certificateFingerprint"] == signer["sha256"]


def test_fsck_erofs_finds_nothing_wrong(demo_build: Path, need: Callable[[str], Path]) -> None:
    assert call(need("fsck.erofs"), demo_build / "demo.erofs").returncode == 0


def test_systemd_dissect_and_blkid_recognise_the_image(demo_build: Path, need: Callable[[str], Path]) -> None:
    dissected = call(need("systemd-dissect"), "--json=short", demo_build / "demo.raw")
    if dissected.returncode == 0:  # it needs loop devices, which a container may lack; blkid does not
        root = next(one for one in json.loads(dissected.stdout)["mounts"] if one["designator"] == "root")
        assert (root["fstype"], root["verity"], root["architecture"]) == ("erofs", "signed", "x86-64")
    probed = call(need("blkid"), "-p", "-o", "export", demo_build / "demo.raw")
    assert "PTTYPE=gpt" in probed.stdout
    assert "TYPE=erofs" in call(need("blkid"), "-p", "-o", "export", demo_build / "demo.erofs").stdout
    assert "TYPE=DM_verity_hash" in call(need("blkid"), "-p", "-o", "export", demo_build / "demo.erofs.verity").stdout


def test_the_audit_of_the_good_image_has_no_error(demo_build: Path) -> None:
    done = ipe_build("audit", demo_build / "demo.raw", "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report == json.loads((demo_build / "audit.json").read_text())
    failed = {one["check"] for one in report["findings"] if one["verdict"] == "fail" and one["severity"] != "note"}
    assert failed == {"test-keys", "root-module-loader"}


def test_no_private_key_is_in_the_output(demo_build: Path) -> None:
    for path in demo_build.iterdir():
        assert b"PRIVATE KEY-----\n" not in path.read_bytes(), path.name
