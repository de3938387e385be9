"""What the kernel takes for a program, for a filesystem that it can mount, and for its command line, on facts made by hand."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest

from ipe_build.audit.checks_command_line import command_line_length
from ipe_build.audit.command_line import text_of, word_of, words_of
from ipe_build.audit.facts import BootEntry, ImageFacts, KernelView, Region, RootFiles, RootPartitions
from ipe_build.audit.file_tree import FileTree, TreeFile, file_of
from ipe_build.audit.findings import Answer, Verdict
from ipe_build.audit.mounting import mount_problem
from ipe_build.audit.walk_program import elf_interpreter, script_interpreter, starts
from ipe_build.formats.dotconfig import parse_dotconfig
from ipe_build.policy.survey import Survey
from ipe_build.policy.versions import KernelVersion


def kernel(architecture: str = "x86-64", config: str = "", command_line: str = "") -> KernelView:
    dotconfig = parse_dotconfig("".join(f"CONFIG_{one}=y\n" for one in config.split()).encode()) if config else None
    return KernelView("6.12.0", KernelVersion(6, 12), architecture, True, None, (), (), ("ipe",), dotconfig, command_line)


def elf(interpreter: bytes = b"", machine: int = 62, kind: int = 2, wide: int = 2) -> bytes:
    """A program's headers: 64 bits unless `wide` is 1, with one program header."""
    name = interpreter and interpreter + b"\0"
    if wide == 1:
        head = b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", kind, machine, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        return head + struct.pack("<IIIIIIII", 3 if name else 1, 84, 0, 0, len(name), 0, 0, 0) + name
    head = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 3 if name else 1, 0, 120, 0, 0, len(name), 0, 0) + name


def outcome(files: dict[str, bytes], path: str = "/init", view: KernelView | None = None, mode: int = 0o755) -> tuple[bool, str]:
    folders = (TreeFile(name, stat.S_IFDIR | 0o755) for name in ("bin", "lib"))
    tree = FileTree.of(iter([*folders, *(file_of(name, data, mode=mode) for name, data in files.items())]))
    facts = ImageFacts(Path("image"), kernel=view or kernel())
    step = starts(facts, path, tree.find, lambda one: "", "the root")
    return step.goes_on is Answer.YES, step.why


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"#!/bin/sh\n", "/bin/sh"),
        (b"#! \t/bin/sh -e\n", "/bin/sh"),
        (b"#!/bin/sh\r\n", "/bin/sh\r"),
        (b"#!/bin/sh", "/bin/sh"),
        (b"#!/bin/sh\0junk\n", "/bin/sh"),
        (b"#!sh\n", "sh"),
        (b"#!\n/bin/sh", None),
        (b"#!   \n", None),
        (b"#!/" + b"x" * 300 + b"\n", None),
        (b"#!/bin/sh " + b"x" * 300 + b"\n", "/bin/sh"),
    ],
)
def test_a_script_names_what_the_kernel_reads(head: bytes, wanted: str | None) -> None:
    assert script_interpreter(head[:256]) == wanted


def test_a_script_with_a_carriage_return_does_not_start_and_its_twin_does() -> None:
    shell = {"bin/sh": elf()}
    assert outcome({"init": b"#!/bin/sh\n", **shell}) == (True, "")
    started, why = outcome({"init": b"#!/bin/sh\r\n", **shell})
    assert not started
    assert why == "/bin/sh\r is no executable file of the root"


def test_five_scripts_may_name_each_other_and_six_may_not() -> None:
    chain = {f"s{number}": f"#!/s{number + 1}\n".encode() for number in range(6)}
    assert outcome({**chain, "s5": elf()}, "/s0") == (True, "")
    assert outcome({**chain, "s6": elf()}, "/s1") == (True, "")
    assert not outcome({**chain, "s6": elf()}, "/s0")[0]


@pytest.mark.parametrize(
    ("program", "fine"),
    [
        (elf(), True),
        (elf(kind=3), True),
        (elf(b"/lib/ld.so"), True),
        (elf(b"/lib/absent.so"), False),
        (elf(b"/text"), False),
        (elf(kind=1), False),
        (elf(machine=183), False),
        (elf()[:100], False),
        (b"\x7fELF" + bytes(60), False),
        (elf()[:54] + b"\x20\0" + elf()[56:], False),
        (b"text", False),
        (b"", False),
    ],
)
def test_an_elf_file_starts_where_the_kernel_would_start_it(program: bytes, fine: bool) -> None:
    assert outcome({"init": program, "lib/ld.so": elf(kind=3), "text": b"no program at all, but long enough"})[0] is fine


def test_programs_of_32_bits_need_the_kernels_support() -> None:
    files = {"init": elf(machine=3, wide=1)}
    assert outcome(files, view=kernel(config="MODULES"))[1] == "/init is for another processor (ELF class 1, machine 3)"
    assert outcome(files, view=kernel(config="IA32_EMULATION")) == (True, "")
    assert outcome(files, view=kernel()) == (True, "")
    assert elf_interpreter(file_of("x", elf(b"/lib/ld.so", 3, wide=1))) == "/lib/ld.so"


