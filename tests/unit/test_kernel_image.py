"""Opening kernel images and finding what is in them: made here byte by byte, whole and damaged."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.kernel_compression import COMPRESSIONS, compression_of, unpack
from ipe_build.formats.kernel_image import MAX_LAYERS, open_kernel
from ipe_build.kernel.embedded import certificate_facts, find_boot_policies, find_certificate_lists, split_certificates
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.signing.certificates import KeySet
from tests.fixtures.efi import make_pe

BANNER = b"\0Linux version 6.12.1-test (someone@somewhere) (gcc 12, ld 2.40) #1 SMP Tue Nov 14 22:13:20 UTC 2023\n\0"
POLICY = b"# why\npolicy_name=p policy_version=0.0.1\nDEFAULT action=DENY\nop=EXECUTE boot_verified=TRUE action=ALLOW\n"
IPE = b"\0ipe_op=%s ipe_hook=%s enforcing=%d\0"
FORMAT_STRINGS = b'\0policy_name="%s" policy_version=%hu.%hu.%hu policy_digest=sha256:\0policy_name=%s\0policy_version=%s\0'
LSMS = b"\0yama,ipe,bpf\0"


RUNS = st.lists(st.tuples(st.binary(min_size=1, max_size=12), st.integers(1, 400)), min_size=1, max_size=20).map(
    lambda rows: b"".join(raw * times for raw, times in rows)
)


def packed(data: bytes) -> bytes:
    """gzip without a date: test names are made of these bytes, and must be the same in every worker."""
    return gzip.compress(data, mtime=0)


def arm64(body: bytes) -> bytes:
    return b"MZ@\xfa" + bytes(52) + b"ARM\x64" + struct.pack("<I", 64) + body


def riscv(body: bytes) -> bytes:
    return b"MZ\0\0" + bytes(44) + b"RISCV\0\0\0" + b"RSC\x05" + bytes(4) + body


def zboot(body: bytes) -> bytes:
    inner = packed(body)
    return b"MZ\0\0zimg" + struct.pack("<II", 64, len(inner)) + bytes(8) + b"gzip".ljust(32, b"\0") + bytes(8) + inner


def bzimage(body: bytes, *, version: int = 0x20F, offset: int = 16, length: int | None = None) -> bytes:
    inner = lzma.compress(b"\x7fELF\2\1" + bytes(12) + b"\x3e\0" + body, check=lzma.CHECK_CRC32)
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<H", head, 0x236, 1)
    struct.pack_into("<II", head, 0x248, offset, len(inner) if length is None else length)
    return bytes(head) + bytes(offset) + inner


def uki(kernel: bytes, *, name: bytes = b".linux") -> bytes:
    return make_pe(((b".text", b"stub"), (name, kernel)))


def body(*parts: bytes) -> bytes:
    return b"".join((BANNER, IPE, FORMAT_STRINGS, b"\0" + POLICY + b"\0", LSMS, *parts))


WRAPPERS = {
    "arm64": (arm64, ("arm64 Image",), "arm64"),
    "arm64 gzip": (lambda data: packed(arm64(data)), ("gzip", "arm64 Image"), "arm64"),
    "riscv": (riscv, ("riscv Image",), "riscv"),
    "zboot": (lambda data: zboot(arm64(data)), ("EFI zboot", "gzip", "arm64 Image"), "arm64"),
    "bzImage": (bzimage, ("bzImage", "xz", "ELF"), "x86-64"),
    "UKI": (lambda data: uki(bzimage(data)), ("UKI", "bzImage", "xz", "ELF"), "x86-64"),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_each_format_is_opened_and_what_is_inside_is_found(name: str) -> None:
    wrap, layers, architecture = WRAPPERS[name]
    facts = inspect_kernel(wrap(body()))
    assert (facts.layers, facts.architecture, facts.version) == (layers, architecture, "6.12.1-test")
    assert facts.banner == BANNER.strip(b"\0\n").decode()
    assert facts.ipe
    assert facts.boot_policy == POLICY
    assert facts.lsms == ("yama", "ipe", "bpf")
    assert (facts.config, facts.command_line, facts.properties, facts.exact) == (None, None, None, False)


def test_a_kernel_without_ipe_is_said_to_have_none() -> None:
    facts = inspect_kernel(arm64(BANNER + b"\0" + POLICY + b"\0"))
    assert (facts.ipe, facts.boot_policy, facts.properties) == (False, None, ())


def test_ipes_own_format_strings_are_no_policy() -> None:
    assert find_boot_policies(FORMAT_STRINGS) == ()


def test_a_policy_that_the_kernel_refuses_is_found_after_one_that_it_takes() -> None:
    broken = POLICY.replace(b"action=ALLOW", b"action=PERHAPS")
    assert find_boot_policies(b"\0" + broken + b"\0") == (broken,)
    assert find_boot_policies(b"\0" + broken + b"\0\0" + POLICY + b"\0") == (POLICY, broken)


def test_bytes_before_a_policy_that_are_no_comment_are_left_out() -> None:
    assert find_boot_policies(b"\0\x80\x81junk" + POLICY.removeprefix(b"# why\n") + b"\0") == (POLICY.removeprefix(b"# why\n"),)


def der(keys: KeySet) -> list[bytes]:
    return [row.public_bytes(Encoding.DER) for row in x509.load_pem_x509_certificates(keys.bundle.read_bytes())]


def listed(certificates: list[bytes], alignment: int, *, wrong_by: int = 0) -> bytes:
    data = b"".join(certificates)
    return data + bytes(-len(data) % alignment) + struct.pack("<Q", len(data) + wrong_by)


@pytest.mark.parametrize("alignment", [8, 256])
def test_certificate_lists_are_told_from_certificates_that_stand_elsewhere(alignment: int, test_keys: KeySet, foreign_keys: KeySet) -> None:
    trusted, revoked = der(test_keys), der(foreign_keys)[:1]
    padding = bytes(256)
    elsewhere = revoked[0] + b"\1" * 300
    kernel = padding + elsewhere + bytes(-len(elsewhere) % 256) + listed(trusted, alignment) + struct.pack("<Q", 0)
    kernel += bytes(-len(kernel) % 256) + listed(revoked, alignment) + b"\1" * 300
    found = find_certificate_lists(kernel)
    assert (found.trusted, found.revoked) == (tuple(trusted), tuple(revoked))


def test_certificates_whose_length_does_not_stand_behind_them_are_no_list(test_keys: KeySet) -> None:
    assert find_certificate_lists(bytes(8) + listed(der(test_keys), 8, wrong_by=1)).trusted == ()


def test_a_list_ends_where_the_certificates_end(test_keys: KeySet) -> None:
    certificates = der(test_keys)
    assert split_certificates(b"".join(certificates) + b"\x30\x82\xff\xff") == tuple(certificates)
    assert split_certificates(certificates[0][:-1]) == ()


def test_the_facts_of_a_certificate_are_those_that_openssl_prints(test_keys: KeySet, host, need) -> None:
    need("openssl")
    for certificate in der(test_keys):
        facts = certificate_facts(certificate)
        text = host.run(["openssl", "x509", "-inform", "der", "-noout", "-text", "-fingerprint", "-sha256"], stdin=certificate).text
        assert ":".join(f"{byte:02X}" for byte in facts.sha256) in text
        assert ":".join(f"{byte:02X}" for byte in facts.subject_key_id) in text
        assert f"Public-Key: ({facts.algorithm.removeprefix('rsa')} bit)" in text
        assert facts.not_after.strftime("%Y GMT") in text
        assert f"{facts.serial:x}" in text.replace(":", "").lower().replace(" ", "") or str(facts.serial) in text


def ikconfig(text: bytes, end: bytes = b"IKCFG_ED") -> bytes:
    return b"IKCFG_ST" + packed(text) + end


def test_the_configuration_in_a_kernel_is_read() -> None:
    config = b'CONFIG_SECURITY_IPE=y\nCONFIG_IPE_PROP_DM_VERITY=y\nCONFIG_LSM="ipe"\nCONFIG_CMDLINE="quiet"\n'
    facts = inspect_kernel(arm64(body(ikconfig(config))))
    assert facts.config is not None
    assert facts.config.enabled("SECURITY_IPE")
    assert (facts.lsms, facts.command_line, facts.properties) == (("ipe",), "quiet", ("boot_verified", "dmverity_roothash"))


@pytest.mark.parametrize("damaged", [ikconfig(b"CONFIG_A=y\n", b"IKCFG_XX"), ikconfig(b"CONFIG_A=y\n")[:20], b"IKCFG_ST\x1f\x8b\x08junk"])
def test_a_damaged_configuration_counts_as_none(damaged: bytes) -> None:
    assert inspect_kernel(arm64(body(damaged))).config is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "wanted a kernel image, got bytes"),
        (b"#!/bin/sh\n", "wanted a kernel image, got bytes 23 21"),
        (packed(b"hello"), "wanted a kernel image"),
        (packed(arm64(BANNER))[:-12], "the gzip data is damaged"),
        (b"\x1f\x8b", "the gzip data is damaged"),
        (b"\xfd7zXZ\0", "the xz data is damaged"),
        (b"BZh91", "the bzip2 data is damaged"),
        (b"\x28\xb5\x2f\xfd", "the zstd data is damaged"),
        (b"\x02\x21\x4c\x18\x05\0\0\0\x10", "the lz4 data is damaged"),
        (b"\x02\x21\x4c\x18\x04\0\0\0\x00\x09\x00\x00\0\0\0\0\0", "the lz4 data is damaged"),
        (bzimage(b"", version=0x207), "wanted boot protocol 2.08 or newer, got 0x0207"),
        (bzimage(b"", length=1 << 20), "the compressed kernel"),
        (bzimage(b"", length=0), "the compressed kernel"),
        (bzimage(b"", offset=16)[:0x210], "the compressed kernel"),
        (zboot(b"x")[:70], "the compressed kernel"),
        (uki(b""), "section .linux is 0 bytes"),
    ],
)
def test_what_is_no_kernel_or_damaged_is_one_error(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as raised:
        inspect_kernel(data)
    assert message in str(raised.value)


def test_a_kernel_image_without_a_banner_is_refused() -> None:
    with pytest.raises(InputError, match="no version banner"):
        inspect_kernel(arm64(b"nothing"))


def test_the_error_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    file.write_bytes(b"hello")
    with pytest.raises(FormatError, match=r"x\.bin: offset 0x0: wanted a kernel image"):
        inspect_kernel(file)
    with pytest.raises(InputError, match=r"absent\.bin: No such file"):
        inspect_kernel(tmp_path / "absent.bin")


def test_layers_without_end_are_refused() -> None:
    data = arm64(BANNER)
    for _ in range(MAX_LAYERS + 1):
        data = packed(data)
    with pytest.raises(FormatError, match=f"more than {MAX_LAYERS} layers"):
        open_kernel(data)


def bomb() -> bytes:
    """600 MiB of zeros in half a MiB."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(600)), packer.flush()])


