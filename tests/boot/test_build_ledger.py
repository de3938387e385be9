"""A ledger named in the configuration reaches the build's own audit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipe_build.audit.findings import Verdict
from ipe_build.policy.ledger import Ledger, render_ledger
from ipe_build.policy.parser import parse
from tests.fixtures.demo import ipe_build

pytestmark = pytest.mark.slow
KEY = 'name = "ipe-policy"\n'


@pytest.mark.parametrize(("version", "verdict"), [("0.0.9", Verdict.FAIL), ("0.0.0", Verdict.PASS)])
def test_a_build_is_told_whether_devices_would_take_its_policy(demo_config: Path, tmp_path: Path, version: str, verdict: Verdict) -> None:
    text = f"policy_name=ipe-policy policy_version={version}\nDEFAULT action=DENY\n".encode()
    policy = parse(text).policy
    assert policy is not None
    (tmp_path / "policies.ledger").write_bytes(render_ledger(Ledger().record(policy, text)))
    config = demo_config.with_name(f"{tmp_path.name}.toml")
    old = demo_config.read_text()
    assert old.count(KEY) == 1
    config.write_text(old.replace(KEY, f'{KEY}ledger = "{tmp_path}/policies.ledger"\n'))
    done = ipe_build("build", "-c", config, "-o", tmp_path / "out", "--no-boot")
    assert done.returncode == 0, done.stderr + done.stdout
    found = [one for one in json.loads((tmp_path / "out/audit.json").read_text())["findings"] if one["check"] == "device-policy-ledger"]
    assert [one["verdict"] for one in found] == [verdict]
