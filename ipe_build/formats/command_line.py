"""A kernel command line taken apart as the kernel does it: white space, quotes, `--`, and where it is cut short.

Source: Linux lib/cmdline.c (next_arg), kernel/params.c (parse_args), drivers/firmware/efi/libstub/efi-stub-helper.c
(efi_convert_cmdline); our image/guest/config.c (command_line_word).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"x86-64": 2048, "arm64": 2048, "riscv64": 1024, "arm": 1024}
"""COMMAND_LINE_SIZE, the NUL at the end included. Source: arch/*/include/**/setup.h."""
_KERNEL_SPACE = frozenset(" \t\n\v\f\r\xa0")
_IPE_INIT_SPACE = " \t\r\n"


def kernel_bool(value: str) -> bool | None:
    """Returns what the kernel makes of a truth value on its command line, None for one that it refuses. Source: lib/kstrtox.c."""
    first = value[:2].lower()
    if first[:1] in ("y", "t", "1") or first == "on":
        return True
    return False if first[:1] in ("n", "f", "0") or first == "of" else None


class Word(NamedTuple):
    """A word: its name (`_` for `-`, which the kernel takes for the same), its value (None without `=`), and its text as it stands."""

    name: str
    value: str | None
    text: str


def kernel_words(text: str) -> Iterator[Word]:
    """Yields the words that the kernel takes for its own: quotes taken off, up to `--`, behind which they are init's."""
    for word in all_words(text):
        if word.text in ("--", '"--"', '"--'):
            return
        yield word


def all_words(text: str) -> Iterator[Word]:
    """Yields every word, as next_arg() splits it."""
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in _KERNEL_SPACE:
            at += 1
        if at == end:
            return
        start, quoted = at, text[at] == '"'
        in_quote = quoted
        first = at = at + quoted
        equals = -1
        while at < end and (in_quote or text[at] not in _KERNEL_SPACE):
            if equals < 0 and text[at] == "=" and at > first:
                equals = at
            in_quote ^= text[at] == '"'
            at += 1
        yield _word(text[start:at], text[first:at], equals - first, quoted)


def _word(text: str, inner: str, equals: int, quoted: bool) -> Word:
    """Returns a word without its quotes: one at the end goes when the word, or its value, begins with one."""
    name, value = (inner, None) if equals < 0 else (inner[:equals], inner[equals + 1 :])
    if value is not None and (value[:1] == '"' or quoted):
        value = value.removesuffix('"') if value != '"' else value
        value = value.removeprefix('"')
    if value is None and quoted:
        name = name.removesuffix('"')
    return Word(name.replace("-", "_"), value, text)


def ipe_init_values(text: str, name: str) -> tuple[str, ...]:
    """Returns the values of NAME=VALUE that ipe-init reads in /proc/cmdline: quotes keep white space together and are left in."""
    found = []
    for word in _ipe_init_words(text):
        if word == "--":
            break
        if word.startswith(f"{name}="):
            found.append(word.removeprefix(f"{name}="))
    return tuple(found)


def _ipe_init_words(text: str) -> Iterator[str]:
    word, in_quote = "", False
    for character in text:
        if character in _IPE_INIT_SPACE and not in_quote:
            if word:
                yield word
            word = ""
            continue
        in_quote ^= character == '"'
        word += character
    if word:
        yield word


def cut(text: str, architecture: str) -> str:
    """Returns what a kernel takes of a command line: all of it, or as many whole words as fit.

    The EFI stub cuts at white space outside of quotes. Started without it the kernel cuts in the middle of a word; what that half word
    then says is no word that counts here.
    """
    limit = SIZES.get(architecture, 2048) - 1
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) <= limit:
        return text
    safe, in_quote = 0, False
    for place, byte in enumerate(raw[: limit + 1]):
        if byte == 0x22:
            in_quote = not in_quote
        elif not in_quote and byte in b" \t\n\v\f\r":
            safe = place
    return raw[:safe].decode("utf-8", "surrogateescape")
