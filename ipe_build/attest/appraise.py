"""Judges what a device sent: is the quote fresh, signed by its key, over these PCRs, and is the boot the one that was expected.

A pure function of bytes and reference values: nothing is asked of the machine that it runs on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipe_build.attest.describe import describe
from ipe_build.attest.predict import REFERENCE_PCRS, ExpectedEvent
from ipe_build.attest.reference import ReferenceValues
from ipe_build.formats.tpm_event_log import Event, EventLog, replay, type_name
from ipe_build.formats.tpm_quote import PublicKey, Quote, QuoteSignature, is_signed_by


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: its id, whether it held, what was wanted and got."""

    id: str
    ok: bool
    wanted: str
    got: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The first event of the log that is not the expected one. `number` is its place in the log, None where one is missing."""

    number: int | None
    pcr: int
    event: str
    expected: str
    expected_digest: bytes
    got_digest: bytes

    def to_text(self) -> str:
        """Returns one line."""
        wanted = f"{self.expected} {self.expected_digest.hex()}" if self.expected_digest else self.expected
        got = self.got_digest.hex() if self.got_digest else "nothing"
        return f"PCR {self.pcr}: {self.event}: expected {wanted}, got {got}"


@dataclass(frozen=True, slots=True)
class Appraisal:
    """The verdict. `authenticated` says that a quote vouches for it; `difference` is named when the log is not as expected."""

    checks: tuple[Check, ...]
    difference: Difference | None
    authenticated: bool

    @property
    def ok(self) -> bool:
        """Returns whether every check held."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """Returns JSON's values."""
        found = self.difference
        return {
            "ok": self.ok,
            "authenticated": self.authenticated and self.ok,
            "checks": [{"id": one.id, "ok": one.ok, "wanted": one.wanted, "got": one.got} for one in self.checks],
            "first_difference": None
            if found is None
            else {
                "event": found.number,
                "pcr": found.pcr,
                "what": found.event,
                "expected": found.expected,
                "expected_digest": found.expected_digest.hex(),
                "got_digest": found.got_digest.hex(),
            },
        }


@dataclass(frozen=True, slots=True)
class SignedQuote:
    """A quote with its signature, the key that must have made it, and the nonce that was asked with.

    `restricted` says whether the key's attributes are those of an attestation key; None where they are not known (a PEM file).
    """

    quote: Quote
    signature: QuoteSignature
    key: PublicKey
    nonce: bytes
    restricted: bool | None


def appraise(reference: ReferenceValues, log: EventLog | None, signed: SignedQuote | None) -> Appraisal:
    """Returns the verdict on a quote, a log, or both. Without a log the quote must be over the reference PCRs alone.

    The log's events are compared in the banks that the quote covers, all of them: digests of another bank are anybody's word.
    """
    checks: list[Check] = []
    difference = None
    banks = reference.banks
    if signed is not None:
        checks += _signature_checks(signed)
        checks += _pcr_checks(reference, log, signed)
        banks = _covered_banks(reference, signed.quote) or banks
    if log is not None:
        missing = [bank for bank in banks if bank not in log.algorithms]
        checks.append(Check("log-banks", not missing, f"digests of {', '.join(banks)}", ", ".join(log.algorithms)))
        found = [first_difference(reference.events, log.events, bank) for bank in banks if bank not in missing]
        differences = sorted((one for one in found if one), key=lambda one: len(log.events) if one.number is None else one.number)
        difference = differences[0] if differences else None
        got = difference.to_text() if difference else "the expected events"
        checks.append(Check("events", difference is None and not missing, "the expected events", got))
    return Appraisal(tuple(checks), difference, signed is not None)


def _covered_banks(reference: ReferenceValues, quote: Quote) -> tuple[str, ...]:
    """Returns the banks in which the quote is over every reference PCR."""
    chosen: dict[str, set[int]] = {}
    for bank, pcrs in quote.selections:
        chosen.setdefault(bank, set()).update(pcrs)
    return tuple(bank for bank in reference.banks if set(REFERENCE_PCRS) <= chosen.get(bank, set()))


def first_difference(expected: Sequence[ExpectedEvent], events: Sequence[Event], bank: str) -> Difference | None:
    """Returns the first event, in the log's order, of a reference PCR that is not the one that must come there; None when all are.

    An event that should have come and did not is the difference only when no event before differs.
    """
    waiting: dict[int, list[ExpectedEvent]] = {}
    for one in expected:
        waiting.setdefault(one.pcr, []).append(one)
    for event in events:
        if not event.extends or event.pcr not in REFERENCE_PCRS:
            continue
        rest = waiting.get(event.pcr, [])
        digest = event.digest(bank)
        if not rest:
            return Difference(event.number, event.pcr, describe(event), "no further event", b"", digest)
        wanted = rest.pop(0)
        if dict(wanted.digests)[bank] != digest:
            return Difference(event.number, event.pcr, describe(event), _named(wanted), dict(wanted.digests)[bank], digest)
    for rest in waiting.values():
        if rest:
            return Difference(None, rest[0].pcr, "end of the log", _named(rest[0]), dict(rest[0].digests)[bank], b"")
    return None


def _named(event: ExpectedEvent) -> str:
    return f"{type_name(event.type)} ({event.what})"


def _signature_checks(signed: SignedQuote) -> Iterator[Check]:
    """Yields the checks of nonce, key and signature."""
    quote = signed.quote
    yield Check("nonce", quote.nonce == signed.nonce, signed.nonce.hex() or "none", quote.nonce.hex() or "none")
    if signed.restricted is not None:
        got = "one" if signed.restricted else "a key that signs anything, or could have left its TPM"
        yield Check("key-attributes", signed.restricted, "a restricted signing key fixed to its TPM", got)
    ok = is_signed_by(quote, signed.signature, signed.key)
    kind = f"{signed.signature.scheme} with {signed.signature.digest_name}"
    yield Check("signature", ok, "a signature by the given attestation key", kind if ok else f"{kind} by another key, or over other bytes")


def _pcr_checks(reference: ReferenceValues, log: EventLog | None, signed: SignedQuote) -> Iterator[Check]:
    """Yields the checks of what the quote covers, and whether its digest is that of the expected (or logged) PCRs."""
    quote = signed.quote
    wanted = f"PCRs {', '.join(map(str, REFERENCE_PCRS))} of {' or '.join(reference.banks)}"
    selected = "+".join(f"{bank}:{','.join(map(str, chosen))}" for bank, chosen in quote.selections)
    yield Check("selection", bool(_covered_banks(reference, quote)), wanted, selected or "none")
    values = {bank: dict(found) for bank, found in reference.pcrs.items()}
    if log is not None:
        values = {bank: dict(enumerate(replay(log.events, bank))) for bank in log.algorithms if bank in reference.banks}
    source = "the event log's PCRs" if log is not None else "the reference PCRs"
    unknown = [f"{bank}:{pcr}" for bank, chosen in quote.selections for pcr in chosen if pcr not in values.get(bank, {})]
    if unknown:
        yield Check("pcr-digest", False, f"a digest of {source}", f"a digest over {', '.join(unknown)} too, which they do not have")
        return
    joined = b"".join(values[bank][pcr] for bank, chosen in quote.selections for pcr in chosen)
    expected = hashlib.new(signed.signature.digest_name, joined).digest()
    yield Check("pcr-digest", expected == quote.pcr_digest, f"{expected.hex()} of {source}", quote.pcr_digest.hex())
