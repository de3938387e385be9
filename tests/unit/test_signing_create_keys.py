"""Made keys: what is in the certificates, who can read the files, and that nothing is ever overwritten."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ipe_build.errors import InputError, OutputError
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet, create_keys, load_keys
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.verify import issued_by
from tests.fixtures.keys import NOT_BEFORE


def test_signing_certificates_have_what_the_kernel_wants(test_keys: KeySet) -> None:
    root = load_certificate(test_keys.root.certificate)
    assert {pair.role for pair in test_keys.pairs} == {"policy", "verity", "module", "ima"}
    for pair in test_keys.pairs:
        certificate = load_certificate(pair.certificate)
        extensions = certificate.extensions
        assert issued_by(certificate, root)
        assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature and not usage.key_cert_sign
        assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CODE_SIGNING]
        root_id = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == root_id
        assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest != root_id
        assert "TEST" in certificate.subject.rfc4514_string()
        assert certificate.not_valid_before_utc == NOT_BEFORE


def test_bundle_holds_root_and_every_signing_certificate_once(test_keys: KeySet) -> None:
    pairs = [pair for pair in test_keys.pairs if pair.role != "ima"]
    wanted = [load_certificate(test_keys.root.certificate), *(load_certificate(pair.certificate) for pair in pairs)]
    bundle = load_certificates(test_keys.bundle)
    assert bundle[0] == wanted[0]
    assert len(bundle) == len(wanted) == 4
    assert set(bundle) == set(wanted)


def test_only_the_owner_can_read_private_keys(test_keys: KeySet) -> None:
    assert stat.S_IMODE(test_keys.folder.stat().st_mode) == 0o700
    for pair in (test_keys.root, *test_keys.pairs):
        assert stat.S_IMODE(pair.key.stat().st_mode) == 0o600


def test_existing_keys_are_never_overwritten(tmp_path: Path, host: Host) -> None:
    folder = tmp_path / "keys"
    create_keys(folder, host, not_before=NOT_BEFORE, key_type="p256")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="never overwritten"):
        create_keys(folder, host, not_before=NOT_BEFORE, key_type="p256")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_production_subjects_do_not_say_test(tmp_path: Path, host: Host) -> None:
    keys = create_keys(tmp_path / "keys", host, not_before=NOT_BEFORE, key_type="p256", test=False, organisation="Acme")
    for pair in (keys.root, *keys.pairs):
        subject = load_certificate(pair.certificate).subject.rfc4514_string()
        assert "TEST" not in subject
        assert "Acme" in subject


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"key_type": "rsa512"}, "unknown key type"), ({"lifetime_days": 0}, "at least a day"), ({"lifetime_days": 9**7}, "9999")],
)
def test_impossible_request_leaves_no_folder(tmp_path: Path, host: Host, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_keys(tmp_path / "keys", host, not_before=NOT_BEFORE, **changes)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_folder_without_keys_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no trusted-keys\.pem"):
        load_keys(tmp_path)