def test_a_decompression_bomb_is_stopped() -> None:
    with pytest.raises(FormatError, match="unpacks to more than 536870912 bytes"):
        open_kernel(bomb())


def test_what_follows_the_compressed_data_is_ignored() -> None:
    row = compression_of(packed(b"x" * 100))
    assert row is not None
    assert unpack(packed(b"x" * 100) + b"\x64\0\0\0", row) == b"x" * 100


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(WRAPPERS)),
    st.lists(st.tuples(st.integers(0, 4096), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6),
    st.integers(0, 4096),
)
def test_any_damage_gives_facts_or_one_error(name: str, patches: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(WRAPPERS[name][0](body(ikconfig(b"CONFIG_A=y\n"))))
    for offset, patch in patches:
        place = offset % len(data)
        data[place : place + len(patch)] = patch[: len(data) - place]
    for image in (bytes(data), bytes(data[: cut % len(data)])):
        try:
            facts = inspect_kernel(image)
        except InputError as error:
            assert error.message
        else:
            assert facts.version


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([row.magic for row in COMPRESSIONS]), st.binary(max_size=300))
def test_any_compressed_bytes_unpack_or_are_one_error(magic: bytes, data: bytes) -> None:
    row = compression_of(magic + data)
    assert row is not None
    try:
        unpack(magic + data, row)
    except FormatError as error:
        assert "is damaged" in str(error)