def entry(words: str, view: KernelView) -> ImageFacts:
    return ImageFacts(Path("image"), boot_entry=BootEntry(b"", b"", words), kernel=view)


def test_a_kernels_own_words_are_joined_as_it_joins_them() -> None:
    assert text_of(entry("b", kernel(command_line="a"))) == "a b"
    assert text_of(entry("b", kernel(config="CMDLINE_OVERRIDE", command_line="a"))) == "a"
    assert text_of(entry("b", kernel("arm64", command_line="a"))) == "b"
    assert text_of(entry("", kernel("arm64", command_line="a"))) == "a"
    assert text_of(entry("b", kernel("arm64", "CMDLINE_FORCE", "a"))) == "a"
    assert text_of(entry("b", kernel("riscv64", "CMDLINE_EXTEND", "a"))) == "b a"


def test_words_in_quotes_count_and_words_behind_two_dashes_do_not() -> None:
    facts = entry('"lsm=yama" -- lsm=ipe', kernel())
    assert word_of(facts, "lsm") == "yama"
    assert [word.name for word in words_of(facts)] == ["lsm"]


def test_what_does_not_fit_the_command_line_is_named(host) -> None:
    facts = entry("a=1 " + "x" * 2050 + " roothash=00", kernel())
    (found,) = command_line_length(facts, host)
    assert (found.verdict, word_of(facts, "a"), word_of(facts, "roothash")) == (Verdict.FAIL, "1", None)
    assert next(iter(command_line_length(entry("a=1", kernel()), host))).verdict is Verdict.PASS


def erofs(bits: int = 12, features: int = 0, algorithms: int = 0) -> bytes:
    raw = bytearray(2048)
    raw[1024:1028], raw[1036] = b"\xe2\xe1\xf5\xe0", bits
    struct.pack_into("<IH", raw, 1024 + 80, features, algorithms)
    return bytes(raw)


def squashfs(compression: int) -> bytes:
    return b"hsqs" + bytes(16) + struct.pack("<H", compression) + bytes(2048)


def ext4(log: int = 2, features: int = 0x2C2) -> bytes:
    raw = bytearray(2048)
    struct.pack_into("<I", raw, 1024 + 24, log)
    raw[1024 + 56 : 1024 + 58] = b"\x53\xef"
    struct.pack_into("<I", raw, 1024 + 96, features)
    return bytes(raw)


@pytest.mark.parametrize(
    ("head", "symbols", "options", "wanted"),
    [
        (erofs(), "EROFS_FS", "", ""),
        (erofs(features=1, algorithms=65535), "EROFS_FS", "", "CONFIG_EROFS_FS_ZIP"),
        (erofs(features=1, algorithms=65535), "EROFS_FS EROFS_FS_ZIP", "", ""),
        (erofs(features=3, algorithms=2), "EROFS_FS EROFS_FS_ZIP", "", "CONFIG_EROFS_FS_ZIP_LZMA"),
        (erofs(features=3, algorithms=8), "EROFS_FS EROFS_FS_ZIP", "", "CONFIG_EROFS_FS_ZIP_ZSTD"),
        (erofs(features=3, algorithms=16), "EROFS_FS", "", "not known"),
        (erofs(bits=10), "EROFS_FS", "", "1024 bytes are smaller"),
        (squashfs(1), "SQUASHFS SQUASHFS_ZLIB", "", ""),
        (squashfs(6), "SQUASHFS SQUASHFS_ZLIB", "", "CONFIG_SQUASHFS_ZSTD"),
        (squashfs(2), "SQUASHFS SQUASHFS_ZLIB", "", "no kernel has its compression"),
        (ext4(), "EXT4_FS", "", ""),
        (ext4(log=0), "EXT4_FS", "", "1024 bytes are smaller"),
        (ext4(features=0x2C6), "EXT4_FS", "", "journal has to be replayed"),
        (ext4(features=0x2C6), "EXT4_FS", "ro,noload", ""),
        (ext4(features=0x12C2), "EXT4_FS", "", "no kernel knows"),
    ],
)
def test_a_root_that_the_kernel_does_not_mount_is_known(tmp_path: Path, head: bytes, symbols: str, options: str, wanted: str) -> None:
    from uuid import UUID

    from ipe_build.formats.verity import Superblock

    image = tmp_path / "root"
    image.write_bytes(head)
    region = Region(image, 0, len(head))
    facts = ImageFacts(
        image,
        kernel=kernel(config=symbols),
        root=RootPartitions(None, None, None, region, None, None),
        superblock=Superblock(UUID(int=1), 1, "sha256", 4096, 4096, 1, b""),
        files=RootFiles(FileTree.of(iter(())), "", len(head), Survey("", ()), ()),
    )
    found = mount_problem(facts, options)
    assert wanted in found if wanted else not found


def test_a_file_that_may_not_be_executed_does_not_start() -> None:
    assert outcome({"init": elf()}, mode=0o644)[1] == "/init is no executable file of the root"
    assert outcome({"init": elf()}) == (True, "")
    assert TreeFile("x", 0).is_executable is False
