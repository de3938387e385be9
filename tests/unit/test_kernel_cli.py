"""The verbs `kernel fragment` and `kernel check`, and the fragments that are shipped in conf/kernel."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.formats.dotconfig import parse_dotconfig
from ipe_build.kernel.needs import ROWS, Need

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "conf/kernel").glob("*.config"))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_each_shipped_fragment_is_what_its_first_line_prints(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, rest = path.read_text().split("\n", 1)
    words = shlex.split(first.removeprefix("# Made by: "))
    assert words[:3] == ["ipe-build", "kernel", "fragment"]
    assert run(capsys, *words[1:])[1] == rest


def test_fragments_are_shipped() -> None:
    assert [path.name for path in SHIPPED] == ["hardened.config", "ipe.config", "qemu-x86_64.config"]


def test_the_shipped_demo_fragment_passes_its_own_check_and_fails_without_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (ROOT / "conf/kernel/qemu-x86_64.config").read_text()
    words = ("--board", "qemu-x86_64", "--feature", "hardening", "--feature", "probes")
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(whole)
    bad.write_text(whole.replace("CONFIG_DM_VERITY=y", "CONFIG_DM_VERITY=m"))
    assert run(capsys, "kernel", "check", good, *words)[0] == 0
    status, out, _ = run(capsys, "kernel", "check", bad, *words, "--json")
    assert status == 1
    assert [(row["symbol"], row["wanted"], row["got"]) for row in json.loads(out)] == [("DM_VERITY", "y", "m")]
    assert "CONFIG_DM_VERITY is m, wanted y (dm-verity: " in run(capsys, "kernel", "check", bad, *words)[1]


def test_a_policy_says_which_properties_the_kernel_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "p.pol"
    policy.write_text("policy_name=p policy_version=0.0.1\nDEFAULT action=DENY\nop=EXECUTE fsverity_signature=TRUE action=ALLOW\n")
    with_it = parse_dotconfig(run(capsys, "kernel", "fragment", "--policy", policy)[1].encode())
    without = parse_dotconfig(run(capsys, "kernel", "fragment")[1].encode())
    assert with_it.get("FS_VERITY_BUILTIN_SIGNATURES") == with_it.get("IPE_PROP_FS_VERITY_BUILTIN_SIG") == "y"
    assert "FS_VERITY_BUILTIN_SIGNATURES" not in without.values


def test_paths_of_the_trust_are_put_in(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "kernel", "fragment", "--boot-policy", "/etc/my boot.pol", "--trusted-keys", "/k.pem")[1]
    config = parse_dotconfig(out.encode())
    assert (config.text("IPE_BOOT_POLICY"), config.text("SYSTEM_TRUSTED_KEYS")) == ("/etc/my boot.pol", "/k.pem")


def test_the_list_names_every_feature_and_symbol(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(run(capsys, "kernel", "fragment", "--list", "--json")[1])
    assert len(rows) == len(ROWS)
    text = run(capsys, "kernel", "fragment", "--list")[1]
    assert all(f"\n{need.value}" in f"\n{text}" for need in Need)


def test_an_output_is_written_and_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.config"
    assert run(capsys, "kernel", "fragment", "-o", out)[0] == 0
    before = out.read_bytes()
    status, _, err = run(capsys, "kernel", "fragment", "-o", out, "--feature", "ima")
    assert (status, out.read_bytes()) == (2, before)
    assert str(out) in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fragment", "--feature", "speed"), "no feature is called 'speed'"),
        (("fragment", "--board", "toaster"), "no board is called 'toaster'"),
        (("fragment", "--property", "x"), "no IPE property is called 'x'"),
        (("fragment", "--policy", "/absent.pol"), "/absent.pol: No such file"),
        (("check", "/absent.config"), "/absent.config: No such file"),
        (("inspect", "/absent.img"), "/absent.img: No such file"),
        (("build", "--boot-policy", "/absent.pol", "-o", "/tmp/never"), "/absent.pol: No such file"),
    ],
)
def test_bad_input_is_one_error(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "kernel", *words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_a_policy_that_is_none_cannot_say_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.pol"
    file.write_text("no policy\n")
    assert run(capsys, "kernel", "fragment", "--policy", file)[0] == 2
