"""The gate to the machine: outputs are whole or absent, programs are found or named, the cache is never half filled."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipe_build.errors import InputError, OutputError, ToolFailedError, ToolMissingError
from ipe_build.host import Cache, Host, Progress
from ipe_build.host.cache import cache_key
from ipe_build.host.progress import human_bytes
from ipe_build.host.tools import TOOLS


@pytest.fixture
def quiet_host(tmp_path: Path) -> Host:
    return Host(env={"PATH": os.environ["PATH"], "IPE_BUILD_CACHE": str(tmp_path / "cache")}, progress=Progress(io.StringIO()))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_output_appears_only_when_the_block_ends_well(quiet_host: Host, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with quiet_host.output(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stopped_block_leaves_the_last_good_output(quiet_host: Host, tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"last good")
    with pytest.raises(error), quiet_host.output(target, force=True) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"last good"
    assert leftovers(tmp_path) == []


def test_an_existing_output_is_refused_without_force(quiet_host: Host, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"last good")
    with pytest.raises(OutputError, match="exists already"), quiet_host.output(target):
        pytest.fail("the block must not run")
    assert target.read_bytes() == b"last good"


def test_a_device_is_never_replaced(quiet_host: Host) -> None:
    with pytest.raises(OutputError, match="special file"), quiet_host.output(Path("/dev/null"), force=True):
        pytest.fail("the block must not run")


def test_a_missing_folder_is_named(quiet_host: Host, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="mkdir -p"), quiet_host.output(tmp_path / "no" / "out"):
        pytest.fail("the block must not run")


def test_a_full_disk_is_one_clear_error_and_keeps_the_old_output(quiet_host: Host, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"last good")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match="no space left"), quiet_host.output(target, force=True) as temporary:
            temporary.write_bytes(bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert target.read_bytes() == b"last good"
    assert leftovers(tmp_path) == []


def test_output_folder_is_exchanged_whole(quiet_host: Host, tmp_path: Path) -> None:
    target = tmp_path / "image"
    for content in ("one", "two"):
        with quiet_host.output_directory(target, marker="manifest.json") as temporary:
            (temporary / "manifest.json").write_text(content)
            (temporary / content).touch()
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "two"]
    assert leftovers(tmp_path) == []


def test_a_stopped_folder_leaves_the_last_good_one(quiet_host: Host, tmp_path: Path) -> None:
    target = tmp_path / "image"
    with quiet_host.output_directory(target, marker="manifest.json") as temporary:
        (temporary / "manifest.json").write_text("good")
    with pytest.raises(RuntimeError), quiet_host.output_directory(target, marker="manifest.json") as temporary:
        (temporary / "manifest.json").write_text("half")
        raise RuntimeError
    assert (target / "manifest.json").read_text() == "good"
    assert leftovers(tmp_path) == []


def test_a_folder_of_somebody_else_is_not_replaced(quiet_host: Host, tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis.tex").touch()
    with pytest.raises(OutputError, match="not an earlier output"), quiet_host.output_directory(target, marker="manifest.json"):
        pytest.fail("the block must not run")
    assert (target / "thesis.tex").exists()


def test_a_missing_tool_names_its_debian_package(tmp_path: Path) -> None:
    bare = Host(env={"PATH": str(tmp_path), "IPE_BUILD_ONLY_PATH": "1"})
    for row in TOOLS:
        with pytest.raises(ToolMissingError, match=f"apt-get install {row.package}"):
            bare.tool(row.program)


def test_every_tool_of_the_table_has_its_package_listed() -> None:
    lines = (Path(__file__).parents[2] / "conf/debian-packages.txt").read_text().splitlines()
    listed = {line.split("#")[0].strip() for line in lines} - {""}
    implied = {"tar", "keyutils"} | listed
    assert {row.package for row in TOOLS} - implied == set()


def test_a_failing_tool_shows_its_last_lines_and_the_command(quiet_host: Host) -> None:
    with pytest.raises(ToolFailedError) as caught:
        quiet_host.run(["sh", "-c", "echo to see >&2; exit 7"])
    assert "status 7" in str(caught.value)
    assert "to see" in str(caught.value)
    assert "sh -c" in str(caught.value)


def test_a_hanging_tool_is_killed_with_its_children(quiet_host: Host, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    with pytest.raises(ToolFailedError, match="did not end"):
        quiet_host.run(["sh", "-c", f"(sleep 2; touch {alive}) & sleep 60"], timeout_s=0.5)
    time.sleep(2.2)
    assert not alive.exists()


def test_programs_get_a_small_environment(tmp_path: Path) -> None:
    host = Host(env={"PATH": os.environ["PATH"], "PIN": "1234", "HOME": "/h"}, progress=Progress(io.StringIO()))
    seen = host.run(["env"]).text
    assert "PIN" not in seen
    assert "HOME=/h" in seen
    assert "LC_ALL=C.UTF-8" in seen


def test_source_date_epoch_must_be_a_number() -> None:
    assert Host(env={}).source_date_epoch == 0
    assert Host(env={"SOURCE_DATE_EPOCH": "17"}).source_date_epoch == 17
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH"):
        _ = Host(env={"SOURCE_DATE_EPOCH": "yesterday"}).source_date_epoch


def test_cache_entry_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "file").write_text("x")

    assert cache.entry("kernel", "k", make) == cache.entry("kernel", "k", make)
    assert len(made) == 1


def test_a_failed_cache_entry_is_absent(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.entry("kernel", "k", fail)
    assert not (tmp_path / "kernel" / "k").exists()
    assert leftovers(tmp_path / "kernel") == []


def test_two_processes_fill_a_cache_entry_once(tmp_path: Path) -> None:
    script = (
        "import sys,time;from pathlib import Path;from ipe_build.host.cache import Cache\n"
        f"def make(folder):\n    open({str(tmp_path / 'log')!r},'a').write('made\\n');time.sleep(0.3)\n"
        f"Cache(Path({str(tmp_path / 'cache')!r})).entry('k','one',make)"
    )
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_cache_keys_of_different_parts_differ() -> None:
    assert cache_key("ab", "c") != cache_key("a", "bc")
    assert cache_key("ab", "c") == cache_key(b"ab", b"c")


def test_sizes_for_people() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1536, 4 << 30)] == ["0 B", "1023 B", "1.5 KiB", "4.0 GiB"]


def test_steps_are_nested_and_timed() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    with progress.step("outer"), progress.step("inner"):
        progress.note("a note")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "outer …"
    assert lines[1] == "  inner …"
    assert lines[2] == "    a note"
    assert lines[3].startswith("  inner: ")
    assert lines[4].startswith("outer: ")


def test_quiet_still_warns() -> None:
    stream = io.StringIO()
    progress = Progress(stream, quiet=True)
    with progress.step("outer"):
        progress.warn("look")
    assert stream.getvalue() == "warning: look\n"
