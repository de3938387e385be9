"""Which module files must be loaded, and in which order, so that named modules work: what an initramfs for a stock kernel carries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import InputError

if TYPE_CHECKING:
    from ipe_build.host import Host

_FILE = re.compile(r"(?P<name>[^/]+)\.ko(?:\.\w+)?")
_DEPENDENCIES = re.compile(r"(?P<file>\S+\.ko(?:\.\w+)?):(?P<needs>.*)")


@dataclass(frozen=True, slots=True)
class ModuleIndex:
    """What depmod knows of a folder of modules. Names are with `_` for `-`, as the kernel has them; files are relative to the folder."""

    files: Mapping[str, str]
    needs: Mapping[str, tuple[str, ...]]
    """For each file, those it needs, the last of which must be loaded first."""
    before: Mapping[str, tuple[str, ...]]
    """For each name, what its soft dependencies want loaded before, by name or alias."""
    aliases: Mapping[str, str]
    builtin: frozenset[str]


def module_index(folder: Path, release: str, host: Host) -> ModuleIndex:
    """Returns the index of `folder`, a kernel's `lib/modules/RELEASE`, read by depmod; nothing is written there.

    Raises: InputError, ToolMissingError, ToolFailedError.
    """
    if not folder.is_dir():
        raise InputError("wanted the folder with the kernel's modules", where=str(folder))
    with host.scratch("ipe-build-depmod-") as base:
        (base / "lib/modules").mkdir(parents=True)
        (base / "lib/modules" / release).symlink_to(folder.resolve())
        text = host.run(["depmod", "-n", "-b", base, release], timeout_s=300).text
    builtin = folder / "modules.builtin"
    names = builtin.read_text(encoding="utf-8").splitlines() if builtin.is_file() else []
    return read_index(text, names)


def read_index(text: str, builtin: Sequence[str]) -> ModuleIndex:
    """Returns the index in what `depmod -n` prints, and the lines of modules.builtin."""
    files: dict[str, str] = {}
    needs: dict[str, tuple[str, ...]] = {}
    before: dict[str, tuple[str, ...]] = {}
    aliases: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        found = _DEPENDENCIES.fullmatch(line)
        if found is not None:
            files[_name(found["file"])] = found["file"]
            needs[found["file"]] = tuple(found["needs"].split())
        elif len(words) == 3 and words[0] == "alias":
            known = aliases.get(words[1])
            # Of several drivers for one algorithm the generic one works on every processor.
            if known is None or (words[2].endswith("_generic") and not known.endswith("_generic")):
                aliases[words[1]] = words[2]
        elif len(words) > 2 and words[0] == "softdep":
            before[words[1].replace("-", "_")] = _pre(words[2:])
    return ModuleIndex(files, needs, before, aliases, frozenset(_name(line) for line in builtin if line.strip()))


def load_order(names: Iterable[str], index: ModuleIndex) -> tuple[str, ...]:
    """Returns the files to load, relative to the folder, each after what it needs. What is built in needs no file.

    Raises: InputError for a module that there is not.
    """
    order: dict[str, None] = {}
    for name in names:
        wanted = name.replace("-", "_")
        if wanted in index.builtin:
            continue
        if wanted not in index.files:
            raise InputError(f"this kernel has no module {name!r}", where="modules of the initramfs", hint="see its modules.dep")
        _add(wanted, index, order, ())
    return tuple(order)


def modules_in_order(names: Sequence[str], folder: Path, release: str, host: Host) -> tuple[Path, ...]:
    """Returns the module files to load, in order, for these names. Raises: InputError, ToolMissingError, ToolFailedError."""
    return tuple(folder / file for file in load_order(names, module_index(folder, release, host))) if names else ()


def _add(name: str, index: ModuleIndex, order: dict[str, None], above: tuple[str, ...]) -> None:
    """Puts a module's soft dependencies, its needs and itself into the order."""
    file = index.files[name]
    if file in order or name in above:
        return
    for soft in index.before.get(name, ()):
        target = soft.replace("-", "_")
        target = target if target in index.files else index.aliases.get(soft, "").replace("-", "_")
        if target in index.files:
            _add(target, index, order, (*above, name))
    for needed in reversed(index.needs.get(file, ())):
        _add(_name(needed), index, order, (*above, name))
    order[file] = None


def _name(file: str) -> str:
    """Returns a module's name by its file's."""
    found = _FILE.fullmatch(file.rpartition("/")[2])
    return (found["name"] if found else file).replace("-", "_")


def _pre(words: Sequence[str]) -> tuple[str, ...]:
    """Returns the words after `pre:`, up to `post:`."""
    chosen, taking = [], False
    for word in words:
        if word in ("pre:", "post:"):
            taking = word == "pre:"
        elif taking:
            chosen.append(word)
    return tuple(chosen)
