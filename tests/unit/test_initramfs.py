"""The initramfs: its configuration, its contents, its bytes; and ipe-init's parsers in C against ours in Python, under sanitizers."""

from __future__ import annotations

import base64
import gzip
import io
import json
import lzma
import os
import random
import re
import stat
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from elftools.elf.elffile import ELFFile

from ipe_build.errors import InputError, OutputError, ToolFailedError, ToolMissingError
from ipe_build.formats.cpio import read_archive, regular_file
from ipe_build.formats.gpt import Partition, lay_out, write_gpt
from ipe_build.formats.verity import Superblock, parse_superblock
from ipe_build.formats.verity_sig import VeritySignature
from ipe_build.host import Host
from ipe_build.image.initramfs import (
    CAPABILITIES,
    GUEST,
    SOURCES,
    VERITY_OPTIONS,
    Compression,
    InitramfsRequest,
    OnFailure,
    compile_init,
    make_initramfs,
    render_config,
)

ROOT_HASH = bytes(range(32))
REQUEST = InitramfsRequest(ROOT_HASH, "erofs", policies=("/etc/ipe/ipe-policy.p7b",))

HARNESS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ipe-init.h"

static void hex(const char *name, const uint8_t *bytes, size_t size)
{
	printf(" %s=", name);
	for (size_t i = 0; i < size; i++)
		printf("%02x", bytes[i]);
}

static void run(char kind, const uint8_t *data, size_t size)
{
	/* A copy of the exact size, so that the sanitizer sees a read one byte beyond it. */
	uint8_t *raw = malloc(size ? size : 1);
	const char *why = "?";
	memcpy(raw, data, size);
	if (kind == 's') {
		struct superblock sb;
		if (!parse_superblock(raw, size, &sb, &why)) {
			printf("no %s", why);
		} else {
			printf("yes %u %s %s %u %u %llu", sb.hash_type, sb.uuid_hex, sb.algorithm, sb.data_block_size, sb.hash_block_size,
				(unsigned long long)sb.data_blocks);
			hex("salt", sb.salt, sb.salt_size);
		}
	} else if (kind == 'j') {
		static uint8_t der[MAX_SIGNATURE];
		struct root_hash hash;
		size_t der_size;
		if (!parse_signature((char *)raw, size, &hash, der, &der_size, &why)) {
			printf("no %s", why);
		} else {
			printf("yes");
			hex("hash", hash.bytes, hash.size);
			hex("der", der, der_size);
		}
	} else if (kind == 'g') {
		struct gpt_header header;
		struct gpt_entry entry;
		if (size >= 1024 + 128 && parse_gpt_header(raw + 512, 512, &header))
			printf("header %llu %u", (unsigned long long)header.entries_lba, header.count);
		if (size >= 1024 + 128 && parse_gpt_entry(raw + 1024, &entry)) {
			hex("type", entry.type.bytes, 16);
			hex("uuid", entry.uuid.bytes, 16);
			printf(" %llu %llu", (unsigned long long)entry.first_lba, (unsigned long long)entry.last_lba);
		}
	} else if (kind == 'c') {
		static char text[1 << 20];
		static struct config config;
		unsigned int line;
		memcpy(text, raw, size);
		text[size] = '\0';
		if (!parse_config(text, &config, &why, &line))
			printf("no %u %s", line, why);
		else
			printf("yes %d %s %s %zu %zu %zu %u %d", config.on_failure, config.filesystem, config.init, config.policies.count,
				config.verity_options.count, config.drop_capabilities.count, config.wait_s, config.success_audit);
	} else if (kind == 'w') {
		static char line[1 << 20];
		char value[64] = "";
		memcpy(line, raw, size);
		line[size] = '\0';
		printf("%d %s", command_line_word(line, "roothash", value, sizeof(value)), value);
	}
	printf("\n");
	free(raw);
}

