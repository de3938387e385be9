"""The reference part of docs/policy.md, made from the tables, so that page and program say the same."""

from __future__ import annotations

from collections.abc import Iterable

from ipe_build.policy.lint import RULES
from ipe_build.policy.properties import OPERATIONS, PROPERTIES
from ipe_build.policy.render import PROFILES, VARIABLES
from ipe_build.policy.versions import CHANGES

BEGIN = "<!-- generated from the tables by ipe_build.policy.document; do not edit below -->\n"


def with_reference(page: str) -> str:
    """Returns the page with everything from the marker on made anew."""
    return page.partition(BEGIN)[0] + BEGIN + reference()


def reference() -> str:
    """Returns the tables of operations, properties, profiles, variables, lint rules and kernel changes as Markdown."""
    parts = (
        ("Operations", ("op=", "asked when"), ((row.operation.value, row.meaning) for row in OPERATIONS)),
        (
            "Properties",
            ("property", "value", "true of a file when", "Kconfig symbol", "since"),
            (
                (
                    f"`{row.name}=`",
                    "ALGORITHM:HEX" if row.takes_digest else "TRUE or FALSE",
                    row.meaning,
                    row.kconfig or "always",
                    str(row.since),
                )
                for row in PROPERTIES
            ),
        ),
        ("Profiles", ("profile", "usual role", "allows"), ((f"`{row.name}`", row.role.value, row.meaning) for row in PROFILES)),
        (
            "Variables of templates",
            ("variable", "default", "meaning"),
            ((f"`{row.name}`", "must be given" if row.default is None else f"`{row.default!r}`", row.help) for row in VARIABLES),
        ),
        (
            "Lint rules",
            ("rule", "severity", "about", "usual hint"),
            ((f"`{row.id}`", row.severity.value, row.about, row.hint) for row in RULES),
        ),
        ("What changed between kernels", ("since", "change"), ((str(row.since), row.summary) for row in CHANGES)),
    )
    return "".join(_section(title, head, rows) for title, head, rows in parts)


def _section(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a heading and a table."""
    lines = [f"\n## {title}\n", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"
