"""The HTML report: what it says, and that text from an image stays text."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from ipe_build.audit.chain import LINK_OF_CHECK, LINKS, NODES, OTHER, LinkState, chain_of
from ipe_build.audit.checks import CHECKS
from ipe_build.audit.findings import AuditReport, Severity, Verdict
from ipe_build.audit.html import human_size, render_html
from ipe_build.audit.map_view import MAX_TILES, map_view
from ipe_build.audit.printable import printable
from ipe_build.audit.tree import Place, Program
from ipe_build.policy.survey import Kind
from tests.fixtures.audit_report import ADMITTED, PROGRAMS, REFUSED, portrait_with, report_with

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://trap.invalid/x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</style><style>*{display:none}</style>",
    "</title><script>x</script>",
    "</script><script>x</script>",
    "<!--",
    "]]><b>",
    "{{ 7*7 }}{% raw %}",
    "&lt;b&gt;",
    "javascript:alert(1)",
    "\u202egnp.exe",
    "a\nb\0c\x1b[31m",
    "stray\udcffbyte",
)


class Page(HTMLParser):
    """The page's tags with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def first_check(state: Severity, link: str) -> str:
    return next(check.id for check in CHECKS if check.severity is state and LINK_OF_CHECK[check.id] == link)


def test_every_check_belongs_to_one_link_or_to_other() -> None:
    named = [check for row in (*LINKS, OTHER) for check in row.checks]
    assert sorted(named) == sorted(check.id for check in CHECKS)
    assert len(LINKS) == len(NODES) - 1


@pytest.mark.parametrize("row", LINKS, ids=lambda row: row.id)
def test_an_error_breaks_its_link_and_no_other_and_what_is_behind_is_not_reached(row) -> None:
    check = first_check(Severity.ERROR, row.id)
    links = chain_of(report_with({check: Verdict.FAIL}))
    assert [link.state is LinkState.BROKEN for link in links] == [link.row is row for link in links]
    broken = next(link for link in links if link.row is row)
    assert [one.check for one in broken.reasons] == [check]
    assert [link.reached for link in links] == [number <= links.index(broken) for number in range(len(links))]


@pytest.mark.parametrize(
    ("severity", "verdict", "state"),
    [
        (Severity.ERROR, Verdict.PASS, LinkState.HOLDS),
        (Severity.ERROR, Verdict.UNKNOWN, LinkState.UNKNOWN),
        (Severity.WARNING, Verdict.FAIL, LinkState.WEAK),
        (Severity.WARNING, Verdict.UNKNOWN, LinkState.HOLDS),
        (Severity.NOTE, Verdict.FAIL, LinkState.HOLDS),
    ],
)
def test_state_of_a_link(severity: Severity, verdict: Verdict, state: LinkState) -> None:
    check = first_check(severity, "kernel-boot-policy")
    link = chain_of(report_with({check: verdict}))[1]
    assert link.state is state


def test_a_link_that_no_check_spoke_about_is_not_known() -> None:
    assert {link.state for link in chain_of(AuditReport("x", ()))} == {LinkState.UNKNOWN}


@pytest.mark.parametrize(
    ("verdicts", "title"),
    [
        ({}, "The chain of trust holds"),
        ({"hash-tree": Verdict.FAIL}, "The chain of trust is broken"),
        ({"image-readable": Verdict.FAIL}, "The image has errors"),
        ({"hash-tree": Verdict.UNKNOWN}, "The chain of trust cannot be judged in full"),
        ({"gpt-intact": Verdict.UNKNOWN}, "The chain of trust cannot be judged in full"),
        ({"test-keys": Verdict.FAIL}, "The chain of trust holds"),
    ],
)
def test_headline_is_the_worst_of_the_findings(verdicts: dict[str, Verdict], title: str) -> None:
    assert title in Page(render_html(report_with(verdicts), portrait_with())).text


