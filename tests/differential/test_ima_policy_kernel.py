"""Our reading of IMA rules against a booted kernel: every template's rules, the words of its grammar, and thousands of broken lines."""

from __future__ import annotations

import errno
import random
from collections import Counter

import pytest

from ipe_build.errors import InputError
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.ima_policy import TEMPLATES, load_ima_policy, render_ima_policy
from ipe_build.policy.ima_rules import ACTIONS, HOOKS, TEMPLATES_OF_KERNEL, all_on, check_policy, check_rule
from tests.fixtures.kernel import PERMISSIVE_POLICY
from tests.fixtures.policy import packed

_WORDS = (
    *ACTIONS,
    *(f"func={name}" for name in (*HOOKS, "POST_SETATTR", "bprm_check")),
    *(f"mask={name}" for name in ("MAY_EXEC", "^MAY_READ", "MAY_WRITE", "MAY_APPEND", "MAY_RUN", "^^MAY_EXEC", "")),
    *(f"fsmagic={text}" for text in ("0x9fa0", "9FA0", "+1", "0", "0x", "g", "1" * 17, "-1")),
    *(f"fsname={text}" for text in ("erofs", "")),
    "fsuuid=01234567-89ab-cdef-0123-456789abcdef",
    "fsuuid=00000000-0000-0000-0000-000000000000",
    "fsuuid=01234567-89ab-cdef-0123-456789abcdefx",
    "fsuuid=01234567-89ab",
    *(f"{name}{op}{value}" for name in ("uid", "euid", "gid", "egid", "fowner", "fgroup") for op in "=<>" for value in ("0", "4294967295")),
    *(f"uid={value}" for value in ("+7", "-1", "4294967294", "4294967296", "18446744073709551616", "0x5", "7x")),
    *(f"obj_{name}=x" for name in ("user", "role", "type")),
    *(f"subj_{name}=x" for name in ("user", "role", "type")),
    *(f"digest_type={text}" for text in ("verity", "other")),
    *(f"appraise_type={text}" for text in ("imasig", "sigv3", "imasig|modsig", "modsig|imasig", "meta_immutable")),
    *(f"appraise_flag={text}" for text in ("check_blacklist", "anything")),
    *(f"appraise_algos={text}" for text in ("sha256", "sha256,sha512", "sha1", "sha255", "sha256,", "SHA256")),
    "permit_directio",
    "permit_directio=1",
    *(f"pcr={text}" for text in ("0", "10", "63", "64", "-1", "+5", "x", "99999999999")),
    *(f"template={text}" for text in (*TEMPLATES_OF_KERNEL, *TEMPLATES_OF_KERNEL.values(), "d-ng", "none")),
    *(f"keyrings={text}" for text in (".ima", ".ima|.evm", ".ima|", "|", ".ima||.evm")),
    *(f"label={text}" for text in ("selinux", "a|b", "a||b")),
    "#",
    "measured",
    "appraise=",
    "=",
    "func",
)
_COMMON = (
    "appraise",
    "measure",
    "func=BPRM_CHECK",
    "func=MODULE_CHECK",
    "func=FILE_CHECK",
    "appraise_type=imasig",
    "mask=MAY_EXEC",
    "fowner=0",
)


def _generated(count: int) -> list[str]:
    """Lines of a few words each; most words are ones that often go together, so that many lines are accepted."""
    rng = random.Random(20261122)
    lines = []
    for _ in range(count):
        words = [rng.choice(ACTIONS)] if rng.random() < 0.9 else []
        words += [rng.choice(_WORDS if rng.random() < 0.4 else _COMMON[2:]) for _ in range(rng.randint(0, 4))]
        if rng.random() < 0.2:
            rng.shuffle(words)
        lines.append(rng.choice((" ", " ", "\t", "  ")).join(words))
    return lines


def _cases() -> list[str]:
    rules = [line for row in TEMPLATES.values() for line in row.lines]
    pairs = [f"{action} {word}" for action in ("measure", "appraise", "dont_appraise", "audit") for word in _WORDS]
    hooks = [f"{action} func={hook} {word}" for action in ("measure", "appraise") for hook in HOOKS if hook for word in _WORDS]
    return list(
        dict.fromkeys([*rules, *_WORDS, *pairs, *hooks, "  \tmeasure", "appraise \n nonsense", "measure\0nonsense", *_generated(3000)])
    )


@pytest.mark.boot
@pytest.mark.slow
def test_our_answers_to_ima_rules_are_the_kernels(ima_kernel_factory, policy_agent) -> None:
    lines = _cases()
    blobs = [line.encode() or b" " for line in lines]
    answers = policy_agent(ima_kernel_factory(KernelTrust(PERMISSIVE_POLICY)).image, [("rules", "/rules")], {"rules": packed(blobs)})
    got = [row for row in answers.rows if row[0] == "load"]
    assert [int(row[1]) for row in got] == list(range(len(blobs)))
    differing = []
    for blob, row in zip(blobs, got, strict=True):
        refusal = check_rule(blob.decode(), all_on)
        ours = getattr(errno, refusal.errno) if refusal is not None else 0
        if ours != int(row[2]):
            differing.append((blob, ours, int(row[2])))
    assert not differing, differing[:40]
    counts = Counter(int(row[2]) for row in got)
    assert counts[0] > 700 and counts[errno.EINVAL] > 700 and counts[errno.ERANGE] > 5, counts


def test_every_template_is_accepted_and_needs_what_it_says() -> None:
    for row in TEMPLATES.values():
        data = render_ima_policy(row.name)
        assert check_policy(data, all_on) is None
        for symbol in row.needs:
            refusal = check_policy(data, lambda name, symbol=symbol: name != symbol)
            assert refusal is not None and refusal.errno == "EINVAL"


def test_policy_file_without_a_last_line_end_is_refused() -> None:
    assert check_policy(b"measure func=BPRM_CHECK\n") is None
    refusal = check_policy(b"measure func=BPRM_CHECK\nmeasure func=MMAP_CHECK")
    assert refusal is not None and refusal.line == 2
    for nothing in (b"", b"\n", b"# only a comment\n"):
        assert check_policy(nothing) is not None


def test_refused_policy_file_is_an_error_with_its_line(tmp_path) -> None:
    path = tmp_path / "ima-policy"
    path.write_text("measure func=BPRM_CHECK\nappraise func=NO_CHECK\n")
    with pytest.raises(InputError, match=r"ima-policy:2: the kernel would refuse this policy \(EINVAL\): there is no func=NO_CHECK"):
        load_ima_policy(f"file:{path}")
    with pytest.raises(InputError, match="there is no IMA policy 'kode'"):
        load_ima_policy("kode")
