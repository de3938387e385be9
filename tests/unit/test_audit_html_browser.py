"""The HTML report in headless Chromium: it renders, filters, fits a phone, follows light and dark, and asks the network for nothing.

A page under test is driven from outside: another page shows it in a frame of a phone's or a desktop's width, clicks and types in it, and
writes what it then sees as JSON, which is read from the dumped DOM.
"""

from __future__ import annotations

import html
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from ipe_build.audit.checks import CHECKS
from ipe_build.audit.findings import Verdict
from ipe_build.audit.html import render_html
from ipe_build.audit.tree import Place, Program
from ipe_build.policy.survey import Kind
from tests.fixtures.audit_report import ADMITTED, PROGRAMS, REFUSED, Browser, portrait_with, report_with

FRAME = """<!doctype html><meta charset="utf-8"><iframe id="f" src="{source}" style="width:{width}px;height:{height}px;border:0"></iframe>
<pre id="result"></pre><script>
document.getElementById("f").addEventListener("load", () => {{
  const frame = document.getElementById("f"), d = frame.contentDocument, w = frame.contentWindow;
  const seen = (table) => [...d.getElementById(table).tBodies[0].rows].filter((row) => !row.hidden && row.offsetHeight > 0).length;
  const box = (selector) => {{ const r = d.querySelector(selector).getBoundingClientRect(); return [r.width, r.height]; }};
  let result;
  try {{ result = (() => {{ {script} }})(); }} catch (error) {{ result = {{ error: String(error) }}; }}
  document.getElementById("result").textContent = JSON.stringify(result);
}});
</script>"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report with one error, one warning and one check not looked at."""
    verdicts = {"hash-tree": Verdict.FAIL, "test-keys": Verdict.FAIL, "kernel-lsm": Verdict.UNKNOWN}
    path = tmp_path / "report.html"
    path.write_text(render_html(report_with(verdicts), portrait_with()), encoding="utf-8")
    return path


def driven(browse: Browser, page: Path, script: str, *, width: int = 1280, height: int = 900, address: str = "") -> Any:
    """What a script sees in the page after it did something there."""
    outer = page.with_name("outer.html")
    outer.write_text(FRAME.format(source=html.escape(f"{page.name}{address}"), width=width, height=height, script=script), encoding="utf-8")
    dom = browse(outer.as_uri(), "--allow-file-access-from-files", "--window-size=1400,1000", "--dump-dom")
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    value = json.loads(html.unescape(found[1]))
    assert not (isinstance(value, dict) and "error" in value), value
    return value


def test_every_row_shows_and_the_script_ran(browse: Browser, page: Path) -> None:
    value = driven(
        browse,
        page,
        "return [seen('all'), seen('programs'), d.querySelector('form.filter').hidden, d.querySelectorAll('.treemap g').length];",
    )
    assert value == [len(CHECKS), len(PROGRAMS), False, len(PROGRAMS)]


def test_typing_filters_by_all_words_and_the_address_keeps_it(browse: Browser, page: Path) -> None:
    script = """
      const input = d.querySelector('form[data-table="all"] input');
      input.value = 'HASH tree'; input.dispatchEvent(new w.Event('input'));
      const rows = [...d.getElementById('all').tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.textContent);
      return [rows.length, rows.every((text) => /hash/i.test(text) && /tree/i.test(text)), w.location.hash, seen('programs'),
              d.querySelector('form[data-table="all"] output').value];
    """
    count, matching, address, programs, words = driven(browse, page, script)
    assert 0 < count < len(CHECKS)
    assert matching
    assert address == "#all=HASH+tree"
    assert programs == len(PROGRAMS)
    assert words == f"{count} of {len(CHECKS)} rows"


def test_address_filters_on_opening(browse: Browser, page: Path) -> None:
    value = driven(browse, page, "return [seen('all'), seen('programs')];", address="#all.show=error,unknown&programs=busybox")
    assert value == [2, 1]


