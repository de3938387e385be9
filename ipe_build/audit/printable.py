"""Text out of an image, made fit to be shown: in a terminal, in JSON, on a page."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Returns the text with every character visible: controls, line ends, reversals of the writing direction and stray bytes as escapes.

    What comes out can always be encoded as UTF-8. A file name's stray byte 0xFF becomes `\xff`.
    """
    return text if text.isprintable() else "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(character: str) -> str:
    """Returns a character's escape; a surrogate that stands for a byte (PEP 383) becomes that byte's."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
