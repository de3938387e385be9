"""The superblock, the root-verity-sig partition, the dm table: round trips, and every field that can be wrong."""

from __future__ import annotations

import base64
import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.dm_table import OpenOptions, VerityTable
from ipe_build.formats.verity import Superblock, parse_superblock
from ipe_build.formats.verity_sig import VeritySignature, parse_verity_signature
from ipe_build.integrity.geometry import Slots, tree_levels, tree_size
from ipe_build.integrity.hashes import HASHES, find_hash
from ipe_build.integrity.reed_solomon import fill_erasures, multiply, parity, power
from ipe_build.integrity.verity import FecParameters, VerityParameters, uuid_of_root_hash
from tests.fixtures.integrity import noise

_UUID = UUID("6d9ab20c-31c5-4d3b-8d6a-93d1dfe1a0f3")
_BLOCK = Superblock(_UUID, 1, "sha256", 4096, 4096, 1000, b"salt")

superblocks = st.builds(
    Superblock,
    st.uuids(),
    st.sampled_from([0, 1]),
    st.sampled_from([row.name for row in HASHES]),
    st.sampled_from([1 << log for log in range(9, 20)]),
    st.sampled_from([1 << log for log in range(9, 20)]),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=256),
)


@given(superblocks)
def test_superblock_round_trips(block: Superblock) -> None:
    assert len(block.build()) == 512
    assert parse_superblock(block.build()) == block


@given(st.binary(min_size=0, max_size=600))
def test_bytes_that_are_no_superblock_are_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_superblock(data)


@pytest.mark.parametrize(
    ("offset", "value", "part"),
    [
        (0, b"V", "offset 0x1000: wanted the verity signature"),
        (8, b"\2", "offset 0x1008: the superblock's version"),
        (12, b"\2", "offset 0x100c: the superblock's hash_type"),
        (32, bytes(32), "offset 0x1020: the superblock's algorithm"),
        (32, b"\x1b[31m", "algorithm"),
        (32, b"x" * 32, "algorithm"),
        (64, b"\0\x11", "offset 0x1040: the superblock's data_block_size"),
        (68, b"\0\0\x10", "offset 0x1044: the superblock's hash_block_size"),
        (80, b"\1\1", "offset 0x1050: the superblock's salt_size"),
    ],
)
def test_every_wrong_field_is_named_with_its_offset(offset: int, value: bytes, part: str) -> None:
    data = bytearray(_BLOCK.build())
    data[offset : offset + len(value)] = value
    with pytest.raises(FormatError) as caught:
        parse_superblock(bytes(data), where="hash", offset=0x1000)
    assert part in str(caught.value)


@given(st.binary(min_size=1, max_size=64), st.binary(min_size=32, max_size=32), st.binary(min_size=1, max_size=6000))
def test_verity_signature_round_trips_in_whole_blocks(root: bytes, fingerprint: bytes, signature: bytes) -> None:
    made = VeritySignature(root, fingerprint, signature)
    assert len(made.build()) % 4096 == 0
    assert parse_verity_signature(made.build()) == made
    value = json.loads(made.build().rstrip(b"\0"))
    assert list(value) == ["rootHash", "certificateFingerprint", "signature"]
    assert (value["rootHash"], base64.b64decode(value["signature"])) == (root.hex(), signature)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 4096, b"[]", b"{}", b'{"rootHash": "00"}', b'{"rootHash": 5, "signature": ""}',
     b'{"rootHash": "zz", "signature": "AA=="}',
     b'{"rootHash": "00", "signature": "*"}', b'{"rootHash": "00", "signature": ""}', b'{"rootHash": "", "signature": "AA=="}', b"\xff{}",
     b'{"rootHash": "00", "signature": "AA==", "certificateFingerprint": "00"}'],
)  # fmt: skip
def test_what_is_no_verity_signature_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_verity_signature(data, where="partition")


def _table(**changes: object) -> VerityTable:
    values: dict[str, object] = {
        "data_device": "/dev/vda2", "hash_device": "/dev/vda3", "hash_type": 1, "data_block_size": 4096, "hash_block_size": 4096,
        "data_blocks": 10, "hash_start_block": 1, "algorithm": "sha256", "root_hash": bytes(32), "salt": b"",
    }  # fmt: skip
    return VerityTable(**(values | changes))  # type: ignore[arg-type]


