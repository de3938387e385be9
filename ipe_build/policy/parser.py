"""The kernel's policy parser, restated on bytes: the same answer for the same text, and where and why.

Source: Linux 6.12 security/ipe/policy_parser.c, digest.c, policy_fs.c; lib/parser.c, lib/kstrtox.c, lib/hexdump.c, lib/ctype.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cache

from ipe_build.policy.facts import Digest
from ipe_build.policy.model import Condition, Default, Policy, PolicyVersion, Rule
from ipe_build.policy.properties import PROPERTIES, Action, Operation, Property
from ipe_build.policy.versions import DEFAULT_KERNEL, FIRST_KERNEL, KernelVersion

_SPACE = b"\t\n\v\f\r \xa0"
"""The kernel's isspace(): Latin-1, so a no-break space counts."""
_TOKEN = re.compile(rb"[^ \t]+")
_DIGITS = re.compile(rb"\+?(0*)([0-9]+)")
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2})*")
_U16_MAX = 0xFFFF
_U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
_NAME_MAX = 255

_OPERATIONS = {f"op={op}".encode(): op for op in Operation}
_ACTIONS = {f"action={action}".encode(): action for action in Action}


class Role(StrEnum):
    """How a policy reaches the kernel."""

    DEVICE = "device"
    """Signed, written to securityfs ipe/new_policy or policies/NAME/update."""
    BOOT = "boot"
    """Compiled in with CONFIG_IPE_BOOT_POLICY."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the kernel refuses a text, and where: line and column count from 1, in bytes; 0 is the text as a whole."""

    errno: str
    line: int
    column: int
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class ParseResult:
    """The kernel's answer. `policy` is there when the text parses, also when only its name is refused afterwards."""

    accepted: bool
    errno: str | None
    policy: Policy | None
    problem: Problem | None


