"""The parser against a booted kernel: fresh policies, each signed and written to securityfs ipe/new_policy."""

from __future__ import annotations

import base64
import errno
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.diff import update_answer
from ipe_build.policy.parser import parse
from tests.fixtures.policy import BOOT_POLICY, packed, policy_signer, sign_policy
from tests.fixtures.policy_strategies import mutated, odd_texts, policies

GENERATED, MUTATED = 1200, 1800
_VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "ipe-policies-linux-6.12.json").read_text())


def fresh_texts() -> tuple[list[bytes], int]:
    """Texts that no run had before, and the mutator's seed."""
    texts: list[bytes] = []

    @settings(max_examples=GENERATED, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.one_of(odd_texts(), policies().map(lambda policy: policy.to_text())))
    def collect(text: bytes) -> None:
        texts.append(text)

    collect()
    seed = random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    bases = [*texts, *(base64.b64decode(vector["policy"]) for vector in _VECTORS)]
    return [*dict.fromkeys([*texts, *(mutated(rng.choice(bases), rng) for _ in range(MUTATED))])], seed


def versioned(name: str, version: str) -> bytes:
    return f"policy_name={name} policy_version={version}\nDEFAULT action=ALLOW\n".encode()


UPDATES = (
    ("1.0.0", "u", "1.0.0", None),
    ("1.0.0", "u", "1.0.0", "ESTALE"),
    ("1.0.0", "u", "0.65535.65535", "ESTALE"),
    ("1.0.0", "u", "1.0.1", None),
    ("1.0.1", "other", "2.0.0", "EINVAL"),
    ("1.0.1", "u", "1.1.0", None),
    ("1.1.0", "u", "1.0.65535", "ESTALE"),
)
"""In this order: the version in force (of the policy u), the new text's name and version, the kernel's answer to u/update."""


@pytest.mark.boot
@pytest.mark.slow
def test_booted_kernel_answers_fresh_policies_as_the_parser(host, kernel_factory, test_keys, policy_agent) -> None:
    texts, seed = fresh_texts()
    signer = policy_signer(test_keys, host)
    kernel = kernel_factory(KernelTrust(BOOT_POLICY, (test_keys.bundle.read_bytes(),)))
    big = b"policy_name=big policy_version=1.0.0\nDEFAULT action=DENY\n" + b"# \n" * 22000
    files = {"texts": packed([sign_policy(text, signer) for text in [*texts, big]])}
    files |= {f"u{number}": sign_policy(versioned(name, version), signer) for number, (_old, name, version, _answer) in enumerate(UPDATES)}
    files["w"] = sign_policy(versioned("w", "1.0.0"), signer)
    plan = [("loads", "/texts"), *(("activate", f"/u{number}", "u") for number in range(len(UPDATES))), ("activate", "/w", "w")]
    answers = policy_agent(kernel.image, plan, files)
    updates = answers.did("activate")
    for number, (old, name, version, answer) in enumerate(UPDATES):
        kernel_says = errno.errorcode[updates[f"/u{number}"]] if updates[f"/u{number}"] else None
        assert kernel_says == answer
        if number:
            before, after = parse(versioned("u", old)).policy, parse(versioned(name, version)).policy
            assert before is not None
            assert after is not None
            assert update_answer(before, after)[0] == kernel_says
    assert updates["/w"] == errno.EINVAL, "another policy with a lower version than the active one cannot be activated"
    loads = [row for row in answers.rows if row[0] == "load"]
    assert len(loads) == len(texts) + 1
    assert int(loads[-1][2]) == errno.EMSGSIZE, "a signed policy of more than 65535 bytes"
    wrong = []
    for text, row in zip(texts, loads, strict=False):
        result = parse(text)
        kernel_says = errno.errorcode[int(row[2])] if row[2] != "0" else None
        name = result.policy.name.hex() if result.accepted and result.policy else ""
        if result.errno != kernel_says or row[3] != (name if kernel_says is None else ""):
            wrong.append((kernel_says, row[3], result.errno, name, base64.b64encode(text)))
    accepted = sum(row[2] == "0" for row in loads)
    assert not wrong, f"mutator seed {seed}; (kernel, name, ours, name, text): {wrong[:5]}"
    assert len(texts) > 2000
    assert accepted > 300
    assert len({row[2] for row in loads}) >= 6
