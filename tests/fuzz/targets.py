"""What is fuzzed: a reader each, with whole and useful inputs to start from. A reader answers, or raises an error of ours; nothing else."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.attest.dsse import parse_envelope
from ipe_build.errors import IpeBuildError
from ipe_build.examine.boot_entries import uki_entry
from ipe_build.formats import cpio, fsverity, ima_signature, kernel_compression, module_signature, pe, verity, verity_sig
from ipe_build.formats.audit_log import read_log
from ipe_build.formats.bmap import BlockMap, BlockRange, parse_bmap
from ipe_build.formats.cms import decode_signed_data
from ipe_build.formats.command_line import all_words, cut, ipe_init_values
from ipe_build.formats.corim import decode_corim, encode_corim
from ipe_build.formats.dotconfig import parse_dotconfig
from ipe_build.formats.efi_signature_list import parse_signature_database, parse_signature_list
from ipe_build.formats.efi_variables import parse_variable_store
from ipe_build.formats.erofs import Erofs
from ipe_build.formats.ext4 import Ext4
from ipe_build.formats.fat import Fat
from ipe_build.formats.gpt import Partition, lay_out, read_gpt, write_gpt
from ipe_build.formats.ima_xattr import parse_integrity_xattr
from ipe_build.formats.initramfs import unpack_initramfs
from ipe_build.formats.ipe_init import parse_ipe_init, signature_refusal, superblock_refusal
from ipe_build.formats.spc import decode_spc
from ipe_build.formats.squashfs import Squashfs
from ipe_build.formats.tpm_event_log import build_event_log, parse_event_log
from ipe_build.formats.tpm_quote import parse_public, parse_quote, parse_signature
from ipe_build.host import Host
from ipe_build.kernel.embedded import certificate_facts, split_certificates
from ipe_build.kernel.inspect import inspect_kernel
from ipe_build.kernel.seal import boot_policy_of
from ipe_build.policy.ima_rules import check_policy
from ipe_build.policy.ledger import parse_ledger
from ipe_build.policy.parser import parse
from ipe_build.signing.certificates import create_keys
from ipe_build.signing.efi_image import unsigned
from ipe_build.signing.loading import parse_certificates
from ipe_build.signing.profiles import PROFILES, sign_payload
from tests.fixtures.keys import NOT_BEFORE
from tests.unit.test_attest_appraise import attest, log_of, public, sign_ecc, sign_rsa
from tests.unit.test_kernel_image import arm64, body, bzimage, elf_with, ikconfig, uki, zboot

POLICY = b"policy_name=a policy_version=0.0.1\nDEFAULT action=DENY\nop=EXECUTE dmverity_roothash=sha256:" + b"ab" * 32 + b" action=ALLOW\n"


_DISK_BYTES = 4 << 20
_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
_STORE_BYTES = 300_000
"""What a campaign's inputs have at most; the variable store of the file lies in it."""
_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")


class Target(NamedTuple):
    """A row: what reads, and what it is given first."""

    name: str
    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


def run(target: Target, data: bytes) -> None:
    """Reads once; an error of ours is an answer, any other exception is a finding."""
    try:
        target.read(data)
    except IpeBuildError as error:
        assert error.message


def _reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length] if offset >= 0 else b""


def _gpt() -> list[bytes]:
    """The first sectors of a disk; `_read_gpt` adds the rest, which is empty."""
    table = lay_out(UUID(int=3), [Partition(0, UUID(int=2), UUID(int=n), f"p{n}", 0, 4096) for n in (1, 2)])
    assert table.size_bytes <= _DISK_BYTES
    return [write_gpt(table)[0].data]


def _read_gpt(data: bytes) -> None:
    table = read_gpt(_reader(data), _DISK_BYTES)
    assert all(0 <= one.offset_bytes < one.end_bytes <= _DISK_BYTES for one in table.partitions)


def _cpio() -> list[bytes]:
    plain = cpio.write_cpio([cpio.directory("etc"), cpio.regular_file("etc/x", b"abc"), cpio.symbolic_link("l", "etc/x")])
    return [plain, plain + plain, plain + gzip.compress(plain)]


