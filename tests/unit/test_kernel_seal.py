"""kernel seal on small images made here: what is written over, what stays, what is refused. Real kernels: tests/boot/test_sealed.py."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.errors import FormatError, InputError
from ipe_build.formats.bzimage import find_payload, most_slack, with_payload
from ipe_build.formats.pe import parse_pe
from ipe_build.kernel.build import build_kernel
from ipe_build.kernel.compare import compare_kernels
from ipe_build.kernel.needs import Need
from ipe_build.kernel.profiles import sealed_kernel_request
from ipe_build.kernel.repack import PACKERS, repack
from ipe_build.kernel.seal import boot_policy_of, root_hashes_of, seal_kernel
from ipe_build.kernel.slot import MIN_RESERVED, find_slot, is_reserved, noise, plain, policy_of, reserved_policy, sealed_policy
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.evaluate import evaluate
from ipe_build.policy.facts import Facts
from ipe_build.policy.model import Action
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Operation
from ipe_build.policy.render import render
from tests.unit.test_kernel_image import BANNER, IPE, arm64, riscv, zboot

ROOT, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


def policy(root: str = ROOT) -> bytes:
    return render("sealed", {"name": "ipe-boot", "version": "0.0.1", "root_hashes": [root]})


def kernel(reserved: bytes | None = None, *, filler: int = 300_000) -> bytes:
    """The bytes of an unpacked kernel: a banner, IPE, the boot policy, and code that compresses as code does."""
    code = b"".join(struct.pack("<IHH", number * 2654435761 % 2**32, number % 97, 0x48) for number in range(filler // 8))
    return BANNER + IPE + code + b"\0" + (reserved_policy() if reserved is None else reserved) + b"\0" + code[:5000]


def elf(body: bytes) -> bytes:
    return b"\x7fELF\2\1" + bytes(12) + b"\x3e\0" + body


def bzimage(host, body: bytes, compression: str = "gzip", *, checksum: bool = True) -> bytes:
    """A bzImage as the kernel's build lays one out: setup, boot code, payload with its size at the end, boot code, checksum."""
    packed = repack(body, compression, host)
    packed += b"" if compression == "gzip" else len(body).to_bytes(4, "little")
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x20F)
    struct.pack_into("<H", head, 0x236, 1)
    struct.pack_into("<II", head, 0x248, 64, len(packed))
    image = bytes(head) + b"\x90" * 64 + packed + b"\xcc" * 61
    return image + struct.pack("<I", (zlib.crc32(image) ^ 0xFFFFFFFF) if checksum else 0x12345678)


@pytest.mark.parametrize("size", [MIN_RESERVED, 600, 4096, 65536])
def test_the_reserved_policy_has_its_size_and_denies_everything(size: int) -> None:
    text = reserved_policy(size)
    result = parse(text, role=Role.BOOT)
    assert len(text) == size
    assert result.accepted
    assert result.policy is not None
    assert evaluate(result.policy, Operation.EXECUTE, Facts(boot_verified=True)).action is Action.DENY
    assert not result.policy.rules
    assert is_reserved(text)
    assert policy_of(text) is None


@pytest.mark.parametrize("size", [0, MIN_RESERVED - 1, (1 << 20) + 1])
def test_a_size_that_makes_no_sense_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="wanted 512 to"):
        reserved_policy(size)


@given(st.integers(200, 3000), st.sampled_from([plain, noise]))
@settings(deadline=None, max_examples=60)
def test_a_sealed_policy_means_what_it_meant_whatever_padding_it_has(comment: int, padding) -> None:
    text = policy() + b"#" + b"x" * (comment - 1) + b"\n"
    sealed = sealed_policy(text, 4096, padding)
    assert len(sealed) == 4096
    assert sealed[-20:] == reserved_policy(4096)[-20:]
    assert policy_of(sealed) == text
    before, after = parse(text, role=Role.BOOT), parse(sealed, role=Role.BOOT)
    assert after.accepted
    assert before.policy is not None
    assert after.policy is not None
    assert after.policy.to_text() == before.policy.to_text()