class _RefusedError(Exception):
    """Carries the errno, the index of the token in the line (None: the line) and the words up to `parse`."""

    def __init__(self, errno: str, token: int | None, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.errno, self.token, self.message, self.hint = errno, token, message, hint


def parse(text: bytes, kernel: KernelVersion = DEFAULT_KERNEL, role: Role = Role.DEVICE) -> ParseResult:
    """Returns what a kernel answers to this text: accepted, or the errno with the place and the reason.

    For `Role.DEVICE` the text is what is inside the signature, which is taken to be good, and no policy of that name is loaded
    yet; what depends on more than the language (the signature, the size of the signed file, memory, versions) is the linter's.
    """
    state = _State(kernel)
    number = column = 0
    try:
        for number, row in enumerate(text.split(b"\0", 1)[0].split(b"\n"), 1):
            column = 0
            for part in row.split(b"\r"):
                line = part.split(b"#", 1)[0].rstrip(_SPACE)
                if line:
                    state.line(line, number)
                column += len(part) + 1
        number = column = 0
        policy = state.finish()
    except _RefusedError as error:
        if number:
            column += _column(line, error.token)
        return _refuse(error.errno, number, column, error.message, error.hint)
    return _with_name_checked(policy, text) if role is Role.DEVICE else ParseResult(True, None, policy, None)


def _column(line: bytes, token: int | None) -> int:
    """Returns the column (from 1) of a line's token."""
    starts = [found.start() for found in _TOKEN.finditer(line)]
    return starts[0 if token is None else token] + 1 if starts else 1


def _refuse(errno: str, line: int, column: int, message: str, hint: str, policy: Policy | None = None) -> ParseResult:
    return ParseResult(False, errno, policy, Problem(errno, line, column, message, hint))


def _with_name_checked(policy: Policy, text: bytes) -> ParseResult:
    """Returns the result after the kernel made the folder ipe/policies/NAME (lookup_one_common, simple_lookup)."""
    column = text.split(b"\n")[policy.header_line - 1].find(b"policy_name=") + 13
    if b"/" in policy.name or policy.name in (b".", b".."):
        why, hint = "the policy's name cannot be a folder name in securityfs", "use a name without / that is neither . nor .."
        return _refuse("EACCES", policy.header_line, column, why, hint, policy)
    if len(policy.name) > _NAME_MAX:
        why = f"the policy's name has {len(policy.name)} bytes, securityfs takes {_NAME_MAX}"
        return _refuse("ENAMETOOLONG", policy.header_line, column, why, "use a shorter name", policy)
    return ParseResult(True, None, policy, None)


@cache
def _properties(kernel: KernelVersion) -> tuple[dict[bytes, Condition], dict[bytes, Property]]:
    """Returns the tokens of TRUE and FALSE properties, and the names of those with a digest, that a kernel knows."""
    known = [row for row in PROPERTIES if row.since <= max(kernel, FIRST_KERNEL)]
    switches = {str(row): row for name in known if not name.takes_digest for row in (Condition(name, True), Condition(name, False))}
    return {text.encode(): row for text, row in switches.items()}, {row.name.encode(): row for row in known if row.takes_digest}


class _State:
    """What the parser has seen so far."""

    def __init__(self, kernel: KernelVersion) -> None:
        self._header: tuple[bytes, PolicyVersion, int] | None = None
        self._rules: list[Rule] = []
        self._defaults: dict[Operation | None, Default] = {}
        self._switches, self._digests = _properties(kernel)

    def line(self, line: bytes, number: int) -> None:
        """Takes one line without comment and trailing space; it is not empty."""
        tokens = [token for token in line.replace(b"\t", b" ").split(b" ") if token]
        if self._header is None:
            name, version = _parse_header(tokens)
            self._header = (name, version, number)
        else:
            self._rule(tokens, number)

    def finish(self) -> Policy:
        """Returns the policy, if header and defaults are complete."""
        if self._header is None:
            raise _RefusedError("EBADMSG", None, "there is no header line", "begin with: policy_name=NAME policy_version=1.0.0")
        if None not in self._defaults:
            missing = [op.value for op in Operation if op not in self._defaults]
            if missing:
                why = f"there is no DEFAULT action=, so every operation needs its own default; missing: {', '.join(missing)}"
                raise _RefusedError("EBADMSG", None, why, "add the line: DEFAULT action=DENY")
        name, version, line = self._header
        return Policy(name, version, tuple(self._rules), tuple(self._defaults.values()), line)

    def _rule(self, tokens: list[bytes], number: int) -> None:
        """Takes a rule or a default. The last token is the action; errors come in the order in which the kernel meets them."""
        is_default = len(tokens) > 1 and tokens[0] == b"DEFAULT"
        op: Operation | None = None
        conditions: list[Condition] = []
        for index in range(1 if is_default else 0, len(tokens) - 1):
            if op is None:
                op = _OPERATIONS.get(tokens[index])
                if op is None:
                    raise _bad_operation(tokens[index], index)
            else:
                conditions.append(self._switches.get(tokens[index]) or self._condition(tokens[index], index))
        last = len(tokens) - 1
        action = _ACTIONS.get(tokens[last])
        if action is None:
            raise _bad_action(tokens[last], last)
        if is_default:
            self._default(op, conditions, action, number)
        elif op is None:
            raise _RefusedError("EBADMSG", last, "there is no op= before action=", "a rule is op=, then properties, then action=")
        else:
            self._rules.append(Rule(op, tuple(conditions), action, number))

    def _default(self, op: Operation | None, conditions: list[Condition], action: Action, number: int) -> None:
        """Takes a DEFAULT line."""
        if conditions:
            raise _RefusedError("EBADMSG", 2, "a DEFAULT has no properties", "write a rule: op=, then properties, then action=")
        if op in self._defaults:
            of = f"for {op} " if op else ""
            why = f"a second DEFAULT {of}(the first is on line {self._defaults[op].line})"
            raise _RefusedError("EBADMSG", 0, why, "keep one of the two")
        self._defaults[op] = Default(op, action, number)

    def _condition(self, token: bytes, index: int) -> Condition:
        """Returns the condition of a token NAME=ALGORITHM:HEX."""
        name, equals, text = token.partition(b"=")
        row = self._digests.get(name)
        if row is None or not equals or not text:
            raise _bad_property(token, index)
        algorithm, colon, digits = text.partition(b":")
        if not colon:
            raise _RefusedError("EBADMSG", index, f"wanted ALGORITHM:HEX, got {_show(text)}", f"for instance {row.name}=sha256:…")
        if not _HEX.fullmatch(digits):
            odd = len(digits) % 2 and re.fullmatch(rb"[0-9a-fA-F]*", digits)
            why = "an odd number of hexadecimal digits" if odd else "other characters than hexadecimal digits"
            raise _RefusedError("EINVAL", index, f"the digest of {row.name} has {why}", "a digest is pairs of 0-9 and a-f")
        return Condition(row, Digest(algorithm, bytes.fromhex(digits.decode())))


def _parse_header(tokens: list[bytes]) -> tuple[bytes, PolicyVersion]:
    """Returns name and version of the header line."""
    wanted = (b"policy_name=", b"policy_version=")
    values = []
    version: PolicyVersion | None = None
    for index, token in enumerate(tokens):
        if index >= len(wanted):
            raise _RefusedError("EBADMSG", index, f"{_show(token)} after the version", "the header is name and version only")
        if not token.startswith(wanted[index]) or token == wanted[index]:
            why = f"wanted {wanted[index].decode()} with a value, got {_show(token)}"
            raise _RefusedError("EBADMSG", index, why, "the first line is: policy_name=NAME policy_version=A.B.C")
        values.append(token[len(wanted[index]) :])
        if index == 1:
            version = _parse_version(values[1])
    if version is None:
        raise _RefusedError("EBADMSG", 0, "the header has no policy_version=", "the first line is: policy_name=NAME policy_version=A.B.C")
    return values[0], version


def _parse_version(text: bytes) -> PolicyVersion:
    """Returns the version; numbers are judged one by one before their count, as in parse_version()."""
    numbers: list[int] = []
    for part in text.split(b"."):
        if len(numbers) == 3:
            raise _RefusedError("EBADMSG", 1, f"the version {_show(text)} has more than three numbers", "write A.B.C")
        numbers.append(_parse_u16(part, text))
    if len(numbers) != 3:
        raise _RefusedError("EBADMSG", 1, f"the version {_show(text)} has {len(numbers)} numbers, wanted three", "write A.B.C")
    return PolicyVersion(*numbers)


def _parse_u16(part: bytes, version: bytes) -> int:
    """Returns one number of a version as kstrtou16() reads it: a plus sign and leading zeros pass, 2^64 overflows before junk counts."""
    found = _DIGITS.match(part)
    if found is None:
        raise _RefusedError("EINVAL", 1, f"{_show(part)} in the version {_show(version)} is not a number", "write A.B.C")
    digits = found[2]
    too_big = len(digits) > 20 or int(digits) > _U64_MAX
    if not too_big and found.end() != len(part):
        raise _RefusedError("EINVAL", 1, f"{_show(part)} in the version {_show(version)} is not a number", "write A.B.C")
    if too_big or int(digits) > _U16_MAX:
        raise _RefusedError(
            "ERANGE", 1, f"{_show(part)} in the version {_show(version)} is more than {_U16_MAX}", "use numbers up to 65535"
        )
    return int(digits)


def _bad_operation(token: bytes, index: int) -> _RefusedError:
    """Returns the error for a token that should be op=."""
    if index == 0 and token.startswith(b"DEFAULT"):
        return _RefusedError("EBADMSG", index, f"wanted DEFAULT or op=, got {_show(token)}", "write: DEFAULT action=DENY")
    return _RefusedError("EBADMSG", index, f"wanted op=, got {_show(token)}", _suggest(token, _OPERATIONS, "a rule begins with op="))


def _bad_property(token: bytes, index: int) -> _RefusedError:
    """Returns the error for a token that is no property."""
    if token.startswith(b"action="):
        why, hint = f"action= must be the last token, got {_show(token)} before it ended", "a rule is op=, then properties, then action="
        return _RefusedError("EBADMSG", index, why, hint)
    known = [text for row in PROPERTIES for text in _spellings(row.name, row.takes_digest)]
    name = token.partition(b"=")[0].decode("latin-1")
    words = ", ".join(row.name for row in PROPERTIES)
    hint = _suggest(token, known, f"the properties are {words}; TRUE and FALSE are upper case")
    return _RefusedError("EBADMSG", index, f"{_show(token)} is no property the kernel knows" if name else f"got {_show(token)}", hint)


def _spellings(name: str, takes_digest: bool) -> tuple[bytes, ...]:
    """Returns how a property is written, for suggestions."""
    return (f"{name}=sha256:…".encode(),) if takes_digest else (f"{name}=TRUE".encode(), f"{name}=FALSE".encode())


def _bad_action(token: bytes, index: int) -> _RefusedError:
    """Returns the error for a last token that is no action."""
    why = f"action= must be the last token, got {_show(token)}"
    return _RefusedError("EBADMSG", index, why, _suggest(token, _ACTIONS, "a rule is op=, then properties, then action="))


def _suggest(token: bytes, known: Iterable[bytes], otherwise: str) -> str:
    """Returns `did you mean …` for a near miss, else the general hint."""
    short = token[:80].decode("latin-1")
    folded = {text.decode().upper(): text.decode() for text in known}
    near = get_close_matches(short.upper(), list(folded), n=1, cutoff=0.75)
    return f"did you mean {folded[near[0]]}?" if near else otherwise


def _show(token: bytes) -> str:
    """Returns a token in quotes for a message: at most 60 bytes, unprintable ones escaped."""
    cut = token[:60].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return f'"{shown}{"…" if len(token) > 60 else ""}"'
