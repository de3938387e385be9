"""Slots, update settings, the policies of an update, partition files: what needs no tool and no boot."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.cli import main
from ipe_build.errors import FormatError, InputError, SigningKeyError, VerificationError
from ipe_build.formats.bmap import BlockMap, BlockRange, parse_bmap
from ipe_build.formats.fat import used_bytes
from ipe_build.formats.gpt import Partition, lay_out
from ipe_build.formats.partition_types import EFI_SYSTEM, PARTITION_TYPES
from ipe_build.host import Host
from ipe_build.image.disk import DiskRequest, make_disk, read_disk
from ipe_build.image.flash import partition_file_names
from ipe_build.image.slots import SlotRoom
from ipe_build.image.update import UpdateSettings, make_rauc_bundle, sw_description, system_conf, write_update_folder
from ipe_build.image.used import Area, used_areas, within
from ipe_build.integrity.verity import VerityParameters, format_image
from ipe_build.policy.ledger import Ledger, read_ledger
from ipe_build.policy.model import PolicyVersion
from ipe_build.policy.parser import parse
from ipe_build.policy.transition import next_version, transition

OLD, NEW = f"sha256:{'0a' * 32}", f"sha256:{'0b' * 32}"


@pytest.fixture
def request_(tmp_path: Path, host: Host) -> DiskRequest:
    (tmp_path / "root").write_bytes(b"r" * (3 << 20))
    tree = format_image(tmp_path / "root", tmp_path / "tree", VerityParameters(), host)
    return DiskRequest(tmp_path / "root", tmp_path / "tree", tree.root_hash, b"{}".ljust(4096, b"\0"), UUID(int=5))


def with_slots(request: DiskRequest, room: SlotRoom) -> DiskRequest:
    from dataclasses import replace

    return replace(request, slots=room)


def test_slots_have_room_and_the_second_is_empty(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    disk = make_disk(with_slots(request_, SlotRoom()), tmp_path / "disk", host)
    named = {one.name: one for one in disk.table.partitions}
    assert list(named) == ["root-a", "root-verity-a", "root-verity-sig-a", "root-b", "root-verity-b", "root-verity-sig-b"]
    assert named["root-a"].uuid == UUID(bytes=request_.root_hash[:16])
    raw = (tmp_path / "disk").read_bytes()
    for role in ("root", "root-verity", "root-verity-sig"):
        a, b = named[f"{role}-a"], named[f"{role}-b"]
        assert (a.size_bytes, a.type_uuid) == (b.size_bytes, b.type_uuid) and a.uuid != b.uuid
        assert not any(raw[b.offset_bytes : b.end_bytes])
    assert named["root-a"].size_bytes == 5 << 20
    assert raw[named["root-a"].offset_bytes :].startswith((tmp_path / "root").read_bytes())
    assert disk.root == named["root-a"] and read_disk(tmp_path / "disk").table.problems == ()


def test_a_slot_smaller_than_its_root_is_an_error(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wanted at least 3145728 bytes"):
        make_disk(with_slots(request_, SlotRoom(2 << 20)), tmp_path / "disk", host)
    assert not (tmp_path / "disk").exists()


def test_of_a_slot_only_what_is_checked_must_be_written(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    disk = make_disk(with_slots(request_, SlotRoom()), tmp_path / "disk", host)
    raw = (tmp_path / "disk").read_bytes()
    areas = used_areas(disk.table, lambda offset, length: raw[offset : offset + length])
    named = {one.name: within(areas, one) for one in disk.table.partitions}
    assert named["root-a"] == (Area(0, 3 << 20),)
    assert named["root-verity-a"] == (Area(0, (tmp_path / "tree").stat().st_size),)
    assert named["root-b"] == named["root-verity-b"] == (Area(0, 4096),), "nothing old may look like a root"
    assert named["root-verity-sig-b"] == (Area(0, 65536),)


def test_an_unknown_hash_area_counts_whole(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    disk = make_disk(with_slots(request_, SlotRoom()), tmp_path / "disk", host)
    raw = bytearray((tmp_path / "disk").read_bytes())
    assert disk.root_verity and disk.root
    raw[disk.root_verity.offset_bytes + 64] ^= 0xFF
    areas = used_areas(disk.table, lambda offset, length: bytes(raw[offset : offset + length]))
    assert within(areas, disk.root) == (Area(0, disk.root.size_bytes),)


def test_bytes_outside_of_partitions_are_written_when_they_are_something(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    disk = make_disk(request_, tmp_path / "disk", host)
    raw = bytearray((tmp_path / "disk").read_bytes())
    raw[0x40000] = 1  # a board's first boot loader, say
    areas = used_areas(disk.table, lambda offset, length: bytes(raw[offset : offset + length]))
    assert Area(0x40000, 0x41000) in areas
    assert areas[0].begin == 0 and areas[-1].end == len(raw)


@given(st.binary(max_size=600), st.integers(0, 1 << 16))
@settings(deadline=None, max_examples=150)
def test_any_boot_sector_is_understood_or_left_alone(head: bytes, size: int) -> None:
    found = used_bytes(lambda offset, length: head.ljust(1 << 16, b"\xff")[offset : offset + length], size)
    assert found is None or (found[0][0] == 0 and all(a + b < c for (a, b), (c, _) in pairwise(found)))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=8), st.integers(1, 4096))
@settings(deadline=None, max_examples=60)
def test_block_maps_come_back(steps: list[tuple[int, int]], tail: int) -> None:
    ranges, block = [], 0
    for gap, length in steps:
        ranges.append(BlockRange(block + gap, block + gap + length - 1, bytes([gap]) * 32))
        block += gap + length
    value = BlockMap(block * 4096 + tail, tuple(ranges))
    assert parse_bmap(value.build()) == value


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<ImageSize> 8192", b"<ImageSize> 9999"),
        (b" 0-1 ", b" 1-0 "),
        (b'version="2.0"', b'version="1.0"'),
        (b"</bmap>", b""),
        (b"<bmap", b"<!DOCTYPE x><bmap"),
    ],
)
def test_a_changed_block_map_is_refused(old: bytes, new: bytes) -> None:
    built = BlockMap(8192, (BlockRange(0, 1, bytes(32)),)).build()
    assert old in built
    with pytest.raises(FormatError):
        parse_bmap(built.replace(old, new))


def test_partition_names_become_file_names() -> None:
    kind = PARTITION_TYPES["x86-64"].root
    names = ("esp", "a/b", "..", "esp", "")
    partitions = tuple(Partition(n, kind, UUID(int=n), name, 0, 4096) for n, name in enumerate(names, 1))
    found = partition_file_names(partitions)
    assert found == {1: "esp", 2: "a_b", 3: "partition-3", 4: "esp-4", 5: "partition-5"}


def test_system_conf_writes_every_partition_raw() -> None:
    import configparser

    text = system_conf(UpdateSettings("board", "1", bootloader="uboot", devices="/dev/by"))
    parser = configparser.ConfigParser()
    parser.read_string(text)
    slots = [name for name in parser.sections() if name.startswith("slot.")]
    assert len(slots) == 8
    assert {parser[name]["type"] for name in slots} == {"raw"}
    assert not any(key in parser[name] for name in slots for key in ("resize", "extra-mount-opts", "install-same"))
    assert {parser[name]["device"] for name in slots} == {
        f"/dev/by/{role}-{slot}" for slot in "ab" for role in ("esp", "root", "root-verity", "root-verity-sig")
    }
    assert {parser[name].get("parent", parser[name].get("bootname")) for name in slots} == {"a", "b", "root.0", "root.1"}
    assert parser["system"]["bundle-formats"] == "-plain"


@pytest.mark.parametrize(
    "wrong",
    [{"compatible": "a b"}, {"version": 'x"'}, {"bootloader": "lilo"}, {"devices": "/dev\n[slot"}, {"hardware": ("$",)}, {"hardware": ()}],
)
def test_settings_that_would_break_a_configuration_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="wanted"):
        UpdateSettings(**{"compatible": "board", "version": "1", **wrong})  # type: ignore[arg-type]


def test_uboot_gets_the_boot_order_of_the_new_slot() -> None:
    text = sw_description(UpdateSettings("board", "1", bootloader="uboot"), ())
    assert re.findall(r'value = "(. .)"', text) == ["a b", "b a"]
    assert "BOOT_ORDER" not in sw_description(UpdateSettings("board", "1"), ())


def test_a_disk_without_signature_or_esp_makes_no_update(request_: DiskRequest, host: Host, tmp_path: Path) -> None:
    disk = make_disk(request_, tmp_path / "disk", host)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="one is missing"):
        write_update_folder(disk, UpdateSettings("board", "1"), tmp_path / "out")
    for key in ("command:x", "file:key.pem?passphrase-env=X"):
        with pytest.raises(SigningKeyError, match="that have no passphrase"):
            make_rauc_bundle(disk, UpdateSettings("board", "1"), key, tmp_path / "c", tmp_path / "b", host, force=False)


def test_versions_of_an_updates_policies_rise_with_the_ledger() -> None:
    first = transition("ipe-policy", (OLD,), NEW, Ledger())
    versions = [str(parse(text).policy.version) for text in (first.in_flight, first.final)]  # type: ignore[union-attr]
    assert versions == ["0.0.1", "0.0.2"]
    assert OLD.encode() in first.in_flight and NEW.encode() in first.in_flight
    assert OLD.encode() not in first.final and NEW.encode() in first.final
    second = transition("ipe-policy", (NEW,), OLD, first.ledger)
    assert [str(parse(text).policy.version) for text in (second.in_flight, second.final)] == ["0.0.3", "0.0.4"]  # type: ignore[union-attr]
    policy = parse(first.final).policy
    assert policy is not None
    with pytest.raises(VerificationError, match="not higher"):
        second.ledger.record(policy, first.final)


def test_an_update_to_itself_and_a_template_without_root_hashes_are_refused() -> None:
    with pytest.raises(InputError, match="is the old one"):
        transition("p", (OLD,), OLD.upper().replace("SHA", "sha"), Ledger())
    with pytest.raises(InputError, match="does not name"):
        transition("p", (OLD,), NEW, Ledger(), template="signed-verity")
    with pytest.raises(InputError, match="at least one"):
        transition("p", (), NEW, Ledger())


@given(st.integers(0, (1 << 48) - 2))
@settings(deadline=None)
def test_the_next_version_is_higher_and_nothing_lies_between(number: int) -> None:
    version = PolicyVersion(number >> 32, number >> 16 & 0xFFFF, number & 0xFFFF)
    after = next_version(version)
    assert after > version
    assert (after.major << 32 | after.minor << 16 | after.revision) == number + 1


def test_after_the_last_version_there_is_none() -> None:
    with pytest.raises(InputError, match="no version after"):
        next_version(PolicyVersion(65535, 65535, 65535))


def test_the_verb_writes_signed_policies_and_the_ledger(test_keys, tmp_path: Path, capsys) -> None:
    pair = test_keys.pair("policy")
    words = ["update", "policy", "--old", OLD, "--new", NEW, "--ledger", str(tmp_path / "ledger.json"), "-o", str(tmp_path / "out")]
    words += ["--key", pair.uri, "--cert", str(pair.certificate), "--json", "--quiet"]
    assert main(words) == 2, "a ledger begins when it is asked for"
    assert not any(tmp_path.glob("ledger.json")) and not (tmp_path / "out").exists()
    capsys.readouterr()
    assert main([*words, "--begin"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [Path(file).relative_to(tmp_path / "out").as_posix() for file in files] == [
        f"{state}/ipe-policy.{suffix}" for state in ("in-flight", "final") for suffix in ("pol", "p7b")
    ]
    assert Path(files[0]).read_bytes() in Path(files[1]).read_bytes()
    last = read_ledger(tmp_path / "ledger.json").last(b"ipe-policy")
    assert last is not None and str(last.version) == "0.0.2"
    assert main(words) == 2, "what exists is left as it is"
    kept = read_ledger(tmp_path / "ledger.json").last(b"ipe-policy")
    assert kept == last
    capsys.readouterr()
    assert main([*words, "--force", "--name", "ipe-polcy"]) == 2
    assert "knows no policy ipe-polcy; it knows ipe-policy" in capsys.readouterr().err
    assert read_ledger(tmp_path / "ledger.json").last(b"ipe-polcy") is None


@pytest.mark.parametrize("what", ["policy", "device"])
def test_a_misspelled_folder_is_not_made(what: str, tmp_path: Path, capsys) -> None:
    words = {
        "policy": ["--old", OLD, "--new", NEW, "--ledger", str(tmp_path / "ledger.json"), "--begin"],
        "device": ["--compatible", "board", "--update-version", "1"],
    }
    out = tmp_path / "absent/out" if what == "policy" else tmp_path / "absent"
    assert main(["update", what, *words[what], "-o", str(out), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"error: {out}: the folder {tmp_path / 'absent'} does not exist" in said
    assert not any(tmp_path.iterdir())
    (tmp_path / "absent").mkdir()
    assert main(["update", what, *words[what], "-o", str(out), "--quiet"]) == 0


def test_partitions_of_no_slot_are_named() -> None:
    from ipe_build.image.slots import role_of

    assert role_of(lay_out(UUID(int=1), [Partition(0, EFI_SYSTEM, UUID(int=2), "x", 0, 4096)]).partitions[0]) == "esp"
    with pytest.raises(InputError, match="which no slot has"):
        role_of(Partition(1, UUID(int=77), UUID(int=2), "data", 0, 4096))


def test_a_python_without_zstd_lets_the_program_compress(request_: DiskRequest, host: Host, need, tmp_path: Path) -> None:
    """Buildroot's Python for the host has no such module: everything else works, and the program makes the file."""
    import subprocess
    import sys

    need("zstd")
    disk = make_disk(request_, tmp_path / "disk", host)
    code = "import sys; sys.modules['backports.zstd'] = sys.modules['compression.zstd'] = None\n"
    code += "from ipe_build.cli import main; import ipe_build.kernel.modules, ipe_build.formats.kernel_compression\n"
    code += f"sys.exit(main(['image', 'flash', {str(disk.path)!r}, '--zstd', '--quiet']))"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0
    unpacked = subprocess.run([need("zstd"), "-dc", tmp_path / "disk.zst"], capture_output=True, check=True).stdout
    assert unpacked == disk.path.read_bytes()


def test_make_wants_a_key_for_signed_updates_and_writes_nothing_without(request_: DiskRequest, host: Host, tmp_path: Path, capsys) -> None:
    make_disk(with_slots(request_, SlotRoom()), tmp_path / "disk", host)
    words = [
        "update",
        "make",
        str(tmp_path / "disk"),
        "--compatible",
        "board",
        "--update-version",
        "1",
        "-o",
        str(tmp_path / "out" / "one"),
    ]
    assert main([*words, "--updater", "swupdate"]) == 2
    assert "signed updates need --key and --cert" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
