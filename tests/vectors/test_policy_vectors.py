"""The parser against what booted kernels and the kernel's own KUnit suite answered."""

from __future__ import annotations

import base64
import errno
import json
from pathlib import Path

import pytest

from ipe_build.policy.parser import Role, parse
from tests.vectors.policy_kunit import KUNIT_CASES

_VECTORS = json.loads((Path(__file__).parent / "ipe-policies-linux-6.12.json").read_text())


def test_every_policy_gets_the_answer_of_linux_6_12() -> None:
    wrong = []
    for number, vector in enumerate(_VECTORS):
        text = base64.b64decode(vector["policy"])
        result = parse(text)
        answer = errno.errorcode[vector["errno"]] if vector["errno"] else None
        name = result.policy.name.hex() if result.accepted and result.policy else ""
        if (result.errno, name, result.accepted) != (answer, vector["name"] if answer is None else "", answer is None):
            wrong.append((number, answer, result.errno, text[:200]))
    assert not wrong
    assert len(_VECTORS) == 1200


def test_every_refusal_has_a_place_and_a_reason() -> None:
    for vector in _VECTORS:
        text = base64.b64decode(vector["policy"])
        problem = parse(text).problem
        if vector["errno"]:
            assert problem is not None
            assert problem.message
            rows = text.split(b"\n")
            assert 0 <= problem.line <= len(rows)
            if problem.line:
                assert 1 <= problem.column <= len(rows[problem.line - 1]) + 1
        else:
            assert problem is None


@pytest.mark.parametrize(("text", "answer", "claim"), KUNIT_CASES, ids=[case[2].replace(" ", "-") for case in KUNIT_CASES])
def test_kunit_case_has_the_same_answer(text: bytes, answer: str | None, claim: str) -> None:
    # The suite calls ipe_new_policy() with strlen(), as the boot policy does.
    assert parse(text.split(b"\0")[0], role=Role.BOOT).errno == answer, claim