@pytest.mark.parametrize("command", ["lz4 -l -9", "lz4 -l -1", "lzop -1", "lzop -9"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=RUNS)
def test_what_the_real_programs_pack_unpacks_to_what_went_in(need, command: str, data: bytes) -> None:
    program, *words = command.split()
    stream = subprocess.run([need(program), *words, "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
    row = compression_of(stream)
    assert row is not None
    assert unpack(stream, row) == data


def elf_with(symbols: dict[str, int], rodata: bytes, address: int = 0x1000, *, rela: tuple[tuple[int, int], ...] = ()) -> bytes:
    """A 64-bit little-endian ELF with .rodata at `address`, a symbol table, and .rela.dyn."""
    strings = b"\0" + b"\0".join(name.encode() for name in symbols) + b"\0"
    table = bytes(24)
    for name, value in symbols.items():
        table += struct.pack("<IBBHQQ", strings.index(name.encode() + b"\0"), 17, 0, 1, value, 8)
    relocations = b"".join(struct.pack("<QQQ", offset, 0x403, addend) for offset, addend in rela)
    names = b"\0.rodata\0.symtab\0.strtab\0.rela.dyn\0.shstrtab\0"
    contents = [(1, 1, 2, address, rodata, 0, 0, 0), (9, 2, 0, 0, table, 3, 1, 24), (17, 3, 0, 0, strings, 0, 0, 0)]
    contents += [(25, 4, 2, 0, relocations, 2, 0, 24), (35, 3, 0, 0, names, 0, 0, 0)]
    data, headers = b"", bytes(64)
    for name, kind, flags, place, raw, link, info, size in contents:
        headers += struct.pack("<IIQQQQIIQQ", name, kind, flags, place, 64 + len(data), len(raw), link, info, 1, size)
        data += raw
    ident = b"\x7fELF\2\1\1" + bytes(9)
    return ident + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0, 0, 64 + len(data), 0, 64, 0, 0, 64, 6, 5) + data + headers


def test_symbols_say_which_of_two_policies_is_compiled_in() -> None:
    other = POLICY.replace(b"policy_name=p", b"policy_name=q")
    rodata = bytes(8) + body() + b"\0" + other + b"\0"
    target = 0x1000 + rodata.index(other)
    symbols = {"ipe_boot_policy": 0x1000, "unrelated": 0x1008}
    in_place = target.to_bytes(8, "little") + rodata[8:]
    assert inspect_kernel(elf_with(symbols, in_place)).boot_policy == other
    relocated = elf_with(symbols, rodata, rela=((0x1008, 5), (0x1000, target)))
    assert inspect_kernel(relocated).boot_policy == other
    assert inspect_kernel(relocated).exact
    assert inspect_kernel(elf_with(symbols, rodata)).boot_policy is None
    assert inspect_kernel(elf_with({"unrelated": 0x1008}, rodata)).boot_policy == POLICY


def test_symbols_say_the_certificates_and_the_command_line(test_keys: KeySet) -> None:
    data = b"".join(der(test_keys))
    rodata = body() + b"\0quiet splash\0" + data + struct.pack("<Q", len(data))
    symbols = {
        "system_certificate_list": 0x1000 + rodata.index(data),
        "system_certificate_list_size": 0x1000 + len(rodata) - 8,
        "builtin_cmdline": 0x1000 + rodata.index(b"quiet"),
    }
    facts = inspect_kernel(elf_with(symbols, rodata))
    assert (facts.certificates, facts.revoked, facts.command_line) == (tuple(der(test_keys)), (), "quiet splash")


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=8)), min_size=1, max_size=8))
def test_any_damage_to_an_elf_gives_facts_or_one_error(patches: list[tuple[int, bytes]]) -> None:
    rodata = bytes(8) + body()
    symbols = {
        "ipe_boot_policy": 0x1000,
        "system_certificate_list": 0x1000,
        "system_certificate_list_size": 0x1008,
        "builtin_cmdline": 0x1010,
    }
    data = bytearray(elf_with(symbols, rodata, rela=((0x1000, 0x1010),)))
    for offset, patch in patches:
        place = len(data) - 1 - offset % 700 if offset % 2 else offset % len(data)
        data[place : place + len(patch)] = patch[: len(data) - place]
    try:
        assert inspect_kernel(bytes(data)).version
    except InputError as error:
        assert error.message


def test_a_file_made_of_candidates_is_given_up_on(test_keys: KeySet) -> None:
    """Work is bounded by the file's size, not by its square: these would take hours if each candidate were looked at in full."""
    header = b"policy_name=p policy_version=0.0.1\n"
    one_string = find_boot_policies(b"\0" + header * 20_000 + b"\0")
    assert [len(text) for text in one_string] == [20_000 * len(header)]
    assert find_boot_policies((b"\0" + header * 1000) * 400 + b"\0") == (header * 1000,)
    assert find_certificate_lists(der(test_keys)[0][:40] * 20_000).trusted == ()
    assert inspect_kernel(arm64(BANNER + (b"IKCFG_ST" + packed(bytes(1 << 20))) * 200)).config is None
