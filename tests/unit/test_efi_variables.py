"""Firmware's variables: our reader against virt-firmware's, and against damaged stores."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virt.firmware.varstore import edk2

from ipe_build.errors import FormatError
from ipe_build.formats.efi_variables import parse_variable_store

STORES = ("OVMF_VARS_4M.fd", "OVMF_VARS_4M.ms.fd", "OVMF_VARS.ms.fd", "OVMF_VARS_4M.snakeoil.fd")


def store(name: str, need_file) -> Path:
    return need_file(Path("/usr/share/OVMF") / name, "ovmf")


@pytest.mark.parametrize("name", STORES)
def test_reader_agrees_with_virt_firmware(name: str, need_file):
    path = store(name, need_file)
    ours = {(one.name, str(one.guid), one.attributes, one.data) for one in parse_variable_store(path.read_bytes())}
    theirs = edk2.Edk2VarStore(str(path)).get_varlist().values()
    assert ours == {(str(one.name), str(one.guid), one.attr, bytes(one.data)) for one in theirs}
    assert ours or name == "OVMF_VARS_4M.fd"


def test_deleted_variable_is_gone(need_file):
    data = bytearray(store("OVMF_VARS_4M.ms.fd", need_file).read_bytes())
    found = parse_variable_store(bytes(data))
    name = "SecureBootEnable".encode("utf-16-le")
    at = data.index(name + b"\0\0") - 60
    assert data[at : at + 3] == b"\xaa\x55\x3f"
    data[at + 2] = 0x3D
    assert [one for one in found if one not in parse_variable_store(bytes(data))] == [
        one for one in found if one.name == "SecureBootEnable"
    ]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 4000), st.integers(0, 255))
def test_damaged_store_gives_variables_or_a_format_error(need_file, at: int, value: int):
    data = bytearray(store("OVMF_VARS_4M.ms.fd", need_file).read_bytes())
    data[at] = value
    with contextlib.suppress(FormatError):
        assert isinstance(parse_variable_store(bytes(data)), tuple)


@pytest.mark.parametrize("data", [b"", bytes(4096), bytes(100_000)])
def test_what_is_no_store_is_refused(data: bytes):
    with pytest.raises(FormatError, match="no firmware volume"):
        parse_variable_store(data)
