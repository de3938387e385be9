"""A whole build with slots and all flash files: booted, audited, bound by the manifest, and taken by the real tools."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.attest.manifest import verify_folder
from ipe_build.signing.certificates import KeySet
from tests.fixtures.demo import ipe_build

CHANGES = (
    ("slots = false", "slots = true"),
    ("sparse = false", "sparse = true"),
    ("destructive = true", "destructive = false"),
    ("firmware = false", "firmware = true"),
    ('version = "1"', 'version = "2026.11"'),
)


@pytest.fixture(scope="module")
def built(demo_config: Path, need: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, with slots and sparse partition files, booted."""
    need("qemu-system-x86_64")
    text = demo_config.read_text()
    for old, new in CHANGES:
        assert old in text, old
        text = text.replace(old, new, 1)
    folder = tmp_path_factory.mktemp("flash-build")
    config = demo_config.with_name(f"{folder.name}.toml")
    config.write_text(text)
    done = ipe_build("build", "-c", config, "-o", folder / "out")
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "out"


@pytest.mark.boot
@pytest.mark.slow
def test_an_image_with_slots_boots_and_denies(built: Path) -> None:
    evidence = json.loads((built / "evidence.json").read_text())
    assert evidence["as_expected"] is True
    probes = {probe["id"]: probe["observed"] for probe in evidence["probes"]}
    assert probes["run-application"] == "allowed" and probes["run-copy"].startswith("denied")
    firmware = next(boot for boot in evidence["boots"] if boot["id"] == "firmware")
    assert firmware["observed"] == firmware["expected"] and not firmware["skipped"], "from the first of two EFI system partitions"


def test_the_audit_takes_the_second_slot_for_what_it_is(built: Path) -> None:
    findings = json.loads((built / "audit.json").read_text())["findings"]
    failed = {one["check"] for one in findings if one["verdict"] == "fail" and one["severity"] != "note"}
    assert failed == {"test-keys", "root-module-loader"}


def test_the_manifest_binds_the_flash_files(built: Path) -> None:
    verify_folder(built)
    bound = {one["path"] for one in json.loads((built / "manifest.json").read_text())["artefacts"]}
    wanted = {"demo.raw.bmap", "demo.raw.zst"}
    wanted |= {f"demo.raw.partitions/{name}" for name in ("gpt.img", "flash.sh", "root-a.simg", "esp-b.simg")}
    wanted |= {f"demo.raw.update/{name}" for name in ("manifest.raucm", "sw-description", "root.img", "esp.img", "root-verity-sig.img")}
    assert wanted <= bound


def test_the_root_has_what_updates_need(built: Path, need: Callable[[str], Path]) -> None:
    for path, wanted in (
        ("/usr/lib/ipe/ipe-slot", b"adopt()"),
        ("/etc/rauc/system.conf", b"compatible=demo"),
        ("/etc/hwrevision", b"demo 1.0"),
    ):
        done = subprocess.run([need("dump.erofs"), "--cat", f"--path={path}", built / "demo.erofs"], capture_output=True)
        # The older dump.erofs has no --cat; small files lie in the image as they are.
        content = done.stdout if done.returncode == 0 else (built / "demo.erofs").read_bytes()
        assert wanted in content


def test_rauc_makes_a_bundle_of_the_update_folder_as_it_is(
    built: Path, need: Callable[[str], Path], test_keys: KeySet, tmp_path: Path
) -> None:
    rauc, pair = need("rauc"), test_keys.pair("module")
    words = [rauc, "bundle", f"--cert={pair.certificate}", f"--key={pair.key}", built / "demo.raw.update", tmp_path / "demo.raucb"]
    assert subprocess.run(words, capture_output=True).returncode == 0
    (tmp_path / "system.conf").write_text(
        f"[system]\ncompatible=demo\nbootloader=noop\n[keyring]\npath={test_keys.root.certificate}\ncheck-purpose=codesign\n"
    )
    info = [rauc, "-c", tmp_path / "system.conf", "info", "--output-format=json", tmp_path / "demo.raucb"]
    said = json.loads(subprocess.run(info, capture_output=True, check=True).stdout)
    assert (said["compatible"], said["version"]) == ("demo", "2026.11")
    images = {name: one for image in said["images"] for name, one in image.items()}
    assert set(images) == {"esp", "root", "verity", "signature"}
    assert images["root"]["size"] == (built / "demo.erofs").stat().st_size


@pytest.mark.parametrize(("set_of", "fine"), [("stable,a", True), ("stable,b", True), ("stable,c", False)])
def test_swupdate_takes_the_image_for_each_slot(
    built: Path, need: Callable[[str], Path], test_keys: KeySet, tmp_path: Path, set_of: str, fine: bool
) -> None:
    pair = test_keys.pair("module")
    words = ["update", "swupdate", built / "demo.raw", "--compatible", "demo", "--update-version", "2026.11"]
    words += ["--key", pair.uri, "--cert", pair.certificate, "-o", tmp_path / "demo.swu"]
    assert ipe_build(*words).returncode == 0
    check = [need("swupdate"), "-c", "-i", tmp_path / "demo.swu", "-H", "demo:1.0", "-k", test_keys.root.certificate]
    check += ["--cert-purpose", "codeSigning", "-e", set_of]
    done = subprocess.run(check, capture_output=True, cwd=tmp_path, env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}, timeout=60)
    assert (done.returncode == 0) is fine, done.stdout + done.stderr


def test_make_gives_what_the_single_verbs_give(built: Path, need: Callable[[str], Path], test_keys: KeySet, tmp_path: Path) -> None:
    need("rauc")
    pair = test_keys.pair("module")
    words = ["--compatible", "demo", "--update-version", "1"]
    signed = ["--key", pair.uri, "--cert", pair.certificate]
    both = ["--updater", "rauc", "--updater", "swupdate"]
    assert ipe_build("update", "make", built / "demo.raw", *words, *signed, *both, "-o", tmp_path / "all").returncode == 0
    assert ipe_build("update", "config", built / "demo.raw", *words, "-o", tmp_path / "folder").returncode == 0
    assert ipe_build("update", "swupdate", built / "demo.raw", *words, *signed, "-o", tmp_path / "one.swu").returncode == 0
    assert (tmp_path / "all.swu").read_bytes() == (tmp_path / "one.swu").read_bytes()
    assert {one.name: one.read_bytes() for one in (tmp_path / "all.update").iterdir()} == {
        one.name: one.read_bytes() for one in (tmp_path / "folder").iterdir()
    }
    info = subprocess.run([need("rauc"), "info", "--no-verify", tmp_path / "all.raucb"], capture_output=True, text=True)
    assert info.returncode == 0 and "Compatible: \t'demo'" in info.stdout, info.stdout + info.stderr


def test_swupdate_images_are_the_same_twice(built: Path, test_keys: KeySet, tmp_path: Path) -> None:
    pair = test_keys.pair("module")
    made = []
    for name in ("one.swu", "two.swu"):
        words = ["update", "swupdate", built / "demo.raw", "--compatible", "demo", "--update-version", "1", "-o", tmp_path / name]
        assert ipe_build(*words, "--key", pair.uri, "--cert", pair.certificate).returncode == 0
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
