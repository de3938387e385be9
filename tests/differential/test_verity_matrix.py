"""Our hash areas and error correction against the real veritysetup's, over its options."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipe_build.host import Host
from ipe_build.integrity.check import check_image
from ipe_build.integrity.hashes import HASHES
from ipe_build.integrity.verity import FecParameters, VerityParameters, VerityTree, format_image
from tests.fixtures.integrity import combinations, kernels_of, noise, same_but_for_trailing_zeros, veritysetup_words, with_kernel

_UUID = UUID("6d9ab20c-31c5-4d3b-8d6a-93d1dfe1a0f3")
# Those that a veritysetup 2.6 with OpenSSL has; the kernel's shorter blake2 are tested against hashlib in test_verity_kernels.py.
_HASHES = [row.name for row in HASHES if row.openssl]
_SALTS = [0, 1, 20, 32, 33, 63, 64, 65, 127, 128, 200, 255, 256]
_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 65536]
# Data blocks: a single one (no tree at all), one full and one over-full block of digests, several levels, and odd numbers.
_COUNTS = [1, 2, 3, 15, 16, 17, 64, 65, 127, 128, 129, 200, 300]
_OFFSETS = [0, 0, 0, 512, 1024, 4096, 65536, 1048576]
_FEC = [0, 0, 0, 2, 3, 8, 17, 24]
_ROWS = combinations(
    [_HASHES, [0, 1, 1], _SALTS, _SIZES, _SIZES, _COUNTS, _OFFSETS, [True, True, False], _FEC, ["file", "file", "image"]], 330
)
_GROUPS = 20

Run = Callable[..., subprocess.CompletedProcess[str]]


def _case(row: tuple[object, ...]) -> tuple[VerityParameters, int, bool]:
    """Returns a row as parameters, number of data blocks, and whether all goes into the image's own file."""
    name, hash_type, salt, data_size, hash_size, count, offset, superblock, roots, place = row
    assert isinstance(name, str)
    inside = place == "image"
    if roots:
        hash_size = data_size
        offset = -(-offset // 4096) * 4096 if count < 3 else offset
    step = 512 if superblock else hash_size
    data_bytes = count * data_size
    wanted = offset + (data_bytes if inside else 0)
    offset = -(-wanted // step) * step
    fec = FecParameters(roots) if roots else None
    parameters = VerityParameters(name, noise(salt, "salt"), _UUID, data_size, hash_size, hash_type, offset, superblock, fec)
    return parameters, count, inside


def _compare(folder: Path, parameters: VerityParameters, count: int, inside: bool, host: Host, run: Run) -> VerityTree:
    """Makes both and asserts that every byte is the same, and that each side accepts the other's."""
    content = noise(count * parameters.data_block_size, f"data {count}")
    ours, theirs = folder / "ours", folder / "theirs"
    for side in (ours, theirs):
        side.mkdir()
        (side / "data").write_bytes(content)
    area = "data" if inside else "hash"
    # veritysetup cannot write a superblock past the end of a file. Where error correction covers the file up to its end, both get the
    # same room, which is zeros; elsewhere only its own does.
    room = (VerityTree(parameters, count, b"", parameters.hash_offset).end_offset // 65536 + 2) * 65536
    if inside:
        for side in (ours, theirs):
            os.truncate(side / "data", room)
    elif parameters.fec is None:
        (theirs / "hash").touch()
        os.truncate(theirs / "hash", room)
    words = veritysetup_words(parameters)
    if inside:
        words.append(f"--data-blocks={count}")
    if parameters.fec is not None:
        words += [f"--fec-device={theirs / 'fec'}", f"--fec-roots={parameters.fec.roots}"]
    printed = run("format", theirs / "data", theirs / area, *words).stdout
    tree = format_image(
        ours / "data",
        ours / area,
        parameters,
        host,
        fec_area=ours / "fec" if parameters.fec is not None else None,
        data_blocks=count if inside else None,
    )
    assert f"Root hash:      \t{tree.root_hash.hex()}\n" in printed
    assert same_but_for_trailing_zeros(ours / area, theirs / area)
    if parameters.fec is not None:
        assert (ours / "fec").read_bytes() == (theirs / "fec").read_bytes()
    assert check_image(theirs / "data", theirs / area, tree, host).accepted
    verify = [word for word in words if not word.startswith("--uuid")]
    run("verify", ours / "data", ours / area, tree.root_hash.hex(), *(word.replace(str(theirs), str(ours)) for word in verify))
    return tree


def test_the_matrix_has_at_least_300_combinations_and_every_value() -> None:
    assert len(set(_ROWS)) >= 300
    for at, axis in enumerate([_HASHES, [0, 1], _SALTS, _SIZES, _SIZES, _COUNTS, _OFFSETS, [True, False], _FEC, ["file", "image"]]):
        assert {row[at] for row in _ROWS} == set(axis)


@pytest.mark.parametrize("group", range(_GROUPS))
def test_hash_area_and_fec_are_those_of_veritysetup(group: int, tmp_path: Path, host: Host, veritysetup: Run) -> None:
    for number, row in enumerate(_ROWS[group::_GROUPS]):
        parameters, count, inside = _case(row)
        kernels = kernels_of(parameters.hash_name)
        folder = tmp_path / str(number)
        folder.mkdir()
        _compare(folder, parameters, count, inside, with_kernel(host, kernels[number % len(kernels)]), veritysetup)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(_HASHES),
    hash_type=st.sampled_from([0, 1]),
    salt=st.binary(max_size=256),
    data_log=st.integers(9, 16),
    hash_log=st.integers(9, 16),
    count=st.integers(1, 90),
    sectors=st.integers(0, 40),
    roots=st.sampled_from([0, 0, 2, 5, 24]),
)
def test_random_parameters_give_the_bytes_of_veritysetup(
    name: str,
    hash_type: int,
    salt: bytes,
    data_log: int,
    hash_log: int,
    count: int,
    sectors: int,
    roots: int,
    tmp_path_factory: pytest.TempPathFactory,
    host: Host,
    veritysetup: Run,
) -> None:
    fec = FecParameters(roots) if roots else None
    hash_size = 1 << (data_log if roots else hash_log)
    offset = sectors * (4096 if roots else 512)
    parameters = VerityParameters(name, salt, _UUID, 1 << data_log, hash_size, hash_type, offset, True, fec)
    _compare(tmp_path_factory.mktemp("random"), parameters, count, False, host, veritysetup)


@pytest.mark.parametrize("place", ["hash", "data"])
def test_fec_behind_the_hash_area_is_that_of_veritysetup(place: str, tmp_path: Path, host: Host, veritysetup: Run) -> None:
    content = noise(300 * 4096)
    for side in ("ours", "theirs"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "data").write_bytes(content)
    start = 300 * 4096 if place == "data" else 0
    with (tmp_path / "theirs" / place).open("ab") as handle:
        handle.truncate(start + 32 * 4096)  # veritysetup does not read past the end of a file; we take what is not there as zeros
    parameters = VerityParameters("sha256", b"salt", _UUID, hash_offset=start, fec=FecParameters(2, start + 32 * 4096))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    words = [*veritysetup_words(parameters), f"--fec-device={theirs / place}", f"--fec-offset={start + 32 * 4096}", "--data-blocks=300"]
    printed = veritysetup("format", theirs / "data", theirs / place, *words).stdout
    tree = format_image(ours / "data", ours / place, parameters, host, fec_area=ours / place, data_blocks=300)
    assert tree.root_hash.hex() in printed
    assert (ours / place).read_bytes() == (theirs / place).read_bytes()


def test_a_sparse_image_gives_the_tree_of_veritysetup(tmp_path: Path, host: Host, veritysetup: Run) -> None:
    data = tmp_path / "data"
    with data.open("wb") as handle:
        for megabyte in (3, 9, 10, 31):
            handle.seek(megabyte << 20)
            handle.write(noise(123456, str(megabyte)))
        handle.truncate(40 << 20)
    for kernel in kernels_of("sha256"):
        parameters = VerityParameters("sha256", noise(32), _UUID)
        tree = format_image(data, tmp_path / f"ours.{kernel}", parameters, with_kernel(host, kernel))
        printed = veritysetup("format", data, tmp_path / "theirs", *veritysetup_words(parameters)).stdout
        assert tree.root_hash.hex() in printed
        assert (tmp_path / f"ours.{kernel}").read_bytes() == (tmp_path / "theirs").read_bytes()
