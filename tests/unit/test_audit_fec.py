"""The audit finds error correction that veritysetup made, behind the tree, and says when it is not of these blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ipe_build.audit.checks_fec import error_correction
from ipe_build.audit.facts import ImageFacts, OtherPartition, Region, RootPartitions
from ipe_build.audit.findings import Verdict
from ipe_build.host import Host


def made(tmp_path: Path, host: Host, roots: int) -> tuple[Path, Path, Path, bytes]:
    data, area, parity = tmp_path / "data", tmp_path / "hash", tmp_path / "fec"
    data.write_bytes(os.urandom(300 * 4096))
    words = ["veritysetup", "format", data, area, f"--fec-device={parity}", f"--fec-roots={roots}"]
    told = host.run(words).text
    return data, area, parity, bytes.fromhex(next(line.split()[-1] for line in told.splitlines() if line.startswith("Root hash")))


def facts(data: Path, area: Path, root_hash: bytes, *more: OtherPartition) -> ImageFacts:
    whole = [Region(path, 0, path.stat().st_size) for path in (data, area)]
    root = RootPartitions(None, None, None, whole[0], whole[1], None, named_hash=root_hash)
    return ImageFacts(data, root=root, partitions=more)


@pytest.mark.parametrize("roots", [2, 7, 24])
def test_parity_in_a_partition_of_its_own_is_found(tmp_path: Path, host: Host, need, roots: int) -> None:
    need("veritysetup")
    data, area, parity, root_hash = made(tmp_path, host, roots)
    with_parity = facts(data, area, root_hash, OtherPartition("fec", Region(parity, 0, parity.stat().st_size), "", None))
    found = list(error_correction(with_parity, host))
    assert [one.verdict for one in found] == [Verdict.PASS]
    assert f"parity of {roots} roots" in found[0].why


def test_parity_of_other_blocks_is_said(tmp_path: Path, host: Host, need) -> None:
    need("veritysetup")
    data, area, parity, root_hash = made(tmp_path, host, 2)
    raw = bytearray(parity.read_bytes())
    raw[2 * 4096 + 3] ^= 1
    parity.write_bytes(raw)
    with_parity = facts(data, area, root_hash, OtherPartition("fec", Region(parity, 0, parity.stat().st_size), "", None))
    assert [one.verdict for one in error_correction(with_parity, host)] == [Verdict.FAIL]


def test_parity_behind_the_tree_is_found(tmp_path: Path, host: Host, need) -> None:
    need("veritysetup")
    data, area, parity, root_hash = made(tmp_path, host, 2)
    area.write_bytes(area.read_bytes() + parity.read_bytes())
    found = list(error_correction(facts(data, area, root_hash), host))
    assert [(one.verdict, one.subject) for one in found] == [(Verdict.PASS, "what lies behind the tree")]


def test_a_root_without_error_correction_is_none_the_worse(tmp_path: Path, host: Host, need) -> None:
    need("veritysetup")
    data, area, _, root_hash = made(tmp_path, host, 2)
    found = list(error_correction(facts(data, area, root_hash), host))
    assert [one.verdict for one in found] == [Verdict.PASS]
    assert "there is none" in found[0].why
