"""Boot loader entries of type 1 (`loader/entries/*.conf`): their fields. Source: UAPI Group, Boot Loader Specification."""

from __future__ import annotations


def entry_fields(text: str) -> dict[str, tuple[str, ...]]:
    """Returns an entry's fields: a name, spaces, a value; `#` lines are comments; a name may come more than once."""
    fields: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        words = line.strip().split(None, 1)
        if len(words) == 2 and not words[0].startswith("#"):
            fields[words[0]] = (*fields.get(words[0], ()), words[1].strip())
    return fields
