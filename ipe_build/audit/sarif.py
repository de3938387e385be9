"""An audit's findings as SARIF 2.1.0, for the annotations of CI systems."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePath
from urllib.parse import quote

from ipe_build import __version__
from ipe_build.audit.chain import link_of
from ipe_build.audit.checks import CHECKS, Check
from ipe_build.audit.findings import AuditReport, Finding, Verdict
from ipe_build.audit.printable import printable

SARIF_VERSION = "2.1.0"
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_KIND = {Verdict.FAIL: "fail", Verdict.UNKNOWN: "open"}
"""SARIF's words for our verdicts. Passes are left out: GitHub's code scanning shows each result as a problem, whatever its kind."""


def sarif_value(report: AuditReport, image: PurePath) -> dict[str, object]:
    """Returns the report as a SARIF log's JSON value: one run, one rule a check, one result a finding that did not pass.

    `image` is the path that results point to; relative to where the CI's checkout is, if it is relative.
    Source: OASIS SARIF 2.1.0 section 3.27.9 (kind), 3.27.10 (level is "none" unless kind is "fail"), 3.33 (logicalLocation).
    """
    uri = image_uri(image)
    rules = {check.id: index for index, check in enumerate(CHECKS)}
    driver = {
        "name": "ipe-build audit",
        "semanticVersion": _semantic_version(__version__),
        "rules": [_rule(check) for check in CHECKS],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True}],
        "artifacts": [{"location": {"uri": uri}, "roles": ["analysisTarget"]}],
        "columnKind": "unicodeCodePoints",
        "results": [_result(one, rules, uri) for one in report.findings if one.verdict in _KIND],
        "properties": {
            "verdict": "fail" if report.failed else "pass",
            "passed": sum(one.verdict is Verdict.PASS for one in report.findings),
        },
    }
    return {"$schema": SARIF_SCHEMA, "version": SARIF_VERSION, "runs": [run]}


def image_uri(image: PurePath) -> str:
    """Returns a path as a URI reference: bytes that a URI cannot have are percent-encoded (surrogates as the bytes they stand for)."""
    path = quote(image.as_posix().encode("utf-8", "surrogateescape"), safe="/")
    return f"file://{path}" if image.is_absolute() else path


def _semantic_version(version: str) -> str:
    """Returns our version as semver wants it: three numbers, the rest as build metadata."""
    found = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(.*)", version)
    if found is None:
        return "0.0.0"
    rest = re.sub(r"[^0-9A-Za-z.]+", ".", found[4]).strip(".")
    return ".".join(part or "0" for part in found.groups()[:3]) + (f"+{rest}" if rest else "")


def _rule(check: Check) -> dict[str, object]:
    """Returns a check as a reportingDescriptor."""
    looks = (check.look.__doc__ or check.id).split("\n")[0].strip()
    return {
        "id": check.id,
        "name": "".join(word.capitalize() for word in check.id.split("-")),
        "shortDescription": {"text": looks},
        "help": {"text": f"{check.hint[:1].upper()}{check.hint[1:]}." if check.hint else looks},
        "defaultConfiguration": {"level": str(check.severity)},
        "properties": {"tags": ["security", f"chain:{link_of(check.id)}"]},
    }


def _entries(finding: Finding) -> str:
    """Returns the boot entries that a finding is true of."""
    return f" (boot entry {', '.join(map(printable, finding.entries))})" if finding.entries else ""


def _result(finding: Finding, rules: dict[str, int], uri: str) -> dict[str, object]:
    """Returns a finding as a result. The fingerprint is over check and subject: the same trouble for another reason stays one alert."""
    failed = finding.verdict is Verdict.FAIL
    subject, why = printable(finding.subject), printable(finding.why)
    return {
        "ruleId": finding.check,
        **({"ruleIndex": rules[finding.check]} if finding.check in rules else {}),
        "kind": _KIND[finding.verdict],
        "level": str(finding.severity) if failed else "none",
        "message": {
            "text": f"{subject}: {why}{_entries(finding)}" + (f". To do: {printable(finding.hint)}" if failed and finding.hint else "")
        },
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": uri, "index": 0}},
                "logicalLocations": [{"name": subject, "fullyQualifiedName": f"{link_of(finding.check)}/{subject}", "kind": "resource"}],
            }
        ],
        "partialFingerprints": {"checkAndSubject/v1": hashlib.sha256(f"{finding.check}\0{subject}".encode()).hexdigest()},
    }
