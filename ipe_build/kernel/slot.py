"""The reserved boot policy: a policy of a fixed size that is compiled in, found again in a finished kernel, and written over.

The boot policy is one NUL-terminated string (scripts/ipe/polgen), whose length the kernel takes with strlen() when it boots (ipe_init),
so another text of the same length can stand in its place.

Two things are kept for that:

- The reserved text is hard to compress, so that a kernel with a real policy in it is never larger packed than it was.
- Its last line never changes. The linker lets equal ends of strings share their bytes (SHF_MERGE, SHF_STRINGS): some other string of
  the kernel may be the end of this one, such as a lone line feed. No more than the last line can be shared so: nothing else holds it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from ipe_build.errors import InputError
from ipe_build.policy.parser import Role, parse

DEFAULT_RESERVED = 4096
MIN_RESERVED, MAX_RESERVED = 512, 1 << 20
_HEAD = b"# reserved for the boot policy that ipe-build kernel seal writes here; until then nothing runs\n"
_UNSEALED = b"policy_name=unsealed policy_version=0.0.0\nDEFAULT action=DENY\n"
_PADDING = b"# ipe-build: padding from here on\n"
_END = re.compile(rb"# ipe-build: end of ([0-9]{3,7}) reserved bytes\n(?=\0)")
_LINE = 80
_WHERE = "kernel image"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the reserved text stands in an unpacked kernel. `policy` is what is in force; None in a kernel that is not sealed yet."""

    offset: int
    size: int
    policy: bytes | None


def reserved_policy(size: int = DEFAULT_RESERVED) -> bytes:
    """Returns the boot policy, `size` bytes long, to compile into a kernel that is sealed later. It denies everything.

    Raises: InputError for a size that is not from MIN_RESERVED to MAX_RESERVED.
    """
    if not MIN_RESERVED <= size <= MAX_RESERVED:
        raise InputError(f"wanted {MIN_RESERVED} to {MAX_RESERVED} bytes, got {size}", where="reserved boot policy")
    return _filled(_HEAD + _UNSEALED, size, noise)


def sealed_policy(policy: bytes, size: int, padding: Callable[[int], bytes] | None = None) -> bytes:
    """Returns the policy padded with comment lines to `size` bytes; `padding` makes them (`plain` when left out, or `noise`).

    Raises: InputError when the kernel would refuse the policy, or it does not fit.
    """
    result = parse(policy, role=Role.BOOT)
    if b"\0" in policy or not result.accepted:
        why = result.problem.message if result.problem else "holds a NUL byte"
        raise InputError(f"the kernel would refuse it and boot with nothing enforced: {why}", where="boot policy")
    text = policy if policy.endswith(b"\n") else policy + b"\n"
    room = size - len(_PADDING) - len(_end(size))
    if len(text) > room:
        raise InputError(
            f"has {len(text)} bytes, and {room} are reserved for it in this kernel",
            where="boot policy",
            hint="leave comments out, or build the kernel with a larger [kernel] reserve",
        )
    return _filled(text + _PADDING, size, padding or plain)


def policy_of(text: bytes) -> bytes | None:
    """Returns the policy that was sealed in, without its padding; None when `text` is no reserved text or is not sealed yet."""
    found = _END.search(text + b"\0")
    if found is None or found.end() != len(text) or int(found[1]) != len(text):
        return None
    head, mark, _ = text.rpartition(_PADDING)
    return head if mark else None


def is_reserved(text: bytes) -> bool:
    """Returns whether a boot policy is the reserved one, which nothing was sealed into yet."""
    return text.startswith(_HEAD) and _END.search(text + b"\0") is not None


def find_slot(kernel: bytes) -> Slot:
    """Returns where the reserved text stands in an unpacked kernel.

    Raises: InputError when there is none or more than one, or it is not what it should be.
    """
    ends = list(_END.finditer(kernel))
    if len(ends) != 1:
        got = "none" if not ends else f"{len(ends)} of them"
        raise InputError(
            f"wanted one reserved boot policy, got {got}",
            where=_WHERE,
            hint="build the kernel with one: ipe-build kernel build --reserve, or [build] profile = sealed",
        )
    size = int(ends[0][1])
    offset = ends[0].end() - size
    text = kernel[max(offset, 0) : ends[0].end()]
    if offset < 0 or b"\0" in text or not parse(text, role=Role.BOOT).accepted:
        raise InputError(f"offset {max(offset, 0):#x}: the {size} reserved bytes hold no boot policy", where=_WHERE, hint="is it damaged?")
    if not is_reserved(text) and policy_of(text) is None:
        raise InputError(f"offset {offset:#x}: the reserved bytes hold something that was not sealed in", where=_WHERE)
    return Slot(offset, size, policy_of(text))


def plain(length: int) -> bytes:
    """Returns comment lines, `length` bytes, that compress to nearly nothing."""
    return _lines(b"#" * length)


def noise(length: int) -> bytes:
    """Returns comment lines, `length` bytes, that compress badly: base64 of a chain of SHA-256, always the same."""
    blocks = (sha256(b"ipe-build reserved boot policy %d" % number).digest() for number in range(length // 32 + 1))
    return _lines(base64.b64encode(b"".join(blocks))[:length])


def _lines(text: bytes) -> bytes:
    """Returns the text with `#` at the start and a line feed at the end of each line; its length stays."""
    rows = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    return b"".join(b"#" + row[2:] + b"\n" if len(row) > 1 else b"\n" for row in rows)


def _filled(head: bytes, size: int, padding: Callable[[int], bytes]) -> bytes:
    end = _end(size)
    text = head + padding(size - len(head) - len(end)) + end
    assert len(text) == size
    return text


def _end(size: int) -> bytes:
    return b"# ipe-build: end of %d reserved bytes\n" % size