def test_a_verdicts_button_shows_those_alone_and_pressed_again_all(browse: Browser, page: Path) -> None:
    script = """
      const button = d.querySelector('.chips[data-for="all"] button[data-key="warning"]');
      button.click(); const one = [seen('all'), button.getAttribute('aria-pressed')];
      button.click(); return [...one, seen('all'), button.getAttribute('aria-pressed'), w.location.hash];
    """
    assert driven(browse, page, script) == [1, "true", len(CHECKS), "false", ""]


def test_a_rules_button_dims_the_other_tiles_and_filters_the_table(browse: Browser, page: Path) -> None:
    script = """
      d.querySelector('.legend button').click();
      return [seen('programs'), d.querySelectorAll('.treemap g.dim').length, d.querySelectorAll('.treemap g:not(.dim)').length];
    """
    assert driven(browse, page, script) == [1, len(PROGRAMS) - 1, 1]


def test_touching_a_tile_says_which_file_it_is(browse: Browser, page: Path) -> None:
    script = """
      const tile = [...d.querySelectorAll('.treemap g')].find((g) => g.querySelector('title').textContent === '/srv/stranger');
      tile.querySelector('rect').dispatchEvent(new w.Event('click', { bubbles: true }));
      return d.getElementById('pointed').textContent;
    """
    text = driven(browse, page, script)
    assert text.startswith("/srv/stranger: refused by ipe-policy, line 3: DEFAULT action=DENY")


@pytest.mark.parametrize(("width", "wide", "tall"), [(1280, True, False), (700, False, True), (360, False, True), (320, False, True)])
def test_nothing_is_wider_than_the_screen_and_one_drawing_shows(
    browse: Browser, tmp_path: Path, width: int, wide: bool, tall: bool
) -> None:
    long = "/usr/lib/" + "averylongnamewithoutanyplacetobreak" * 6 + ".so.6"
    programs = (*PROGRAMS, Program(Place.ROOT, long, Kind.ELF, 90_000, ADMITTED))
    page = tmp_path / "report.html"
    why = "CONFIG_" + "VERY_LONG_SYMBOL" * 12
    text = render_html(report_with({"hash-tree": Verdict.FAIL}, subject=long, why=why), portrait_with(programs, text=long))
    page.write_text(text, encoding="utf-8")
    script = """
      for (const one of d.querySelectorAll('details')) one.open = true;
      const tables = [...d.querySelectorAll('.scroll')].map((one) => one.scrollWidth - one.clientWidth);
      return [d.documentElement.scrollWidth, d.documentElement.clientWidth, box('.chain.wide')[0] > 0, box('.chain.tall')[0] > 0,
              Math.max(...tables), parseFloat(w.getComputedStyle(d.body).fontSize)];
    """
    scroll, client, shows_wide, shows_tall, table_overflow, font = driven(browse, page, script, width=width)
    assert scroll <= client
    assert (shows_wide, shows_tall) == (wide, tall)
    assert table_overflow <= 0 or width == 700
    assert font >= 16