def test_a_policy_that_leaves_no_byte_or_one_byte_of_padding_fits_and_one_more_does_not() -> None:
    room = next(size for size in range(len(policy()), 4096) if not _fits(policy() + b"#" * (size - len(policy())) + b"\n")) - len(policy())
    for less in (1, 2):
        text = policy() + b"#" * (room - less) + b"\n"
        assert policy_of(sealed_policy(text, 4096)) == text
    with pytest.raises(InputError, match="are reserved for it"):
        sealed_policy(policy() + b"#" * room + b"\n", 4096)


def _fits(text: bytes) -> bool:
    try:
        sealed_policy(text, 4096)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("bad", [b"", b"policy_name=p\n", policy() + b"\0", policy() + b"op=EXECUTE action=MAYBE\n"])
def test_a_policy_that_the_kernel_would_refuse_is_not_sealed_in(bad: bytes) -> None:
    with pytest.raises(InputError, match="would refuse it"):
        sealed_policy(bad, 4096)


@pytest.mark.parametrize("compression", [row.name for row in PACKERS])
def test_a_bzimage_is_sealed_in_place_in_every_compression(host, need, compression: str) -> None:
    need(next(row.command[0] for row in PACKERS if row.name == compression))
    image = bzimage(host, elf(kernel()), compression)
    sealed = seal_kernel(image, policy(), host)
    place = find_payload(image)
    assert len(sealed.image) == len(image)
    assert sealed.image[: place.offset] == image[: place.offset]
    assert sealed.image[place.offset + place.length : -4] == image[place.offset + place.length : -4]
    assert sealed.image[place.offset + place.length - 4 :][:4] == image[place.offset + place.length - 4 :][:4]
    assert zlib.crc32(sealed.image) ^ 0xFFFFFFFF == 0, "the checksum over the whole file is 0"
    assert boot_policy_of(sealed.image) == policy()
    assert boot_policy_of(image) is None
    assert compare_kernels(image, sealed.image).differences == ()
    assert compare_kernels(image, sealed.image).same_policy is False


def test_a_checksum_that_was_wrong_is_left_alone(host) -> None:
    image = bzimage(host, elf(kernel()), checksum=False)
    assert seal_kernel(image, policy(), host).image[-4:] == image[-4:]


@pytest.mark.parametrize("wrap", [arm64, riscv, elf], ids=["arm64", "riscv", "vmlinux"])
def test_an_uncompressed_image_changes_in_the_reserved_bytes_alone(host, wrap) -> None:
    image = wrap(kernel())
    slot = find_slot(image)
    sealed = seal_kernel(image, policy(), host).image
    assert sealed[: slot.offset] == image[: slot.offset]
    assert sealed[slot.offset + slot.size :] == image[slot.offset + slot.size :]
    assert boot_policy_of(sealed) == policy()


def test_a_compressed_arm64_image_is_unpacked_sealed_and_packed_again(host) -> None:
    sealed = seal_kernel(gzip.compress(arm64(kernel()), mtime=0), policy(), host)
    assert sealed.layers == ("gzip", "arm64 Image")
    assert gzip.decompress(sealed.image) == seal_kernel(arm64(kernel()), policy(), host).image


def test_what_no_reserved_policy_is_in_or_two_are_is_refused(host) -> None:
    with pytest.raises(InputError, match="wanted one reserved boot policy, got none"):
        seal_kernel(arm64(kernel(policy())), policy(), host)
    with pytest.raises(InputError, match="got 2 of them"):
        seal_kernel(arm64(kernel() + kernel()), policy(), host)


