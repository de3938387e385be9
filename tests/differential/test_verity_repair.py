"""Damaged images are repaired from error correction data that the real veritysetup made, and accepted by it again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.errors import VerificationError
from ipe_build.host import Host
from ipe_build.integrity.check import check_image
from ipe_build.integrity.repair import Repair, check_parity, repair_image
from ipe_build.integrity.verity import FecParameters, VerityParameters, VerityTree
from tests.fixtures.integrity import flip, noise, veritysetup_words

_UUID = UUID("6d9ab20c-31c5-4d3b-8d6a-93d1dfe1a0f3")
_BLOCKS = 700
Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True, slots=True)
class Made:
    """An image with hash area and error correction of veritysetup's, and its own tree's value."""

    folder: Path
    tree: VerityTree
    run: Run
    host: Host

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return self.folder / "data", self.folder / "hash", self.folder / "fec"

    def repair(self) -> Repair:
        data, area, fec = self.paths
        return repair_image(data, area, fec, self.tree, self.folder / "new", self.folder / "new-hash", self.host)


@pytest.fixture(params=[2, 7])
def made(request: pytest.FixtureRequest, tmp_path: Path, host: Host, veritysetup: Run, root_hash_in: Callable[[str], bytes]) -> Made:
    parameters = VerityParameters("sha256", b"repair", _UUID, fec=FecParameters(request.param))
    (tmp_path / "data").write_bytes(noise(_BLOCKS * 4096))
    words = [*veritysetup_words(parameters), f"--fec-device={tmp_path / 'fec'}", f"--fec-roots={request.param}"]
    printed = veritysetup("format", tmp_path / "data", tmp_path / "hash", *words).stdout
    return Made(tmp_path, VerityTree(parameters, _BLOCKS, root_hash_in(printed), 0), veritysetup, host)


def _accepted(made: Made, original: bytes, original_hash: bytes) -> None:
    assert (made.folder / "new").read_bytes() == original
    assert (made.folder / "new-hash").read_bytes() == original_hash
    made.run("verify", made.folder / "new", made.folder / "new-hash", made.tree.root_hash.hex())


def test_an_undamaged_image_is_copied_with_nothing_repaired(made: Made) -> None:
    data, area, fec = made.paths
    assert made.repair() == Repair((), ())
    assert check_parity(data, area, fec, made.tree, made.host) == ()
    _accepted(made, data.read_bytes(), area.read_bytes())


def test_whole_lost_blocks_are_repaired_as_many_as_there_are_roots(made: Made) -> None:
    data, area, _ = made.paths
    original, original_hash = data.read_bytes(), area.read_bytes()
    roots = made.tree.parameters.fec.roots if made.tree.parameters.fec else 0
    covered = _BLOCKS + made.tree.hash_blocks
    rounds = -(-covered // (255 - roots))
    lost = sorted({1 + rounds * column for column in range(roots - 1)} | {0, 2})
    with data.open("r+b") as handle:
        for block in lost:
            handle.seek(block * 4096)
            handle.write(noise(4096, "damage"))
    assert check_image(data, area, made.tree, made.host).data_blocks == tuple(lost)
    assert made.repair() == Repair(tuple(lost), ())
    _accepted(made, original, original_hash)


def test_damaged_hash_blocks_and_data_below_them_are_repaired(made: Made) -> None:
    data, area, _ = made.paths
    original, original_hash = data.read_bytes(), area.read_bytes()
    flip(area, 4096 + 5)  # the root block
    flip(area, 3 * 4096 + 77)  # a block of digests
    flip(data, 199 * 4096 + 9)  # whose digest lies there
    flip(data, 600 * 4096)
    done = made.repair()
    assert done.hash_blocks == (1, 3)
    assert done.data_blocks == (199, 600)
    _accepted(made, original, original_hash)


def test_more_damage_than_roots_is_refused_and_nothing_is_written(made: Made) -> None:
    data, *_ = made.paths
    roots = made.tree.parameters.fec.roots if made.tree.parameters.fec else 0
    rounds = -(-(_BLOCKS + made.tree.hash_blocks) // (255 - roots))
    for column in range(roots + 1):
        flip(data, column * rounds * 4096)
    with pytest.raises(VerificationError, match=f"{roots + 1} data blocks cannot be repaired"):
        made.repair()
    assert sorted(os.listdir(made.folder)) == ["data", "fec", "hash"]


def test_a_foreign_root_hash_is_not_repaired_into_place(made: Made) -> None:
    data, area, fec = made.paths
    foreign = VerityTree(made.tree.parameters, _BLOCKS, bytes(32), 0)
    with pytest.raises(VerificationError, match="1 hash blocks cannot be repaired: 1"):
        repair_image(data, area, fec, foreign, made.folder / "new", made.folder / "new-hash", made.host)
    assert not (made.folder / "new").exists()


def test_a_flipped_parity_byte_is_found_in_its_round(made: Made) -> None:
    data, area, fec = made.paths
    roots = made.tree.parameters.fec.roots if made.tree.parameters.fec else 0
    flip(fec, 4096 * roots * 1 + 17)
    assert check_parity(data, area, fec, made.tree, made.host) == (1,)
