"""The tables of docs/yocto.md and docs/buildroot.md are those of the sources; the CI templates call verbs and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def between_marks(path: Path) -> str:
    text = path.read_text()
    return text[text.index("differs -->\n") + len("differs -->\n") : text.index("<!-- end -->")]


def escaped(text: str) -> str:
    return text.replace("|", "\\|")


def yocto_table() -> str:
    lines = ["| variable | in | default | |", "|---|---|---|---|"]
    layer = ROOT / "meta-ipe"
    for path in (
        *sorted(layer.glob("classes-recipe/*.bbclass")),
        *sorted(layer.glob("recipes-*/*/*.bb")),
        *sorted(layer.glob("recipes-*/*/*.inc")),
    ):
        text = path.read_text()
        for name, doc in re.findall(r'^(IPE_\w+)\[doc\] = "(.*)"$', text, re.MULTILINE):
            default = re.search(rf'^{name} *\?\??= "(.*)"$', text, re.MULTILINE)
            assert default, name
            shown = f"`{escaped(default[1])}`" if default[1] and len(default[1]) < 70 else "computed" if default[1] else ""
            lines.append(f"| `{name}` | {path.stem.partition('_')[0]} | {shown} | {escaped(doc)} |")
    return "\n".join(lines) + "\n"


def buildroot_table() -> str:
    lines = ["| symbol | default | |", "|---|---|---|"]
    for block in (ROOT / "conf/buildroot/Config.in").read_text().split("\nconfig ")[1:]:
        name = block.split("\n")[0]
        default = re.search(r'^\tdefault "(.*)"$', block, re.MULTILINE)
        help_text = block.partition("\thelp\n")[2].split("\n\t  \n")[0].split("\n\n")[0]
        words = " ".join(line.strip() for line in help_text.splitlines() if line.startswith("\t  "))
        lines.append(f"| `{name}` | {f'`{default[1]}`' if default else ''} | {escaped(words)} |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("page", "table"), [("yocto", yocto_table), ("buildroot", buildroot_table)])
def test_table_is_the_one_of_the_sources(page: str, table) -> None:
    assert between_marks(ROOT / f"docs/{page}.md") == table()


@pytest.mark.parametrize("name", ["github", "gitlab"])
def test_ci_template_calls_what_exists(name: str, capsys) -> None:
    from ipe_build.cli import main

    called = re.findall(r"\.venv/bin/ipe-build (.+)$", (ROOT / f"conf/ci/{name}.yml").read_text(), re.MULTILINE)
    assert {line.split()[0] for line in called} == {"build", "audit"}
    for line in called:
        verb, *words = shlex.split(line)
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        known = capsys.readouterr().out
        for word in words:
            if word.startswith("-"):
                assert re.search(rf"(^|[\s,\[]){re.escape(word)}\b", known), f"{verb} {word}"
