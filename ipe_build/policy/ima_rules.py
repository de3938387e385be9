"""IMA's policy language: what the kernel answers to a line and to a policy file, with its errno.

An IMA policy is not an IPE policy: it is written to securityfs ima/policy (or read from a file by its path), has no name, no version and
no signature of its own, and its rules only ever grow. `check_policy` says what Linux 6.12 answers; the tests load thousands of lines into
a booted one and compare. Source: security/integrity/ima/ima_policy.c (ima_parse_rule, ima_validate_rule), ima_fs.c (ima_read_policy).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from ipe_build.formats.ima_xattr import HASHES

Enabled = Callable[[str], bool]
"""Whether a Kconfig symbol (without CONFIG_) is on in the target kernel."""
ACTIONS = ("measure", "dont_measure", "appraise", "dont_appraise", "audit", "hash", "dont_hash")
TEMPLATES_OF_KERNEL: Mapping[str, str] = {
    "ima": "d|n",
    "ima-ng": "d-ng|n-ng",
    "ima-sig": "d-ng|n-ng|sig",
    "ima-ngv2": "d-ngv2|n-ng",
    "ima-sigv2": "d-ngv2|n-ng|sig",
    "ima-buf": "d-ng|n-ng|buf",
    "ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
    "evm-sig": "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}
"""What an entry of the measurement list holds; a rule may name it by name or by format (ima_template.c, lookup_template_desc)."""
_MASKS = ("MAY_APPEND", "MAY_EXEC", "MAY_READ", "MAY_WRITE")
_PCRS = 64
_ULONG_BITS = 64
_PAGE_BYTES = 4096

_WHERE = frozenset(("fsmagic", "fsname", "fsuuid", "uid", "euid", "gid", "egid", "fowner", "fgroup"))
_FILES = _WHERE | {"mask", "pcr", "imasig", "permit_directio", "appraise_algos"}


class _Hook(NamedTuple):
    """A row: a value of `func=`, what a rule for it may say besides, and its only actions (empty: any)."""

    name: str
    allowed: frozenset[str]
    actions: tuple[str, ...] = ()
    needs: str = ""
    symbol: str = ""


_MEASURE = ("measure", "dont_measure")
HOOKS: Mapping[str, _Hook] = {
    row.name: row
    for row in (
        _Hook("", _FILES | {"verity"}),
        *(
            _Hook(name, _FILES | {"verity"})
            for name in (
                "FILE_CHECK",
                "PATH_CHECK",
                "MMAP_CHECK",
                "FILE_MMAP",
                "MMAP_CHECK_REQPROT",
                "BPRM_CHECK",
                "CREDS_CHECK",
                "FIRMWARE_CHECK",
                "POLICY_CHECK",
            )
        ),
        *(_Hook(name, _FILES | {"modsig"}) for name in ("MODULE_CHECK", "KEXEC_KERNEL_CHECK", "KEXEC_INITRAMFS_CHECK")),
        _Hook("KEXEC_CMDLINE", _WHERE | {"pcr"}, _MEASURE),
        _Hook("KEY_CHECK", frozenset(("uid", "gid", "pcr", "keyrings")), _MEASURE, symbol="IMA_MEASURE_ASYMMETRIC_KEYS"),
        _Hook("CRITICAL_DATA", frozenset(("uid", "gid", "pcr", "label")), _MEASURE),
        _Hook("SETXATTR_CHECK", frozenset(("appraise_algos",)), ("appraise",), needs="appraise_algos"),
    )
}
_APPRAISE_ONLY = frozenset(("imasig", "modsig", "appraise_algos"))


class Refusal(NamedTuple):
    """What the kernel answers to a line that it does not take; `line` counts from 1."""

    line: int
    errno: str
    message: str


@dataclass(slots=True)
class _Rule:
    """A rule while its words are read: `says` are the things that it has said, by the names of `_Hook.allowed`."""

    action: str = ""
    func: str = ""
    says: set[str] = field(default_factory=set)
    given: set[str] = field(default_factory=set)


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, message: str, errno: str = "EINVAL") -> None:
        super().__init__(message)
        self.message, self.errno = message, errno


def all_on(symbol: str) -> bool:
    """Returns whether a kernel with all that IMA offers has the symbol on; there are no LSMs with labels in it."""
    return symbol != "IMA_LSM_RULES"


def check_rule(text: str, enabled: Enabled = all_on) -> Refusal | None:
    """Returns what the kernel answers to one line, None when it takes it (a comment and an empty line too)."""
    line = text.split("\0")[0].split("\n")[0].lstrip(" \t")
    if not line or line.startswith("#"):
        return None
    rule = _Rule()
    try:
        for word in re.split("[ \t]", line):
            if word:
                _take(rule, word, enabled)
        _validate(rule)
    except _Refused as refused:
        return Refusal(1, refused.errno, refused.message)
    return None


def check_policy(data: bytes, enabled: Enabled = all_on) -> Refusal | None:
    """Returns the first line of a policy file that the kernel refuses, None when it takes the file by its path.

    The kernel counts the bytes of whole lines: a file whose last line has no end is refused after all its rules were right.
    """
    if not data.strip():
        return Refusal(1, "EINVAL", "the policy has no rules")
    if b"\0" in data:
        return Refusal(data[: data.index(b"\0")].count(b"\n") + 1, "EINVAL", "holds a NUL byte")
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    rules = 0
    for number, line in enumerate(lines, 1):
        refusal = check_rule(line, enabled)
        if refusal is not None:
            return Refusal(number, refusal.errno, refusal.message)
        rules += bool(line.strip(" \t")) and not line.lstrip(" \t").startswith("#")
    if not rules:
        return Refusal(1, "EINVAL", "the policy has no rules")
    if not data.endswith(b"\n"):
        return Refusal(len(lines), "EINVAL", "the last line has no line end")
    return None


def _take(rule: _Rule, word: str, enabled: Enabled) -> None:
    """Reads one word into the rule. Raises: _Refused."""
    if word in ACTIONS:
        _once(rule, "action", word)
        rule.action = word
        return
    if word == "permit_directio":
        rule.says.add("permit_directio")
        return
    found = re.match(r"([a-z_]+)([=<>])(.+)", word, re.DOTALL)
    name, operator, value = found.groups() if found else (word, "", "")
    taker = _TAKERS.get(name)
    if taker is None or not operator or (operator != "=" and taker is not _owner):
        raise _Refused(f"there is no {word!r}")
    taker(rule, name, value, enabled)


def _once(rule: _Rule, what: str, value: str) -> None:
    """Notes that the rule has said something. Raises: _Refused the second time."""
    if what in rule.given:
        raise _Refused(f"{what} is given twice, again by {value!r}")
    rule.given.add(what)


def _func(rule: _Rule, name: str, value: str, enabled: Enabled) -> None:
    _once(rule, name, value)
    hook = HOOKS.get(value) if value else None
    if hook is None or (hook.symbol and not enabled(hook.symbol)):
        raise _Refused(f"there is no func={value}")
    rule.func = value


def _mask(rule: _Rule, name: str, value: str, _enabled: Enabled) -> None:
    _once(rule, name, value)
    if value.removeprefix("^") not in _MASKS:
        raise _Refused(f"mask= wants one of {', '.join(_MASKS)}, got {value!r}")
    rule.says.add("mask")


def _fsmagic(rule: _Rule, name: str, value: str, _enabled: Enabled) -> None:
    if name in rule.given:
        raise _Refused("fsmagic is given twice")
    if _unsigned(value, 16):
        rule.given.add(name)
    rule.says.add(name)


def _fsuuid(rule: _Rule, name: str, value: str, _enabled: Enabled) -> None:
    if name in rule.given:
        raise _Refused("fsuuid is given twice")
    if not re.match(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        raise _Refused(f"fsuuid= wants a UUID, got {value!r}")
    if UUID(value[:36]).int:
        rule.given.add(name)
    rule.says.add(name)


def _text(rule: _Rule, name: str, _value: str, _enabled: Enabled) -> None:
    rule.says.add(name)


def _ignored(_rule: _Rule, _name: str, _value: str, _enabled: Enabled) -> None:
    """appraise_flag=: read, logged, and without effect since check_blacklist became the default."""


def _owner(rule: _Rule, name: str, value: str, _enabled: Enabled) -> None:
    _once(rule, name.removeprefix("e"), value)
    number = _unsigned(value, 10)
    if number >= 0xFFFFFFFF:
        raise _Refused(f"{name} wants a number below {0xFFFFFFFF}, got {value}")
    rule.says.add(name)


def _label(rule: _Rule, name: str, value: str, enabled: Enabled) -> None:
    if name == "keyrings" and not enabled("IMA_MEASURE_ASYMMETRIC_KEYS"):
        raise _Refused("this kernel does not measure keys")
    _once(rule, name, value)
    if not all(value.split("|")):
        raise _Refused(f"{name}= has an empty item")
    rule.says.add(name)


def _lsm(_rule: _Rule, name: str, _value: str, enabled: Enabled) -> None:
    if not enabled("IMA_LSM_RULES"):
        raise _Refused(f"{name}= needs a security module with labels")


def _digest_type(rule: _Rule, _name: str, value: str, _enabled: Enabled) -> None:
    if "imasig" in rule.says:
        raise _Refused("digest_type= must stand before appraise_type=")
    if value != "verity":
        raise _Refused(f"digest_type= wants verity, got {value!r}")
    rule.says.add("verity")


def _appraise_type(rule: _Rule, _name: str, value: str, enabled: Enabled) -> None:
    for_verity = value == "sigv3"
    known = value in ("imasig", "sigv3") or (value == "imasig|modsig" and enabled("IMA_APPRAISE_MODSIG"))
    if not known:
        raise _Refused(f"there is no appraise_type={value}")
    if for_verity != ("verity" in rule.says):
        raise _Refused(f"appraise_type={value} {'wants' if for_verity else 'does not go with'} digest_type=verity before it")
    rule.says.update(("imasig", "modsig") if value == "imasig|modsig" else ("imasig",))


def _appraise_algos(rule: _Rule, name: str, value: str, _enabled: Enabled) -> None:
    _once(rule, name, value)
    known = {hash_name for hash_name, _ in HASHES}
    for item in value.split(","):
        if item not in known:
            raise _Refused(f"appraise_algos= knows no hash {item!r}")
    rule.says.add(name)


def _pcr(rule: _Rule, name: str, value: str, _enabled: Enabled) -> None:
    if not re.fullmatch(r"[+-]?[0-9]+", value) or not 0 <= int(value) < _PCRS:
        raise _Refused(f"pcr= wants 0 to {_PCRS - 1}, got {value!r}")
    rule.says.add(name)


def _template(rule: _Rule, name: str, value: str, _enabled: Enabled) -> None:
    if rule.action != "measure":
        raise _Refused("template= must stand after measure")
    if value not in TEMPLATES_OF_KERNEL and value not in TEMPLATES_OF_KERNEL.values():
        raise _Refused(f"there is no template={value}")
    _once(rule, name, value)


_TAKERS: Mapping[str, Callable[[_Rule, str, str, Enabled], None]] = {
    "func": _func,
    "mask": _mask,
    "fsmagic": _fsmagic,
    "fsname": _text,
    "fsuuid": _fsuuid,
    **dict.fromkeys(("uid", "euid", "gid", "egid", "fowner", "fgroup"), _owner),
    **dict.fromkeys(("obj_user", "obj_role", "obj_type", "subj_user", "subj_role", "subj_type"), _lsm),
    "digest_type": _digest_type,
    "appraise_type": _appraise_type,
    "appraise_flag": _ignored,
    "appraise_algos": _appraise_algos,
    "pcr": _pcr,
    "template": _template,
    "keyrings": _label,
    "label": _label,
}


def _unsigned(text: str, base: int) -> int:
    """Returns a number as the kernel's kstrtoul reads it: one `+` in front, for base 16 also `0x`. Raises: _Refused (ERANGE or EINVAL)."""
    digits = text.removeprefix("+")
    if base == 16 and digits[:2].lower() == "0x":
        digits = digits[2:]
    if not re.fullmatch("[0-9a-fA-F]+" if base == 16 else "[0-9]+", digits):
        raise _Refused(f"wanted a number, got {text!r}")
    number = int(digits, base)
    if number >> _ULONG_BITS:
        raise _Refused(f"{text} is too large", "ERANGE")
    return number


def _validate(rule: _Rule) -> None:
    """Raises _Refused for a rule whose words do not go together."""
    if not rule.action:
        raise _Refused(f"has no action: one of {', '.join(ACTIONS)}")
    if "pcr" in rule.says and rule.action != "measure":
        raise _Refused("pcr= goes with measure only")
    appraising = rule.says & _APPRAISE_ONLY
    if appraising and rule.action != "appraise":
        raise _Refused(f"{sorted(appraising)[0]} goes with appraise only")
    hook = HOOKS[rule.func]
    if hook.actions and rule.action not in hook.actions:
        raise _Refused(f"func={rule.func} goes with {' or '.join(hook.actions)} only")
    if hook.needs and hook.needs not in rule.says:
        raise _Refused(f"func={rule.func} wants {hook.needs}=")
    wrong = rule.says - hook.allowed
    if wrong:
        raise _Refused(f"func={rule.func or '(none)'} does not go with {sorted(wrong)[0]}")
    if rule.action == "appraise" and "verity" in rule.says and "imasig" not in rule.says:
        raise _Refused("digest_type=verity wants appraise_type=sigv3")
