"""`ipe-build config`: checks a configuration, or prints its schema."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.cli import Outcome
from ipe_build.config import load_config
from ipe_build.config.describe import Key, json_schema, keys
from ipe_build.errors import UsageError
from ipe_build.host import Host


def configure(parser: ArgumentParser) -> None:
    """Adds the verb's words to its parser."""
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the configuration to check (ipe-build.toml)")
    parser.add_argument("--schema", action="store_true", help="print every key with type, default and help; with --json a JSON Schema")


def run(arguments: Namespace, host: Host) -> Outcome:
    """Returns the schema, or that the file is fine."""
    if arguments.schema:
        return Outcome(json_schema(), "\n".join(_lines()))
    if arguments.file is None:
        raise UsageError("wanted a FILE to check, or --schema", where="ipe-build config")
    config = load_config(arguments.file)
    return Outcome({"file": str(arguments.file), "name": config.build.name}, f"{arguments.file}: fine, builds {config.build.name}")


def _lines() -> list[str]:
    """Returns the schema as a commented TOML."""
    lines: list[str] = []
    section = None
    for key in keys():
        if key.section != section:
            section = key.section
            lines += ["", f"[[{section[:-2]}]]" if section.endswith("[]") else f"[{section}]"]
        lines.append(f"# {key.doc} ({key.type})")
        lines.append(f"{key.name} = …" if key.needed else f"# {key.name} = {_toml(key)}")
    return lines[1:]


def _toml(key: Key) -> str:
    """Returns a key's default as TOML writes it."""
    if key.default is None:
        return "…"
    if isinstance(key.default, bool):
        return str(key.default).lower()
    if isinstance(key.default, str):
        return f'"{key.default}"'
    return str(key.default).replace("'", '"')