def test_reserved_bytes_that_were_tampered_with_are_refused(host) -> None:
    text = reserved_policy()
    for changed in (text.replace(b"DEFAULT action=DENY", b"DEFAULT action=NONE"), b"x" + text[1:], text[:200] + b"\0" + text[201:]):
        with pytest.raises(InputError, match=r"hold (no boot policy|something)"):
            seal_kernel(arm64(kernel(changed)), policy(), host)


def test_a_sealed_kernel_is_sealed_again_only_when_asked(host) -> None:
    once = seal_kernel(arm64(kernel()), policy(), host).image
    assert seal_kernel(once, policy(), host).image == once
    with pytest.raises(InputError, match="sealed already"):
        seal_kernel(once, policy(OTHER), host)
    twice = seal_kernel(once, policy(OTHER), host, again=True)
    assert twice.replaced == policy()
    assert twice.image == seal_kernel(arm64(kernel()), policy(OTHER), host).image


def test_a_payload_that_does_not_fit_is_refused(host) -> None:
    body = elf(kernel())
    image = bzimage(host, body)
    place = find_payload(image)
    packed = image[place.offset : place.offset + place.length]
    with pytest.raises(InputError, match="1 more than there is room for"):
        with_payload(image, b"\0" + packed, len(body))
    with pytest.raises(InputError, match="fewer than before"):
        with_payload(image, packed[: place.length - most_slack(len(body)) - 20], len(body))
    with pytest.raises(FormatError, match="does not end with its size"):
        with_payload(image, packed, len(body) + 1)


def test_a_kernel_that_grew_when_packed_is_refused_with_what_to_do_instead(host) -> None:
    """Packed by another program, or with other options, than the kernel's build used: the slot is too small."""
    image = bzimage(host, elf(kernel()))
    place = find_payload(image)
    tight = bytearray(image)
    struct.pack_into("<I", tight, 0x24C, place.length - 3500)
    end = place.offset + place.length - 3500
    tight[end - 4 : end] = tight[place.offset + place.length - 4 : place.offset + place.length]
    with pytest.raises((InputError, FormatError)):
        seal_kernel(bytes(tight), policy(), host)


def test_a_uki_and_a_zboot_image_are_refused_with_what_to_seal_instead(host) -> None:
    from tests.unit.test_kernel_image import uki

    with pytest.raises(InputError, match="UKI is not sealed") as error:
        seal_kernel(uki(bzimage(host, elf(kernel()))), policy(), host)
    assert "seal the kernel first" in error.value.hint
    with pytest.raises(InputError, match="EFI zboot is not sealed"):
        seal_kernel(zboot(arm64(kernel())), policy(), host)


def pe_kernel(*, signature: bytes) -> bytes:
    """An arm64 Image that is a PE program, as every kernel with EFI_STUB is; signed when `signature` is not empty."""
    body = kernel()
    head = bytearray(512)
    head[:2], head[56:60] = b"MZ", b"ARM\x64"
    struct.pack_into("<I", head, 60, 64)
    head[64:68] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", head, 68, 0xAA64, 1, 0, 0, 0, 0xA0, 0x206)
    struct.pack_into("<H", head, 88, 0x20B)
    size = len(body) + -len(body) % 512
    struct.pack_into("<IIHHHHHHIIIIHH", head, 88 + 32, 4096, 512, 0, 0, 0, 0, 0, 0, 0, 0x100000, 512, 0, 10, 0)
    struct.pack_into("<I", head, 88 + 108, 6)
    if signature:
        entry = struct.pack("<IHH", 8 + len(signature), 0x0200, 2) + signature
        entry += bytes(-len(entry) % 8)
        struct.pack_into("<II", head, 88 + 112 + 4 * 8, 512 + size, len(entry))
        struct.pack_into("<I", head, 88 + 64, 0xCAFE)
    else:
        entry = b""
    row = struct.pack("<8sIIIIIIHHI", b".text", size, 4096, size, 512, 0, 0, 0, 0, 0x60000020)
    head[88 + 0xA0 : 88 + 0xA0 + len(row)] = row
    return bytes(head) + body.ljust(size, b"\0") + entry


