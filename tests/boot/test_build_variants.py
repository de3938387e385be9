"""Builds that differ from the demo in one thing each, booted: the thing holds, and everything else still does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.demo import ipe_build


@pytest.fixture
def variant(demo_config: Path, tmp_path: Path, need: Callable[[str], Path]) -> Callable[..., tuple[Path, dict[str, dict[str, object]]]]:
    """`variant((old, new), …)`: builds and boots the demo with these lines changed; returns the output and the results by id."""
    need("qemu-system-x86_64")

    def built(*changes: tuple[str, str]) -> tuple[Path, dict[str, dict[str, object]]]:
        text = demo_config.read_text()
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        config = demo_config.with_name(f"{tmp_path.name}.toml")
        config.write_text(text)
        done = ipe_build("build", "-c", config, "-o", tmp_path / "out")
        assert done.returncode == 0, done.stderr + done.stdout
        evidence = json.loads((tmp_path / "out/evidence.json").read_text())
        return tmp_path / "out", {one["id"]: one for one in (*evidence["probes"], *evidence["boots"])}

    return built


def test_a_policy_pinned_to_the_root_hash_is_carried_by_the_initramfs(
    variant: Callable[..., tuple[Path, dict[str, dict[str, object]]]],
) -> None:
    output, results = variant(
        ('template = "signed-verity"', 'template = "pinned-roothash"'),
        ('place = "root"', 'place = "initramfs"'),
        ("destructive = true", "destructive = false"),
    )
    root_hash = (output / "demo.erofs.roothash").read_text().strip()
    assert f"dmverity_roothash=sha256:{root_hash}" in (output / "ipe-policy.pol").read_text()
    assert "dmverity_signature" not in (output / "ipe-policy.pol").read_text()
    assert results["run-application"]["observed"] == "allowed"
    assert str(results["run-copy"]["observed"]).startswith("denied")


def test_without_cap_mac_admin_nobody_changes_policy_or_enforcement(
    variant: Callable[..., tuple[Path, dict[str, dict[str, object]]]],
) -> None:
    _, results = variant(
        ('drop_capabilities = ["CAP_SYS_RAWIO", "CAP_SYS_PTRACE"]', 'drop_capabilities = ["CAP_MAC_ADMIN"]'),
        ("destructive = true", "destructive = false"),
    )
    assert "EPERM" in str(results["enforce-off"]["observed"])
    assert "EPERM" in str(results["policy-newer"]["observed"]) or results["policy-newer"]["skipped"]
    assert results["run-application"]["observed"] == "allowed"


def test_compressed_modules_and_root_hash_from_the_command_line(variant: Callable[..., tuple[Path, dict[str, dict[str, object]]]]) -> None:
    output, results = variant(
        ('compression = "none"', 'compression = "zstd"'),
        ('root_hash = "embedded"', 'root_hash = "command-line"'),
        ('filesystem = "erofs"', 'filesystem = "squashfs"'),
    )
    assert results["module-signed"]["observed"] == "allowed"
    assert results["foreign-signature"]["observed"] == results["foreign-signature"]["expected"]
    assert (output / "demo.squashfs.roothash").is_file()


def test_a_finished_image_is_taken_as_it_is(demo_config: Path, demo_build: Path, tmp_path: Path) -> None:
    text = demo_config.read_text()
    for old, new in (
        ('source = "../build/demo-rootfs"', f'source = "{demo_build}/demo.erofs"'),
        ('modules = "/usr/lib/modules"', 'modules = ""'),
        ('place = "root"', 'place = "initramfs"'),
        ("probes = true", "probes = false"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    head, _, rest = text.partition("# Owners and permissions that differ")
    config = demo_config.with_name(f"{tmp_path.name}.toml")
    config.write_text(head + rest[rest.index("[verity]") :])
    done = ipe_build("build", "-c", config, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/demo.erofs").read_bytes() == (demo_build / "demo.erofs").read_bytes()
    assert (tmp_path / "out/demo.erofs.roothash").read_text() == (demo_build / "demo.erofs.roothash").read_text()
