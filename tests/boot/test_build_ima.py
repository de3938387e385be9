"""The demo with its files signed for IMA and EVM: the whole flow from one configuration, booted and probed; and what it refuses before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.host import Host
from ipe_build.image.contents import list_image
from tests.fixtures.demo import ipe_build
from tests.fixtures.ima import IMA_FEATURES

Configured = Callable[..., Path]
DEVICE = '[policy.device]\ntemplate = "signed-verity"'


@pytest.fixture
def configured(demo_config: Path, tmp_path: Path) -> Configured:
    """`configured((old, new), …)`: the demo's configuration with `[ima] files = "all"` and these lines changed."""

    def write(*changes: tuple[str, str]) -> Path:
        text = demo_config.read_text()
        for old, new in (('files = "none"', 'files = "all"'), *changes):
            assert old in text, old
            text = text.replace(old, new, 1)
        config = demo_config.with_name(f"{tmp_path.name}.toml")
        config.write_text(text)
        return config

    return write


@pytest.mark.boot
@pytest.mark.slow
def test_demo_with_ima_and_evm_boots_runs_what_is_signed_and_says_so(configured: Configured, host: Host, need, tmp_path: Path) -> None:
    need("qemu-system-x86_64")
    config = configured(
        ("evm = false", "evm = true"),
        ('# features = ["hardening", "probes"]', f"features = {json.dumps(IMA_FEATURES)}"),
        (DEVICE, f'{DEVICE}\nvariables = {{ allow_ima_policy = "true" }}'),
        ("destructive = true", "destructive = false"),
    )
    done = ipe_build("build", "-c", config, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr + done.stdout
    files = [row for row in list_image(tmp_path / "out/demo.erofs", host) if row.mode & 0o170000 == 0o100000]
    assert len(files) > 30
    assert all({"security.ima", "security.evm"} <= dict(row.xattrs).keys() for row in files)
    assert "ima_appraise=off" not in done.stderr
    foreseen = json.loads((tmp_path / "out/audit.json").read_text())["entries"][0]
    assert (foreseen["boots"], foreseen["enforces"]) == ("yes", "yes"), foreseen
    evidence = json.loads((tmp_path / "out/evidence.json").read_text())
    results = {one["id"]: one for one in evidence["probes"]}
    assert results["run-application"]["observed"] == "allowed"
    assert str(results["run-copy"]["observed"]).startswith("denied")
    assert results["protect-library"]["decided_by"] == "IMA appraisal"
    booted = ipe_build("boot", tmp_path / "out/demo.raw", "--ima-policy", "code", "--no-destructive", "--json")
    assert booted.returncode == 0, booted.stderr
    assert {one["id"]: one for one in json.loads(booted.stdout)["probes"]}["protect-library"]["decided_by"] == "IMA appraisal"
    again = ipe_build("build", "-c", config, "-o", tmp_path / "again", "--no-boot")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again/demo.raw").read_bytes() == (tmp_path / "out/demo.raw").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ((), "the device policy denies op=POLICY"),
        ((('variables = { allow_certificates = "true" }', ""),), "the boot policy denies op=X509_CERT"),
        ((("evm = false", "evm = true"),), "[ima] needs CONFIG_EVM_LOAD_X509"),
        ((('policy = "code"', 'policy = "kode"'),), "there is no IMA policy 'kode'"),
        ((('profile = "development"', 'profile = "production"'),), "needs a key of its own"),
    ],
)
def test_what_would_fail_on_the_device_is_said_before_anything_is_made(
    changes: tuple[tuple[str, str], ...], message: str, configured: Configured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "-c", str(configured(*changes)), "-o", str(tmp_path / "out"), "--no-boot"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
