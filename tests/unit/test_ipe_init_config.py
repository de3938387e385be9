"""The audit's reading of /etc/ipe-init.conf against ipe-init's own C code."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.ipe_init import MAX_LIST, SETTINGS, is_ipe_init, parse_ipe_init, signature_refusal, superblock_refusal
from ipe_build.formats.verity import parse_superblock
from ipe_build.formats.verity_sig import VeritySignature, parse_verity_signature
from ipe_build.image.initramfs import InitramfsRequest, compile_init, render_config
from tests.unit.test_initramfs import SUPERBLOCK, Parse, mutated, parse  # noqa: F401

GOOD = render_config(
    InitramfsRequest(bytes(range(32)), "erofs", policies=("/etc/ipe/ipe-policy.p7b",), drop_capabilities=("CAP_MAC_ADMIN",))
)
ZERO_UUID = "00000000-0000-0000-0000-000000000000"
VALUES = (
    *[
        "",
        "x",
        "yes",
        "no",
        "/x",
        ".ima",
        "initramfs:/x",
        "initramfs:x",
        "file:/x",
        "file:x",
        "none",
        "partition",
        "cmdline",
        "0",
        "1",
        "keep",
        "23",
        "24",
        "024",
        "9999",
        "10000",
        "tpm",
        "tee",
    ],
    *[
        "panic",
        "recovery",
        "poweroff",
        "reboot",
        "a/b",
        "a=b",
        "logging",
        "ignore_corruption",
        "panic_on_corruption",
        "CAP_LINUX_IMMUTABLE",
    ],
    *(ZERO_UUID, f"partuuid:{ZERO_UUID}", "partuuid:0", "\x0b/x", "/x\x0c"),
    *("ab" * 31, "ab" * 32, "ab" * 64, "ab" * 65, "AB" * 48, "ag" * 32),
)


def same(parse: Parse, inputs: list[bytes]) -> int:  # noqa: F811
    """Compares yes and no, and the line of a no; returns how many both take."""
    taken = 0
    for data, answer in zip(inputs, parse("c", inputs), strict=True):
        ours = parse_ipe_init(data)
        if answer.startswith("no 0 "):
            assert ours.problem == answer.removeprefix("no 0 "), data
        elif answer.startswith("no "):
            assert ours.problem.startswith(f"line {answer.split()[1]}: "), (data, answer, ours.problem)
        else:
            assert ours.problem == "", (data, answer)
            taken += 1
    return taken


def test_every_value_of_every_setting_is_taken_or_refused_as_ipe_init_does(parse: Parse) -> None:  # noqa: F811
    lines = [f"{name} = {value}\n".encode() for name in (*SETTINGS, "unknown", "", "root_hash ") for value in VALUES]
    inputs = [piece for line in lines for piece in (GOOD + line, line + GOOD)]
    taken = same(parse, inputs)
    assert len(inputs) // 20 < taken < len(inputs)


def test_damaged_configurations_are_taken_or_refused_as_ipe_init_does(parse: Parse) -> None:  # noqa: F811
    rng = random.Random(5)
    more = [
        b"\n".join(rng.sample(GOOD.splitlines(), rng.randint(1, 9))) + rng.choice([b"\r\n", b"\0drop", b"\x85", b"\n#x=y", b" = ", b"=\n"])
        for _ in range(2000)
    ]
    assert same(parse, [GOOD, b"", *mutated(GOOD, 4000, 7), *more]) > 100


def test_a_list_has_at_most_so_many_items_for_both(parse: Parse) -> None:  # noqa: F811
    row = b"move = /x\n"
    assert same(parse, [GOOD + row * (MAX_LIST - 3), GOOD + row * (MAX_LIST - 2)]) == 1


def test_what_follows_a_nul_is_not_read() -> None:
    found = parse_ipe_init(
        b"init_from_command_line = yes\n" + GOOD.replace(b"init_from_command_line = no\n", b"") + b"\0\ninit_from_command_line = no\n"
    )
    assert (found.problem, found.settings["init_from_command_line"]) == ("", ("yes",))


def test_the_last_value_counts_and_all_are_kept() -> None:
    found = parse_ipe_init(GOOD + b"init = /one\ninit = /two\n")
    assert found.settings["init"] == ("/sbin/init", "/one", "/two")


def test_a_program_is_told_from_ipe_init_by_its_marks(tmp_path, host, need) -> None:
    need("gcc")
    compile_init(tmp_path / "init", host)
    assert is_ipe_init((tmp_path / "init").read_bytes())
    assert not is_ipe_init(b"\x7fELF" + bytes(60))
    assert not is_ipe_init((tmp_path / "init").read_bytes().replace(b"/etc/ipe-init.conf", b"/etc/other-init.cf"))


def test_more_policies_than_ipe_init_takes_are_refused_at_build_time() -> None:
    with pytest.raises(InputError, match="ipe-init would refuse"):
        render_config(InitramfsRequest(bytes(32), "erofs", policies=tuple(f"/etc/ipe/p{number}.p7b" for number in range(MAX_LIST + 1))))


def readable(read: Callable[[bytes], object], data: bytes) -> bool:
    try:
        read(data)
    except FormatError:
        return False
    return True


def test_superblocks_that_others_read_are_refused_where_ipe_init_refuses_them(parse: Parse) -> None:  # noqa: F811
    flips = [SUPERBLOCK[:at] + bytes([SUPERBLOCK[at] ^ 1]) + SUPERBLOCK[at + 1 :] for at in range(512)]
    inputs = [one for one in [SUPERBLOCK, *flips, *mutated(SUPERBLOCK.ljust(600, b"\0"), 1000, 3)] if len(one) >= 512]
    inputs = [one[:512] for one in inputs if readable(parse_superblock, one[:512])]
    refused = 0
    for data, answer in zip(inputs, parse("s", inputs), strict=True):
        ours = superblock_refusal(data)
        if "number of data blocks" not in answer:
            assert (ours == "") == answer.startswith("yes"), (data, answer, ours)
        refused += bool(ours)
    assert superblock_refusal(SUPERBLOCK) == ""
    assert refused > 200


def test_signatures_that_others_read_are_refused_where_ipe_init_refuses_them(parse: Parse) -> None:  # noqa: F811
    good = VeritySignature(bytes(range(32)), bytes(32), b"signature, in DER").build().rstrip(b"\0")
    made = [
        good,
        good.replace(b"{", b'{"rootHash":"' + b"00" * 32 + b'",', 1),
        good.replace(b"{", b'{"other":"text",', 1),
        good.replace(b"{", b'{"' + b"k" * 64 + b'":"text",', 1),
        good.replace(b"{", b'{"version":1,', 1),
        good.replace(b'"rootHash"', b'"\\u0072ootHash"'),
        good.replace(b"/", b"\\/"),
        good.replace(b"000102", b"00 0102"),
        good.replace(b'="', b'" '),
        good + b"\0\0",
        b" " + good + b"\n",
    ]
    inputs = [one for one in (*made, *mutated(good, 3000, 9)) if readable(parse_verity_signature, one)]
    refused = 0
    for data, answer in zip(inputs, parse("j", inputs), strict=True):
        ours = signature_refusal(data)
        assert (ours == "") == answer.startswith("yes"), (data, answer, ours)
        refused += bool(ours)
    assert signature_refusal(good) == ""
    assert refused >= 4
