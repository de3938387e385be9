"""What of Secure Boot's configuration does not go together is said before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.config import load_config
from ipe_build.errors import ConfigError
from ipe_build.steps.uki import check_uki_config

MINIMAL = '[build]\nname = "x"\n[rootfs]\nsource = "root"\n'
STOCK = '[kernel]\nimage = "vmlinuz"\nmodules = "modules"\nkeys = "firmware"\n[initramfs]\nmodules = ["erofs"]\n[disk]\nboot = "uki"\n'


def check(tmp_path: Path, text: str) -> None:
    file = tmp_path / "ipe-build.toml"
    file.write_text(MINIMAL + text)
    check_uki_config(load_config(file), file)


@pytest.mark.parametrize("text", ["", "[disk]\nboot = 'uki'\n[boot]\nsecure_boot = true\n", STOCK])
def test_what_goes_together_is_taken(tmp_path: Path, text: str) -> None:
    check(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[boot]\nsecure_boot = true\n", "[boot] secure_boot"),
        (STOCK.replace('boot = "uki"', 'boot = "loader"'), "[kernel] keys"),
        ("[kernel]\nkeys = 'firmware'\n[disk]\nboot = 'uki'\n", "[kernel] keys"),
        ("[initramfs]\nmodules = ['erofs']\n", "[initramfs] modules"),
    ],
)
def test_what_does_not_is_named_with_its_place(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(tmp_path, text)
    assert caught.value.where.endswith(place)
