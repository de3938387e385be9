"""The JSON Schema of the audit's report, against reports of every verdict and against what is none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ipe_build.audit.findings import Verdict
from ipe_build.audit.schema import report_schema
from ipe_build.cli import main
from tests.fixtures.audit_report import report_with


def complaints(value: object) -> list[str]:
    return [error.message for error in Draft202012Validator(report_schema()).iter_errors(value)]


def test_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(report_schema())


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_report_of_every_check_is_valid(verdict: Verdict) -> None:
    assert complaints(report_with({"hash-tree": verdict, "test-keys": verdict}).to_json()) == []


def without_counts(value: dict[str, Any]) -> None:
    del value["counts"]


def one_more(value: dict[str, Any]) -> None:
    value["findings"][0]["colour"] = "green"


def other_verdict(value: dict[str, Any]) -> None:
    value["findings"][0]["verdict"] = "perhaps"


def other_severity(value: dict[str, Any]) -> None:
    value["findings"][0]["severity"] = "fatal"


def no_reason(value: dict[str, Any]) -> None:
    value["findings"][0]["why"] = ""


def odd_id(value: dict[str, Any]) -> None:
    value["findings"][0]["check"] = "Hash Tree"


def negative(value: dict[str, Any]) -> None:
    value["counts"]["pass"] = -1


@pytest.mark.parametrize("change", [without_counts, one_more, other_verdict, other_severity, no_reason, odd_id, negative])
def test_what_is_no_report_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    value = copy.deepcopy(report_with().to_json())
    change(value)
    assert complaints(value)


def test_the_command_line_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == report_schema()


def test_no_image_and_no_schema_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit"]) == 2
    assert "IMAGE" in capsys.readouterr().err
