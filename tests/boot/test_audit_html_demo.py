"""The reports of a real image: the demo's, whole and broken, by their schemas and by what `policy evaluate` says of the same files."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from ipe_build.audit.chain import LinkState, chain_of
from ipe_build.audit.file_tree import file_of
from ipe_build.audit.html import render_html
from ipe_build.audit.judge import audit
from ipe_build.audit.portrait import portrait_of
from ipe_build.audit.schema import report_schema
from ipe_build.audit.tree import Answer, Place, Program, programs_of
from ipe_build.examine import examined
from ipe_build.examine.root import survey_of
from ipe_build.host import Host
from ipe_build.image.disk import read_disk
from tests.fixtures.demo import ipe_build

ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + bytes(44)


@pytest.fixture
def image(demo_build: Path, tmp_path: Path) -> Path:
    """A copy of the demo's disk that may be broken."""
    copy = tmp_path / "demo.raw"
    shutil.copyfile(demo_build / "demo.raw", copy)
    return copy


def break_signature(image: Path) -> None:
    """Changes one character in the middle of the root hash's signature."""
    partition = read_disk(image).root_verity_sig
    assert partition is not None
    with image.open("r+b") as file:
        file.seek(partition.offset_bytes)
        raw = file.read(partition.size_bytes)
        at = raw.index(b'"signature":"') + 613
        file.seek(partition.offset_bytes + at)
        file.write(b"A" if raw[at : at + 1] != b"A" else b"B")


