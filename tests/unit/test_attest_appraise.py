"""The verdict on quotes and logs made here: what must be refused is, also where a clever liar made everything else fit."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ipe_build.attest.appraise import SignedQuote, appraise, first_difference
from ipe_build.attest.chain import SETUP_MODE
from ipe_build.attest.describe import describe
from ipe_build.attest.predict import BANKS, REFERENCE_PCRS, predict
from ipe_build.attest.reference import ReferenceValues
from ipe_build.errors import FormatError
from ipe_build.formats.tpm_event_log import Event, EventLog, EventType, build_event_log, parse_event_log, replay
from ipe_build.formats.tpm_quote import parse_public, parse_quote, parse_signature
from tests.unit.test_attest_predict import CHAIN

NONCE = b"nonce of this challenge"
RSA_KEY = rsa.generate_private_key(65537, 2048)
ECC_KEY = ec.generate_private_key(ec.SECP256R1())
IDENTIFIERS = {"sha1": 4, "sha256": 0xB, "sha384": 0xC}
EVENTS = predict(CHAIN, SETUP_MODE)
REFERENCE = ReferenceValues("image", bytes(32), "", False, EVENTS)
FIRMWARE = Event(0, 0, EventType.EV_S_CRTM_VERSION, tuple((bank, hashlib.new(bank, b"1").digest()) for bank in BANKS), b"1")


def log_of(events=EVENTS) -> EventLog:
    """A log with a firmware's own event first, then these."""
    made = [Event(number, one.pcr, int(one.type), one.digests, one.what.encode()) for number, one in enumerate(events, 1)]
    return EventLog(BANKS, (FIRMWARE, *made))


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def attest(log: EventLog, *, banks=BANKS, pcrs=REFERENCE_PCRS, nonce: bytes = NONCE, magic: int = 0xFF544347, kind: int = 0x8018) -> bytes:
    """The bytes of a TPMS_ATTEST over the log's PCRs."""
    selection = struct.pack(">I", len(banks))
    bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    selection += b"".join(struct.pack(">HB", IDENTIFIERS[bank], 3) + bits for bank in banks)
    joined = b"".join(replay(log.events, bank)[pcr] if bank in log.algorithms else bytes(20) for bank in banks for pcr in sorted(pcrs))
    head = struct.pack(">IH", magic, kind) + sized(b"\0\x0bname") + sized(nonce)
    return head + struct.pack(">QIIBQ", 1, 2, 3, 1, 4) + selection + sized(hashlib.sha256(joined).digest())


def sign_rsa(data: bytes) -> bytes:
    return struct.pack(">HH", 0x14, 0xB) + sized(RSA_KEY.sign(data, padding.PKCS1v15(), hashes.SHA256()))


def sign_ecc(data: bytes) -> bytes:
    r, s = decode_dss_signature(ECC_KEY.sign(data, ec.ECDSA(hashes.SHA256())))
    return struct.pack(">HH", 0x18, 0xB) + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))


def quoted(log: EventLog, key=RSA_KEY, sign=sign_rsa, **words) -> SignedQuote:
    data = attest(log, **words)
    return SignedQuote(parse_quote(data), parse_signature(sign(data)), key.public_key(), NONCE, True)


def failed(verdict) -> list[str]:
    return [check.id for check in verdict.checks if not check.ok]


@pytest.mark.parametrize(("key", "sign"), [(RSA_KEY, sign_rsa), (ECC_KEY, sign_ecc)])
def test_expected_boot_is_accepted(key, sign):
    verdict = appraise(REFERENCE, log_of(), quoted(log_of(), key, sign))
    assert (verdict.ok, verdict.authenticated, verdict.difference) == (True, True, None)
    assert verdict.to_json()["authenticated"] is True
    assert appraise(REFERENCE, None, quoted(log_of(), key, sign)).ok


def test_key_of_another_kind_is_refused():
    signed = quoted(log_of(), RSA_KEY, sign_ecc)
    assert failed(appraise(REFERENCE, log_of(), signed)) == ["signature"]
    assert failed(appraise(REFERENCE, log_of(), quoted(log_of(), ECC_KEY, sign_rsa))) == ["signature"]


def test_old_quote_is_refused_by_its_nonce():
    assert failed(appraise(REFERENCE, log_of(), quoted(log_of(), nonce=b"yesterday's"))) == ["nonce"]


