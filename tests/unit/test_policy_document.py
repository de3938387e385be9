"""docs/policy.md says what the tables say."""

from __future__ import annotations

from pathlib import Path

from ipe_build.policy.document import BEGIN, with_reference

PAGE = Path(__file__).parents[2] / "docs" / "policy.md"


def test_page_is_made_from_the_tables() -> None:
    page = PAGE.read_text()
    assert BEGIN in page
    assert page == with_reference(page), "make it anew: write ipe_build.policy.document.with_reference(page) back to docs/policy.md"
