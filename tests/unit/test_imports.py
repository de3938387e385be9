"""The rooms' order, checked on the source: imports go down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ipe_build"
LEVELS = (
    ("errors", "__init__"),
    ("formats",),
    ("policy", "integrity", "signing"),
    ("image", "kernel", "audit", "boot", "attest"),
    ("examine", "steps"),
    ("pipeline",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
HANDED_IN = ("host", "config")
MAY_IMPORT_HANDED_IN = ("examine", "steps", "pipeline", "cli", "__main__")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(source: str, package: str) -> list[tuple[str, bool]]:
    """All modules of ours that a source imports, with whether it is for types only."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, typing_only: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                visit(child, True)
            for child in node.orelse:
                visit(child, typing_only)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *([node.module] if node.module else [])])
            found.extend((f"{base}.{alias.name}" if base == "ipe_build" else base, typing_only) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, typing_only)

    visit(ast.parse(source), False)
    return [(name, only) for name, only in found if name.split(".")[0] == "ipe_build"]


def violations(module: str, source: str) -> list[str]:
    room = room_of(module)
    wrong = []
    for name, typing_only in imports(source, module.rpartition(".")[0]):
        target = room_of(name)
        if target == room or target == "__version__":
            continue
        if room in HANDED_IN:
            allowed = target in ("errors", *HANDED_IN)
        elif target in HANDED_IN:
            allowed = typing_only or room in MAY_IMPORT_HANDED_IN
        else:
            allowed = LEVEL[target] < LEVEL[room]
        if not allowed:
            wrong.append(f"{module} imports {name}")
    return wrong


def modules() -> list[tuple[str, Path]]:
    return [(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts), file) for file in sorted(PACKAGE.rglob("*.py"))]


@pytest.mark.parametrize(("module", "file"), modules(), ids=[name for name, _ in modules()])
def test_imports_go_down_only(module: str, file: Path) -> None:
    assert violations(module, file.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ipe_build.formats.gpt", "from ipe_build.image.disk import Disk"),
        ("ipe_build.signing.cms", "import ipe_build.policy.parser"),
        ("ipe_build.boot.qemu", "from ipe_build.kernel import build"),
        ("ipe_build.policy.lint", "from ipe_build.host import Host"),
        ("ipe_build.policy.lint", "from ..host import Host"),
        ("ipe_build.audit.checks", "def f():\n    from ipe_build import pipeline"),
        ("ipe_build.host.run", "from ipe_build.formats import gpt"),
    ],
)
def test_an_import_that_goes_up_is_found(module: str, source: str) -> None:
    assert violations(module, source)


def test_an_import_for_types_only_is_allowed() -> None:
    assert (
        violations("ipe_build.policy.lint", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ipe_build.host import Host")
        == []
    )


def test_only_the_command_line_prints() -> None:
    printing = []
    for module, file in modules():
        if room_of(module) in ("cli", "__main__"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "exit", "input"):
                printing.append(f"{module}:{node.lineno}")
    assert printing == []


def test_only_the_host_starts_processes() -> None:
    starting = []
    for module, file in modules():
        if room_of(module) == "host":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if "subprocess" in names or (isinstance(node, ast.ImportFrom) and node.module == "subprocess"):
                starting.append(f"{module}:{node.lineno}")
    assert starting == []
