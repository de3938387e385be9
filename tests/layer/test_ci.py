"""The templates for image CI: valid by the vendors' own schemas, with the programs that a build needs, keeping all that it makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCHEMAS = {
    "github": ("--builtin-schema", "vendor.github-workflows"),
    "gitlab": ("--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci"),
}


def check(name: str, file: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "check_jsonschema", *SCHEMAS[name], str(file)]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize("name", SCHEMAS)
def test_templates_are_valid_by_the_vendors_schemas(name: str, tmp_path: Path) -> None:
    file = ROOT / f"conf/ci/{name}.yml"
    done = check(name, file)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(re.sub(r"^( +)(run|script):", r"\1\2s:", file.read_text(), count=1, flags=re.MULTILINE))
    assert check(name, broken).returncode == 1


@pytest.mark.parametrize("name", SCHEMAS)
def test_templates_install_what_a_build_runs_and_no_more(name: str) -> None:
    text = (ROOT / f"conf/ci/{name}.yml").read_text()
    block = re.search(r"--no-install-recommends\n((?: {6,}[a-z0-9.+ -]+\n)+?)(?= *- )", text)
    assert block
    lines = (ROOT / "conf/debian-packages.txt").read_text().splitlines()
    wanted = {line.split()[0] for line in lines if line and not line.startswith("#") and "# tests:" not in line}
    assert set(block[1].split()) == wanted


@pytest.mark.parametrize("name", SCHEMAS)
def test_templates_keep_what_failed_too(name: str) -> None:
    text = (ROOT / f"conf/ci/{name}.yml").read_text()
    for kept in ("out/", "out.failed/", "audit.html", "audit.sarif"):
        assert re.search(rf"^ +(- )?{re.escape(kept)}$", text, re.MULTILINE), kept