def test_the_verb_writes_both_reports_and_the_same_bytes_again(image: Path, tmp_path: Path) -> None:
    made = []
    for number in range(2):
        page, sarif = tmp_path / f"{number}.html", tmp_path / f"{number}.sarif"
        done = ipe_build("audit", image.name, "--html", page, "--sarif", sarif, "--json", "--quiet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        made.append((page.read_bytes(), sarif.read_bytes(), done.stdout))
    assert made[0] == made[1]
    page_text, sarif_value, report = made[0][0].decode(), json.loads(made[0][1]), json.loads(made[0][2])
    assert "The chain of trust holds" in page_text
    assert list(Draft202012Validator(report_schema()).iter_errors(report)) == []
    run = sarif_value["runs"][0]
    assert run["artifacts"][0]["location"]["uri"] == "demo.raw"
    failed = [(one["check"], one["subject"]) for one in report["findings"] if one["verdict"] == "fail"]
    assert [
        (one["ruleId"], one["locations"][0]["logicalLocations"][0]["name"]) for one in run["results"] if one["kind"] == "fail"
    ] == failed
    assert not any(one["level"] == "error" for one in run["results"])


def test_a_report_that_exists_is_left_as_it_is(image: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    done = ipe_build("audit", image, "--html", page, "--quiet")
    assert done.returncode == 2
    assert "--force" in done.stderr
    assert page.read_text() == "mine"
    assert ipe_build("audit", image, "--html", page, "--quiet", "--force").returncode == 0
    assert page.read_text().startswith("<!doctype html>")


def test_broken_images_give_valid_reports_too(image: Path, tmp_path: Path) -> None:
    break_signature(image)
    noise = tmp_path / "noise.raw"
    noise.write_bytes(os.urandom(1 << 16))
    for path, link in ((image, "device policy → verity root"), (noise, "")):
        sarif, page = tmp_path / "x.sarif", tmp_path / "x.html"
        done = ipe_build("audit", path, "--json", "--sarif", sarif, "--html", page, "--force", "--quiet")
        assert done.returncode == 1, done.stderr
        report = json.loads(done.stdout)
        assert list(Draft202012Validator(report_schema()).iter_errors(report)) == []
        assert report["verdict"] == "fail"
        results = json.loads(sarif.read_text())["runs"][0]["results"]
        assert len([one for one in results if one["level"] == "error"]) == sum(
            one["verdict"] == "fail" and one["severity"] == "error" for one in report["findings"]
        )
        text = page.read_text()
        assert "The chain of trust is broken" in text
        assert not link or f"First between {link.replace(' → ', ' and ')}" in text


def by_path(programs: tuple[Program, ...]) -> dict[str, Program]:
    return {one.path: one for one in programs if one.place is Place.ROOT}


def test_map_agrees_with_policy_evaluate_on_every_file(demo_build: Path, host: Host, tmp_path: Path) -> None:
    host.run(["fsck.erofs", f"--extract={tmp_path / 'root'}", "--no-preserve-owner", demo_build / "demo.erofs"])
    done = ipe_build("policy", "evaluate", demo_build / "ipe-policy.pol", "--image", demo_build / "demo.erofs", "--json")
    assert done.returncode == 0, done.stderr
    told: list[dict[str, Any]] = json.loads(done.stdout)["files"]
    with examined(demo_build / "demo.raw", host) as facts:
        programs = by_path(programs_of(facts))
    sizes = {path: (tmp_path / "root" / path[1:]).stat().st_size for path in programs}
    assert sorted(programs) == sorted(row["path"] for row in told)
    assert len(told) > 5
    loader = 0
    for row in told:
        program = programs[row["path"]]
        assert (program.kind, program.size_bytes) == (row["kind"], sizes[row["path"]])
        if program.ruling.judge == "kernel module loader":
            loader += 1
            assert (row["kind"], program.ruling.answer) == ("module", Answer.REFUSED)
        else:
            assert (program.ruling.answer is Answer.ADMITTED) == (row["action"] == "ALLOW")
            assert (program.ruling.rule, program.ruling.line) == (row["rule"], row["line"])
    assert loader == sum("unsigned" in row["path"] or "foreign" in row["path"] for row in told if row["kind"] == "module") > 0


def test_initramfs_is_judged_by_the_boot_policy(demo_build: Path, host: Host) -> None:
    with examined(demo_build / "demo.raw", host) as facts:
        init = next(one for one in programs_of(facts) if one.place is Place.INITRAMFS and one.path == "/init")
    assert (init.ruling.answer, init.ruling.judge) == (Answer.ADMITTED, "ipe-boot")
    assert init.ruling.rule == "op=EXECUTE boot_verified=TRUE action=ALLOW"


def test_without_a_valid_signature_no_file_of_the_root_is_admitted(image: Path, host: Host) -> None:
    break_signature(image)
    with examined(image, host) as facts:
        programs = by_path(programs_of(facts))
        links = chain_of(audit(facts, host))
    assert {one.ruling.answer for one in programs.values()} == {Answer.REFUSED}
    assert {link.row.id for link in links if link.state is LinkState.BROKEN} == {"device-policy-verity-root", "verity-root-files"}


def test_without_a_policy_nothing_is_claimed_of_the_root(demo_build: Path, host: Host) -> None:
    with examined(demo_build / "demo.raw", host) as facts:
        bare = replace(facts, kernel=None)
        assert {one.ruling.answer for one in programs_of(bare)} == {Answer.UNJUDGED}
        assert "no policy that this kernel accepts" in render_html(audit(bare, host), portrait_of(bare))


def test_files_with_hostile_names_are_on_the_page_as_text(demo_build: Path, host: Host) -> None:
    names = [b"<script>document.title='owned'</script>".replace(b"/", b"\xe2\x81\x84"), b"stray\xff", b"line\nend", b"\xe2\x80\xaegnp.exe"]
    with examined(demo_build / "demo.raw", host) as facts:
        assert facts.files is not None
        strangers = (file_of("usr/bin/" + os.fsdecode(name), ELF + bytes(60_000), mode=0o755) for name in names)
        tree = facts.files.tree.with_files(*strangers)
        hostile = replace(facts, files=replace(facts.files, tree=tree, survey=survey_of(tree, "erofs")))
        programs = by_path(programs_of(hostile))
        page = render_html(audit(hostile, host), portrait_of(hostile))
    page.encode("utf-8")
    assert "<script>document" not in page
    for shown in (
        "/usr/bin/&lt;script&gt;document.title=&#39;owned&#39;",
        "/usr/bin/stray\\xff",
        "/usr/bin/line\\nend",
        "/usr/bin/\\u202egnp.exe",
    ):
        assert page.count(shown) >= 2, shown
    assert programs["/usr/bin/stray\\xff"].size_bytes == len(ELF) + 60_000