def test_every_finding_and_every_program_is_a_row() -> None:
    page = Page(render_html(report_with({"hash-tree": Verdict.FAIL}), portrait_with()))
    keys = [attributes["data-key"] for tag, attributes in page.tags if tag == "tr" and "data-key" in attributes]
    assert sorted(key for key in keys if not str(key).startswith("rule-")) == sorted(["error", *["pass"] * (len(CHECKS) - 1)])
    assert len([key for key in keys if str(key).startswith("rule-")]) == len(PROGRAMS)
    for program in PROGRAMS:
        assert program.path in page.text
    assert keys.index("error") < keys.index("pass")


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_html(report_with(), portrait_with()) == render_html(report_with(), portrait_with())


def test_page_without_programs_says_so() -> None:
    page = Page(render_html(report_with(), portrait_with(())))
    assert "No executable could be looked at" in page.text
    assert not page.with_class("treemap")


@pytest.mark.parametrize("name", HOSTILE)
def test_text_of_a_stranger_makes_no_tag_and_no_attribute(name: str) -> None:
    program = Program(Place.ROOT, f"/usr/bin/{name}", Kind.ELF, 5000, ADMITTED)
    hostile = Page(
        render_html(
            report_with({"hash-tree": Verdict.FAIL}, image=name, subject=name, why=name), portrait_with((program, PROGRAMS[1]), text=name)
        )
    )
    tame = Page(
        render_html(
            report_with({"hash-tree": Verdict.FAIL}, image="x", subject="x", why="x"),
            portrait_with((Program(Place.ROOT, "/usr/bin/x", Kind.ELF, 5000, ADMITTED), PROGRAMS[1]), text="x"),
        )
    )
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags]
    assert [sorted(attributes) for _, attributes in hostile.tags] == [sorted(attributes) for _, attributes in tame.tags]
    assert printable(name) in hostile.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 中", "plain ä 中"),
        ("\u202e", "\\u202e"),
        ("a\nb\0", "a\\nb\\x00"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_characters_that_do_not_show_are_written_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_page_names_nothing_outside_itself() -> None:
    text = render_html(report_with({"hash-tree": Verdict.FAIL}), portrait_with())
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, name, value)
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
    assert not re.search(r"@import|https?:|//[a-z]", text)
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#hatch"}
    identifiers = {attributes.get("id") for _, attributes in page.tags}
    assert {str(attributes["href"])[1:] for _, attributes in page.tags if str(attributes.get("href", "")).startswith("#")} <= identifiers


def test_content_policy_names_exactly_this_style_and_this_script() -> None:
    text = render_html(report_with(), portrait_with())
    policy = next(str(a["content"]) for tag, a in Page(text).tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_map_gives_each_file_its_area_and_each_rule_a_colour() -> None:
    view = map_view(PROGRAMS)
    tiles = [tile for group in view.groups for tile in group.tiles]
    assert {tile.title for tile in tiles} == {"initramfs /init", "/usr/bin/busybox", "/usr/bin/thermostat", "/srv/stranger"}
    assert view.rules[0].ruling is REFUSED
    assert len({row.colour for row in view.rules}) == len(view.rules) == 3
    assert {view.rule_of[one].ruling for one in PROGRAMS} == {one.ruling for one in PROGRAMS}
    assert sum(row.count for row in view.rules) == len(PROGRAMS)


def test_small_files_beyond_the_limit_are_one_tile_of_their_rule_and_none_is_lost() -> None:
    many = tuple(Program(Place.ROOT, f"/usr/bin/p{number:05}", Kind.ELF, 1000 + number, ADMITTED) for number in range(MAX_TILES + 50))
    tiny = (Program(Place.ROOT, "/usr/bin/tiny", Kind.ELF, 1, REFUSED),)
    tiles = [tile for group in map_view(many + tiny).groups for tile in group.tiles]
    assert len(tiles) == MAX_TILES + 2
    assert {(tile.title, tile.rule.ruling) for tile in tiles if "smaller" in tile.title} == {
        ("/usr/bin: 50 smaller files", ADMITTED),
        ("/usr/bin: 1 smaller files", REFUSED),
    }


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10 * 1024, "10 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (7_192_576, "6.9 MiB"),
        (5 * 1024**4, "5.0 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human_size(size) == text
