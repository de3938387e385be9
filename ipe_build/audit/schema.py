"""The JSON Schema (2020-12) of the report that `ipe-build audit --json` prints and a build keeps as audit.json."""

from __future__ import annotations

from typing import cast

from ipe_build.audit.facts import EntryKind
from ipe_build.audit.findings import Answer, Severity, Stage, Verdict

REPORT_ID = "urn:ipe-build:audit-report:2"


def report_schema() -> dict[str, object]:
    """Returns the schema: every member is there and there are no others, so a reader may rely on each."""
    finding = _closed(
        {
            "check": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "description": "the check's stable id (docs/audit.md)"},
            "severity": {"enum": [str(one) for one in Severity], "description": "how bad it is when this check fails"},
            "verdict": {"enum": [str(one) for one in Verdict], "description": "unknown: what the check needs was not there to look at"},
            "subject": {"type": "string", "minLength": 1, "description": "what was looked at"},
            "why": {"type": "string", "minLength": 1, "description": "the reason of the verdict"},
            "hint": {"type": "string", "description": "what to do when it fails"},
            "entries": {
                "type": "array",
                "items": {"type": "string"},
                "description": "the boot entries it is true of; none: whatever starts",
            },
        }
    )
    answer = [str(one) for one in Answer]
    entry = _closed(
        {
            "name": {"type": "string", "description": "the entry's file in the EFI system partition; empty when nothing names a kernel"},
            "kind": {"enum": [*map(str, EntryKind), ""]},
            "default": {"type": "boolean", "description": "starts when nobody chooses"},
            "boots": {"enum": answer, "description": "whether the first program of the root is foreseen to start"},
            "stage": {
                "enum": [str(one) for one in Stage],
                "description": "where the boot ends, or where telling does; `runs` when it boots",
            },
            "why": {"type": "string", "minLength": 1},
            "enforces": {"enum": answer, "description": "whether IPE denies a program that nothing vouches for, once the system runs"},
            "enforces_why": {"type": "string"},
        }
    )
    count = {"type": "integer", "minimum": 0}
    report = _closed(
        {
            "image": {"type": "string", "description": "the image's file name"},
            "verdict": {"enum": ["pass", "fail"], "description": "fail: a check of severity error failed; the exit status is then 1"},
            "sealed": {"type": "boolean", "description": "the kernel's own policy pins the root hash: no keys are needed"},
            "entries": {"type": "array", "items": entry, "description": "what each boot entry is foreseen to do, the default first"},
            "counts": _closed({str(one): count for one in Verdict}) | {"description": "how many findings have which verdict"},
            "findings": {"type": "array", "items": finding, "description": "in the order of the table of checks"},
        }
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": REPORT_ID, "title": "ipe-build audit report", **report}


def _closed(properties: dict[str, object] | dict[str, dict[str, object]]) -> dict[str, object]:
    """Returns the schema of an object with exactly these members."""
    return {
        "type": "object",
        "properties": cast(object, properties),
        "required": list(properties),
        "additionalProperties": False,
    }
