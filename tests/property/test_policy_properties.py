"""What holds for every policy, every file and every byte."""

from __future__ import annotations

import json

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ipe_build.formats.audit_log import read_log
from ipe_build.policy.diff import compare
from ipe_build.policy.evaluate import decide, evaluate, holds
from ipe_build.policy.facts import Facts
from ipe_build.policy.findings import Target
from ipe_build.policy.learn import Knowledge, learn
from ipe_build.policy.ledger import parse_ledger
from ipe_build.policy.lint import check
from ipe_build.policy.logic import contradiction, hidden_rules, implied
from ipe_build.policy.model import Policy, Rule
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Action, Operation
from tests.fixtures.policy_strategies import DIGESTS, conditions, facts, mutated, odd_texts, policies, rules

FEW = settings(max_examples=200, deadline=None)


@FEW
@given(policies())
def test_policy_survives_the_way_through_its_text(policy: Policy) -> None:
    result = parse(policy.to_text())
    assert result.accepted
    assert result.policy is not None
    again = result.policy
    assert (again.name, again.version, set(again.defaults)) == (policy.name, policy.version, set(policy.defaults))
    assert all(again.rules_of(op) == policy.rules_of(op) for op in Operation)
    assert again.to_text() == policy.to_text()


@FEW
@given(policies(), st.sampled_from(Operation), facts())
def test_evaluation_explains_every_rule_before_the_decision(policy: Policy, op: Operation, what: Facts) -> None:
    decision = evaluate(policy, op, what)
    assert decision.by == decide(policy, op, what)
    before = list(policy.rules_of(op))
    if isinstance(decision.by, Rule):
        assert all(holds(condition, what) for condition in decision.by.conditions)
        before = before[: len(decision.misses)]
    assert [miss.rule for miss in decision.misses] == before
    assert all(miss.reason and not holds(miss.condition, what) for miss in decision.misses)


@FEW
@given(st.lists(conditions(), max_size=4).map(tuple), facts())
def test_what_is_implied_holds_and_what_contradicts_never_does(what: tuple, file: Facts) -> None:
    together = all(holds(condition, file) for condition in what)
    if contradiction(what) is not None:
        assert not together
    if together:
        assert all(holds(condition, file) for condition in implied(what))


@FEW
@given(st.lists(rules().map(lambda rule: Rule(Operation.EXECUTE, rule.conditions, rule.action)), max_size=8), facts())
def test_hidden_rule_never_decides(listed: list[Rule], file: Facts) -> None:
    hidden = [rule for rule, _earlier in hidden_rules(tuple(listed), lambda rule: contradiction(rule.conditions) is None)]
    first = next((rule for rule in listed if all(holds(condition, file) for condition in rule.conditions)), None)
    assert all(rule is not first for rule in hidden)


@settings(max_examples=150, deadline=None)
@given(policies(), policies(), st.lists(facts(), min_size=1, max_size=20))
def test_difference_names_every_operation_that_some_file_is_decided_otherwise_for(old: Policy, new: Policy, files: list[Facts]) -> None:
    changes = compare(old, new).changes
    named = {(change.op, change.weakens) for change in changes}
    for op in Operation:
        for file in files:
            if file.has_file:
                was, now = decide(old, op, file).action, decide(new, op, file).action
                if was is not now:
                    assert (op, now is Action.ALLOW) in named
    assert all(change.sentence and change.cases for change in changes)
    assert all(compare(new, old).changes for _ in changes[:1]), "a change one way is a change the other way"


@FEW
@given(policies())
def test_policy_does_not_differ_from_itself(policy: Policy) -> None:
    assert compare(policy, policy).changes == ()


@settings(max_examples=300, deadline=None)
@given(st.one_of(odd_texts(), st.binary(max_size=300)), st.sampled_from(Role))
def test_no_text_gives_a_traceback(text: bytes, role: Role) -> None:
    report = check(text, Target(role=role, stem="p"))
    assert report.result.accepted == (report.result.errno is None)
    assert report.result.accepted or report.failed
    json.dumps([finding.message for finding in report.findings])
    if report.result.policy is not None:
        for op in Operation:
            evaluate(report.result.policy, op, Facts(root_hash=DIGESTS[0]))
        compare(report.result.policy, report.result.policy)


@settings(max_examples=300, deadline=None)
@given(policies(), st.randoms(use_true_random=False))
def test_no_mutation_gives_a_traceback(policy: Policy, rng) -> None:
    text = mutated(policy.to_text(), rng)
    report = check(text)
    assert report.result.accepted or report.failed


@FEW
@given(odd_texts())
def test_text_that_parses_survives_the_way_through_the_model(text: bytes) -> None:
    result = parse(text, role=Role.BOOT)
    assume(result.policy is not None)
    assert result.policy is not None
    again = parse(result.policy.to_text(), role=Role.BOOT).policy
    assert again is not None
    assert (again.name, again.version, set(again.defaults)) == (result.policy.name, result.policy.version, set(result.policy.defaults))
    assert all(again.rules_of(op) == result.policy.rules_of(op) for op in Operation)


_RECORDS = (
    b'audit: type=1420 audit(1653364370.067:61): ipe_op=EXECUTE ipe_hook=MMAP enforcing=1 pid=1 comm="sh" path="/t/x" dev="dm-0" ino=8 '
    b'rule="DEFAULT action=DENY"',
    b'{"MESSAGE":"IPE_ACCESS ipe_op=KMODULE ipe_hook=KERNEL_LOAD enforcing=0 pid=1 comm=78 path=? dev=? ino=? '
    b'rule=\\"DEFAULT action=DENY\\""}',
    b"type=AUDIT1404 msg=audit(1653364370.067:62): enforcing=0 old_enforcing=1 auid=4294967295 ses=4294967295 "
    b"enabled=1 old-enabled=1 lsm=ipe res=1",
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.sampled_from(_RECORDS), st.binary(max_size=200)), st.randoms(use_true_random=False), st.booleans())
def test_no_log_gives_a_traceback_or_an_allow_all(line: bytes, rng, last_resort: bool) -> None:
    log = read_log(mutated(line, rng) + b"\n" + line)
    lesson = learn(log.records, Knowledge(last_resort=last_resort))
    for rule in lesson.rules:
        assert rule.conditions
        assert last_resort or any(condition.value is not False for condition in rule.conditions)


_JSON = st.recursive(
    st.none() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["format", "policies", "version", "sha256", "p"]), inner),
)


@FEW
@given(st.one_of(st.binary(max_size=100), _JSON.map(lambda value: json.dumps(value).encode())))
def test_no_ledger_gives_a_traceback(data: bytes) -> None:
    from ipe_build.errors import InputError

    try:
        parse_ledger(data)
    except InputError as error:
        assert str(error)
