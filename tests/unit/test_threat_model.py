"""docs/threat-model.md and docs/attestation.md name only what exists: tests, probes, boots, checks and commands."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from ipe_build.audit.checks import CHECKS
from ipe_build.boot.damage import DAMAGES, FIRMWARE
from ipe_build.boot.probes import PROBES
from ipe_build.boot.secure_boot_proof import SECURE_BOOTS
from ipe_build.cli import VERBS

ROOT = Path(__file__).parents[2]
PAGES = ("threat-model.md", "attestation.md")
_CODE = re.compile(r"`([^`\n]+)`")
_NAMED = {
    "probe": {probe.id for probe in PROBES},
    "boot": {damage.id for damage in (*DAMAGES, FIRMWARE, *(row.damage for row in SECURE_BOOTS))},
    "check": {check.id for check in CHECKS},
}


def words_of(page: str) -> list[str]:
    """Returns everything between backticks; a name may be broken over two lines by nobody."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return _CODE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def sub_verbs(verb: str) -> set[str]:
    """Returns the sub-verbs of a verb, empty when it has none."""
    module = next(row.module for row in VERBS if row.name == verb)
    parser = argparse.ArgumentParser()
    importlib.import_module(f"ipe_build.cli.{module}").configure(parser)
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name for action in actions for name in action.choices}


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page: str):
    named = [word for word in words_of(page) if word.startswith("tests/")]
    for word in named:
        path, _, name = word.partition("::")
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^\s*def {re.escape(name)}\(", source, re.MULTILINE), word
    if page == "threat-model.md":
        assert len(named) > 30


@pytest.mark.parametrize("page", PAGES)
def test_probes_boots_and_checks_that_are_named_exist(page: str):
    found = 0
    for word in words_of(page):
        kind, _, name = word.partition(" ")
        if kind in _NAMED and name:
            assert name in _NAMED[kind], word
            found += 1
    if page == "threat-model.md":
        assert found > 40


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_named_exist(page: str):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    verbs = {row.name for row in VERBS}
    commands = re.findall(r"ipe-build ([a-z]+)(?: ([a-z][a-z-]*))?", text)
    assert commands
    for verb, sub in commands:
        if verb not in verbs:
            pytest.fail(f"ipe-build {verb} {sub}")
        known = sub_verbs(verb)
        assert not known or not sub or sub in known, f"ipe-build {verb} {sub}"


def test_a_name_that_does_not_exist_is_noticed():
    assert "run-copies" not in _NAMED["probe"]
    assert "statements" not in sub_verbs("attest")
    assert {"measure", "verify", "statement", "snp", "manifest"} <= sub_verbs("attest")


def test_every_threat_actor_of_ipe_has_its_place():
    text = " ".join((ROOT / "docs/threat-model.md").read_text(encoding="utf-8").lower().split())
    for actor in (
        "physical access",
        "local network access",
        "deployment system",
        "compromised internal systems",
        "malicious or compromised end users",
        "remote compromise",
    ):
        assert actor in text, actor
