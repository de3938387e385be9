"""/etc/ipe-init.conf as ipe-init reads it: which text it takes, which it refuses. What it refuses ends the boot.

Source: our image/guest/config.c (parse_config), parse.c (parse_uuid, parse_root_hash), root.c (capability_bit), files.c (read_file).
tests/unit/test_ipe_init_config.py holds this against that very C code.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

MAX_BYTES = 64 * 1024 - 1
MAX_LIST = 64
_MARKS = (b"ipe-init: is the first program of an initramfs", b"/etc/ipe-init.conf")
_SPACE = b" \t\r\n"
_MAX_SALT, _MAX_KEY, _MAX_BASE64 = 256, 64, 32767 // 3 * 4
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ROOT_HASH = re.compile(r"([0-9a-fA-F]{2}){32,64}")
VERITY_OPTIONS = frozenset(
    (
        "panic_on_corruption",
        "restart_on_corruption",
        "panic_on_error",
        "restart_on_error",
        "ignore_zero_blocks",
        "check_at_most_once",
        "try_verify_in_tasklet",
    )
)
"""What ipe-init passes on to dm-verity; with ignore_corruption damaged data would be used, so it is not among them."""

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""Capabilities by number (include/uapi/linux/capability.h)."""


class IpeInitConfig(NamedTuple):
    """The settings in their order, each with all of its values; `problem` says what ipe-init refuses ("" when it takes all)."""

    settings: Mapping[str, tuple[str, ...]]
    problem: str


def is_ipe_init(program: bytes) -> bool:
    """Returns whether a program carries ipe-init's marks. That tells it from other programs, not from one that wants to pass for it."""
    return all(mark in program for mark in _MARKS)


def _one_of(*words: str) -> Callable[[str], bool]:
    return frozenset(words).__contains__


def _any(value: str) -> bool:
    return True


def _absolute(value: str) -> bool:
    return value.startswith("/")


def _place(value: str) -> bool:
    return value.removeprefix("initramfs:").startswith("/")


def _uuid(value: str) -> bool:
    return _UUID.fullmatch(value) is not None


def _root_hash(value: str) -> bool:
    return value == "cmdline" or _ROOT_HASH.fullmatch(value) is not None


def _signature(value: str) -> bool:
    if value in ("partition", "none"):
        return True
    return _uuid(value[9:]) if value.startswith("partuuid:") else value.startswith("file:/")


def _number(digits: int, most: int) -> Callable[[str], bool]:
    pattern = re.compile(f"[0-9]{{1,{digits}}}")
    return lambda value: pattern.fullmatch(value) is not None and int(value) <= most


_FLAG = _one_of("yes", "no")


class _Setting(NamedTuple):
    """A row: which values a setting may have, and whether it is a list (of at most MAX_LIST)."""

    takes: Callable[[str], bool]
    is_list: bool = False


SETTINGS: Mapping[str, _Setting] = {
    "root_hash": _Setting(_root_hash),
    "signature": _Setting(_signature),
    "signature_type": _Setting(_uuid),
    "filesystem": _Setting(_any),
    "mount_options": _Setting(_any),
    "verity_option": _Setting(VERITY_OPTIONS.__contains__, is_list=True),
    "wait_s": _Setting(_number(4, 9999)),
    "module": _Setting(_absolute, is_list=True),
    "policy": _Setting(_place, is_list=True),
    "delete_policy": _Setting(lambda value: "/" not in value, is_list=True),
    "success_audit": _Setting(_one_of("keep", "0", "1")),
    "keyring": _Setting(lambda value: value.startswith("."), is_list=True),
    "ima_policy": _Setting(_place),
    "evm_key": _Setting(_uuid),
    "evm_provision": _Setting(_FLAG),
    "trusted_source": _Setting(_one_of("tpm", "tee")),
    "evm_pcr": _Setting(_number(2, 23)),
    "drop_capability": _Setting(_any, is_list=True),
    "move": _Setting(_absolute, is_list=True),
    "init": _Setting(_absolute),
    "init_from_command_line": _Setting(_FLAG),
    "freeze_initramfs": _Setting(_FLAG),
    "on_failure": _Setting(_one_of("panic", "reboot", "poweroff", "recovery")),
    "recovery": _Setting(_absolute),
}


