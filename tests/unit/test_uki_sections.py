"""Sections that a stub may take instead of those that were looked at: seen in the image, by the audit, and refused by attestation."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.attest.chain import EfiProgram
from ipe_build.attest.predict import behaviour_of
from ipe_build.audit.checks_uki import uki_sections
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.findings import Answer, Verdict
from ipe_build.audit.walk_start import loader
from ipe_build.errors import InputError
from ipe_build.examine.boot_entries import uki_entry
from ipe_build.formats.pe import parse_pe
from tests.fixtures.efi import make_pe

SDMAGIC = (".sdmagic", b"#### LoaderInfo: systemd-stub 252 ####\0")
UKI = (SDMAGIC, (".osrel", b"ID=test\n"), (".cmdline", b"console=ttyS0"), (".initrd", b"070701"), (".linux", b"MZ"))


@pytest.mark.parametrize(
    ("more", "doubtful"),
    [
        ((), ()),
        (((".cmdline", b"ipe.enforce=0"),), (".cmdline",)),
        (((".initrd2", b"070701"),), (".initrd2",)),
        (((".linux1", b"MZ"), (".osrel", b"")), (".linux1", ".osrel")),
        (((".dtbauto", b""),), ()),
        (((".data", b""), (".text", b"")), ()),
    ],
)
def test_a_section_that_comes_twice_or_under_a_longer_name_is_said(more, doubtful, host) -> None:
    data = make_pe(tuple((name.encode(), content) for name, content in (*UKI, *more)))
    assert parse_pe(data).doubtful_sections == doubtful
    facts = ImageFacts(Path("image"), boot_entry=uki_entry(data, "image.efi"))
    assert [one.subject for one in uki_sections(facts, host) if one.verdict is Verdict.FAIL] == list(doubtful)
    assert loader(facts, host).goes_on is (Answer.UNKNOWN if doubtful else Answer.YES)
    if doubtful:
        with pytest.raises(InputError, match="may take another"):
            behaviour_of(EfiProgram("image.efi", data))
    else:
        assert behaviour_of(EfiProgram("image.efi", data)).from_version == 252
