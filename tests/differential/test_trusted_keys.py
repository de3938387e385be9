"""The same keys out of a PEM bundle, a .config, a kernel image and a UEFI db; and what each of them then accepts."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from pathlib import Path
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from ipe_build.cli import main
from ipe_build.errors import FormatError, InputError, IpeBuildError, SignatureError
from ipe_build.formats.efi_signature_list import parse_signature_list
from ipe_build.host import Host
from ipe_build.kernel.keyring import BUILTIN, PLATFORM, read_trusted
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.kernel.modules import verify_module
from ipe_build.kernel.trust import KernelTrust
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload
from ipe_build.signing.verify import verify_signature
from tests.fixtures.kernel import PERMISSIVE_POLICY, KernelFactory

X509 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
SHA256 = UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
OWNER = UUID(int=7).bytes_le
PAYLOAD = root_hash_payload(bytes(32))


def _signature_list(certificates: tuple[x509.Certificate, ...]) -> bytes:
    """EFI_SIGNATURE_LISTs as cert-to-efi-sig-list makes them (one a certificate), with a list of digests between."""
    lists = [struct.pack("<16sIII", SHA256, 28 + 2 * 48, 0, 48) + (OWNER + hashlib.sha256(b"x").digest()) * 2]
    for certificate in certificates:
        der = certificate.public_bytes(Encoding.DER)
        lists.append(struct.pack("<16sIII", X509, 28 + 16 + len(der), 0, 16 + len(der)) + OWNER + der)
    return b"".join(lists)


def _authenticated(update: bytes) -> bytes:
    """EFI_VARIABLE_AUTHENTICATION_2 before an update: a time and a WIN_CERTIFICATE_UEFI_GUID of 40 bytes."""
    guid = UUID("4aafd29d-68df-49ee-8aa9-347d375665a7").bytes_le
    return bytes(16) + struct.pack("<IHH", 40, 0x200, 0x0EF1) + guid + bytes(16) + update


@pytest.mark.parametrize("form", ["esl", "efivarfs", "auth"])
def test_uefi_database_gives_its_certificates(form: str, test_keys: KeySet, tmp_path: Path) -> None:
    wanted = load_certificates(test_keys.bundle)
    data = _signature_list(wanted)
    (tmp_path / "db").write_bytes({"esl": data, "efivarfs": b"\x27\0\0\0" + data, "auth": _authenticated(data)}[form])
    trusted = read_trusted(tmp_path / "db")
    assert (trusted.certificates, trusted.keyring) == (wanted, PLATFORM)


def test_cut_uefi_database_is_a_format_error(test_keys: KeySet) -> None:
    data = _signature_list(load_certificates(test_keys.bundle))
    whole = parse_signature_list(data, "db")
    for end in range(17, len(data), 101):
        try:
            assert len(parse_signature_list(data[:end], "db")) < len(whole)
        except FormatError:
            continue


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=120))
def test_any_bytes_are_a_uefi_database_or_a_format_error(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert isinstance(parse_signature_list(X509 + data, "db"), tuple)


def _config(folder: Path, bundle: Path, revoked: str = "") -> Path:
    (folder / "keys").mkdir()
    (folder / "keys/trusted.pem").write_bytes(bundle.read_bytes())
    text = f'CONFIG_SYSTEM_TRUSTED_KEYS="keys/trusted.pem"\nCONFIG_SYSTEM_REVOCATION_KEYS="{revoked}"\n'
    (folder / ".config").write_text(f"#\n# Linux/x86 6.12.1 Kernel Configuration\n#\n{text}")
    return folder / ".config"


def test_configuration_gives_the_certificates_of_its_bundle(test_keys: KeySet, tmp_path: Path) -> None:
    trusted = read_trusted(_config(tmp_path, test_keys.bundle))
    assert (trusted.certificates, trusted.keyring, trusted.revoked) == (load_certificates(test_keys.bundle), BUILTIN, ())


def test_configuration_whose_bundle_is_missing_is_an_error(test_keys: KeySet, tmp_path: Path) -> None:
    config = _config(tmp_path, test_keys.bundle)
    (tmp_path / "keys/trusted.pem").unlink()
    with pytest.raises(InputError, match="SYSTEM_TRUSTED_KEYS"):
        read_trusted(config)


def test_revoked_signer_is_refused_although_it_is_trusted(test_keys: KeySet, host: Host, tmp_path: Path) -> None:
    pair = test_keys.pair("verity")
    (tmp_path / "revoked.pem").write_bytes(pair.certificate.read_bytes())
    signature = sign_payload(PROFILES["dm-verity-root-hash"], PAYLOAD, pair.signer(host))
    trusted = read_trusted(_config(tmp_path, test_keys.bundle, "revoked.pem"))
    assert trusted.revoked == (load_certificate(pair.certificate),)
    with pytest.raises(SignatureError, match=r"revoked.*EKEYREJECTED"):
        trusted.verify(PROFILES["dm-verity-root-hash"], PAYLOAD, signature)
    assert verify_signature(PROFILES["dm-verity-root-hash"], PAYLOAD, signature, trusted.certificates) == trusted.revoked[0]


def test_builtin_keys_say_nothing_about_fsverity_signatures(test_keys: KeySet, host: Host, tmp_path: Path) -> None:
    payload = b"FSVerity\x01\x00\x20\x00" + bytes(32)
    signature = sign_payload(PROFILES["fs-verity-builtin"], payload, test_keys.pair("verity").signer(host))
    with pytest.raises(InputError, match=r"only into \.fs-verity"):
        read_trusted(_config(tmp_path, test_keys.bundle)).verify(PROFILES["fs-verity-builtin"], payload, signature)
    assert read_trusted(test_keys.bundle).verify(PROFILES["fs-verity-builtin"], payload, signature)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"text", b"\x30\x82\x00\x02ab", b"MZ" + bytes(600), b"\x7fELF" + bytes(60)])
def test_garbage_is_no_set_of_keys(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(IpeBuildError) as caught:
        read_trusted(tmp_path / "file")
    assert "file" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "vmlinux"])
def test_kernel_image_says_which_signatures_it_accepts(
    kind: str,
    kernel_factory: KernelFactory,
    test_keys: KeySet,
    foreign_keys: KeySet,
    unsigned_module: bytes,
    host: Host,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kernel = kernel_factory(KernelTrust(PERMISSIVE_POLICY, (test_keys.bundle.read_bytes(),)))
    image = kernel.image if kind == "image" else kernel.image.parent / "vmlinux"
    trusted = read_trusted(image)
    assert set(trusted.certificates) == set(load_certificates(test_keys.bundle))
    assert trusted.keyring == BUILTIN
    (tmp_path / "hash").write_bytes(PAYLOAD)
    for keys, status in ((test_keys, 0), (foreign_keys, 1)):
        signature = sign_payload(PROFILES["dm-verity-root-hash"], PAYLOAD, keys.pair("verity").signer(host))
        (tmp_path / "signature").write_bytes(signature)
        argv = ["sign", "verify", "dm-verity-root-hash", str(tmp_path / "hash"), str(tmp_path / "signature"), "--trusted", str(image)]
        assert main(argv) == status
        module = tmp_path / "demo.ko"
        module.write_bytes(unsigned_module)
        sign_modules([module], keys.pair("module").signer(host), host)
        assert verify_module(module, trusted.certificates).accepted == (status == 0)
    other = verify_module(module, load_certificates(foreign_keys.bundle), release=trusted.release)
    assert (other.errno, other.intact) == ("ENOEXEC", True)
    capsys.readouterr()
