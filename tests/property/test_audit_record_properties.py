"""formats.audit_record: whatever the text, the answer is a record, None or one clear error; what the kernel writes comes back whole."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipe_build.errors import FormatError
from ipe_build.formats.audit_record import Access, AuditRecord, find_record

DIGEST = "AB" * 32
SAMPLES = (
    'type=1420 audit(1.000:9): ipe_op=EXECUTE ipe_hook=MMAP enforcing=1 pid=9 comm="a" path="/b" dev="c" ino=3 rule="DEFAULT action=DENY"',
    f'type=1422 audit(1.000:9): policy_name="p" policy_version=1.0.0 policy_digest=sha256:{DIGEST} auid=0 ses=0 lsm=ipe res=1 errno=-13',
    f'type=1421 audit(1.000:9): old_active_pol_name="p" old_active_pol_version=1.0.0 old_policy_digest=sha256:{DIGEST} '
    f'new_active_pol_name="q" new_active_pol_version=1.0.1 new_policy_digest=sha256:{DIGEST} auid=0 ses=0 lsm=ipe res=1',
    "type=1404 audit(1.000:9): enforcing=0 old_enforcing=1 auid=0 ses=0 enabled=1 old-enabled=1 lsm=ipe res=1",
)


def answer(text: str) -> AuditRecord | None:
    try:
        return find_record(text)
    except FormatError as error:
        assert "audit record" in error.where
        return None


@pytest.mark.parametrize("sample", SAMPLES)
def test_samples_are_records(sample: str):
    assert isinstance(find_record(sample), AuditRecord)


@settings(deadline=None, max_examples=300)
@given(sample=st.sampled_from(SAMPLES), place=st.integers(0, 400), length=st.integers(0, 60), text=st.text(max_size=30))
@example(sample=SAMPLES[0], place=16, length=0, text="9" * 5000)
@example(sample=SAMPLES[1], place=SAMPLES[1].index("AB"), length=1, text="")
@example(sample=SAMPLES[1], place=SAMPLES[1].index("13"), length=2, text="٣")
def test_changed_record_gives_a_record_none_or_one_error(sample: str, place: int, length: int, text: str):
    answer(sample[:place] + text + sample[place + length :])


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=200))
def test_any_text_gives_none_or_one_error(text: str):
    answer(text)
    answer(f"type=1420 audit(1.000:9): {text}")


def untrusted(raw: bytes) -> str:
    """A string as audit_log_untrustedstring writes it."""
    plain = all(0x21 <= byte <= 0x7E and byte != 0x22 for byte in raw)
    return f'"{raw.decode()}"' if plain else raw.hex().upper()


@settings(deadline=None, max_examples=200)
@given(path=st.binary(min_size=1, max_size=80), comm=st.binary(min_size=1, max_size=15), ino=st.integers(0, 2**64 - 1))
@example(path=b'/a "quoted" rule="x"', comm=b"?", ino=0)
@example(path=b"ABCD", comm=b"?", ino=1)
def test_strings_of_userspace_come_back_as_they_were(path: bytes, comm: bytes, ino: int):
    head = "type=1420 audit(1.000:9): ipe_op=EXECUTE ipe_hook=BPRM_CHECK enforcing=1 pid=1"
    line = f'{head} comm={untrusted(comm)} path={untrusted(path)} dev="dm-0" ino={ino} rule="DEFAULT action=DENY"'
    record = find_record(line)
    assert record is not None
    assert isinstance(record.event, Access)
    assert record.event.path is not None
    assert record.event.path.encode("utf-8", "surrogateescape") == path
    assert record.event.comm.encode("utf-8", "surrogateescape") == comm
    assert record.event.ino == ino
