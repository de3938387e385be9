"""SEV-SNP: launch digests follow every byte that is launched; ID blocks are what the firmware ABI says. Computed, not run."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ipe_build.attest.snp import Launch, launch_digest, make_id_block
from ipe_build.cli import main
from ipe_build.errors import InputError, SigningKeyError
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate, public_key_of
from tests.unit.test_attest_predict import uki

_HASHES_PAGE = 0x10


def firmware(*, kernel_hashes: bool = True, filler: bytes = b"firmware") -> bytes:
    """A firmware of one page with the tables that a SEV-SNP launch needs; nothing else of it is real."""
    sections = [(0x1000, 0x1000, 2), (0x2000, 0x1000, 3)] + ([(0x3000, 0x1000, _HASHES_PAGE)] if kernel_hashes else [])
    metadata = b"ASEV" + struct.pack("<III", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    rows = {
        "7255371f-3a3b-4b04-927b-1da6efa8d454": struct.pack("<II", 0x3000, 0x400),
        "00f771de-1a7e-4fcb-890e-68c77e2fb44e": struct.pack("<I", 0x80B004),
        "dc886566-984a-4798-a75e-5585a7bf67cc": struct.pack("<I", 2048),
    }
    table = b"".join(data + struct.pack("<H", len(data) + 18) + UUID(guid).bytes_le for guid, data in rows.items())
    table += struct.pack("<H", len(table) + 18) + UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    body = filler.ljust(2048, b"\0") + metadata
    return body.ljust(4096 - 32 - len(table), b"\0") + table + bytes(32)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    (tmp_path / "ovmf.fd").write_bytes(firmware())
    (tmp_path / "kernel").write_bytes(b"kernel")
    (tmp_path / "initrd").write_bytes(b"initrd")
    return Launch(tmp_path / "ovmf.fd", tmp_path / "kernel", tmp_path / "initrd", "root=x")


def test_launch_digest_follows_everything_that_is_launched(launch: Launch):
    digest = launch_digest(launch)
    assert len(digest) == 48
    assert launch_digest(launch) == digest
    others = [replace(launch, command_line="root=y"), replace(launch, initrd=None), replace(launch, processors=2)]
    others += [replace(launch, processor_type="EPYC-Rome"), replace(launch, guest_features=0x21)]
    seen = {digest, *(launch_digest(other) for other in others)}
    for path, content in ((launch.kernel, b"Kernel"), (launch.initrd, b"Initrd"), (launch.firmware, firmware(filler=b"other"))):
        assert path is not None
        path.write_bytes(content)
        seen.add(launch_digest(launch))
    assert len(seen) == 9


def test_firmware_that_would_not_check_the_kernel_is_refused(launch: Launch):
    launch.firmware.write_bytes(firmware(kernel_hashes=False))
    with pytest.raises(InputError, match="SNP_KERNEL_HASHES"):
        launch_digest(launch)
    launch.firmware.write_bytes(bytes(4096))
    with pytest.raises(InputError, match="no launch digest"):
        launch_digest(launch)


def test_what_is_not_there_or_not_known_is_refused(launch: Launch, tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        launch_digest(replace(launch, firmware=tmp_path / "missing"))
    with pytest.raises(InputError, match="EPYC-Milan"):
        launch_digest(replace(launch, processor_type="Pentium"))


def test_id_block_is_laid_out_and_signed_as_the_abi_says(curve_keys: dict[str, KeySet], host: Host):
    pair = curve_keys["p384"].pair("policy")
    digest = bytes(range(48))
    made = make_id_block(digest, pair.signer(host), guest_svn=7)
    assert made.block == digest + bytes(32) + struct.pack("<IIQ", 1, 7, 0x30000)
    assert (len(made.block), len(made.authentication)) == (96, 4096)
    assert made.authentication[:8] == struct.pack("<II", 1, 0)
    signature, key = made.authentication[64 : 64 + 512], made.authentication[576 : 576 + 1028]
    r, s = (int.from_bytes(signature[at : at + 72], "little") for at in (0, 72))
    public = public_key_of(load_certificate(pair.certificate))
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(encode_dss_signature(r, s), made.block, ec.ECDSA(hashes.SHA384()))
    assert key[:4] == struct.pack("<I", 2)
    assert int.from_bytes(key[4:76], "little") == public.public_numbers().x
    assert made.id_key_digest == hashlib.sha384(key).digest()


def test_id_block_agrees_with_the_library_s_layout(curve_keys: dict[str, KeySet], host: Host, tmp_path: Path):
    from sevsnpmeasure import id_block

    pair = curve_keys["p384"].pair("policy")
    made = make_id_block(bytes(range(48)), pair.signer(host))
    printed = id_block.snp_calc_id_block(bytes(range(48)), str(pair.key), str(pair.key))
    theirs = dict(part.split("=", 1) for part in printed.splitlines()[0].split(","))
    import base64

    assert base64.b64decode(theirs["id-block"]) == made.block
    assert base64.b64decode(theirs["id-auth"])[576 : 576 + 1028] == made.authentication[576 : 576 + 1028]
    assert f"id_key_hash: {base64.b64encode(made.id_key_digest).decode()}" in printed


def test_other_kinds_of_keys_are_refused(test_keys: KeySet, curve_keys: dict[str, KeySet], host: Host):
    for keys in (test_keys, curve_keys["p256"]):
        with pytest.raises(SigningKeyError, match="P-384"):
            make_id_block(bytes(48), keys.pair("policy").signer(host))
    with pytest.raises(InputError, match="48 bytes"):
        make_id_block(bytes(32), curve_keys["p384"].pair("policy").signer(host))


def test_verb_gives_the_digest_of_a_uki_s_parts(launch: Launch, curve_keys: dict[str, KeySet], tmp_path: Path, capsys):
    (tmp_path / "image.efi").write_bytes(uki())
    pair = curve_keys["p384"].pair("policy")
    words = ["attest", "snp", str(tmp_path / "image.efi"), "--firmware", str(launch.firmware), "--json"]
    assert main([*words, "--key", pair.uri, "--cert", str(pair.certificate)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["run_on_hardware"], value["command_line"]) == (False, "root=x")
    assert launch.initrd is not None
    launch.initrd.write_bytes(b"an initramfs")
    from tests.unit.test_attest_predict import KERNEL

    launch.kernel.write_bytes(KERNEL)
    assert value["launch_digest"] == launch_digest(launch).hex()
    assert main([*words, "--key", pair.uri]) == 2
    capsys.readouterr()
