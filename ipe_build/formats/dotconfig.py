"""Kernel configurations: a resolved `.config`, a defconfig or a fragment, as bytes and as a value.

Source: scripts/kconfig/confdata.c (conf_read_simple, print_symbol) and Documentation/kbuild/kconfig-language.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ipe_build.errors import FormatError

MAX_BYTES = 8 * 1024 * 1024
"""A configuration of every symbol of Linux is below 1 MiB."""
_SET = re.compile(r"CONFIG_([A-Za-z0-9_]+)=(.*)\Z", re.DOTALL)
_UNSET = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set\Z")
_RELEASE = re.compile(r"^# Linux/\S+ (\d+\.\d+\S*) Kernel Configuration$", re.MULTILINE)
_VALUE = re.compile(r'(?:[ymn]|-?[0-9]+|0[xX][0-9A-Fa-f]+|"(?:[^"\\]|\\.)*")\Z', re.DOTALL)


@dataclass(frozen=True, slots=True)
class DotConfig:
    """A configuration: each symbol (without `CONFIG_`) and its value as it stands in the file.

    A value is `y`, `m`, `n` (also for `# CONFIG_X is not set`), a number, or a quoted string; `unquote` takes the quotes off.
    """

    values: Mapping[str, str]

    def get(self, symbol: str) -> str:
        """Returns the symbol's value; `n` where the configuration does not name it, as Kconfig has it for y/m/n symbols."""
        return self.values.get(symbol, "n")

    def text(self, symbol: str) -> str | None:
        """Returns the text of a string symbol, without quotes and escapes; None where it is not in the configuration."""
        value = self.values.get(symbol)
        return None if value is None else unquote(value)

    def enabled(self, symbol: str) -> bool:
        """Returns whether the symbol is built in (`y`) or a module (`m`)."""
        return self.get(symbol) in ("y", "m")


def parse_dotconfig(data: bytes, *, where: str = ".config") -> DotConfig:
    """Returns the configuration that the text says; a symbol's last line counts, as for Kconfig.

    Raises: FormatError with the line number, where a line is neither empty, a comment, nor `CONFIG_NAME=value`.
    """
    if len(data) > MAX_BYTES:
        raise FormatError(f"wanted a configuration of at most {MAX_BYTES} bytes, got {len(data)}", where=where)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"offset {error.start:#x}: wanted UTF-8 text, got byte {data[error.start]:#04x}", where=where) from None
    return DotConfig(MappingProxyType(dict(_lines(text, where))))


def release_of(data: bytes) -> str | None:
    """Returns the version of the kernel that wrote a configuration (`6.12.117`), as its head says; None where it does not."""
    found = _RELEASE.search(data[:4096].decode("utf-8", "replace"))
    return found[1] if found else None


def render_dotconfig(values: Iterable[tuple[str, str]]) -> bytes:
    """Returns the lines for these symbols and values (see `DotConfig`), in the order given."""
    return b"".join(line_of(symbol, value).encode() + b"\n" for symbol, value in values)


def line_of(symbol: str, value: str) -> str:
    """Returns one line as Kconfig writes it: `CONFIG_X=y`, or `# CONFIG_X is not set` for `n`."""
    return f"# CONFIG_{symbol} is not set" if value == "n" else f"CONFIG_{symbol}={value}"


def quote(text: str) -> str:
    r"""Returns a string as Kconfig writes it: in quotes, with `\` before `"` and `\`. Raises: FormatError for a line break or NUL."""
    if any(character in text for character in "\n\r\0"):
        raise FormatError(f"a Kconfig string cannot hold a line break or NUL, got {text!r}", where="kernel configuration")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unquote(value: str) -> str:
    """Returns a value's text: of a quoted string what is between the quotes, else the value itself."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
    return value


def is_value(value: str) -> bool:
    """Returns whether this can stand right of `=`: y, m, n, a number, or a quoted string."""
    return _VALUE.match(value) is not None


def _lines(text: str, where: str) -> Iterator[tuple[str, str]]:
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r").rstrip(" \t")
        if not line:
            continue
        if line.startswith("#"):
            unset = _UNSET.match(line)
            if unset:
                yield unset[1], "n"
            continue
        assignment = _SET.match(line)
        if assignment is None or not is_value(assignment[2]):
            raise FormatError(
                f"wanted CONFIG_NAME=value, a comment or an empty line, got {line[:80]!r}",
                where=f"{where}:{number}",
                hint='a value is y, m, n, a number, or a string in double quotes; unset is "# CONFIG_NAME is not set"',
            )
        yield assignment[1], assignment[2]
