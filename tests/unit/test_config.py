"""The configuration: exact errors, no unknown keys, a demo file that explains every key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.config import load_config
from ipe_build.config.describe import json_schema, keys
from ipe_build.config.schema import Filesystem, Profile
from ipe_build.errors import ConfigError

DEMO = Path(__file__).parents[2] / "conf/demo.toml"
MINIMAL = '[build]\nname = "x"\n[rootfs]\nsource = "root"\n'


def load(tmp_path: Path, text: str):
    file = tmp_path / "ipe-build.toml"
    file.write_text(text)
    return load_config(file)


def test_minimal_configuration_has_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config.build.profile is Profile.DEVELOPMENT
    assert config.rootfs.filesystem is Filesystem.EROFS
    assert config.rootfs.source == tmp_path / "root"
    assert config.policy.device.name == "ipe-policy"


@pytest.mark.parametrize(
    ("extra", "place", "message"),
    [
        ("[kernel]\nsorce = 'x'\n", "[kernel] sorce", "did you mean source"),
        ("[kernels]\n", "[kernels]", "did you mean kernel"),
        ("[verity]\ndata_block_size = '4096'\n", "[verity] data_block_size", "wanted a whole number, got '4096'"),
        ("[verity]\ndata_block_size = 65536\n", "[verity] data_block_size", "dm-verity takes no data blocks larger than a page, got 65536"),
        ("[verity]\nhash_block_size = 3000\n", "[verity] hash_block_size", "wanted a power of two from 512 to 524288, got 3000"),
        ("[verity]\ndata_block_size = true\n", "[verity] data_block_size", "wanted a whole number, got True"),
        ("[verity]\nsalt = 'abc'\n", "[verity] salt", "wanted hex digits"),
        ("[disk]\nboot_loader = 1\n", "[disk] boot_loader", "wanted true or false"),
        ("[policy.device]\ntemplate = 't'\nname = 'a/b'\n", "[policy.device] name", "without /"),
        ("[policy.device]\nname = 'a'\n", "[policy.device] template", "is needed and missing"),
        ("[keys]\npolicy = 'file:x'\n", "[keys] policy", "wanted a table"),
        ("[keys]\ntrusted = 'x'\n", "[keys] trusted", "wanted a list"),
        ("[initramfs]\non_failure = 'continue'\n", "[initramfs] on_failure", "wanted one of panic, recovery"),
        ("[initramfs]\ninit = 'sbin/init'\n", "[initramfs] init", "absolute path"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path: Path, extra: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL + extra)
    assert caught.value.where == f"{tmp_path}/ipe-build.toml: {place}"
    assert message in str(caught.value)


def test_an_entry_of_a_list_is_named_by_its_number(tmp_path: Path) -> None:
    text = MINIMAL + "[[rootfs.owner]]\npath = '/a'\n[[rootfs.owner]]\npath = '/b'\nmode = '9'\n"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "[rootfs.owner[1]] mode" in caught.value.where


def test_missing_file_not_toml_and_not_utf8_are_clear(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(tmp_path, "[build\n")
    (tmp_path / "latin.toml").write_bytes(b"[build]\nname = '\xe9'\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.toml")


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=4)
)
@settings(deadline=None, max_examples=60)
def test_any_value_of_any_key_is_accepted_or_a_config_error(value: object) -> None:
    from ipe_build.config.loader import load_section
    from ipe_build.config.schema import Config

    if value is None:
        return
    for key in keys():
        if "[]" in key.section or "." in key.section:
            continue
        table = {"build": {"name": "x"}, "rootfs": {"source": "r"}}
        table.setdefault(key.section, {})[key.name] = value  # type: ignore[arg-type]
        try:
            load_section(Config, table, file="f", place="", base=Path("/"))
        except ConfigError as error:
            assert key.name in error.where


def test_the_demo_explains_every_key() -> None:
    text = DEMO.read_text()
    config = load_config(DEMO)
    assert config.build.name == "demo"
    section = ""
    explained = set()
    for line in text.splitlines():
        header = re.match(r"#? ?\[\[?([a-z_.]+)\]?\]$", line)
        if header:
            section = header[1]
        named = re.match(r"#? ?([a-z_]+) = ", line)
        if named:
            explained.add((section, named[1]))
    wanted = {(key.section.replace("[]", ""), key.name) for key in keys()}
    assert wanted - explained == set()
    assert {pair for pair in explained - wanted if pair[0] not in ("policy.boot.variables", "policy.device.variables")} == set()


def test_json_schema_lists_every_section_and_refuses_others() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["build", "rootfs"]
    assert schema["properties"]["verity"]["properties"]["hash"]["default"] == "sha256"  # type: ignore[index]