def test_without_script_everything_is_there_and_no_dead_form(browse: Browser, page: Path) -> None:
    page.write_text(re.sub(r"<script>.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), encoding="utf-8")
    script = "return [seen('all'), seen('programs'), box('form.filter')[1], box('.chain.wide')[1] > 50, box('.treemap')[1] > 300];"
    assert driven(browse, page, script) == [len(CHECKS), len(PROGRAMS), 0, True, True]


INJECTED = "<script>document.title = 'owned'</script>"


@pytest.mark.parametrize("guarded", [True, False])
def test_a_script_that_is_not_the_pages_own_does_not_run(browse: Browser, page: Path, guarded: bool) -> None:
    text = page.read_text(encoding="utf-8").replace("</main>", f"{INJECTED}</main>")
    if not guarded:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    page.write_text(text, encoding="utf-8")
    assert driven(browse, page, "return d.title;") == ("Audit of demo.raw" if guarded else "owned")


def asked(log: Path) -> list[str]:
    """The addresses that a page asked for, out of Chromium's network log; the browser's own errands have no origin."""
    value = json.loads(log.read_text(encoding="utf-8"))
    start = value["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    rows = [event["params"] for event in value["events"] if event["type"] == start and "url" in event.get("params", {})]
    return [row["url"] for row in rows if row.get("initiator") != "not an origin" and not row["url"].startswith("file:")]


def test_no_request_leaves_the_page_whatever_the_files_are_called(browse: Browser, tmp_path: Path) -> None:
    name = "\"><img src='http://trap.invalid/a'><script>fetch('http://trap.invalid/b')</script><link rel=stylesheet href='http://trap.invalid/c'>"
    programs = (Program(Place.ROOT, f"/{name}", Kind.ELF, 90_000, REFUSED),)
    report = report_with({"hash-tree": Verdict.FAIL}, image=name, subject=name, why=name)
    page = tmp_path / "report.html"
    page.write_text(render_html(report, portrait_with(programs, text=name)), encoding="utf-8")
    dom = browse(page.as_uri(), f"--log-net-log={tmp_path / 'net.json'}", "--dump-dom")
    assert "trap.invalid" in dom
    assert asked(tmp_path / "net.json") == []

    control = tmp_path / "control.html"
    control.write_text("<!doctype html><img src='http://trap.invalid/a'><script>fetch('http://trap.invalid/b').catch(() => 0)</script>")
    browse(control.as_uri(), f"--log-net-log={tmp_path / 'control.json'}", "--dump-dom")
    assert sorted(asked(tmp_path / "control.json")) == ["http://trap.invalid/a", "http://trap.invalid/b"]


def pixels(png: Path) -> tuple[int, int, set[bytes]]:
    """Width and height in pixels of an RGB(A) PNG without interlacing, and the colours of the unfiltered first column."""
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert depth == 8
    channels = {2: 3, 6: 4}[colour]
    body, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IDAT":
            body += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(body)
    stride = 1 + width * channels
    assert len(raw) == stride * height
    above = bytes(channels)
    column: set[bytes] = set()
    for row in range(height):
        kind, first = raw[row * stride], raw[row * stride + 1 : row * stride + 1 + channels]
        # The first pixel of a row has nothing to its left: filters 2 (up) and 4 (Paeth) add the pixel above, 3 half of it.
        add = {0: bytes(channels), 1: bytes(channels), 2: above, 3: bytes(value // 2 for value in above), 4: above}[kind]
        above = bytes((a + b) & 255 for a, b in zip(first, add, strict=True))
        column.add(above[:3])
    return width, height, column


@pytest.mark.parametrize(("flags", "dark"), [((), False), (("--blink-settings=preferredColorScheme=0",), True)])
def test_screenshot_is_light_or_dark_as_the_reader_has_it(
    browse: Browser, page: Path, tmp_path: Path, flags: tuple[str, ...], dark: bool
) -> None:
    shot = tmp_path / "shot.png"
    browse(page.as_uri(), *flags, "--hide-scrollbars", "--window-size=1280,1600", f"--screenshot={shot}")
    width, height, column = pixels(shot)
    assert (width, height) == (1280, 1600)
    assert len(column) >= 2
    assert all((sum(colour) < 3 * 80) == dark for colour in column if max(colour) - min(colour) < 12), column


def test_it_prints_on_some_pages_and_says_everything_once(browse: Browser, page: Path, tmp_path: Path) -> None:
    browse(page.as_uri(), "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    data = (tmp_path / "report.pdf").read_bytes()
    assert data[:5] == b"%PDF-"
    pages = len(re.findall(rb"/Type\s*/Page\b", data))
    assert 2 <= pages <= 12