def test_quote_over_fewer_pcrs_is_refused():
    verdict = appraise(REFERENCE, log_of(), quoted(log_of(), pcrs=(4, 7, 9, 11)))
    assert failed(verdict) == ["selection"]


def test_quote_of_the_sha1_bank_alone_is_refused():
    verdict = appraise(REFERENCE, log_of(), quoted(log_of(), banks=("sha1",)))
    assert failed(verdict) == ["selection", "pcr-digest"]


def test_digests_of_a_bank_that_was_not_quoted_are_nobodys_word():
    """An evil boot: true digests in the quoted bank, expected ones in the other. The events must be compared in the quoted bank."""
    evil = log_of()
    event = evil.events[-1]
    truth = dict(event.digests) | {"sha256": hashlib.sha256(b"evil initramfs").digest()}
    evil = replace(evil, events=(*evil.events[:-1], replace(event, digests=tuple(truth.items()))))
    assert first_difference(EVENTS, evil.events, "sha384") is None
    verdict = appraise(REFERENCE, evil, quoted(evil, banks=("sha256",)))
    assert failed(verdict) == ["events"]
    assert verdict.difference is not None
    assert verdict.difference.number == event.number


def test_evil_boot_is_refused_without_a_log_too():
    evil = log_of((*EVENTS[:-1], replace(EVENTS[-1], digests=tuple((bank, hashlib.new(bank, b"x").digest()) for bank in BANKS))))
    assert failed(appraise(REFERENCE, None, quoted(evil))) == ["pcr-digest"]


def test_quote_over_pcrs_that_the_log_does_not_tell_is_refused():
    verdict = appraise(REFERENCE, None, quoted(log_of(), pcrs=(0, *REFERENCE_PCRS)))
    assert failed(verdict) == ["pcr-digest"]
    assert "sha256:0" in next(check.got for check in verdict.checks if check.id == "pcr-digest")
    assert appraise(REFERENCE, log_of(), quoted(log_of(), pcrs=(0, *REFERENCE_PCRS))).ok


def test_credential_in_pcr_12_of_a_boot_that_must_leave_it_zero_is_named():
    without = replace(REFERENCE, events=tuple(event for event in EVENTS if event.pcr != 12))
    log = log_of()
    verdict = appraise(without, log, quoted(log))
    assert failed(verdict) == ["events"]
    assert verdict.difference is not None
    assert (verdict.difference.pcr, verdict.difference.expected) == (12, "no further event")


def test_first_difference_is_the_first_in_the_logs_order_and_a_missing_event_comes_last():
    log = log_of(EVENTS[:-1])
    missing = first_difference(EVENTS, log.events, "sha256")
    assert missing is not None
    assert (missing.number, missing.pcr, missing.got_digest) == (None, 9, b"")
    assert "end of the log" in missing.to_text()
    swapped = (EVENTS[1], EVENTS[0], *EVENTS[2:-1])
    found = first_difference(EVENTS, log_of(swapped).events, "sha256")
    assert found is not None
    assert (found.number, found.pcr) == (1, 7)


def test_no_action_events_change_nothing():
    log = log_of()
    said = replace(FIRMWARE, number=99, type=int(EventType.EV_NO_ACTION), pcr=9)
    assert appraise(REFERENCE, replace(log, events=(said, *log.events)), quoted(log)).ok


def test_startup_locality_gives_pcr_0_its_start_value():
    said = Event(0, 0, int(EventType.EV_NO_ACTION), (("sha256", bytes(32)),), b"StartupLocality\0\x03")
    assert replay((said,), "sha256")[0] == bytes(31) + b"\x03"
    assert replay((), "sha256")[0] == bytes(32)
    assert replay((), "sha256")[17] == b"\xff" * 32


def test_what_an_event_says_is_printable_whatever_it_says():
    event = Event(3, 12, int(EventType.EV_IPL), (), "a\x1b[31m\n\u202eb".encode("utf-16-le"))
    assert describe(event).isprintable()
    path = struct.pack("<BBH", 4, 4, 4 + 8) + "\\ab\0".encode("utf-16-le") + b"\x7f\xff\4\0"
    program = Event(4, 4, int(EventType.EV_EFI_BOOT_SERVICES_APPLICATION), (), bytes(32) + path)
    assert describe(program) == "event 4 (EV_EFI_BOOT_SERVICES_APPLICATION: \\ab)"