def parse_ipe_init(data: bytes) -> IpeInitConfig:
    """Returns the settings, up to the first line that ipe-init refuses. Like it, this reads no further than the first NUL."""
    found: dict[str, tuple[str, ...]] = {}
    if len(data) > MAX_BYTES:
        return IpeInitConfig(found, f"is longer than {MAX_BYTES} bytes")
    for number, raw in enumerate(data.split(b"\0", 1)[0].split(b"\n"), 1):
        line = raw.strip(_SPACE)
        if not line or line.startswith(b"#"):
            continue
        name_raw, separator, value_raw = line.partition(b"=")
        if not separator:
            return IpeInitConfig(found, f"line {number}: wanted: key = value")
        name, value = (part.strip(_SPACE).decode("utf-8", "surrogateescape") for part in (name_raw, value_raw))
        row = SETTINGS.get(name)
        if row is None or not value or not row.takes(value) or (row.is_list and len(found.get(name, ())) == MAX_LIST):
            return IpeInitConfig(found, f"line {number}: unknown key, or a value that it cannot have: {name} = {value}"[:200])
        found[name] = (*found.get(name, ()), value)
    return IpeInitConfig(found, _misfit(found))


def _misfit(found: Mapping[str, tuple[str, ...]]) -> str:
    """Returns what does not go together, "" when all does."""

    def last(name: str) -> str:
        return found.get(name, ("",))[-1]

    rules = (
        (not last("root_hash"), "there is no root_hash"),
        (last("root_hash") == "cmdline" and last("signature") == "none", "root_hash = cmdline needs a signature"),
        (not last("filesystem") or not last("init"), "there is no filesystem or no init"),
        ("evm_pcr" in found and last("trusted_source") not in ("", "tpm"), "evm_pcr needs trusted_source = tpm"),
        (last("on_failure") == "recovery" and not last("recovery"), "on_failure = recovery needs recovery = /PROGRAM"),
        (
            last("freeze_initramfs") == "yes" and "CAP_LINUX_IMMUTABLE" not in found.get("drop_capability", ()),
            "freeze_initramfs = yes needs drop_capability = CAP_LINUX_IMMUTABLE",
        ),
    )
    return next((text for wrong, text in rules if wrong), "")


def superblock_refusal(raw: bytes) -> str:
    """Returns what ipe-init refuses of a verity superblock (512 bytes) that others read, "" when it takes it."""
    name, salt_bytes = raw[32:64].split(b"\0", 1)[0], int.from_bytes(raw[80:82], "little")
    if not re.fullmatch(rb"[a-z0-9_-]{1,31}", name):
        return "its algorithm is no name"
    if salt_bytes > _MAX_SALT:
        return f"its salt is longer than {_MAX_SALT} bytes"
    padding = raw[82:88] + raw[88 + salt_bytes : 344] + raw[344:512]
    return "its padding is not zero" if any(padding) else ""


def signature_refusal(raw: bytes) -> str:
    """Returns what ipe-init refuses of the JSON of a signature partition that others read, "" when it takes it."""
    text = raw.rstrip(b"\0")
    if b"\0" in text or re.search(rb"\\(?!/)", text):
        return "it has escapes or NULs inside"
    try:
        pairs = json.loads(text.decode("utf-8", "surrogateescape"), object_pairs_hook=list)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(pairs, list) or not all(
        isinstance(one, tuple) and isinstance(one[1], str) and len(one[0]) < _MAX_KEY for one in pairs
    ):
        return "it has values that are not text"
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    if any(len(found.get(name, ())) != 1 for name in ("rootHash", "signature")):
        return "rootHash or signature are not there once"
    if not _ROOT_HASH.fullmatch(found["rootHash"][0]):
        return "its rootHash is not 64 to 128 hex digits"
    value = found["signature"][0]
    try:
        exact = base64.b64encode(base64.b64decode(value, validate=True)).decode() == value
    except ValueError:
        exact = False
    return "" if exact and 0 < len(value) <= _MAX_BASE64 else "its signature is no base64, or too long"