def _read_all_archives(data: bytes) -> None:
    for archive in cpio.read_archives(data):
        for entry in archive.entries:
            assert len(entry.data) <= len(data)
    cpio.compression_of(data)


def _unpack(data: bytes) -> None:
    row = kernel_compression.compression_of(data)
    if row is not None:
        kernel_compression.unpack(data, row)


def _packed() -> list[bytes]:
    text = b"kernel " * 50
    found = [gzip.compress(text), lzma.compress(text, check=lzma.CHECK_CRC32), lzma.compress(text, format=lzma.FORMAT_ALONE)]
    for command in (["zstd", "-q"], ["lz4", "-q", "-l"], ["lzop", "-q"], ["bzip2"]):
        found.append(subprocess.run(command, input=text, capture_output=True, check=True).stdout)
    return found


def _kernels() -> list[bytes]:
    inner = body(ikconfig(b"CONFIG_SECURITY_IPE=y\n"))
    return [*(make(inner) for make in (arm64, bzimage, zboot, uki)), elf_with({"ipe_boot_policy": 0x1000}, body())]


def _signed() -> dict[str, bytes]:
    """Returns one signature of each profile by test keys that are made here."""
    global _cached
    if _cached is None:
        with tempfile.TemporaryDirectory() as folder:
            keys = create_keys(Path(folder) / "k", Host(), not_before=NOT_BEFORE, key_type="rsa2048")
            payloads = {"ipe-policy": POLICY, "dm-verity-root-hash": b"ab" * 32, "module": b"\x7fELF module"}
            _cached = {
                name: sign_payload(PROFILES[name], text, keys.pair(PROFILES[name].role).signer(Host())) for name, text in payloads.items()
            }
            certificate = keys.pair("policy").signer(Host()).certificate
            _cached["efi-image"] = sign_payload(PROFILES["efi-image"], unsigned(_STUB.read_bytes()), keys.pair("policy").signer(Host()))
            _cached["pem"] = keys.bundle.read_bytes()
            _cached["der"] = certificate.public_bytes(Encoding.DER)
    return _cached


_cached: dict[str, bytes] | None = None


def _signature_list() -> list[bytes]:
    der = _signed()["der"]
    guid = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
    return [guid + struct.pack("<III", 28 + 16 + len(der), 0, 16 + len(der)) + bytes(16) + der]


def _superblock() -> list[bytes]:
    return [verity.Superblock(UUID(int=5), 1, "sha256", 4096, 4096, 9, b"salt").build()]


def _made(command: list[str], size: int | None) -> bytes:
    """Returns a small filesystem image of files, folders, links and extended attributes made by its own program."""
    with tempfile.TemporaryDirectory() as name:
        root, image = Path(name) / "root", Path(name) / "image"
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/a").write_bytes(b"\x7fELF" + bytes(5000))
        (root / "usr/bin/b").symlink_to("a")
        (root / "c").write_text("text\n")
        if size is not None:
            image.write_bytes(bytes(size))
        subprocess.run([word.format(root=root, image=image) for word in command], check=True, capture_output=True)
        return image.read_bytes()


def _erofs() -> list[bytes]:
    return [_made(["mkfs.erofs", "-T0", "{image}", "{root}"], None)]


def _ext4() -> list[bytes]:
    return [_made(["/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-N", "32", "-d", "{root}", "{image}", "256k"], 256 << 10)]


def _fat() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "esp"
        image.write_bytes(bytes(256 << 10))
        (Path(name) / "long file name.conf").write_text("title x\n")
        subprocess.run(["/sbin/mkfs.vfat", image], check=True, capture_output=True)
        subprocess.run(["mmd", "-i", image, "::EFI"], check=True)
        subprocess.run(["mcopy", "-i", image, Path(name) / "long file name.conf", "::EFI/"], check=True)
        return [image.read_bytes()]


