"""Hostile bytes: whatever a device sends, the answer is a value or a FormatError, and no change of a log goes unnoticed."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.attest.appraise import appraise
from ipe_build.attest.describe import describe
from ipe_build.attest.dsse import parse_envelope
from ipe_build.attest.predict import BANKS
from ipe_build.errors import FormatError
from ipe_build.formats.tpm_event_log import Event, EventLog, build_event_log, parse_event_log, replay
from ipe_build.formats.tpm_quote import parse_public, parse_quote, parse_signature
from tests.unit.test_attest_appraise import NONCE, REFERENCE, attest, log_of, public, quoted, sign_rsa

LOG = build_event_log(log_of())
PARSERS = ((parse_event_log, LOG), (parse_quote, attest(log_of())), (parse_public, public(0x50072)), (parse_signature, sign_rsa(NONCE)))
SIGNED = quoted(log_of())


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes, changed in a few places, cut or made longer."""
    raw = bytearray(data)
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
        raw[at] = value
    end = draw(st.integers(0, len(data)))
    return bytes(raw[: len(raw) if draw(st.booleans()) else end]) + draw(st.binary(max_size=8))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_bytes_give_a_value_or_a_format_error(data: st.DataObject) -> None:
    parse, good = data.draw(st.sampled_from(PARSERS))
    raw = data.draw(st.one_of(st.binary(max_size=200), damaged(good)))
    try:
        value = parse(raw)
    except FormatError:
        return
    if isinstance(value, EventLog):
        assert parse_event_log(build_event_log(value)) == value
        assert all(describe(event).isprintable() for event in value.events)
        assert all(len(replay(value.events, bank)) == 24 for bank in value.algorithms if bank in BANKS)


@settings(deadline=None, max_examples=100)
@given(st.one_of(st.binary(max_size=100), st.text().map(str.encode)))
def test_no_bytes_break_the_reader_of_envelopes(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse_envelope(raw)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_damaged_log_passes_with_a_true_quote_unless_it_says_the_same(data: st.DataObject) -> None:
    raw = data.draw(damaged(LOG))
    try:
        log = parse_event_log(raw)
    except FormatError:
        return
    verdict = appraise(REFERENCE, log, SIGNED)
    same = [(e.pcr, e.digests) for e in log.events if e.extends] == [(e.pcr, e.digests) for e in log_of().events]
    replayed = all(bank in log.algorithms and replay(log.events, bank) == replay(log_of().events, bank) for bank in BANKS)
    # Events of PCRs that were neither quoted nor expected are nobody's business: what counts is quoted.
    quoted_same = all(
        bank in log.algorithms
        and [replay(log.events, bank)[pcr] for pcr in (4, 7, 9, 11, 12)] == [REFERENCE.pcrs[bank][pcr] for pcr in (4, 7, 9, 11, 12)]
        for bank in BANKS
    )
    assert verdict.ok == quoted_same
    if same:
        assert replayed
        assert verdict.ok


@settings(deadline=None, max_examples=100)
@given(st.permutations(range(len(log_of().events))))
def test_reordered_events_of_one_pcr_are_refused(order: list[int]) -> None:
    log = log_of()
    shuffled = replace(log, events=tuple(replace(log.events[at], number=number) for number, at in enumerate(order)))

    def sequence(events: tuple[Event, ...], pcr: int) -> list[tuple[tuple[str, bytes], ...]]:
        return [event.digests for event in events if event.pcr == pcr]

    same = all(sequence(shuffled.events, pcr) == sequence(log.events, pcr) for pcr in (4, 7, 9, 11, 12))
    assert appraise(REFERENCE, shuffled, SIGNED).ok == same
