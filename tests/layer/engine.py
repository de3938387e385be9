"""Runs tasks on BitBake's own engine (the `bb` module of the package bitbake-setup) in this process; a JSON request in, a JSON answer out.

    python engine.py < {"topdir": DIR, "layers": [DIR], "recipes": [FILE], "run": [[FILE, TASK]]}

TOPDIR/conf/local.conf is read as BitBake reads it. `recipes` are parsed (with their bbappends), `run` is executed in order and stops at the
first failure. The package has no hash equivalence and PR server (nothing here asks for one): two empty modules stand in for them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import types
from fnmatch import fnmatch
from pathlib import Path

for name in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
    sys.modules[name] = types.ModuleType(name)
    if "." in name:
        setattr(sys.modules[name.partition(".")[0]], name.partition(".")[2], sys.modules[name])
sys.modules["hashserv"].is_valid_unihash = lambda _text: True

import bb.build  # noqa: E402
import bb.cookerdata  # noqa: E402
import bb.event  # noqa: E402
import bb.fetch2  # noqa: E402
import bb.parse  # noqa: E402
import bb.utils  # noqa: E402


class Messages(logging.Handler):
    """Keeps what BitBake says at level warning and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.rows: list[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else None
        self.rows.append([record.levelname, f"{record.getMessage()}: {cause!r}" if cause else record.getMessage()])


def bbappends(recipe: Path, layers: list[str]) -> list[str]:
    """Returns the bbappends of a recipe: same name, `%` standing for anything."""
    found = [path for layer in layers for path in sorted(Path(layer).rglob("*.bbappend"))]
    return [str(path) for path in found if fnmatch(recipe.stem, path.stem.replace("%", "*"))]


def task_facts(data: object, fn: str) -> dict[str, object]:
    """Returns a recipe's tasks: BitBake's own base hash, the content of file-checksums, what each depends on."""
    tasks, basehashes = {}, data.getVar("__siggen_basehashes", False) or {}
    for task in data.getVar("__BBTASKS", False) or ():
        pairs = (data.getVarFlag(task, "file-checksums") or "").split()
        files = [pair for pair in pairs if pair.endswith(":True")]
        sums = sorted(str(row[1]) for row in bb.fetch2.get_file_checksums(" ".join(files), data.getVar("PN"), []))
        tasks[task] = {
            "basehash": basehashes.get(task),
            "files": sums,
            "deps": data.getVarFlag(task, "deps", False) or [],
            "depends": (data.getVarFlag(task, "depends") or "").split(),
        }
    return tasks


def parse(builder: object, recipe: str, layers: list[str]) -> tuple[object, dict[str, object]]:
    """Returns the recipe's datastore and what the tests ask of it."""
    data = builder.parseRecipe(recipe, bbappends(Path(recipe), layers), "small")
    facts = {
        "pn": data.getVar("PN"),
        "provides": (data.getVar("PROVIDES") or "").split(),
        "depends": (data.getVar("DEPENDS") or "").split(),
        "skipped": data.getVar("__SKIPPED"),
        "tasks": task_facts(data, recipe),
        "doc": {key: data.getVarFlag(key, "doc") for key in data if key.startswith("IPE_") and data.getVarFlag(key, "doc")},
    }
    return data, facts


def main() -> None:
    request = json.load(sys.stdin)
    messages = Messages()
    logging.getLogger("BitBake").addHandler(messages)
    logging.getLogger("BitBake").setLevel(logging.INFO)
    os.chdir(request["topdir"])
    answer: dict[str, object] = {"recipes": {}, "ok": False, "messages": messages.rows}
    output = os.dup(1)
    os.dup2(2, 1)
    try:
        configuration = bb.cookerdata.CookerConfiguration()
        configuration.env = dict(os.environ)
        builder = bb.cookerdata.CookerDataBuilder(configuration, False)
        builder.parseBaseConfiguration()
        stores = {}
        for recipe in request["recipes"]:
            stores[recipe], answer["recipes"][recipe] = parse(builder, recipe, request["layers"])
        answer["ok"] = all(run_task(stores[recipe], recipe, task) for recipe, task in request["run"])
    except bb.BBHandledException:
        pass
    except SystemExit:
        pass
    os.write(output, json.dumps(answer).encode())


def run_task(data: object, recipe: str, task: str) -> bool:
    """Returns whether a task (or a function, when it is none) ran without an error."""
    data = data.createCopy()
    data.setVar("BB_CURRENTTASK", task.removeprefix("do_"))
    data.setVar("BB_UNIHASH", "0" * 64)  # a run queue would say; sstate names its archives by it
    Path(data.getVar("T")).mkdir(parents=True, exist_ok=True)
    if data.getVarFlag(task, "task", False):
        data.setVarFlag(task, "nostamp", "1")  # stamps need a cooker
        return bb.build.exec_task(recipe, task, data) == 0
    try:
        bb.build.exec_func(task, data)
    except (bb.BBHandledException, bb.process.ExecutionError):
        return False
    return True


main()
