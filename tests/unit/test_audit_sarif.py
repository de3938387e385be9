"""SARIF 2.1.0: what CI systems rely on. (The whole of OASIS's own schema was met when this was written; it is not copied here.)"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import pytest

from ipe_build.audit.checks import CHECKS
from ipe_build.audit.findings import AuditReport, Finding, Severity, Verdict
from ipe_build.audit.sarif import image_uri, sarif_value
from tests.fixtures.audit_report import report_with


def run_of(report: AuditReport, image: str = "build/demo.raw") -> Any:
    value = json.loads(json.dumps(sarif_value(report, PurePath(image))).encode("utf-8"))
    assert value["version"] == "2.1.0"
    assert len(value["runs"]) == 1
    return value["runs"][0]


def test_one_rule_a_check_in_the_tables_order() -> None:
    rules = run_of(report_with())["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [check.id for check in CHECKS]
    for rule, check in zip(rules, CHECKS, strict=True):
        assert rule["defaultConfiguration"]["level"] == check.severity
        assert rule["shortDescription"]["text"].strip()
        assert rule["help"]["text"].strip()
    assert len({rule["name"] for rule in rules}) == len(rules)


def test_a_pass_is_no_result() -> None:
    assert run_of(report_with())["results"] == []


@pytest.mark.parametrize("check", ["hash-tree", "test-keys", "verity-salt"])
def test_a_failure_is_a_result_of_its_checks_level(check: str) -> None:
    run = run_of(report_with({check: Verdict.FAIL}))
    severity = next(one.severity for one in CHECKS if one.id == check)
    assert [(one["ruleId"], one["kind"], one["level"]) for one in run["results"]] == [(check, "fail", severity)]
    assert run["tool"]["driver"]["rules"][run["results"][0]["ruleIndex"]]["id"] == check
    assert run["properties"]["verdict"] == ("fail" if severity is Severity.ERROR else "pass")


def test_what_could_not_be_looked_at_is_open_and_has_no_level() -> None:
    results = run_of(report_with({"hash-tree": Verdict.UNKNOWN}))["results"]
    assert [(one["ruleId"], one["kind"], one["level"]) for one in results] == [("hash-tree", "open", "none")]


def test_a_result_points_to_the_image_and_the_part_of_it() -> None:
    result = run_of(report_with({"hash-tree": Verdict.FAIL}, subject="root", why="2 blocks differ"))["results"][0]
    place = result["locations"][0]
    assert place["physicalLocation"]["artifactLocation"] == {"uri": "build/demo.raw", "index": 0}
    assert place["logicalLocations"][0]["name"] == "root"
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "verity-root-files/root"
    assert result["message"]["text"].startswith("root: 2 blocks differ")


def test_fingerprint_is_the_same_for_another_reason_and_another_for_another_part() -> None:
    def fingerprint(subject: str, why: str) -> dict[str, str]:
        return run_of(report_with({"hash-tree": Verdict.FAIL}, subject=subject, why=why))["results"][0]["partialFingerprints"]

    assert fingerprint("root", "2 blocks differ") == fingerprint("root", "3 blocks differ")
    assert fingerprint("root", "2 blocks differ") != fingerprint("usr", "2 blocks differ")


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("build/demo.raw", "build/demo.raw"),
        ("/srv/my images/ä#1?.raw", "file:///srv/my%20images/%C3%A4%231%3F.raw"),
        ("a%b\udcff.raw", "a%25b%FF.raw"),
        ("http:x", "http%3Ax"),
    ],
)
def test_image_is_a_uri(path: str, uri: str) -> None:
    assert image_uri(PurePath(path)) == uri


def test_stray_bytes_of_a_file_name_are_escaped_and_unknown_checks_have_no_rule() -> None:
    finding = Finding("no-such-check", Severity.ERROR, Verdict.FAIL, "usr/bin/\udcff", "\udcff", "")
    result = run_of(AuditReport("x", (finding,)))["results"][0]
    assert result["message"]["text"] == "usr/bin/\\xff: \\xff"
    assert "ruleIndex" not in result
