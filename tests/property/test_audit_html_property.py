"""Treemaps of any weights fill their area exactly; pages of any text have the tags of the page and no others."""

from __future__ import annotations

import math
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.audit.findings import Verdict
from ipe_build.audit.html import render_html
from ipe_build.audit.map_view import map_view
from ipe_build.audit.tree import Place, Program
from ipe_build.audit.treemap import Rectangle, squarify
from ipe_build.policy.survey import Kind
from tests.fixtures.audit_report import ADMITTED, REFUSED, portrait_with, report_with

WEIGHTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=60).map(lambda values: sorted(values, reverse=True))


@settings(deadline=None, max_examples=150)
@given(WEIGHTS, st.floats(1, 2000), st.floats(1, 2000))
def test_tiles_have_the_area_of_their_weight_and_lie_inside_without_overlap(weights: list[int], width: float, height: float) -> None:
    area = Rectangle(3, 5, width, height)
    tiles = squarify(weights, area)
    slack = 1e-6 * max(width, height)
    assert len(tiles) == len(weights)
    for weight, tile in zip(weights, tiles, strict=True):
        assert math.isclose(tile.width * tile.height, weight / sum(weights) * width * height, rel_tol=1e-6, abs_tol=1e-6 * width * height)
        assert tile.x >= 3 - slack
        assert tile.y >= 5 - slack
        assert tile.x + tile.width <= 3 + width + slack
        assert tile.y + tile.height <= 5 + height + slack
    for number, one in enumerate(tiles):
        for other in tiles[:number]:
            apart = (
                one.x + one.width <= other.x + slack
                or other.x + other.width <= one.x + slack
                or one.y + one.height <= other.y + slack
                or other.y + other.height <= one.y + slack
            )
            assert apart, (one, other)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1000, 2000), min_size=4, max_size=40).map(lambda values: sorted(values, reverse=True)))
def test_tiles_of_like_weights_are_near_to_squares(weights: list[int]) -> None:
    for tile in squarify(weights, Rectangle(0, 0, 100, 100)):
        assert max(tile.width / tile.height, tile.height / tile.width) < 4


def test_no_weights_and_no_area_are_no_trouble() -> None:
    assert squarify([], Rectangle(0, 0, 1, 1)) == ()
    assert squarify([1, 1], Rectangle(0, 0, 0, 5)) == (Rectangle(0, 0, 0, 0), Rectangle(0, 0, 0, 0))


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(f"{tag} {sorted(name for name, _ in attrs)}")

    def handle_comment(self, data: str) -> None:
        self.found.append("comment")


def page_of(text: str) -> list[str]:
    program = Program(Place.ROOT, f"/{text}", Kind.ELF, 4096, ADMITTED)
    report = report_with({"hash-tree": Verdict.FAIL}, image=text, subject=text, why=text)
    page = render_html(report, portrait_with((program,), text=text))
    page.encode("utf-8")
    return Tags(page).found


NASTY = st.text(st.one_of(st.sampled_from("<>\"'&/=`{}%#! -script"), st.characters()), min_size=2, max_size=40).filter(
    lambda text: "/" not in text
)


@settings(deadline=None, max_examples=40)
@given(NASTY)
def test_any_text_leaves_the_tags_as_they_are(text: str) -> None:
    assert page_of(text) == page_of("xx")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20), st.integers(0, 2**40), st.booleans()),
        max_size=40,
    )
)
def test_any_programs_are_all_on_the_map(rows: list[tuple[str, int, bool]]) -> None:
    programs = tuple(Program(Place.ROOT, f"/{path}", Kind.ELF, size, ADMITTED if good else REFUSED) for path, size, good in rows)
    view = map_view(programs)
    assert sum(len(group.tiles) for group in view.groups) == len(set(programs)) or len(set(programs)) != len(programs)
    assert sum(row.count for row in view.rules) == len(programs)
