"""Kernel configurations: what Kconfig writes is read back, what it would not take is refused with its line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.errors import FormatError
from ipe_build.formats.dotconfig import line_of, parse_dotconfig, quote, release_of, render_dotconfig, unquote

SYMBOLS = st.from_regex(r"[A-Z0-9_]{1,20}", fullmatch=True)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), max_size=40)
VALUES = st.one_of(st.sampled_from(["y", "m", "n"]), st.integers().map(str), st.integers(min_value=0).map(hex), TEXT.map(quote))


def test_each_kind_of_line_is_read() -> None:
    text = b"# a comment\n\nCONFIG_A=y\nCONFIG_B=m\n"
    text += b'# CONFIG_C is not set\nCONFIG_D="a \\"b\\" \\\\"\nCONFIG_E=-1\nCONFIG_F=0x1000\nCONFIG_G=""\n'
    config = parse_dotconfig(text)
    assert dict(config.values) == {"A": "y", "B": "m", "C": "n", "D": '"a \\"b\\" \\\\"', "E": "-1", "F": "0x1000", "G": '""'}
    assert config.text("D") == 'a "b" \\'
    assert config.text("G") == ""
    assert config.text("ABSENT") is None


def test_a_symbol_that_is_not_named_is_off() -> None:
    config = parse_dotconfig(b"CONFIG_A=m\n# CONFIG_B is not set\n")
    assert (config.get("B"), config.get("C")) == ("n", "n")
    assert (config.enabled("A"), config.enabled("B"), config.enabled("C")) == (True, False, False)


def test_the_last_line_of_a_symbol_counts() -> None:
    assert parse_dotconfig(b"CONFIG_A=y\n# CONFIG_A is not set\n").get("A") == "n"


def test_carriage_returns_and_trailing_blanks_are_taken() -> None:
    assert dict(parse_dotconfig(b"CONFIG_A=y \r\nCONFIG_B=m\t\r\n").values) == {"A": "y", "B": "m"}


@pytest.mark.parametrize("line", ["CONFIG_A", "CONFIG_A=", "CONFIG_A=yes", 'CONFIG_A="open', "A=y", "CONFIG_A=y # why", 'CONFIG_A="a"b"'])
def test_a_line_that_kconfig_would_not_write_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(FormatError, match=r"my\.config:2: wanted CONFIG_NAME=value"):
        parse_dotconfig(f"CONFIG_OK=y\n{line}\n".encode(), where="my.config")


def test_bytes_that_are_no_text_are_refused_with_their_offset() -> None:
    with pytest.raises(FormatError, match="offset 0xa: wanted UTF-8"):
        parse_dotconfig(b"CONFIG_A=\x79\xff\n")


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(FormatError, match="at most"):
        parse_dotconfig(b"#" * (8 * 1024 * 1024 + 1))


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b"])
def test_a_string_that_kconfig_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="line break or NUL"):
        quote(text)


@given(TEXT)
def test_quoting_round_trips(text: str) -> None:
    assert unquote(quote(text)) == text


@settings(deadline=None)
@given(st.dictionaries(SYMBOLS, VALUES, max_size=20))
def test_rendering_round_trips(values: dict[str, str]) -> None:
    assert dict(parse_dotconfig(render_dotconfig(values.items())).values) == values


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from(['CONFIG_A="', "\\", '"', "\n", "# CONFIG_", " is not set", "=y"])).map("".join).map(str.encode)
)
def test_any_bytes_are_read_or_refused_with_one_error(data: bytes) -> None:
    try:
        config = parse_dotconfig(data)
    except FormatError:
        return
    for symbol, value in config.values.items():
        assert parse_dotconfig(line_of(symbol, value).encode()).get(symbol) == value


@pytest.mark.parametrize(
    ("head", "release"),
    [
        (b"#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86 6.12.117 Kernel Configuration\n#\n", "6.12.117"),
        (b"# Linux/arm64 7.0.0-rc3 Kernel Configuration\n", "7.0.0-rc3"),
        (b"# Buildroot 2026.08 Configuration\n", None),
        (b"CONFIG_A=y\n", None),
        (b"\xff\xfe", None),
    ],
)
def test_head_says_which_kernel_wrote_it(head: bytes, release: str | None) -> None:
    assert release_of(head + b"CONFIG_A=y\n") == release