def _squashfs() -> list[bytes]:
    return [
        _made(["mksquashfs", "{root}", "{image}", "-quiet", "-no-progress", "-noappend", "-all-root", "-comp", name, *more], None)
        for name, more in (("gzip", []), ("zstd", ["-noI"]), ("xz", ["-no-fragments"]))
    ]


def _walk_squashfs(data: bytes) -> None:
    image = Squashfs(_reader(data), len(data))
    for _, inode in image.walk():
        image.read(inode, 0, 1 << 20)
        image.read(inode, 5000, 100)


def _walk_ext4(data: bytes) -> None:
    filesystem = Ext4(_reader(data), len(data))
    for _, inode in filesystem.walk():
        if inode.behind:
            filesystem.verity_descriptor(inode)


def _walk_fat(data: bytes) -> None:
    filesystem = Fat(_reader(data), len(data))
    for file in filesystem.files():
        filesystem.read(file, 1 << 20)


def _pe(data: bytes) -> None:
    pe.parse_pe(data)
    pe.authenticode_digest(data)


def _words(data: bytes) -> None:
    text = data.decode("latin-1")
    for word in all_words(text):
        assert word.text in text
    ipe_init_values(text, "roothash")
    assert len(cut(text, "x86-64")) < 2048


def _ipe_init(data: bytes) -> None:
    parse_ipe_init(data)
    signature_refusal(data)
    superblock_refusal(data[:512].ljust(512, b"\0"))


def _xattr_seed() -> list[bytes]:
    return [
        b"\x03\x02\x04" + b"\x01\x02\x03\x04" + b"\x00\x08" + bytes(8),
        b"\x05\x02\x04" + bytes(4) + b"\x00\x08" + bytes(8),
    ]


