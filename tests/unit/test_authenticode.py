"""Signing EFI programs, and judging them as firmware does: what covers every byte is taken, everything else is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.cli import main
from ipe_build.errors import FormatError, InputError, SignatureError, SigningKeyError, VerificationError
from ipe_build.formats.efi_signature_list import build_signature_list, parse_signature_database
from ipe_build.formats.pe import authenticode_digest, parse_pe
from ipe_build.formats.spc import decode_spc
from ipe_build.host import Host
from ipe_build.signing.authenticode import attach_signatures, signatures_of, unsigned, with_checksum
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.efi_image import SignatureDatabase, sign_image, verify_image
from ipe_build.signing.signer import Signer
from tests.fixtures.efi import make_pe

IMAGE = make_pe(((b".text", b"\x90" * 900), (b".data", b"data" * 99)), tail=b"odd")
OWNER = UUID(int=1)


@pytest.fixture(scope="module")
def signer(uefi_keys: KeySet, host: Host) -> Signer:
    return uefi_keys.pair("secure-boot").signer(host)


@pytest.fixture(scope="module")
def foreign(foreign_uefi_keys: KeySet, host: Host) -> Signer:
    return foreign_uefi_keys.pair("secure-boot").signer(host)


def database(*signers: Signer) -> SignatureDatabase:
    return SignatureDatabase(tuple(one.certificate for one in signers))


@pytest.mark.parametrize("digest_name", ["sha256", "sha384", "sha512"])
def test_signed_image_is_taken_and_signing_again_gives_the_same_bytes(signer: Signer, digest_name: str) -> None:
    signed = sign_image(IMAGE, signer, digest_name)
    assert verify_image(signed, database(signer)) == signer.certificate
    assert sign_image(IMAGE, signer, digest_name) == signed
    assert sign_image(signed, signer, digest_name) == signed, "a signature that is there is replaced"
    assert decode_spc(signatures_of(signed)[0]).image_digest == authenticode_digest(signed, digest_name)


def test_root_in_db_vouches_for_what_its_leaf_signed(signer: Signer, uefi_keys: KeySet, host: Host) -> None:
    root = uefi_keys.root.signer(host)
    assert verify_image(sign_image(IMAGE, signer), database(root)) == signer.certificate


def test_unsigned_and_foreign_images_are_refused(signer: Signer, foreign: Signer) -> None:
    with pytest.raises(SignatureError, match=r"carries no signature \(EFI_SECURITY_VIOLATION\)"):
        verify_image(unsigned(IMAGE), database(signer))
    with pytest.raises(SignatureError, match="vouches for"):
        verify_image(sign_image(IMAGE, foreign), database(signer))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_flipped_bit_of_the_image_passes(data: st.DataObject, signer: Signer) -> None:
    signed = sign_image(IMAGE, signer)
    image = parse_pe(signed)
    position = data.draw(st.integers(0, image.certificate_table_offset - 1))
    flipped = bytearray(signed)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    if image.checksum_offset <= position < image.checksum_offset + 4:
        assert verify_image(bytes(flipped), database(signer)) == signer.certificate, "the checksum is not covered, and nobody looks at it"
        return
    with pytest.raises((VerificationError, InputError)):
        verify_image(bytes(flipped), database(signer))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_no_damaged_signature_passes_or_gives_another_error(data: st.DataObject, signer: Signer) -> None:
    signed = sign_image(IMAGE, signer)
    image = parse_pe(signed)
    start, kept = image.certificate_table_offset + 8, signatures_of(signed)[0]
    changed = bytearray(signed)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(start, start + len(kept) - 1))] = data.draw(st.integers(0, 255))
    if bytes(changed) == signed:
        return
    try:
        found = verify_image(bytes(changed), database(signer))
    except (VerificationError, InputError):
        return
    # What no signature covers may change: the copy of the certificate's names for people, say. The digest and the key may not.
    assert found == signer.certificate
    assert decode_spc(signatures_of(bytes(changed))[0]).image_digest == authenticode_digest(signed)


def test_either_of_two_signatures_is_enough_and_dbx_beats_both(signer: Signer, foreign: Signer) -> None:
    both = sign_image(sign_image(IMAGE, signer), foreign, keep=True)
    assert len(signatures_of(both)) == 2
    assert authenticode_digest(both) == authenticode_digest(sign_image(IMAGE, signer))
    for one in (signer, foreign):
        assert verify_image(both, database(one)) == one.certificate
    with pytest.raises(SignatureError, match="certificate in dbx"):
        verify_image(both, database(signer), database(foreign))
    digest = frozenset((authenticode_digest(both),))
    with pytest.raises(SignatureError, match="digest is in dbx"):
        verify_image(both, database(signer), SignatureDatabase(digests=digest))
    assert verify_image(unsigned(IMAGE), SignatureDatabase(digests=digest)) is None, "a digest in db is enough"


def test_database_files_are_read_as_they_were_written(signer: Signer, foreign: Signer) -> None:
    certificates = tuple(one.certificate.public_bytes(Encoding.DER) for one in (signer, foreign))
    raw = build_signature_list(certificates, OWNER, [bytes(32), bytes(range(32))])
    assert parse_signature_database(raw, "db") == parse_signature_database(b"\x27\0\0\0" + raw, "an efivarfs file")
    found = SignatureDatabase.parse(raw, "db")
    assert found.certificates == (signer.certificate, foreign.certificate)
    assert found.digests == {bytes(32), bytes(range(32))}


def test_curve_keys_are_refused_for_firmware(curve_keys: dict[str, KeySet], host: Host) -> None:
    with pytest.raises(SigningKeyError, match="firmware takes no ecdsa-p256 signatures"):
        sign_image(IMAGE, curve_keys["p256"].pair("policy").signer(host))


def test_image_with_a_gap_is_not_signed(signer: Signer) -> None:
    data = bytearray(make_pe(((b".text", b"a" * 512), (b".gap", b"b" * 512), (b".data", b"c" * 512))))
    at = parse_pe(bytes(data)).section_table_offset
    data[at + 40 + 16 : at + 40 + 24] = bytes(8)
    with pytest.raises(InputError, match="bytes 0x400 to 0x600 lie between its sections"):
        sign_image(bytes(data), signer)


def test_image_without_room_for_a_certificate_table_is_not_signed(signer: Signer) -> None:
    data = bytearray(IMAGE)
    data[64 + 24 + 108 : 64 + 24 + 112] = struct.pack("<I", 4)
    with pytest.raises(InputError, match="no room for a certificate table"):
        sign_image(bytes(data), signer)


def test_what_is_no_efi_program_is_not_signed(signer: Signer) -> None:
    with pytest.raises(FormatError, match="wanted a PE image"):
        sign_image(b"\x7fELF" + bytes(4000), signer)


def test_checksum_is_the_sum_of_words_with_carry_and_length() -> None:
    at = parse_pe(IMAGE).checksum_offset
    data = IMAGE + b"\1"
    words = data[:at] + bytes(4) + data[at + 4 :]
    total = 0
    for (word,) in struct.iter_unpack("<H", words.ljust(len(words) + len(words) % 2, b"\0")):
        total = (total + word & 0xFFFF) + (total + word >> 16)
    assert int.from_bytes(with_checksum(data, at)[at : at + 4], "little") == total + len(data)


def test_signature_of_another_image_is_refused(signer: Signer) -> None:
    other = unsigned(make_pe(((b".text", b"other"),)))
    borrowed = attach_signatures(other, signatures_of(sign_image(IMAGE, signer)))
    with pytest.raises(SignatureError, match="over another image"):
        verify_image(borrowed, database(signer))


def test_verbs_sign_and_verify(uefi_keys: KeySet, foreign_uefi_keys: KeySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, signed, db, dbx = (tmp_path / name for name in ("plain.efi", "signed.efi", "db.esl", "dbx.esl"))
    plain.write_bytes(IMAGE)
    pair = uefi_keys.pair("secure-boot")
    assert main(["sign", "efi", str(plain), "--key", pair.uri, "--cert", str(pair.certificate), "-o", str(signed), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["authenticode_sha256"] == authenticode_digest(signed.read_bytes()).hex()
    certificate = uefi_keys.pair("secure-boot").signer(Host()).certificate.public_bytes(Encoding.DER)
    db.write_bytes(build_signature_list([certificate], OWNER))
    dbx.write_bytes(build_signature_list([], OWNER, [authenticode_digest(signed.read_bytes())]))
    verify = ["sign", "verify", "efi-image", str(signed), "--trusted"]
    assert main([*verify, str(db)]) == 0
    assert main([*verify, str(pair.certificate)]) == 0
    assert main([*verify, str(foreign_uefi_keys.bundle)]) == 1
    assert main([*verify, str(db), "--forbidden", str(dbx)]) == 1
    assert main(["sign", "verify", "efi-image", str(plain), "--trusted", str(db)]) == 1
    capsys.readouterr()
