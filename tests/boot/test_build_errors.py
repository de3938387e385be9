"""What can go wrong around a build: one clear error each, the exit status of the contract, the last good output in its place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.demo import ROOT, ipe_build


@pytest.fixture
def last_good(demo_build: Path, tmp_path: Path) -> Path:
    """A finished output folder that must survive."""
    folder = tmp_path / "out"
    shutil.copytree(demo_build, folder)
    return folder


def contents(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def check_one_error(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def changed(config: Path, old: str, new: str) -> Path:
    text = config.read_text()
    assert old in text
    target = config.with_name(f"changed-{os.getpid()}-{abs(hash((old, new)))}.toml")
    target.write_text(text.replace(old, new))
    return target


def test_a_missing_tool_names_the_package(demo_config: Path, last_good: Path, tmp_path: Path) -> None:
    before = contents(last_good)
    done = ipe_build("build", "-c", demo_config, "-o", last_good, PATH=str(tmp_path), IPE_BUILD_ONLY_PATH="1")
    check_one_error(done, 3, "was not found in PATH", "apt-get install")
    assert contents(last_good) == before


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('source = "../build/demo-rootfs"', 'source = "../build/absent"', "build/absent"),
        ('source = "demo.toml"', 'source = "absent.toml"', "absent.toml"),
        ('source = "/usr/src/linux-source-6.12.tar.xz"', 'source = "/usr/src/absent.tar.xz"', "absent.tar.xz"),
        ('template = "signed-verity"', 'template = "file:absent.j2"', "absent.j2"),
        ('name = "ipe-policy"', 'name = "ipe-policy"\nledger = "absent.ledger"', "absent.ledger"),
    ],
)
def test_an_unreadable_input_is_named(demo_config: Path, last_good: Path, old: str, new: str, word: str) -> None:
    before = contents(last_good)
    done = ipe_build("build", "-c", changed(demo_config, old, new), "-o", last_good, "--no-boot")
    check_one_error(done, 2, word)
    assert contents(last_good) == before


def test_a_policy_that_cannot_do_what_it_says_ends_the_build(demo_config: Path, last_good: Path) -> None:
    before = contents(last_good)
    template = demo_config.with_name("short-digest.j2")
    template.write_text(
        "policy_name={{ name }} policy_version={{ version }}\nDEFAULT action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n"
        "op=EXECUTE dmverity_roothash=sha256:00 action=ALLOW\n"
    )
    config = changed(demo_config, 'template = "signed-verity"', 'template = "file:short-digest.j2"')
    done = ipe_build("build", "-c", config, "-o", last_good, "--no-boot")
    check_one_error(done, 2, "ipe-policy.pol:4", "digest")
    assert contents(last_good) == before


def test_a_folder_that_is_no_output_of_ours_is_not_touched(demo_config: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    done = ipe_build("build", "-c", demo_config, "-o", tmp_path / "home", "--no-boot")
    check_one_error(done, 2, "not an earlier output of ours")
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "thesis.tex"]


@pytest.mark.parametrize("size", ["2m", "12m"])
def test_a_full_disk_leaves_the_last_good_output(demo_config: Path, tmp_path: Path, size: str) -> None:
    """On a small tmpfs in a mount namespace of its own: 2 MiB is full at the kernel, 12 MiB at the disk image."""
    script = f"""
        set -e
        mount -t tmpfs -o size={size} tmpfs {tmp_path}
        mkdir {tmp_path}/out
        echo last good > {tmp_path}/out/manifest.json
        {sys.executable} -m ipe_build build -c {demo_config} -o {tmp_path}/out --no-boot && status=0 || status=$?
        ls -A {tmp_path} {tmp_path}/out
        cat {tmp_path}/out/manifest.json
        exit $status
    """
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    done = subprocess.run(
        [*namespace, "bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    check_one_error(done, 2, "no space left")
    assert done.stdout.split() == f"{tmp_path}: out {tmp_path}/out: manifest.json last good".split()


def test_an_interrupted_build_leaves_the_last_good_output(demo_config: Path, last_good: Path, tmp_path: Path) -> None:
    before = contents(last_good)
    process = subprocess.Popen(
        [sys.executable, "-m", "ipe_build", "build", "-c", str(demo_config), "-o", str(last_good)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "disk image" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=30) == 130
    assert "error: interrupted" in rest
    assert "Traceback" not in rest
    assert contents(last_good) == before
    time.sleep(0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_test_key_is_refused_for_production(demo_config: Path, demo_build: Path, tmp_path: Path, need: Callable[[str], Path]) -> None:
    production = changed(demo_config, 'profile = "development"', 'profile = "production"')
    check_one_error(ipe_build("build", "-c", production, "-o", tmp_path / "out", "--no-boot"), 2, "needs a key of its own")
    keys = tmp_path / "keys"
    assert ipe_build("keys", "create", keys).returncode == 0
    text = production.read_text()
    named = "".join(
        f'[keys.{role}]\nkey = "file:{keys}/{role}.key.pem"\ncertificate = "{keys}/{role}.cert.pem"\n'
        for role in ("policy", "verity", "module")
    )
    production.write_text(text.replace("[kernel]", f"{named}\n[kernel]", 1))
    check_one_error(ipe_build("build", "-c", production, "-o", tmp_path / "out", "--no-boot"), 2, "TEST")
    assert not (tmp_path / "out").exists()
