"""Whether the kernel starts a program: what it takes for one, and the interpreter that a script or an ELF file names.

Sources: Linux fs/exec.c (exec_binprm), fs/binfmt_script.c (load_script), fs/binfmt_elf.c (load_elf_binary, load_elf_phdrs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.file_tree import TreeFile
from ipe_build.audit.walk import ON, Step, ends

ELF, SCRIPT = b"\x7fELF", b"#!"
_HEAD_BYTES = 256
"""BINPRM_BUF_SIZE: a script's first line counts as far as this."""
_MOST_SCRIPTS = 5
_ET_EXEC, _ET_DYN, _PT_INTERP = 2, 3, 3
_PATH_MAX = 4096


class _Machine(NamedTuple):
    """A row: ELF class (1: 32, 2: 64 bits) and e_machine of an architecture's programs, of the 32-bit ones and what enables those."""

    native: tuple[int, int]
    compatible: tuple[int, int] | None = None
    symbol: str = ""


_MACHINES = {
    "x86-64": _Machine((2, 62), (1, 3), "IA32_EMULATION"),
    "arm64": _Machine((2, 183), (1, 40), "COMPAT"),
    "riscv64": _Machine((2, 243), (1, 243), "COMPAT"),
    "arm": _Machine((1, 40)),
}
Find = Callable[[str], TreeFile | None]
Refuses = Callable[[TreeFile], str]
"""`refuses(program)` says why it may not be started, "" when it may."""


def starts(facts: ImageFacts, path: str, find: Find, refuses: Refuses, where: str, *, scripts: int = 0) -> Step:
    """Returns whether the kernel starts a program of `where` (for people), with the interpreter that it names."""
    program = find(path)
    if program is None or not program.is_executable:
        return ends(f"{path} is no executable file of {where}")
    if why := refuses(program):
        return ends(why)
    head = program.read(_HEAD_BYTES)
    if head[:2] == SCRIPT:
        interpreter = script_interpreter(head)
        if interpreter is None:
            return ends(f"{path} names no interpreter")
        if scripts == _MOST_SCRIPTS:
            return ends(f"{path}: more than {_MOST_SCRIPTS} scripts name each other as their interpreter")
        return starts(facts, interpreter, find, refuses, where, scripts=scripts + 1)
    if head[:4] != ELF or len(head) < 20:
        return ends(f"{path} is no program that the kernel knows")
    if (why := _foreign(facts, head)) != "":
        return ends(f"{path} {why}")
    loader = elf_interpreter(program)
    if loader is None:
        return ends(f"{path} is no program that the kernel knows: its ELF headers are damaged")
    if not loader:
        return ON
    there = find(loader)
    if there is None or not there.is_executable or there.read(4) != ELF:
        return ends(f"{path} wants {loader}, which is no program of {where}")
    return ends(why) if (why := refuses(there)) else ON


def script_interpreter(head: bytes) -> str | None:
    """Returns what a script's first line names, None where the kernel takes it for no script. A carriage return is part of a name."""
    line = head[2:_HEAD_BYTES].split(b"\0", 1)[0]
    text, newline, _ = line.partition(b"\n")
    whole = bool(newline) or len(head) < _HEAD_BYTES
    text = text.lstrip(b" \t")
    name = text.replace(b"\t", b" ").split(b" ", 1)[0]
    if not name or (not whole and name == text):
        return None
    return name.decode("utf-8", "surrogateescape")


def _foreign(facts: ImageFacts, head: bytes) -> str:
    """Returns why an ELF file's kind is none of this kernel's, "" when it is or the kernel is not known."""
    row = _MACHINES.get(facts.kernel.architecture) if facts.kernel is not None else None
    machine = (head[4], int.from_bytes(head[18:20], "big" if head[5] == 2 else "little"))
    if row is None or (machine == row.native and head[5] == 1):
        return ""
    config = facts.kernel_config
    if machine == row.compatible and (config is None or config.enabled(row.symbol)):
        return ""
    return f"is for another processor (ELF class {machine[0]}, machine {machine[1]})"


def elf_interpreter(program: TreeFile) -> str | None:
    """Returns an ELF file's PT_INTERP, "" without one, None where its headers are none that the kernel takes."""
    head = program.read(64)
    wide = head[4:5] == b"\2"
    size = 64 if wide else 52
    order = "big" if head[5:6] == b"\2" else "little"
    if len(head) < size:
        return None

    def number(raw: bytes) -> int:
        return int.from_bytes(raw, "big" if order == "big" else "little")

    start = number(head[32:40] if wide else head[28:32])
    entry, count = (number(head[at : at + 2]) for at in ((54, 56) if wide else (42, 44)))
    if number(head[16:18]) not in (_ET_EXEC, _ET_DYN) or entry != (56 if wide else 32) or not 0 < count * entry <= 65536:
        return None
    table = program.read_at(start, count * entry)
    if len(table) != count * entry:
        return None
    for at in range(0, len(table), entry):
        row = table[at : at + entry]
        if number(row[:4]) != _PT_INTERP:
            continue
        place, length = (number(row[8:16]), number(row[32:40])) if wide else (number(row[4:8]), number(row[16:20]))
        raw = program.read_at(place, length) if 2 <= length <= _PATH_MAX else b""
        return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape") if raw[-1:] == b"\0" else None
    return ""
