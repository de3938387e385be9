"""No bytes make a reader raise anything but an error of ours: random damage, the same each run, and a short run guided by coverage."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.targets import BY_NAME, TARGETS, Target, mutated, run

ROUNDS = 1000
"""Damaged inputs for each seed."""
TOOLS = {
    "compression": ("zstd", "lz4", "lzop", "bzip2"),
    "erofs": ("mkfs.erofs",),
    "ext4": ("mke2fs",),
    "fat": ("mkfs.vfat", "mmd", "mcopy"),
    "squashfs": ("mksquashfs",),
}
GUIDED = 2000
"""Executions of each target under Atheris."""
GROUPS = 4
"""Runs that the targets are dealt out to: each instruments the package anew, which takes longer than fuzzing a target."""


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_bytes_are_answered_or_refused(target: Target, need: Callable[[str], Path]) -> None:
    for tool in TOOLS.get(target.name, ()):
        need(tool)
    for seed in target.seeds():
        target.read(seed)
        random_ = random.Random(f"{target.name} {len(seed)}")
        for number in range(ROUNDS):
            data = mutated(seed, random_)
            try:
                run(target, data)
            except Exception as error:
                place = Path("/tmp") / f"fuzz-{target.name}-{number}"
                place.write_bytes(data)
                raise AssertionError(f"{place}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("group", range(GROUPS))
def test_readers_guided_by_coverage_do_not_break(group: int, need: Callable[[str], Path], tmp_path: Path) -> None:
    names = list(BY_NAME)[group::GROUPS]
    for name in names:
        for tool in TOOLS.get(name, ()):
            need(tool)
    words = [sys.executable, "-m", "tests.fuzz", "--runs", str(GUIDED), *names]
    env = {"IPE_BUILD_CACHE": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f" {GUIDED} executions") == len(names), done.stdout


@pytest.mark.parametrize("place", sorted(Path(__file__).with_name("found").iterdir()), ids=lambda place: place.name)
def test_what_once_broke_a_reader_is_answered_or_refused(place: Path) -> None:
    run(BY_NAME[place.name.partition(".")[0]], place.read_bytes())


def test_the_page_has_the_campaign_of_each_target() -> None:
    page = (Path(__file__).parents[2] / "docs/fuzzing.md").read_text()
    assert re.findall(r"^\| ([a-z0-9-]+) \| [\d,]+ \| \d+ \|$", page, re.MULTILINE) == list(BY_NAME)