# The formats


def test_quote_of_another_type_or_magic_is_refused():
    with pytest.raises(FormatError, match="magic"):
        parse_quote(attest(log_of(), magic=0x12345678))
    with pytest.raises(FormatError, match="wanted a quote"):
        parse_quote(attest(log_of(), kind=0x8017))


def test_bytes_after_a_quote_are_refused_and_every_cut_is():
    data = attest(log_of())
    with pytest.raises(FormatError, match="follow its end"):
        parse_quote(data + b"\0")
    for size in range(len(data)):
        with pytest.raises(FormatError):
            parse_quote(data[:size])


@pytest.mark.parametrize("data", [b"\0\x14\0\4\0\0", b"\0\x99\0\x0b\0\0", b"", b"\0\x14\0\x0b\0\5abc"])
def test_signature_that_is_none_or_over_sha1_is_refused(data: bytes):
    with pytest.raises(FormatError):
        parse_signature(data)


def test_ecdsa_signature_of_zeros_is_wrong_and_not_an_accident():
    data = attest(log_of())
    zero = struct.pack(">HH", 0x18, 0xB) + sized(bytes(32)) + sized(bytes(32))
    signed = SignedQuote(parse_quote(data), parse_signature(zero), ECC_KEY.public_key(), NONCE, True)
    assert failed(appraise(REFERENCE, log_of(), signed)) == ["signature"]


def public(attributes: int, *, point: bool = True) -> bytes:
    numbers = ECC_KEY.public_key().public_numbers()
    y = numbers.y if point else numbers.y ^ 1
    area = struct.pack(">HHI", 0x23, 0xB, attributes) + sized(b"") + struct.pack(">HHHHH", 0x10, 0x18, 0xB, 3, 0x10)
    return sized(area + sized(numbers.x.to_bytes(32, "big")) + sized(y.to_bytes(32, "big")))


@pytest.mark.parametrize(
    ("attributes", "good"),
    [(0x50072, True), (0x40072, False), (0x50070, False), (0x70072, False), (0x50052, False)],
    ids=["attestation key", "not restricted", "not fixed to its TPM", "decrypts too", "made elsewhere"],
)
def test_only_restricted_signing_keys_of_a_tpm_are_attestation_keys(attributes: int, good: bool):
    assert parse_public(public(attributes)).is_attestation_key == good


def test_point_that_is_not_on_the_curve_is_refused():
    with pytest.raises(FormatError, match="not a usable one"):
        parse_public(public(0x50072, point=False))


def test_log_is_rebuilt_byte_for_byte_and_every_cut_within_an_event_is_refused():
    data = build_event_log(log_of())
    assert parse_event_log(data) == log_of()
    assert build_event_log(parse_event_log(data)) == data
    ends = {len(build_event_log(replace(log_of(), events=log_of().events[:count]))) for count in range(len(EVENTS) + 2)}
    for size in range(0, len(data), 7):
        if size not in ends:
            with pytest.raises(FormatError):
                parse_event_log(data[:size])


def test_old_logs_are_refused_with_the_reason():
    old = struct.pack("<II20sI", 0, 3, bytes(20), 16) + b"Spec ID Event00\0"
    with pytest.raises(FormatError, match="proves nothing"):
        parse_event_log(old)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(56, 0, "1 to 8 algorithms"), (60, 0x99, "algorithms that are known"), (62, 20, "algorithms that are known"), (64, 0xB, "each once")],
)
def test_header_that_does_not_fit_is_refused(at: int, value: int, message: str):
    data = bytearray(build_event_log(log_of()))
    data[at] = value
    with pytest.raises(FormatError, match=message):
        parse_event_log(bytes(data))


def test_event_of_a_pcr_that_does_not_exist_and_a_digest_given_twice_are_refused():
    data = build_event_log(log_of())
    start = len(build_event_log(replace(log_of(), events=())))
    for at, value, message in ((start, 24, "PCR below 24"), (start + 8, 1, "2 digests"), (start + 12 + 2 + 32, 0xB, "one digest for each")):
        broken = bytearray(data)
        broken[at] = value
        with pytest.raises(FormatError, match=message):
            parse_event_log(bytes(broken))