TARGETS: tuple[Target, ...] = (
    Target("gpt", _read_gpt, _gpt),
    Target("cpio", _read_all_archives, _cpio),
    Target("compression", _unpack, _packed),
    Target("kernel", inspect_kernel, _kernels),
    Target("pe", _pe, lambda: [_STUB.read_bytes()]),
    Target("cms", decode_signed_data, lambda: [_signed()["ipe-policy"], _signed()["dm-verity-root-hash"]]),
    Target(
        "module",
        lambda data: module_signature.split_signature(data, "m"),
        lambda: [module_signature.append_signature(b"\x7fELF", b"0" * 9)],
    ),
    Target("ima", lambda data: ima_signature.parse_ima_signature(data), _xattr_seed),
    Target("certificates", lambda data: parse_certificates(data, "x"), lambda: [_signed()["pem"], _signed()["der"]]),
    Target("certificate-facts", lambda data: [certificate_facts(one) for one in split_certificates(data)], lambda: [_signed()["der"] * 2]),
    Target("signature-list", lambda data: parse_signature_list(data, "db"), _signature_list),
    Target("superblock", verity.parse_superblock, _superblock),
    Target(
        "verity-sig",
        verity_sig.parse_verity_signature,
        lambda: [verity_sig.VeritySignature(bytes(32), bytes(32), b"signature").build()],
    ),
    Target("fsverity", fsverity.parse_descriptor, lambda: [b"\1\1\x0c\0" + bytes(252)]),
    Target("fsverity-digest", fsverity.parse_formatted_digest, lambda: [fsverity.formatted_digest("sha256", bytes(32))]),
    Target("dotconfig", parse_dotconfig, lambda: [b'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x\\"y"\nCONFIG_D=0x10\n']),
    Target("policy", parse, lambda: [POLICY]),
    Target(
        "audit-log",
        read_log,
        lambda: [
            b'audit: type=1420 audit(1653364370.067:61): ipe_op=EXECUTE ipe_hook=MMAP enforcing=1 pid=2241 comm="ld" '
            b'path="/lib/x" dev="sda" ino=5 rule="DEFAULT action=DENY"\n'
        ],
    ),
    Target("erofs", lambda data: [path for path, _ in Erofs(_reader(data), len(data)).walk()], _erofs),
    Target("ext4", _walk_ext4, _ext4),
    Target("squashfs", _walk_squashfs, _squashfs),
    Target("fat", _walk_fat, _fat),
)
_BOOT_TARGETS: tuple[Target, ...] = (
    Target("initramfs", unpack_initramfs, _cpio),
    Target("ima-xattr", lambda data: parse_integrity_xattr("security.ima", data), lambda: [*_xattr_seed()[:1], b"\x04\x04" + bytes(32)]),
    Target("evm-xattr", lambda data: parse_integrity_xattr("security.evm", data), lambda: [_xattr_seed()[1], b"\x02" + bytes(20)]),
    Target("ima-policy", check_policy, lambda: [b"appraise func=BPRM_CHECK fowner=0 appraise_type=imasig\ndont_measure fsmagic=0x9fa0\n"]),
    Target("signature-database", lambda data: parse_signature_database(data, "db"), _signature_list),
    Target("authenticode", decode_spc, lambda: [_signed()["efi-image"]]),
    Target("uki", lambda data: uki_entry(data, "x.efi"), lambda: [uki(arm64(body()))]),
    Target("sealed-policy", boot_policy_of, lambda: [arm64(body())]),
    Target("event-log", parse_event_log, lambda: [build_event_log(log_of())]),
    Target("quote", parse_quote, lambda: [attest(log_of())]),
    Target("quote-signature", parse_signature, lambda: [sign_rsa(b"x"), sign_ecc(b"x")]),
    Target("attestation-key", parse_public, lambda: [public(0x50072)]),
    Target(
        "statement", parse_envelope, lambda: [b'{"payloadType": "a/b", "payload": "e30=", "signatures": [{"keyid": "", "sig": "AAAA"}]}']
    ),
    Target("corim", decode_corim, lambda: [encode_corim("a", "b", "c", {"sha256": {4: bytes(32)}})]),
    Target("block-map", parse_bmap, lambda: [BlockMap(8192, (BlockRange(0, 1, bytes(32)),)).build()]),
    Target(
        "ipe-init",
        _ipe_init,
        lambda: [
            b"root_hash = " + b"ab" * 32 + b"\nfilesystem = erofs\nsignature = partition\npolicy = /etc/ipe/p.p7b\n",
            verity_sig.VeritySignature(bytes(32), bytes(32), b"signature").build(),
        ],
    ),
    Target("command-line", _words, lambda: [b'quiet roothash=ab "a b"=c x="d e" -- init="f" lsm=ipe dm_mod.create="a,,,ro,0 8 linear"']),
    Target("variable-store", parse_variable_store, lambda: [_VARIABLES.read_bytes()[:_STORE_BYTES]]),
    Target("ledger", parse_ledger, lambda: [b'{"format": 1, "policies": {}}']),
)
"""What is read of boot files, and of a device that attests."""
TARGETS = (*TARGETS, *_BOOT_TARGETS)
BY_NAME = {target.name: target for target in TARGETS}


def mutated(seed: bytes, random_: random.Random) -> bytes:
    """Returns the seed with one to six edits: bits flipped, bytes set, integers made extreme, pieces moved, cut, repeated."""
    data = bytearray(seed)
    for _ in range(random_.randint(1, 6)):
        at = random_.randrange(len(data) + 1) if random_.random() < 0.5 else random_.randrange(min(len(data), 2048) + 1)
        edit = random_.randrange(6)
        if edit == 0 and at < len(data):
            data[at] ^= 1 << random_.randrange(8)
        elif edit == 1:
            data[at : at + 1] = random_.randbytes(1)
        elif edit == 2:
            value = random_.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1))
            size = random_.choice((1, 2, 4, 8))
            data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, random_.choice(("little", "big")))
        elif edit == 3:
            del data[at : at + random_.randint(1, 64)]
        elif edit == 4:
            other = random_.randrange(len(data) + 1)
            data[at:at] = data[other : other + random_.randint(1, 64)]
        elif random_.random() < 0.2:
            del data[at:]
    return bytes(data)
