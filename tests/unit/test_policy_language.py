"""Parser, evaluator, renderer, ledger: what they say about single policies."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ipe_build.errors import InputError, IpeBuildError, VerificationError
from ipe_build.policy.diff import compare
from ipe_build.policy.evaluate import evaluate
from ipe_build.policy.facts import NO_FILE, Digest, Facts
from ipe_build.policy.ledger import Ledger, parse_ledger, render_ledger
from ipe_build.policy.model import Policy
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Action, Operation
from ipe_build.policy.render import PROFILES, render
from ipe_build.policy.versions import KernelVersion

HEAD = b"policy_name=p policy_version=1.0.0\nDEFAULT action=DENY\n"
ROOT = Digest(b"sha256", b"\xab" * 32)
ROOT_B = Digest(b"sha256", b"\xcd" * 32)


def policy(text: bytes) -> Policy:
    result = parse(text)
    assert result.accepted, result.problem
    assert result.policy is not None
    return result.policy


@pytest.mark.parametrize(
    ("text", "answer", "line", "column"),
    [
        (HEAD + b"op=EXECUTE boot_verified=TRUE action=PERMIT\n", "EBADMSG", 3, 31),
        (HEAD + b"op=EXECUTE action=ALLOW boot_verified=TRUE\n", "EBADMSG", 3, 12),
        (HEAD + b"\n\n \t op=EXECUTE dmverity_roothash=sha256:abc action=ALLOW\n", "EINVAL", 5, 15),
        (HEAD + b"op=EXECUTE fsverity_digest=sha256:zz action=ALLOW\n", "EINVAL", 3, 12),
        (HEAD + b"DEFAULT action=ALLOW\n", "EBADMSG", 3, 1),
        (b"policy_name=p policy_version=65536.0.0\n", "ERANGE", 1, 15),
        (b"policy_name=a/b policy_version=1.0.0\nDEFAULT action=DENY\n", "EACCES", 1, 13),
        (b"# c\npolicy_name=" + b"x" * 256 + b" policy_version=1.0.0\nDEFAULT action=DENY\n", "ENAMETOOLONG", 2, 13),
        (b"", "EBADMSG", 0, 0),
    ],
)
def test_refusal_names_the_place(text: bytes, answer: str, line: int, column: int) -> None:
    result = parse(text)
    assert (result.accepted, result.errno) == (False, answer)
    assert result.problem is not None
    assert (result.problem.line, result.problem.column) == (line, column)
    assert result.problem.message
    assert result.problem.hint


def test_near_miss_gets_a_suggestion() -> None:
    problem = parse(HEAD + b"op=EXECUTE dmverity_signture=TRUE action=ALLOW\n").problem
    assert problem is not None
    assert "dmverity_signature=TRUE" in problem.hint


def test_boot_policy_with_a_slash_in_its_name_parses() -> None:
    text = b"policy_name=a/b policy_version=1.0.0\nDEFAULT action=DENY\n"
    assert parse(text, role=Role.BOOT).accepted
    assert not parse(text, role=Role.DEVICE).accepted


def test_digits_without_end_are_an_overflow_and_no_traceback() -> None:
    assert parse(b"policy_name=p policy_version=" + b"9" * 100_000 + b".0.0\n").errno == "ERANGE"
    assert parse(b"policy_name=p policy_version=" + b"0" * 100_000 + b"1.0.0\nDEFAULT action=DENY\n").accepted


@pytest.mark.parametrize(("text", "version"), [("6.12", (6, 12, 0)), ("6.12.117-amd64", (6, 12, 117)), ("7.2.13", (7, 2, 13))])
def test_kernel_version_is_read(text: str, version: tuple[int, int, int]) -> None:
    assert KernelVersion.of_text(text) == KernelVersion(*version)


@pytest.mark.parametrize("text", ["", "6", "six.twelve", "6.12.", "-1.2", "6.12.1.1"])
def test_what_is_no_kernel_version_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        KernelVersion.of_text(text)


def test_first_matching_rule_decides_and_the_others_say_why_not() -> None:
    text = HEAD + b"op=EXECUTE boot_verified=TRUE action=ALLOW\nop=EXECUTE dmverity_roothash=sha256:" + b"cd" * 32
    text += b" action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\nop=EXECUTE action=DENY\n"
    decision = evaluate(policy(text), Operation.EXECUTE, Facts(root_hash=ROOT, root_hash_signed=True))
    assert (decision.action, decision.by.line) == (Action.ALLOW, 5)
    assert [miss.rule.line for miss in decision.misses] == [3, 4]
    assert "initramfs" in decision.misses[0].reason
    assert str(ROOT) in decision.misses[1].reason
    denied = evaluate(policy(text), Operation.EXECUTE, Facts(root_hash=ROOT_B, root_hash_signed=True))
    assert (denied.action, denied.by.line) == (Action.DENY, 4)


def test_property_whose_symbol_is_off_matches_neither_way() -> None:
    text = HEAD + b"op=EXECUTE dmverity_signature=TRUE action=ALLOW\nop=EXECUTE dmverity_signature=FALSE action=ALLOW\n"
    for facts in (Facts(root_hash=ROOT, root_hash_signed=True), Facts()):
        assert evaluate(policy(text), Operation.EXECUTE, facts).action is Action.ALLOW
        off = evaluate(policy(text), Operation.EXECUTE, facts, lambda symbol: symbol != "IPE_PROP_DM_VERITY_SIGNATURE")
        assert off.action is Action.DENY
        assert "CONFIG_IPE_PROP_DM_VERITY_SIGNATURE is off" in off.misses[0].reason


def test_buffer_is_matched_by_false_and_by_nothing_else() -> None:
    allow = policy(HEAD + b"op=KMODULE dmverity_signature=FALSE action=ALLOW\n")
    deny = policy(HEAD + b"op=KMODULE dmverity_signature=TRUE action=ALLOW\n")
    assert evaluate(allow, Operation.KMODULE, NO_FILE).action is Action.ALLOW
    assert evaluate(deny, Operation.KMODULE, NO_FILE).action is Action.DENY


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("profile", [row.name for row in PROFILES])
def test_profile_renders_a_policy_that_allows_what_it_says(profile: str, role: Role) -> None:
    text = render(profile, {"name": "ipe-policy", "version": "1.2.3", "role": role.value, "root_hashes": [("sha256", ROOT.value.hex())]})
    rendered = policy(text)
    assert (rendered.name, str(rendered.version)) == (b"ipe-policy", "1.2.3")
    trusted = {
        "allow-initramfs": Facts(boot_verified=True),
        "signed-verity": Facts(root_hash=ROOT_B, root_hash_signed=True),
        "pinned-roothash": Facts(root_hash=ROOT),
        "initramfs-then-pinned": Facts(root_hash=ROOT),
        "sealed": Facts(root_hash=ROOT),
        "fsverity-signed": Facts(fsverity_digest=ROOT_B, fsverity_signed=True),
        "permissive-then-enforce": Facts(root_hash=ROOT_B, root_hash_signed=True),
    }[profile]
    for op in (Operation.EXECUTE, Operation.KMODULE, Operation.FIRMWARE):
        assert evaluate(rendered, op, trusted).action is Action.ALLOW
        assert evaluate(rendered, op, Facts()).action is Action.DENY
        assert evaluate(rendered, op, NO_FILE).action is Action.DENY
        initramfs = evaluate(rendered, op, Facts(boot_verified=True)).action
        admits = role is Role.BOOT and (profile != "sealed" or op is Operation.EXECUTE)
        assert initramfs is (Action.ALLOW if admits or profile == "allow-initramfs" else Action.DENY)
    assert evaluate(rendered, Operation.KEXEC_IMAGE, trusted).action is Action.DENY


def test_two_root_hashes_render_a_policy_for_both_slots() -> None:
    values = {"name": "ipe-policy", "version": "2.0.0", "root_hashes": [str(ROOT), str(ROOT_B)]}
    rendered = policy(render("pinned-roothash", values))
    for digest in (ROOT, ROOT_B):
        assert evaluate(rendered, Operation.EXECUTE, Facts(root_hash=digest)).action is Action.ALLOW
    assert evaluate(rendered, Operation.EXECUTE, Facts(root_hash=Digest(b"sha256", b"\1" * 32))).action is Action.DENY


def test_keyless_boot_policy_allows_the_initramfs_alone_until_the_image_is_known() -> None:
    boot = policy(render("initramfs-then-pinned", {"name": "ipe-boot", "version": "0.0.1"}))
    sealed = policy(render("initramfs-then-pinned", {"name": "ipe-boot", "version": "0.0.2", "root_hashes": [str(ROOT)]}))
    on_root = Facts(root_hash=ROOT)
    assert evaluate(boot, Operation.EXECUTE, on_root).action is Action.DENY
    assert evaluate(sealed, Operation.EXECUTE, on_root).action is Action.ALLOW
    assert b"signature" not in sealed.to_text()


def test_a_switch_that_is_off_leaves_the_operation_to_the_default() -> None:
    values = {"name": "p", "version": "1.0.0", "allow_modules": False}
    assert not policy(render("signed-verity", values)).rules_of(Operation.KMODULE)
    assert policy(render("signed-verity", values | {"allow_modules": True})).rules_of(Operation.KMODULE)


@pytest.mark.parametrize(
    "variables",
    [
        {"version": "1.0.0"},
        {"name": "p"},
        {"name": "two words", "version": "1.0.0"},
        {"name": "a/b", "version": "1.0.0"},
        {"name": "p", "version": "1.0"},
        {"name": "p", "version": "1.0.0\nDEFAULT"},
        {"name": "p", "version": "1.0.0", "root_hashes": ["sha256:00"]},
        {"name": "p", "version": "1.0.0", "root_hashes": ["SHA256:" + "00" * 32]},
        {"name": "p", "version": "1.0.0", "root_hashes": 5},
        {"name": "p", "version": "1.0.0", "fsverity_digests": ["sha384:" + "00" * 48]},
        {"name": "p", "version": "1.0.0", "role": "other"},
        {"name": "p", "version": "1.0.0", "allow_modules": "perhaps"},
    ],
)
def test_wrong_variables_are_refused(variables: dict[str, object]) -> None:
    with pytest.raises(InputError):
        render("signed-verity", variables)


def test_pinned_profile_wants_a_root_hash() -> None:
    with pytest.raises(InputError, match="root hash"):
        render("pinned-roothash", {"name": "p", "version": "1.0.0"})


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("policy_name={{ name }} policy_version={{ version }}\nDEFAULT action={{ undefined_one }}\n", "undefined_one"),
        ("{% if %}", "own.j2:1"),
        ("policy_name={{ name }} policy_version={{ version }}\nDEFAULT action=MAYBE\n", "EBADMSG"),
        ("{{ 1 // 0 }}", "failed"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include 'missing.j2' %}", "missing.j2"),
    ],
)
def test_wrong_template_is_one_clear_error(tmp_path: Path, source: str, part: str) -> None:
    (tmp_path / "own.j2").write_text(source)
    with pytest.raises(IpeBuildError) as error:
        render(str(tmp_path / "own.j2"), {"name": "p", "version": "1.0.0"})
    assert part in str(error.value)


def test_own_template_may_include_a_profile(tmp_path: Path) -> None:
    (tmp_path / "own.j2").write_text("{% include 'signed-verity.j2' %}op=POLICY boot_verified=TRUE action=ALLOW\n")
    rendered = policy(render(tmp_path / "own.j2", {"name": "p", "version": "1.0.0"}))
    assert len(rendered.rules) == 4
    assert policy(render(f"file:{tmp_path / 'own.j2'}", {"name": "p", "version": "1.0.0"})) == rendered


def test_ledger_takes_rising_versions_only() -> None:
    texts = {version: HEAD.replace(b"1.0.0", version) for version in (b"1.0.0", b"1.0.1", b"0.9.9")}
    ledger = Ledger().record(policy(texts[b"1.0.0"]), texts[b"1.0.0"])
    ledger = ledger.record(policy(texts[b"1.0.1"]), texts[b"1.0.1"])
    assert ledger.record(policy(texts[b"1.0.1"]), texts[b"1.0.1"]) == ledger
    assert parse_ledger(render_ledger(ledger)) == ledger
    last = ledger.last(b"p")
    assert last is not None
    assert last.sha256 == hashlib.sha256(texts[b"1.0.1"]).digest()
    for text in (texts[b"0.9.9"], texts[b"1.0.1"] + b"# changed\n"):
        with pytest.raises(VerificationError):
            ledger.record(policy(text), text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"format": 2, "policies": {}}',
        b'{"format": 1, "policies": {"p": 1}}',
        b'{"format": 1, "policies": {"p": [{"version": "1.0", "sha256": "00"}]}}',
        b'{"format": 1, "policies": {"p": [{"version": "1.0.99999999999", "sha256": "' + b"00" * 32 + b'"}]}}',
        b'{"format": 1, "policies": {"p": [{"version": "' + b"9" * 5000 + b'.0.0", "sha256": "' + b"00" * 32 + b'"}]}}',
        b"[" * 100000,
    ],
)
def test_what_is_no_ledger_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        parse_ledger(data)


def test_more_root_hashes_weaken_and_fewer_do_not() -> None:
    values = {"name": "p", "version": "1.0.0"}
    one = policy(render("pinned-roothash", values | {"root_hashes": [str(ROOT)]}))
    two = policy(render("pinned-roothash", values | {"root_hashes": [str(ROOT), str(ROOT_B)], "version": "1.0.1"}))
    wider = compare(one, two)
    assert wider.weakens
    assert wider.update_errno is None
    assert {change.op for change in wider.changes} == {Operation.EXECUTE, Operation.KMODULE, Operation.FIRMWARE}
    assert all(str(ROOT_B) in change.sentence and change.weakens for change in wider.changes)
    narrower = compare(two, one)
    assert narrower.changes
    assert not narrower.weakens
    assert narrower.update_errno == "ESTALE"


def test_other_words_with_the_same_meaning_are_no_change() -> None:
    one = policy(HEAD + b"op=EXECUTE dmverity_signature=TRUE action=ALLOW\n")
    other = policy(
        b"policy_name=p policy_version=1.0.1\nDEFAULT action=DENY\nDEFAULT op=EXECUTE action=DENY\n"
        b"op=EXECUTE boot_verified=TRUE action=DENY\nop=EXECUTE boot_verified=FALSE dmverity_signature=TRUE action=ALLOW # same\n"
        b"op=EXECUTE dmverity_signature=TRUE action=DENY\n"
    )
    assert compare(one, other).changes == ()


def test_another_name_is_no_update() -> None:
    one, other = policy(HEAD), policy(HEAD.replace(b"=p ", b"=q ").replace(b"1.0.0", b"2.0.0"))
    assert compare(one, other).update_errno == "EINVAL"


def test_missing_global_default_allows_operations_of_later_kernels() -> None:
    lines = b"".join(b"DEFAULT op=%s action=DENY\n" % op.value.encode() for op in Operation)
    changes = compare(policy(HEAD), policy(b"policy_name=p policy_version=1.0.1\n" + lines)).changes
    assert [(change.op, change.weakens) for change in changes] == [(None, True)]
