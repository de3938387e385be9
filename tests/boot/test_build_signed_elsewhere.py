"""A build whose keys are elsewhere: each run asks for all that it can and stops, the next goes on, and the image is the very same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet
from ipe_build.steps.keys import make_test_keys
from tests.fixtures.demo import ipe_build

ROLES = ("policy", "verity", "module")


@pytest.fixture
def demo_keys(host: Host) -> KeySet:
    """The keys that sign the demo."""
    return make_test_keys("ipe-build", host)


@pytest.fixture
def planned(demo_config: Path, demo_keys: KeySet, tmp_path: Path) -> Path:
    """The demo's configuration with keys that are not here."""
    lines = ["[keys]", f'trusted = ["{demo_keys.root.certificate}"]']
    for role in ROLES:
        lines += [f"[keys.{role}]", f'key = "plan:{tmp_path}/to-sign"', f'certificate = "{demo_keys.pair(role).certificate}"']
    text = demo_config.read_text()
    head, _, rest = text.partition("[keys]\n")
    config = demo_config.with_name(f"{tmp_path.name}.toml")
    config.write_text(head + "\n".join(lines) + "\n" + rest)
    return config


def _answer(folder: Path, keys: KeySet, host: Host) -> list[str]:
    """Signs every digest that has no answer, with OpenSSL; returns who was asked, once for each."""
    asked = []
    by_subject = {keys.pair(role).signer(host).certificate.subject.rfc4514_string(): role for role in ROLES}
    for request in sorted(folder.glob("*.json")):
        value = json.loads(request.read_text())
        if "answer" in value and not (folder / value["answer"]).exists():
            role = by_subject[value["subject"]]
            assert value["purpose"] == role
            argv = ["openssl", "pkeyutl", "-sign", "-inkey", keys.pair(role).key, "-pkeyopt", f"digest:{value['digest_name']}"]
            host.run([*argv, "-in", request.with_suffix(".digest"), "-out", folder / value["answer"]])
            asked.append(role)
    return asked


def test_a_build_stops_for_signatures_and_goes_on_without_rebuilding(
    planned: Path, demo_build: Path, demo_keys: KeySet, host: Host, tmp_path: Path, need: Callable[[str], Path]
) -> None:
    need("openssl")
    out, kept = tmp_path / "out", tmp_path / "out.unfinished"

    first = ipe_build("build", "-c", planned, "-o", out, "--no-boot")
    assert first.returncode == 1, first.stderr
    assert "wait for signatures from elsewhere" in first.stderr
    asked = _answer(tmp_path / "to-sign", demo_keys, host)
    assert asked.count("policy") == 1
    assert asked.count("module") >= 1
    assert "verity" not in asked
    assert not out.exists()

    second = ipe_build("build", "-c", planned, "-o", out, "--no-boot")
    assert second.returncode == 1, second.stderr
    assert _answer(tmp_path / "to-sign", demo_keys, host) == ["verity"]
    inode = (kept / "demo.erofs").stat().st_ino
    assert not out.exists()

    third = ipe_build("build", "-c", planned, "-o", out, "--no-boot")
    assert third.returncode == 0, third.stderr + third.stdout
    assert (out / "demo.erofs").stat().st_ino == inode
    assert not kept.exists()
    for name in ("demo.raw", "demo.erofs.verity-sig", "ipe-policy.p7b"):
        assert (out / name).read_bytes() == (demo_build / name).read_bytes(), name


def test_a_root_that_changed_while_signatures_were_awaited_is_made_again(
    planned: Path, demo_keys: KeySet, host: Host, tmp_path: Path, need: Callable[[str], Path]
) -> None:
    need("openssl")
    text = planned.read_text()
    source = tmp_path / "added"
    source.write_text("one\n")
    assert 'source = "demo.toml"' in text
    planned.write_text(text.replace('source = "demo.toml"', f'source = "{source}"'))
    kept = tmp_path / "out.unfinished/unfinished.json"
    for _ in range(2):
        assert ipe_build("build", "-c", planned, "-o", tmp_path / "out", "--no-boot").returncode == 1
        _answer(tmp_path / "to-sign", demo_keys, host)
    before = json.loads(kept.read_text())["root_hash"]
    source.write_text("two\n")
    os.utime(source, ns=(0, 0))
    assert ipe_build("build", "-c", planned, "-o", tmp_path / "out", "--no-boot").returncode == 1
    assert json.loads(kept.read_text())["root_hash"] != before
    assert _answer(tmp_path / "to-sign", demo_keys, host) == ["verity"]