int main(void)
{
	static uint8_t data[1 << 20];
	uint32_t size;
	int kind;
	while ((kind = getchar()) != EOF) {
		if (fread(&size, 4, 1, stdin) != 1 || size >= sizeof(data) || fread(data, 1, size, stdin) != size)
			return 2;
		run((char)kind, data, size);
	}
	return 0;
}
"""

Parse = Callable[[str, list[bytes]], list[str]]


@pytest.fixture(scope="module")
def parse(host: Host, need: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Parse:
    """`parse(kind, inputs)`: what guest/parse.c makes of each input, compiled with address and undefined-behaviour sanitizers."""
    folder = tmp_path_factory.mktemp("harness")
    (folder / "harness.c").write_text(HARNESS)
    sanitize = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GNU_SOURCE", "-g", "-O1", f"-I{GUEST}")
    host.run([need("gcc"), *sanitize, "-o", folder / "harness", folder / "harness.c", GUEST / "parse.c", GUEST / "config.c"])

    def parsed(kind: str, inputs: list[bytes]) -> list[str]:
        stdin = b"".join(kind.encode() + struct.pack("<I", len(data)) + data for data in inputs)
        done = subprocess.run([folder / "harness"], input=stdin, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        lines = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
        assert len(lines) == len(inputs)
        return lines

    return parsed


def mutated(base: bytes, count: int, seed: int) -> list[bytes]:
    """Damaged copies: bytes changed, cut, doubled; the same for the same seed."""
    rng = random.Random(seed)
    out = []
    for _ in range(count):
        data = bytearray(base)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data)) if data else 0
            kind = rng.randrange(4)
            if kind == 0 and data:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1 and data:
                data[at] = rng.choice(b'\x00\xff"{}\\/=:, \n7fA')
            elif kind == 2:
                del data[at : at + rng.randrange(20)]
            else:
                data[at:at] = data[at : at + rng.randrange(20)]
        out.append(bytes(data))
    return out


SUPERBLOCK = Superblock(UUID(int=5), 1, "sha256", 4096, 4096, 1000, bytes(range(40))).build()


def test_c_reads_a_superblock_as_python_does(parse: Parse) -> None:
    inputs = [SUPERBLOCK, SUPERBLOCK[:511], b"", *mutated(SUPERBLOCK, 4000, 1)]
    inputs += [data.ljust(512, b"\0")[:512] for data in inputs]
    accepted = 0
    for data, answer in zip(inputs, parse("s", inputs), strict=True):
        if answer.startswith("yes"):
            accepted += 1
            found = parse_superblock(data)
            fields = (found.hash_type, found.uuid.hex, found.algorithm, found.data_block_size, found.hash_block_size, found.data_blocks)
            assert answer == f"yes {' '.join(str(field) for field in fields)} salt={found.salt.hex()}"
    assert parse("s", [SUPERBLOCK])[0].startswith("yes")
    assert 100 < accepted < len(inputs)


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, b"Verity", "there is no verity superblock"),
        (8, b"\x02", "its version is not 1"),
        (12, b"\x02", "its hash type is neither 0 nor 1"),
        (32, b"SHA256", "its algorithm is no name"),
        (32, b"a" * 32, "its algorithm is no name"),
        (32, b"\0", "its algorithm is no name"),
        (32, b"sha 256", "its algorithm is no name"),
        (64, struct.pack("<I", 256), "a block size is no power of two"),
        (68, struct.pack("<I", 1 << 20), "a block size is no power of two"),
        (64, struct.pack("<I", 4097), "a block size is no power of two"),
        (72, bytes(8), "its number of data blocks is not possible"),
        (72, b"\xff" * 8, "its number of data blocks is not possible"),
        (80, struct.pack("<H", 257), "its salt is longer than 256 bytes"),
        (82, b"\1", "its padding is not zero"),
        (88 + 40, b"\1", "its padding is not zero"),
        (511, b"\1", "its padding is not zero"),
    ],
)
def test_c_refuses_a_superblock_with_one_wrong_field(parse: Parse, offset: int, value: bytes, why: str) -> None:
    data = bytearray(SUPERBLOCK)
    data[offset : offset + len(value)] = value
    assert parse("s", [bytes(data)])[0].startswith(f"no {why}")


SIGNATURE = VeritySignature(ROOT_HASH, bytes(32), bytes(range(256)) * 5 + b"x").build()


def test_c_reads_a_signature_as_python_does(parse: Parse) -> None:
    text = SIGNATURE.rstrip(b"\0")
    pretty = json.dumps(json.loads(text), indent=4).encode()
    inputs = [SIGNATURE, text, pretty, text.replace(b"/", b"\\/"), *mutated(text, 4000, 2), *mutated(SIGNATURE, 1000, 3)]
    accepted = 0
    for data, answer in zip(inputs, parse("j", inputs), strict=True):
        if answer.startswith("yes"):
            accepted += 1
            found = json.loads(data.rstrip(b"\0").decode("latin-1"))  # ipe-init does not look at the fingerprint
            assert answer == f"yes hash={found['rootHash'].lower()} der={base64.b64decode(found['signature'], validate=True).hex()}"
    assert all(answer.startswith("yes") for answer in parse("j", inputs[:4]))
    assert accepted < len(inputs) // 2


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"rootHash":"' + ROOT_HASH.hex().encode() + b'"}',
        SIGNATURE.rstrip(b"\0") + b"\0x",
        SIGNATURE.rstrip(b"\0") + b"}",
        SIGNATURE.replace(b'"signature"', b'"rootHash"'),
        SIGNATURE.replace(b'"certificateFingerprint"', b'"signature"'),
        b'{"rootHash":"00","signature":"AAAA"}',
        b'{"rootHash":"' + b"0" * 130 + b'","signature":"AAAA"}',
        b'{"rootHash":"' + b"0" * 64 + b'","signature":"AA=A"}',
        b'{"rootHash":"' + b"0" * 64 + b'","signature":"A==="}',
        b'{"rootHash":"' + b"0" * 64 + b'","signature":"' + b"A" * 60000 + b'"}',
        b'{"rootHash":"' + b"0" * 64 + b'","signature":"\\u0041AAA"}',
        b'{"rootHash":"' + b"0" * 64 + b'","signature":["AAAA"]}',
    ],
)
def test_c_refuses_what_is_no_signature(parse: Parse, text: bytes) -> None:
    assert parse("j", [text])[0].startswith("no ")


def test_c_takes_base64_of_every_length(parse: Parse) -> None:
    inputs = [json.dumps({"rootHash": ROOT_HASH.hex(), "signature": base64.b64encode(bytes(n)).decode()}).encode() for n in range(1, 70)]
    assert parse("j", inputs) == [f"yes hash={ROOT_HASH.hex()} der={bytes(n).hex()}" for n in range(1, 70)]


def test_c_reads_a_partition_table_as_python_wrote_it(parse: Parse) -> None:
    partition = Partition(0, UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"), UUID(int=77), "root", 0, 8192)
    table = lay_out(UUID(int=1), [partition])
    head = write_gpt(table)[0].data
    assert parse("g", [head]) == [f"header 2 128 type={partition.type_uuid.hex} uuid={partition.uuid.hex} 2048 2063"]
    parse("g", mutated(head[: 1024 + 256], 2000, 4))


def test_c_reads_every_configuration_that_we_write(parse: Parse, tmp_path: Path) -> None:
    module = tmp_path / "a.ko"
    full = replace(
        REQUEST,
        root_hash=None,
        signature="partuuid:00000000-0000-0000-0000-000000000007",
        verity_options=tuple(sorted(VERITY_OPTIONS)),
        mount_options="dax=never",
        policies=("/etc/ipe/a.p7b", "initramfs:/b.p7b"),
        delete_policies=("ipe-boot",),
        success_audit=True,
        drop_capabilities=CAPABILITIES,
        on_failure=OnFailure.RECOVERY,
        recovery=module,
        modules=(module,),
        init="/usr/lib/systemd/systemd",
        init_from_command_line=True,
        wait_s=9999,
    )
    answers = parse("c", [render_config(REQUEST), render_config(full)])
    assert answers == [
        "yes 0 erofs /sbin/init 1 0 0 10 -1",
        f"yes 3 erofs /usr/lib/systemd/systemd 2 {len(VERITY_OPTIONS)} {len(CAPABILITIES)} 9999 1",
    ]


def test_c_survives_damaged_configurations(parse: Parse) -> None:
    answers = parse("c", mutated(render_config(REQUEST), 3000, 5))
    assert any(answer.startswith("no") for answer in answers)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no 0 there is no root_hash"),
        ("root_hash = 00\n", "no 1 unknown key, or a value"),
        ("root_hash = cmdline\nsignature = none\nfilesystem = erofs\ninit = /i\n", "no 0 root_hash = cmdline needs a signature"),
        (f"root_hash = {ROOT_HASH.hex()}\nfilesystem = erofs\ninit = i\n", "no 3 unknown key, or a value"),
        (f"root_hash = {ROOT_HASH.hex()}\nverity_option = ignore_corruption\n", "no 2 unknown key, or a value"),
        (f"root_hash = {ROOT_HASH.hex()}\nfilesystem = erofs\ninit = /i\non_failure = recovery\n", "no 0 on_failure = recovery needs"),
        (f"# text\n\nroot_hash = {ROOT_HASH.hex()}\nshell = /bin/sh\n", "no 4 unknown key"),
        ("root_hash\n", "no 1 wanted: key = value"),
        ("policy = /a\n" * 65, "no 65 unknown key, or a value"),
    ],
)
def test_c_refuses_a_wrong_configuration_and_names_the_line(parse: Parse, text: str, why: str) -> None:
    assert parse("c", [text.encode()])[0].startswith(why)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("quiet roothash=ab console=x", "1 ab"),
        ("roothash=ab roothash=cd", "2 cd"),
        ("xroothash=ab roothashx=1 roothash", "0 "),
        ('x="a roothash=ab" roothash=cd', "1 cd"),
        ("a -- roothash=ab", "0 "),
        ("roothash=" + "a" * 64, "-1 "),
        ("", "0 "),
        ("roothash=", "1 "),
    ],
)
def test_c_finds_the_word_of_the_command_line(parse: Parse, line: str, answer: str) -> None:
    assert parse("w", [line.encode()]) == [answer]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"root_hash": bytes(20)}, "root_hash"),
        ({"signature": "somewhere"}, "signature"),
        ({"root_hash": None, "signature": "none"}, "signature"),
        ({"verity_options": ("ignore_corruption",)}, "verity_options"),
        ({"policies": ("etc/x.p7b",)}, "policies"),
        ({"policies": ("/etc/.p7b",)}, "policies"),
        ({"init": "sbin/init"}, "init"),
        ({"init": "/sbin/init\nroot_hash = cmdline"}, "init"),
        ({"drop_capabilities": ("CAP_EVERYTHING",)}, "drop_capabilities"),
        ({"on_failure": OnFailure.RECOVERY}, "recovery"),
        ({"wait_s": -1}, "wait_s"),
        ({"moves": ("dev",)}, "moves"),
        ({"filesystem": ""}, "filesystem"),
        ({"modules": (Path("/a/x.ko"), Path("/b/x.ko"))}, "modules"),
    ],
)
def test_setting_that_init_would_refuse_is_refused_here(changes: dict[str, object], where: str) -> None:
    with pytest.raises(InputError) as caught:
        render_config(replace(REQUEST, **changes))  # type: ignore[arg-type]
    assert caught.value.where == f"initramfs: {where}"


def test_capabilities_are_the_kernels() -> None:
    header = Path("/usr/include/linux/capability.h").read_text()
    numbers = {match[1]: int(match[2]) for match in re.finditer(r"#define (CAP_[A-Z_]+)\s+(\d+)$", header, re.MULTILINE)}
    assert [numbers[name] for name in CAPABILITIES] == list(range(len(CAPABILITIES)))
    assert re.findall(r'"(CAP_[A-Z_]+)"', (GUEST / "root.c").read_text()) == list(CAPABILITIES)


def test_verity_options_are_those_of_the_program() -> None:
    text = (GUEST / "config.c").read_text()
    words = text[text.index("take_verity_option") : text.index("take_wait")]
    assert set(re.findall(r'\{ "(\w+)", 1 \}', words)) == VERITY_OPTIONS


def test_every_source_is_compiled() -> None:
    assert sorted(SOURCES) == sorted(path.name for path in GUEST.glob("*.c"))


def test_archive_holds_one_program_and_no_shell(host: Host, tmp_path: Path) -> None:
    made = make_initramfs(replace(REQUEST, compression=Compression.NONE), tmp_path / "initrd", host)
    archive = read_archive(made.path.read_bytes())
    entries = {entry.path: entry for entry in archive.entries}
    assert sorted(entries) == ["dev", "dev/console", "etc", "etc/ipe-init.conf", "init", "proc", "sys", "sysroot"]
    assert [path for path, entry in entries.items() if stat.S_ISREG(entry.mode) and entry.mode & 0o111] == ["init"]
    assert (entries["dev/console"].mode, entries["dev/console"].rdev) == (0o020600, (5, 1))
    assert entries["etc/ipe-init.conf"].data == render_config(REQUEST)
    assert {entry.mtime for entry in entries.values()} == {1_700_000_000} and {entry.uid for entry in entries.values()} == {0}
    segments = [segment["p_type"] for segment in ELFFile(io.BytesIO(entries["init"].data)).iter_segments()]
    assert "PT_LOAD" in segments and "PT_INTERP" not in segments and "PT_DYNAMIC" not in segments


def test_cpio_lists_the_same_members(host: Host, need: Callable[[str], Path], tmp_path: Path) -> None:
    made = make_initramfs(replace(REQUEST, compression=Compression.NONE), tmp_path / "initrd", host)
    listed = host.run([need("cpio"), "-it", "--quiet"], stdin=made.path.read_bytes()).text.split()
    assert listed == [entry.path for entry in read_archive(made.path.read_bytes()).entries] and len(listed) == made.entries


@pytest.mark.parametrize("compression", list(Compression))
def test_compressed_archive_is_the_same_archive(compression: Compression, host: Host, tmp_path: Path) -> None:
    plain = make_initramfs(replace(REQUEST, compression=Compression.NONE), tmp_path / "plain", host).path.read_bytes()
    packed = make_initramfs(replace(REQUEST, compression=compression), tmp_path / "packed", host).path.read_bytes()
    unpack: dict[Compression, Callable[[bytes], bytes]] = {
        Compression.NONE: bytes,
        Compression.GZIP: gzip.decompress,
        Compression.XZ: lzma.decompress,
        Compression.ZSTD: lambda data: host.run(["zstd", "-dc"], stdin=data).stdout,
    }
    assert unpack[compression](packed) == plain
    if compression is Compression.XZ:
        assert packed[7] == 1, "the kernel checks CRC32 only"


def test_two_builds_give_the_same_bytes(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_initramfs(REQUEST, tmp_path / "one", host).path.read_bytes()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    other = Host(env={**host.env, "TMPDIR": str(tmp_path / "elsewhere")}, progress=host.progress)
    assert make_initramfs(REQUEST, Path("two"), other).path.read_bytes() == first


def test_program_does_nothing_on_a_running_system(host: Host, tmp_path: Path) -> None:
    compile_init(tmp_path / "init", host)
    done = subprocess.run([tmp_path / "init"], capture_output=True, text=True)
    assert done.returncode == 2 and "not for a running system" in done.stderr
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "init").read_bytes()


def test_extra_file_gets_its_folders_and_cannot_replace_init(host: Host, tmp_path: Path) -> None:
    extra = replace(REQUEST, compression=Compression.NONE, extra=(regular_file("usr/lib/x", b"x"),))
    archive = read_archive(make_initramfs(extra, tmp_path / "initrd", host).path.read_bytes())
    paths = [entry.path for entry in archive.entries]
    assert paths[-3:] == ["usr", "usr/lib", "usr/lib/x"]
    with pytest.raises(InputError, match="is there twice"):
        make_initramfs(replace(REQUEST, extra=(regular_file("init", b"x"),)), tmp_path / "other", host)


def test_errors_leave_no_output(host: Host, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        make_initramfs(REQUEST, tmp_path / "there", host)
    with pytest.raises(ToolMissingError, match="no-such-gcc"):
        make_initramfs(replace(REQUEST, compiler="no-such-gcc"), tmp_path / "initrd", host)
    with pytest.raises(ToolFailedError):
        make_initramfs(replace(REQUEST, compiler="false"), tmp_path / "initrd", host)
    with pytest.raises(InputError, match="cannot be read"):
        make_initramfs(replace(REQUEST, modules=(tmp_path / "missing.ko",)), tmp_path / "initrd", host)
    assert os.listdir(tmp_path) == ["there"] and (tmp_path / "there").read_text() == "mine"


def test_freezing_the_initramfs_takes_dropping_what_could_thaw_it() -> None:
    request = InitramfsRequest(bytes(32), "erofs", freeze=True, drop_capabilities=("CAP_LINUX_IMMUTABLE",))
    assert b"freeze_initramfs = yes\n" in render_config(request)
    assert b"freeze" not in render_config(InitramfsRequest(bytes(32), "erofs"))
    with pytest.raises(InputError, match="wanted CAP_LINUX_IMMUTABLE dropped with it"):
        render_config(InitramfsRequest(bytes(32), "erofs", freeze=True, drop_capabilities=("CAP_MAC_ADMIN",)))