def test_a_signed_kernel_is_refused_or_its_signature_is_taken_off(host) -> None:
    signed = pe_kernel(signature=b"s" * 100)
    assert parse_pe(signed).is_signed
    with pytest.raises(InputError, match="is signed") as error:
        seal_kernel(signed, policy(), host)
    assert "--strip-signature" in error.value.hint
    sealed = seal_kernel(signed, policy(), host, strip_signature=True)
    assert sealed.signature_removed
    assert not parse_pe(sealed.image).is_signed
    assert sealed.image == seal_kernel(pe_kernel(signature=b""), policy(), host).image


def test_root_hashes_are_read_from_rules_and_not_from_comments() -> None:
    text = policy() + f"# op=EXECUTE dmverity_roothash={OTHER} action=ALLOW\n".encode()
    assert root_hashes_of(text) == {("sha256", bytes.fromhex("ab" * 32))}


def test_a_sealed_kernel_is_not_built_with_a_certificate(host) -> None:
    with pytest.raises(InputError, match="trusts no certificate"):
        build_kernel(sealed_kernel_request(), KernelTrust(reserved_policy(), (b"a certificate",)), host)


def test_the_feature_sealed_leaves_out_what_takes_keys() -> None:
    needs = set(sealed_kernel_request().needs)
    assert Need.SEALED in needs
    assert not needs & {Need.MODULES, Need.DM_VERITY_SIGNATURE, Need.SECONDARY_KEYRING, Need.PLATFORM_KEYRING, Need.IMA, Need.KEXEC}
    assert {"dmverity_signature", "fsverity_signature"}.isdisjoint(sealed_kernel_request().properties)
    symbols = {row.symbol: row.value for row in sealed_kernel_request().fragment().wanted}
    assert (symbols["SYSTEM_TRUSTED_KEYS"], symbols["MODULE_SIG_FORCE"], symbols["MODULES"]) == ('""', "n", "y")


def test_compare_says_where_two_kernels_differ() -> None:
    one = arm64(kernel())
    at = find_slot(one).offset - 100
    other = one[:at] + bytes([one[at] ^ 1]) + one[at + 1 :]
    found = compare_kernels(one, other)
    assert [row.offset for row in found.differences] == [at]
    assert compare_kernels(one, one).same_file
    packed = compare_kernels(gzip.compress(one, 9, mtime=0), gzip.compress(one, 1, mtime=0))
    assert (packed.same_file, packed.same_kernel) == (False, True)
    assert compare_kernels(one, one + b"\1").differences[0].offset == len(one)


def test_the_verb_seals_verifies_and_compares(host, tmp_path: Path) -> None:
    from tests.fixtures.demo import ipe_build

    (tmp_path / "Image").write_bytes(arm64(kernel()))
    sealed = ipe_build("kernel", "seal", tmp_path / "Image", "--root-hash", ROOT, "-o", tmp_path / "sealed")
    assert sealed.returncode == 0, sealed.stderr
    assert (tmp_path / "sealed").read_bytes() == seal_kernel(arm64(kernel()), policy(), host).image
    assert ipe_build("kernel", "seal", tmp_path / "Image", "--root-hash", ROOT, "--verify", tmp_path / "sealed").returncode == 0
    wrong = ipe_build("kernel", "seal", tmp_path / "Image", "--root-hash", OTHER, "--verify", tmp_path / "sealed")
    assert wrong.returncode == 1
    assert "reserved boot policy" in wrong.stdout
    assert ipe_build("kernel", "compare", tmp_path / "sealed", tmp_path / "Image").returncode == 1
    again = ipe_build("kernel", "seal", tmp_path / "sealed", "--root-hash", OTHER, "-o", tmp_path / "other")
    assert again.returncode == 2
    assert "--again" in again.stderr
    assert ipe_build("kernel", "seal", tmp_path / "Image", "--root-hash", ROOT).returncode == 2