def test_an_empty_salt_is_a_dash_in_the_table() -> None:
    assert _table().to_line() == f"0 80 verity 1 /dev/vda2 /dev/vda3 4096 4096 10 1 sha256 {'00' * 32} -"
    assert _table(signature_key="root").to_line().endswith(" - 2 root_hash_sig_key_desc root")


def test_the_kernel_parameter_refuses_what_it_cannot_carry() -> None:
    for table in (_table(data_device="/dev/a,b"), _table(hash_device='/dev/"'), _table(signature_key="root")):
        with pytest.raises(InputError, match=r"dm-mod\.create= cannot carry"):
            table.to_dm_mod_create("root")
    with pytest.raises(InputError):
        _table().to_dm_mod_create("a;b")
    assert _table().to_dm_mod_create("root").startswith('dm-mod.create="root,,,ro,0 80 verity 1 ')


def test_without_a_superblock_every_parameter_is_spelled_out() -> None:
    opened = OpenOptions(_table(salt=b"\1"), 8192, superblock=False, signature="/etc/my key.p7s")
    assert opened.to_veritysetup("root") == (
        f"veritysetup open /dev/vda2 root /dev/vda3 {'00' * 32} --hash-offset=8192 --no-superblock --format=1 --hash=sha256 --salt=01 "
        "--data-block-size=4096 --hash-block-size=4096 --data-blocks=10 '--root-hash-signature=/etc/my key.p7s'"
    )
    assert "systemd.verity_root_options=hash-offset=8192,superblock=no,format=1," in opened.to_systemd()
    assert opened.to_systemd(usr=True).startswith("usrhash=")


@given(st.integers(1, 10**9), st.sampled_from([row.name for row in HASHES]), st.sampled_from([512, 4096, 65536]), st.sampled_from([0, 1]))
def test_levels_lie_one_behind_the_other_from_the_root_down(blocks: int, name: str, size: int, hash_type: int) -> None:
    slots = Slots.of(find_hash(name), size, hash_type)
    levels = tree_levels(blocks, slots)
    assert (blocks == 1) == (not levels)
    position = 0
    for level in reversed(levels):
        assert level.offset == position
        position += level.blocks * size
    assert position == tree_size(levels, slots)
    width = blocks
    for level in levels:
        assert (level.blocks - 1) * slots.per_block < width <= level.blocks * slots.per_block
        width = level.blocks
    assert width == 1


@given(
    rows=st.integers(0, 254).flatmap(lambda seed: st.just([noise(8, f"{seed}.{row}") for row in range(255)])),
    roots=st.integers(2, 24),
    places=st.lists(st.integers(0, 230), unique=True, max_size=24),
)
def test_as_many_rows_as_roots_can_be_lost(rows: list[bytes], roots: int, places: list[int]) -> None:
    data = rows[: 255 - roots]
    whole = [*data, *parity(data, roots)]
    lost = places[:roots]
    damaged = [bytes(8) if at in lost else row for at, row in enumerate(whole)]
    assert fill_erasures(damaged, lost) == {at: whole[at] for at in lost}


def test_the_field_is_that_of_the_kernel() -> None:
    assert multiply(0x80, 2) == 0x1D
    assert [power(exponent) for exponent in (0, 1, 8, 254, 255)] == [1, 2, 0x1D, 0x8E, 1]


def test_a_uuid_made_from_a_root_hash_is_a_valid_one_of_its_own() -> None:
    one, other = uuid_of_root_hash(bytes(32)), uuid_of_root_hash(bytes(31) + b"\1")
    assert one == uuid_of_root_hash(bytes(32)) != other
    assert one.version == 8
    assert one.variant == "specified in RFC 4122"


@pytest.mark.parametrize(
    "wrong",
    [{"hash_name": "md5"}, {"salt": bytes(257)}, {"data_block_size": 0}, {"hash_block_size": 1 << 20}, {"hash_type": 2}, {"hash_offset": 7},
     {"hash_offset": -512}, {"fec": FecParameters(1)}, {"fec": FecParameters(25)}, {"fec": FecParameters(2, 5)},
     {"fec": FecParameters(2), "data_block_size": 1024}],
)  # fmt: skip
def test_parameters_that_veritysetup_refuses_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        VerityParameters(**wrong)  # type: ignore[arg-type]
