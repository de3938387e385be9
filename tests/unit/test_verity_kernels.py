"""Every implementation of the hashing gives what hashlib gives: the extension's kernels, OpenSSL, forked Python."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.errors import InputError
from ipe_build.host import Host
from ipe_build.integrity import engine
from ipe_build.integrity.geometry import Slots
from ipe_build.integrity.hashes import HASHES, constructor, find_hash
from tests.fixtures.integrity import kernels_of, noise, with_kernel
from tests.missing import missing

_CASES = [(row.name, kernel) for row in HASHES for kernel in kernels_of(row.name)]


def _digests(name: str, kernel: str, prefix: bytes, suffix: bytes, data: bytes, block_size: int, host: Host, folder: Path) -> bytes:
    """Returns the level of digests that an implementation writes for `data`, as type 1 lays them out."""
    algorithm = find_hash(name)
    slots = Slots.of(algorithm, 4096, 1)
    source, target = folder / "source", folder / "target"
    source.write_bytes(data)
    target.write_bytes(bytes(slots.offset(len(data) // block_size) + 4096))
    with source.open("rb") as reading, target.open("r+b") as writing:
        hashing = engine.BlockHash(algorithm, prefix, suffix)
        place = (writing.fileno(), 0, slots, "source", "target")
        job = engine.LevelJob(hashing, reading.fileno(), 0, len(data), block_size, *place)
        engine.hash_level(job, engine.choose_kernel(algorithm, with_kernel(host, kernel)), lambda _done: None)
        assert engine.compare_level(job, engine.choose_kernel(algorithm, with_kernel(host, "python")), lambda _done: None) == ()
    return target.read_bytes()


def _by_hashlib(name: str, prefix: bytes, suffix: bytes, data: bytes, block_size: int) -> list[bytes]:
    padded = data + bytes(-len(data) % block_size)
    make = constructor(find_hash(name))
    found = []
    for at in range(0, len(padded), block_size):
        state = make(prefix)
        state.update(padded[at : at + block_size] + suffix)
        found.append(state.digest())
    return found


@pytest.mark.parametrize(("name", "kernel"), _CASES)
def test_every_kernel_computes_what_hashlib_does(name: str, kernel: str, tmp_path: Path, host: Host) -> None:
    # 1 … 37 blocks leave every possible rest of 16, 8 and 4 lanes; zero blocks are skipped by a path of their own.
    for blocks, prefix, suffix in [(1, 0, 0), (2, 32, 0), (3, 77, 0), (5, 0, 32), (8, 64, 1), (15, 256, 0), (16, 0, 256), (37, 128, 100)]:
        data = bytearray(noise(blocks * 1024 - 100, f"{blocks}"))
        if blocks > 4:
            data[1024:3072] = bytes(2048)
        before, after = noise(prefix, "prefix"), noise(suffix, "suffix")
        written = _digests(name, kernel, before, after, bytes(data), 1024, host, tmp_path)
        slots = Slots.of(find_hash(name), 4096, 1)
        for index, digest in enumerate(_by_hashlib(name, before, after, bytes(data), 1024)):
            at = slots.offset(index)
            assert written[at : at + slots.slot_size] == digest.ljust(slots.slot_size, b"\0"), (blocks, index)


@pytest.mark.parametrize("kernel", kernels_of("sha256"))
def test_many_workers_write_what_one_would(kernel: str, tmp_path: Path, host: Host) -> None:
    data = noise(9 << 20)
    written = _digests("sha256", kernel, b"salt", b"", data, 4096, host, tmp_path)
    assert written[: 32 * 2304] == b"".join(_by_hashlib("sha256", b"salt", b"", data, 4096))
    assert not any(written[32 * 2304 :])


@pytest.mark.parametrize("kernel", kernels_of("sha512"))
def test_holes_and_zeros_give_the_same_digests_as_bytes_that_are_read(kernel: str, tmp_path: Path, host: Host) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as handle:
        handle.write(noise(5000))
        handle.seek(6 << 20)
        handle.write(noise(3))
        handle.truncate(12 << 20)
    dense = sparse.read_bytes()
    assert os.stat(sparse).st_blocks * 512 < len(dense) // 2
    algorithm = find_hash("sha512")
    slots = Slots.of(algorithm, 4096, 1)
    target = tmp_path / "tree"
    target.write_bytes(bytes(len(dense) // 4096 * 64))
    with sparse.open("rb") as reading, target.open("r+b") as writing:
        place = (writing.fileno(), 0, slots, "sparse", "tree")
        job = engine.LevelJob(engine.BlockHash(algorithm, b"s"), reading.fileno(), 0, len(dense), 4096, *place)
        engine.hash_level(job, engine.choose_kernel(algorithm, with_kernel(host, kernel)), lambda _done: None)
    assert target.read_bytes() == b"".join(_by_hashlib("sha512", b"s", b"", dense, 4096))


@pytest.mark.parametrize("kernel", kernels_of("sha256"))
@settings(max_examples=15, deadline=None)
@given(wrong=st.sets(st.integers(0, 2399), max_size=40))
def test_exactly_the_blocks_that_differ_are_named(
    kernel: str, wrong: set[int], tmp_path_factory: pytest.TempPathFactory, host: Host
) -> None:
    folder = tmp_path_factory.mktemp("compare")
    data = noise(2400 * 2048)
    _digests("sha256", "python", b"", b"", data, 2048, host, folder)
    with (folder / "source").open("r+b") as handle:
        for block in wrong:
            handle.seek(block * 2048 + block % 2048)
            handle.write(bytes([data[block * 2048 + block % 2048] ^ 0x10]))
    algorithm = find_hash("sha256")
    with (folder / "source").open("rb") as reading, (folder / "target").open("rb") as stored:
        place = (stored.fileno(), 0, Slots.of(algorithm, 4096, 1), "source", "target")
        job = engine.LevelJob(engine.BlockHash(algorithm), reading.fileno(), 0, len(data), 2048, *place)
        found = engine.compare_level(job, engine.choose_kernel(algorithm, with_kernel(host, kernel)), lambda _done: None)
    assert found == tuple(sorted(wrong))


def test_a_kernel_that_is_not_here_is_refused_by_name(host: Host) -> None:
    with pytest.raises(InputError, match="no implementation 'abacus' of sha256"):
        engine.choose_kernel(find_hash("sha256"), with_kernel(host, "abacus"))
    with pytest.raises(InputError, match="of blake2b-160"):
        engine.choose_kernel(find_hash("blake2b-160"), with_kernel(host, "sha-ni"))


def test_the_extension_is_built_where_a_compiler_is(need: object) -> None:
    assert engine.native() is not None, "the C extension was not built: see the output of pip install -v"


_EDGES = [0, 1, 55, 56, 63, 64, 65, 111, 112, 119, 120, 127, 128, 129, 4096, 9000]
_NATIVE = [case for case in _CASES if case[1] != "python"]


@pytest.mark.parametrize(("name", "kernel"), _NATIVE)
@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(_EDGES), max_size=40))
def test_messages_of_any_sizes_hashed_together_have_the_digests_that_each_has_alone(name: str, kernel: str, sizes: list[int]) -> None:
    extension = engine.native()
    assert extension is not None
    messages = [noise(size + number)[number:] for number, size in enumerate(sizes)]
    make = constructor(find_hash(name))
    assert extension.digests(name, kernel, messages) == b"".join(make(message).digest() for message in messages)


@pytest.mark.parametrize("name", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 17])
def test_digests_come_in_the_order_of_the_messages_long_ones_too(name: str, count: int) -> None:
    messages = [noise(1000 * (number * 7 % 5) + number + (2 << 20) * (number % 6 == 2)) for number in range(count)]
    assert engine.digest_messages(name, messages) == [hashlib.new(name, message).digest() for message in messages]


def test_messages_that_are_not_bytes_and_kernels_that_are_not_there_are_refused() -> None:
    extension = engine.native()
    if extension is None:
        missing("the package was installed without its extension")
    with pytest.raises(TypeError, match="bytes"):
        extension.digests("sha256", "", [b"a", "b"])
    with pytest.raises(ValueError, match="kernel"):
        extension.digests("sha256", "no such", [b"a"])
