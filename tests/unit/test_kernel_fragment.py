"""The fragment, the merge and the comparison: what is wanted is in it once, ours wins, and what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipe_build.config import load_config
from ipe_build.errors import InputError
from ipe_build.formats.dotconfig import DotConfig, is_value, parse_dotconfig, quote
from ipe_build.kernel.check import Difference, compare, explain, require
from ipe_build.kernel.fragment import LSM_OF_NEED, LSM_ORDER, PROVIDERS, Wanted, _add, fragment, merge, overlay, render_fragment
from ipe_build.kernel.kconfig import Kconfig, evaluate
from ipe_build.kernel.needs import ROWS, Need
from ipe_build.kernel.profiles import BOARDS, BRINGS, demo_kernel_request, kernel_request
from ipe_build.policy.properties import PROPERTIES

NEED_SETS = st.sets(st.sampled_from([need for need in Need if need not in (Need.MODULES_GZIP, Need.MODULES_XZ)]))


def as_config(values: dict[str, str]) -> DotConfig:
    return DotConfig(values)


def test_every_need_has_rows_and_no_row_stands_twice() -> None:
    assert {row.need for row in ROWS} == set(Need)
    assert len({(row.need, row.symbol) for row in ROWS}) == len(ROWS)


def test_every_value_is_one_that_kconfig_takes_or_a_plain_string() -> None:
    assert all(is_value(row.value) or is_value(quote(row.value)) for row in ROWS)


@pytest.mark.parametrize("prop", [row for row in PROPERTIES if row.kconfig], ids=lambda row: row.name)
def test_each_ipe_property_brings_its_symbol_and_what_that_depends_on(prop) -> None:
    wanted = {row.symbol: row.value for row in fragment((), [prop.name]).wanted}
    assert wanted[prop.kconfig] == "y"
    assert wanted["SECURITY_IPE"] == "y"
    for need in PROVIDERS[prop.kconfig]:
        assert all(wanted[row.symbol] == row.value for row in ROWS if row.need is need)


def test_an_unknown_property_is_refused() -> None:
    with pytest.raises(InputError, match="no IPE property is called 'dmverity'"):
        fragment((), ["dmverity"])


def test_two_needs_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InputError, match=r"CONFIG_A cannot be y \(for one\) and n \(for two\)"):
        _add({"A": Wanted("A", "y", "", ("one",))}, Wanted("A", "n", "", ("two",)))


@given(NEED_SETS)
def test_a_rendered_fragment_says_what_was_wanted(needs: set[Need]) -> None:
    wanted = fragment(needs)
    read = parse_dotconfig(render_fragment(wanted))
    assert {row.symbol: row.value for row in wanted.wanted} == dict(read.values)
    assert parse_dotconfig(render_fragment(wanted, reasons=False)).values == read.values


@given(NEED_SETS, st.dictionaries(st.sampled_from([row.symbol for row in ROWS]), st.sampled_from(["y", "n", "m"])))
def test_what_is_wanted_wins_over_the_base_and_each_conflict_is_told(needs: set[Need], base: dict[str, str]) -> None:
    wanted = fragment(needs)
    merged, conflicts = merge(as_config(base), wanted)
    assert compare(wanted, merged) == ()
    kept = {symbol: value for symbol, value in base.items() if symbol not in {row.symbol for row in wanted.wanted}}
    assert all(merged.values[symbol] == value for symbol, value in kept.items())
    told = {row.symbol for row in wanted.wanted if row.symbol != "LSM" and base.get(row.symbol, row.value) != row.value}
    assert {conflict.symbol for conflict in conflicts} == told


def test_what_is_wanted_stands_last_so_that_it_wins_a_choice() -> None:
    merged, _ = merge(as_config({"KERNEL_GZIP": "n", "KERNEL_XZ": "y"}), fragment([Need.QEMU_X86_64]))
    names = list(merged.values)
    assert names.index("KERNEL_XZ") < names.index("KERNEL_GZIP")
    assert list(overlay(as_config({"A": "y", "B": "y"}), as_config({"A": "m"})).values.items()) == [("B", "y"), ("A", "m")]


@pytest.mark.parametrize(
    ("base", "order"),
    [
        ("landlock,selinux,bpf", "landlock,selinux,ipe,bpf"),
        ("ipe,selinux", "ipe,selinux"),
        ("", "ipe"),
        ("mine", "ipe,mine"),
        ("landlock,lockdown,yama,apparmor", "landlock,lockdown,yama,apparmor,ipe"),
    ],
)
def test_ipe_is_put_into_the_bases_lsm_order(base: str, order: str) -> None:
    merged, _ = merge(as_config({"LSM": quote(base)}), fragment([Need.IPE]))
    assert merged.text("LSM") == order


def test_without_a_base_the_kernels_own_order_is_taken() -> None:
    assert merge(as_config({}), fragment([Need.IPE]))[0].text("LSM") == ",".join(LSM_ORDER)


@pytest.mark.parametrize(("got", "missing"), [('"yama,ipe"', ""), ('"yama"', "ipe"), (None, "ipe"), ('"ipex"', "ipe")])
def test_an_lsm_order_without_ipe_is_a_difference(got: str | None, missing: str) -> None:
    wanted = fragment([Need.IPE])
    values = {row.symbol: row.value for row in wanted.wanted if row.symbol != "LSM"} | ({"LSM": got} if got is not None else {})
    found = compare(wanted, as_config(values))
    assert [(row.symbol, row.hint) for row in found] == ([("LSM", f"it lacks {missing}")] if missing else [])


@given(st.sampled_from([row.symbol for row in fragment(demo_kernel_request().needs).wanted if row.symbol != "LSM"]))
def test_every_dropped_or_changed_symbol_is_found(symbol: str) -> None:
    wanted = fragment(demo_kernel_request().needs)
    resolved = dict(merge(as_config({}), wanted)[0].values)
    row = next(row for row in wanted.wanted if row.symbol == symbol)
    assert compare(wanted, as_config(resolved)) == ()
    changed = {**resolved, symbol: "y" if row.value != "y" else "m"}
    assert [found.symbol for found in compare(wanted, as_config(changed))] == [symbol]
    dropped = {name: value for name, value in resolved.items() if name != symbol}
    assert [found.symbol for found in compare(wanted, as_config(dropped))] == ([] if row.value == "n" else [symbol])


def test_require_lists_every_difference_with_its_reason() -> None:
    wanted = fragment([Need.EROFS])
    with pytest.raises(InputError) as raised:
        require(compare(wanted, as_config({"BLOCK": "y"})), where="x.config")
    text = str(raised.value)
    assert text.startswith("x.config: 8 symbols did not come out as wanted:")
    assert "CONFIG_EROFS_FS is not there, wanted y (erofs: the root filesystem)" in text
    require((), where="x.config")


def test_lsms_of_needs_are_names_that_the_kernel_knows() -> None:
    assert {name for _, name in LSM_OF_NEED} <= set(LSM_ORDER)


def test_the_demo_asks_for_every_property_and_all_that_its_features_bring() -> None:
    request = demo_kernel_request()
    assert set(request.properties) == {row.name for row in PROPERTIES}
    assert set(BRINGS[Need.PROBES]) <= set(request.needs)
    assert request == kernel_request(filesystem="squashfs", properties=["dmverity_roothash"])


def test_the_demos_configuration_gives_the_request_of_the_tests_so_that_one_kernel_is_compiled() -> None:
    config = load_config(Path(__file__).parents[2] / "conf/demo.toml")
    section = config.kernel
    assert section.source is not None
    request = kernel_request(
        section.source,
        board=section.board,
        features=section.features,
        properties=["boot_verified", "dmverity_signature"],
        filesystem=config.rootfs.filesystem,
        module_compression=config.modules.compression,
        base=section.base,
        fragments=section.fragments,
    )
    assert request == demo_kernel_request()


@pytest.mark.parametrize("words", [{"board": "toaster"}, {"features": ["speed"]}, {"filesystem": "fat"}, {"module_compression": "rar"}])
def test_an_unknown_name_in_a_request_is_refused_with_the_known_ones(words: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is called") as raised:
        kernel_request(**words)  # type: ignore[arg-type]
    assert raised.value.hint.startswith("known: ")


def test_one_module_compression_is_asked_for_and_it_is_the_configured_one() -> None:
    compressions = {Need.MODULES_GZIP, Need.MODULES_XZ, Need.MODULES_ZSTD}
    for name, need in (("gzip", Need.MODULES_GZIP), ("xz", Need.MODULES_XZ), ("zstd", Need.MODULES_ZSTD)):
        assert compressions & set(kernel_request(module_compression=name).needs) == {need}
    assert compressions & set(kernel_request(features=()).needs) == set()


def test_boards_have_unique_names() -> None:
    assert len({board.name for board in BOARDS}) == len(BOARDS)


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    (tmp_path / "Kconfig").write_text(
        'config A\n\tbool "a"\n\thelp\n\t  if this were read, all would be lost\n\nif B\nsource "sub/$(SRCARCH)/Kconfig"\nendif\n'
        'menu "m"\n\tdepends on MENU\nconfig D\n\tbool\n\tdepends on A && \\\n\t  (X || !Y)\nendmenu\n'
        "config S\n\tbool\n\tselect T if A\nconfig T\n\tbool\n"
    )
    (tmp_path / "sub/x86").mkdir(parents=True)
    (tmp_path / "sub/x86/Kconfig").write_text('config C\n\ttristate "c"\n\tdepends on A # note\n')
    return tmp_path


def test_hints_come_from_the_trees_own_kconfig_files(small_tree: Path) -> None:
    kconfig = Kconfig.read(small_tree, "x86")
    assert kconfig.conditions["C"] == (("B", "A"),)
    assert kconfig.conditions["D"] == (("MENU", "A && (X || !Y)"),)
    assert kconfig.selected_by("T", as_config({"S": "y", "A": "y"})) == ("S",)
    assert kconfig.selected_by("T", as_config({"S": "y"})) == ()


def test_a_hint_names_what_is_not_met(small_tree: Path) -> None:
    rows = tuple(Difference(symbol, value, "n", "", ()) for symbol, value in (("C", "y"), ("NEW", "y"), ("T", "n"), ("A", "y")))
    hints = [row.hint for row in explain(rows, as_config({"A": "y", "S": "y"}), small_tree, "x86")]
    assert hints[0] == "depends on B"
    assert hints[1] == "this kernel has no such symbol"
    assert hints[2] == "selected by CONFIG_S"
    assert hints[3].startswith("its dependencies are met")


@pytest.mark.parametrize(
    ("expression", "met"),
    [
        ("A", True),
        ("!A", False),
        ("B", False),
        ("A && B", False),
        ("A || B", True),
        ("!(A && B)", True),
        ("M", True),
        ("M = y", False),
        ("A=y", True),
        ("B!=y", True),
        ("N > 3", True),
        ("N >= 5", True),
        ("N < 5", False),
        ('S = "x"', True),
        ("$(cc-option,-mfoo)", True),
        ("&& nonsense", True),
    ],
)
def test_kconfig_expressions_are_evaluated(expression: str, met: bool) -> None:
    assert evaluate(expression, as_config({"A": "y", "M": "m", "N": "5", "S": '"x"'})) is met
