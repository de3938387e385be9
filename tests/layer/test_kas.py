"""kas itself reads, resolves and locks the files of conf/kas, on git repositories made on the spot in the place of the public ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KAS = ROOT / "conf/kas"
OFFLINE = [word for step in ("repo_setup_loop", "finish_setup_repos", "repos_checkout") for word in ("--skip", step)]


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=TEST", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout of ipe-build with its kas files, in a folder where kas works."""
    folder = tmp_path / "work/ipe-build"
    shutil.copytree(KAS, folder / "conf/kas")
    git(folder, "init", "-q")
    return folder


@pytest.fixture
def upstream(tmp_path: Path) -> dict[str, str]:
    """Name to head of bitbake and oe-core in small; `tmp_path`/gitconfig leads their public addresses there."""
    heads, config = {}, ["[safe]\ndirectory = *"]
    for name, repo in yaml.safe_load((KAS / "oe-core.yml").read_text())["repos"].items():
        folder = tmp_path / f"upstream-{name}"
        (folder / "meta/conf").mkdir(parents=True)
        (folder / "meta/conf/layer.conf").write_text(f"# {name}\n")
        if name == "oe-core":
            (folder / "oe-init-build-env").write_text('mkdir -p "$1"\ncd "$1"\n')
        git(folder, "init", "-q", "-b", repo["branch"])
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", "first")
        heads[name] = git(folder, "rev-parse", "HEAD")
        config.append(f'[url "{folder}"]\ninsteadOf = {repo["url"]}')
    (tmp_path / "gitconfig").write_text("\n".join(config) + "\n")
    return heads


def kas(project: Path, *words: str) -> str:
    """What `kas WORDS` prints. Fails the test with what it says."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("KAS_", "GIT"))}
    environment = {**keep, "KAS_WORK_DIR": str(project.parent), "GITCONFIG_FILE": str(project.parents[1] / "gitconfig")}
    command = [Path(sys.executable).with_name("kas"), *words]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("machine", ["qemux86-64", "qemuarm64"])
def test_files_resolve_with_the_lock(project: Path, machine: str) -> None:
    (project.parents[1] / "gitconfig").write_text("")
    dumped = json.loads(kas(project, "dump", *OFFLINE, "--format", "json", f"conf/kas/{machine}.yml"))
    assert "meta-ipe" in dumped["repos"]["ipe-build"]["layers"]
    assert dumped["machine"] == machine and dumped["repos"]["bitbake"]["layers"] == {"bitbake": "disabled"}
    assert 'DISTRO_FEATURES:append = " ipe"' in dumped["local_conf_header"]["ipe"]
    assert "require conf/ipe-test-keys.inc" in dumped["local_conf_header"]["ipe-test-keys"]
    # Firmware starts the disk: OE-core's QEMU machines have no efi of their own (test_boot.py boots what it adds to the disk).
    assert 'MACHINE_FEATURES:append = " efi"' in dumped["local_conf_header"]["machine"]
    locked = {name: one["commit"] for name, one in dumped["overrides"]["repos"].items()}
    assert set(locked) == {name for name, repo in dumped["repos"].items() if "url" in repo} == {"bitbake", "oe-core"}
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in locked.values())


def test_overlay_alone_names_no_repository(project: Path) -> None:
    (project.parents[1] / "gitconfig").write_text("")
    dumped = json.loads(kas(project, "dump", *OFFLINE, "--format", "json", "conf/kas/ipe.yml"))
    assert list(dumped["repos"]) == ["ipe-build"] and "overrides" not in dumped


def test_lock_file_is_as_kas_writes_it(project: Path, upstream: dict[str, str]) -> None:
    lock = project / "conf/kas/oe-core.lock.yml"
    lock.unlink()
    kas(project, "lock", "conf/kas/oe-core.yml")
    written = lock.read_text()
    assert [upstream["bitbake"], upstream["oe-core"]] == re.findall(r"commit: ([0-9a-f]{40})", written)
    assert re.sub("[0-9a-f]{40}", "", written) == re.sub("[0-9a-f]{40}", "", (KAS / lock.name).read_text())


def test_checkout_takes_the_locked_revision_and_not_the_branch(project: Path, upstream: dict[str, str], tmp_path: Path) -> None:
    (project / "conf/kas/oe-core.lock.yml").unlink()
    kas(project, "lock", "conf/kas/oe-core.yml")
    for name in upstream:
        git(tmp_path / f"upstream-{name}", "commit", "-q", "--allow-empty", "-m", "second")
    kas(project, "checkout", "conf/kas/qemux86-64.yml")
    assert {name: git(project.parent / name, "rev-parse", "HEAD") for name in upstream} == upstream
    layers = (project.parent / "build/conf/bblayers.conf").read_text()
    assert "/ipe-build/meta-ipe" in layers and "/oe-core/meta" in layers
    assert 'MACHINE ??= "qemux86-64"' in (project.parent / "build/conf/local.conf").read_text()
