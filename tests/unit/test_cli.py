"""The command line's contract: one JSON value on stdout, errors on stderr, the exit statuses, a quick start."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipe_build.cli import VERBS, Verb, main

ROOT = Path(__file__).parents[2]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ipe_build", *words], capture_output=True, text=True, env={**os.environ, **environment}, cwd=ROOT
    )


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_verb_has_help(verb: str) -> None:
    done = run(verb, "--help")
    assert done.returncode == 0
    assert f"ipe-build {verb}" in done.stdout


def subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from subparsers(child)


@pytest.mark.parametrize("verb", VERBS, ids=[verb.name for verb in VERBS])
def test_every_sub_verb_can_print_its_help(verb: Verb) -> None:
    parser = argparse.ArgumentParser(prog=verb.name)
    importlib.import_module(f"ipe_build.cli.{verb.module}").configure(parser)
    for one in subparsers(parser):
        assert one.format_help()


def test_a_usage_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 2
    assert capsys.readouterr().err == "error: ipe-build config: wanted a FILE to check, or --schema\n"


def test_an_unknown_verb_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bild"]) == 2
    assert "bild" in capsys.readouterr().err


def test_with_json_an_error_is_the_one_value_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "/absent.toml", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["where"] == "/absent.toml"
    assert captured.err.startswith("error: /absent.toml: cannot be read")


def test_json_schema_is_printed_as_one_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--schema", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "ipe-build.toml"


def test_a_closed_pipe_is_quiet() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m ipe_build config --schema | head -1"], capture_output=True, text=True, cwd=ROOT
    )
    assert "Traceback" not in done.stderr


def test_a_verb_imports_only_what_it_needs() -> None:
    script = "import sys; from ipe_build.cli import main; main(['config', 'conf/demo.toml']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for heavy in ("cryptography", "jinja2", "dissect", "elftools", "ipe_build.pipeline"):
        assert f"'{heavy}" not in loaded


def test_an_interrupt_ends_with_status_130_and_one_message(tmp_path: Path) -> None:
    fifo = tmp_path / "config.toml"
    os.mkfifo(fifo)
    process = subprocess.Popen([sys.executable, "-m", "ipe_build", "config", str(fifo)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.startswith("error: interrupted")
    assert "Traceback" not in errors
