"""How fast policies are parsed and linted: `python benchmarks/policy.py`. Times are processor time of this process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from ipe_build.policy.diff import compare
from ipe_build.policy.lint import check
from ipe_build.policy.model import Policy
from ipe_build.policy.parser import parse

_OPERATIONS = ("EXECUTE", "KMODULE", "FIRMWARE", "POLICY")
_SWITCHES = ("boot_verified=TRUE", "dmverity_signature=TRUE", "fsverity_signature=FALSE", "dmverity_signature=FALSE")


def policy_text(number: int, rules: int, rng: random.Random) -> bytes:
    """Returns a policy of so many rules: half pin a digest, half have two properties."""
    lines = [f"policy_name=p{number} policy_version=1.{number % 100}.0", "DEFAULT action=DENY"]
    for _ in range(rules):
        op = rng.choice(_OPERATIONS)
        pinned = f"fsverity_digest=sha256:{rng.randbytes(32).hex()}"
        lines.append(f"op={op} {pinned if rng.random() < 0.5 else ' '.join(rng.choices(_SWITCHES, k=2))} action=ALLOW")
    return "\n".join(lines).encode()


def pinned_text(rules: int) -> bytes:
    """Returns a policy of so many rules, each with a digest of its own."""
    head = b"policy_name=p policy_version=1.0.0\nDEFAULT action=DENY\n"
    return head + b"".join(b"op=EXECUTE fsverity_digest=sha256:%064x action=ALLOW\n" % number for number in range(rules))


def seconds(work: Callable[[], object]) -> float:
    """Returns the processor time of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def parsed(text: bytes) -> Policy:
    """Returns the policy of a text that is accepted."""
    policy = parse(text).policy
    assert policy is not None
    return policy


def main() -> None:
    """Prints one line a measurement."""
    rng = random.Random(1)
    many = [policy_text(number, 20, rng) for number in range(10_000)]
    print(f"parse          10,000 policies of 20 rules: {seconds(lambda: [parse(text) for text in many]):.2f} s")
    print(f"parse and lint 10,000 policies of 20 rules: {seconds(lambda: [check(text) for text in many] and None):.2f} s")
    for count in (12_500, 25_000, 50_000, 100_000):
        text = pinned_text(count)
        policy = parsed(text)
        times = [seconds(lambda text=text: parse(text)), seconds(lambda text=text: check(text)), seconds(lambda p=policy: compare(p, p))]
        print(f"{count:7,} digest rules: parse {times[0]:.2f} s, parse and lint {times[1]:.2f} s, compare {times[2]:.2f} s")


if __name__ == "__main__":
    main()
