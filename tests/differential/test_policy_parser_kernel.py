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


@pytest.mark.boot
@pytest.mark.slow
def test_booted_kernel_answers_fresh_policies_as_the_parser(host, kernel_factory, test_keys, policy_agent) -> None:
    texts, seed = fresh_texts()
    signer = policy_signer(test_keys, host)
    kernel = kernel_factory(KernelTrust(BOOT_POLICY, (test_keys.bundle.read_bytes(),)))
    big = b"policy_name=big policy_version=1.0.0\nDEFAULT action=DENY\n" + b"# \n" * 22000
    answers = policy_agent(kernel.image, [("loads", "/texts")], {"texts": packed([sign_policy(text, signer) for text in [*texts, big]])})
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
