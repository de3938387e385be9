"""The probes and destructive boots against the real kernel: what must hold holds, and what must fail makes the evidence fail."""

from __future__ import annotations

import pytest

from ipe_build.boot.evidence import evidence_table
from ipe_build.boot.prove import boot_image
from ipe_build.host import Host
from tests.fixtures.boot import ImageMaker

pytestmark = pytest.mark.boot


def test_image_allows_what_is_authorised_and_denies_everything_else(probe_image: ImageMaker, host: Host):
    evidence = boot_image(probe_image().request, host)
    assert evidence.as_expected, evidence_table(evidence)
    assert not [result.id for result in evidence.results if result.skipped]
