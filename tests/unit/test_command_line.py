"""Command lines, split as the kernel does. The rows' words were printed by next_arg() of Linux 6.12 (lib/cmdline.c), compiled as it is."""

from __future__ import annotations

import pytest

from ipe_build.formats.command_line import all_words, cut, ipe_init_values, kernel_words

ROWS = (
    ("a=1 b", [("a", "1"), ("b", None)]),
    ('"ipe.enforce=0"', [("ipe.enforce", "0")]),
    ('ipe.enforce="0"', [("ipe.enforce", "0")]),
    ('x="a b" y', [("x", "a b"), ("y", None)]),
    ('x="a ipe.enforce=0" y', [("x", "a ipe.enforce=0"), ("y", None)]),
    ('"x y"=1', [('x y"', "1")]),
    ("dm-mod.create=x", [("dm_mod.create", "x")]),
    ("=x", [("=x", None)]),
    ('x="', [("x", "")]),
    ("a\tb\vc\fd\xa0e", [("a", None), ("b", None), ("c", None), ("d", None), ("e", None)]),
    ("a -- b=1", [("a", None), ("__", None), ("b", "1")]),
    ('"--" b', [("__", None), ("b", None)]),
)


@pytest.mark.parametrize(("text", "wanted"), ROWS)
def test_words_are_those_of_the_kernel(text: str, wanted: list[tuple[str, str | None]]) -> None:
    assert [(word.name, word.value) for word in all_words(text)] == wanted


def test_words_behind_two_dashes_are_not_the_kernels() -> None:
    assert [word.name for word in kernel_words("a -- b")] == ["a"]
    assert [word.name for word in kernel_words('a "--" b')] == ["a"]
    assert [word.name for word in kernel_words("a __ b")] == ["a", "__", "b"]


def test_ipe_init_leaves_quotes_in_values() -> None:
    assert ipe_init_values('roothash=ab "roothash=cd" roothash="ef" -- roothash=gh', "roothash") == ("ab", '"ef"')


def test_a_line_that_is_too_long_loses_its_last_words() -> None:
    assert cut("a b", "x86-64") == "a b"
    assert cut("a " + "b" * 2045, "x86-64") == "a " + "b" * 2045
    assert cut("a " + "b" * 2046, "x86-64") == "a"
    assert cut("a " + "b" * 1100, "riscv64") == "a"
    assert cut('a="' + "x " * 1100 + '"', "x86-64") == ""
