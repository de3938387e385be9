"""The block at a module's end: what is appended is split off again, and no bytes make the reader fail otherwise than by FormatError."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.errors import FormatError
from ipe_build.formats.cms import decode_signed_data
from ipe_build.formats.module_signature import MARKER, append_signature, split_signature, strip_signatures


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=1), st.binary(min_size=1, max_size=600))
def test_appended_signature_is_split_off_again(payload: bytes, signature: bytes) -> None:
    assert split_signature(append_signature(payload, signature)) == (payload, signature)


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=1).filter(lambda data: not data.endswith(MARKER)), st.lists(st.binary(min_size=1), max_size=4))
def test_all_signatures_are_stripped(payload: bytes, signatures: list[bytes]) -> None:
    module = payload
    for signature in signatures:
        module = append_signature(module, signature)
    assert strip_signatures(module) == payload


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=64))
def test_any_bytes_before_the_marker_split_or_are_a_format_error(data: bytes) -> None:
    module = data + MARKER
    try:
        payload, signature = split_signature(module)
    except FormatError:
        return
    assert signature is not None
    assert append_signature(payload, signature) == module


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_cms_or_a_format_error(data: bytes) -> None:
    try:
        message = decode_signed_data(data)
    except FormatError:
        return
    assert message.signer_infos
