"""Keys by URI: what opens, what does not and why; and that no secret gets into an error."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from asn1crypto import keys as asn1_keys
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ipe_build.errors import IpeBuildError, KeyMismatchError, SigningKeyError
from ipe_build.host import Host, Progress
from ipe_build.signing.backends import open_signer
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate, load_certificates, load_private_key

SECRET = "correct horse battery"


@pytest.fixture(scope="module")
def encrypted(test_keys: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = load_pem_private_key(test_keys.pair("policy").key.read_bytes(), None)
    path = tmp_path_factory.mktemp("encrypted") / "policy key 100%.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(SECRET.encode())))
    path.chmod(0o600)
    return path


def _uri(path: Path) -> str:
    return "file:" + str(path).replace("%", "%25").replace(" ", "%20")


def _open(uri: str, keys: KeySet, **env: str) -> bytes:
    host = Host(env=env, progress=Progress(io.StringIO()))
    return open_signer(uri, keys.pair("policy").certificate, host).sign(b"message", "sha256")


def test_encrypted_key_opens_with_passphrase_from_environment_or_file(encrypted: Path, test_keys: KeySet, tmp_path: Path) -> None:
    plain = _open(test_keys.pair("policy").uri, test_keys)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    assert _open(_uri(encrypted), test_keys, IPE_BUILD_KEY_PASSPHRASE=SECRET) == plain
    assert _open(f"{_uri(encrypted)}?passphrase-env=MINE", test_keys, MINE=SECRET) == plain
    assert _open(f"{_uri(encrypted)}?passphrase-file={tmp_path / 'secret'}", test_keys) == plain


def test_passphrase_for_a_plain_key_does_no_harm(test_keys: KeySet) -> None:
    uri = test_keys.pair("policy").uri
    assert _open(uri, test_keys, IPE_BUILD_KEY_PASSPHRASE="anything") == _open(uri, test_keys)


@pytest.mark.parametrize("form", ["pkcs1-pem", "pkcs8-der"])
def test_other_key_encodings_open(form: str, test_keys: KeySet, tmp_path: Path) -> None:
    key = load_pem_private_key(test_keys.pair("policy").key.read_bytes(), None)
    encoding, layout = (Encoding.PEM, PrivateFormat.TraditionalOpenSSL) if form == "pkcs1-pem" else (Encoding.DER, PrivateFormat.PKCS8)
    (tmp_path / "key").write_bytes(key.private_bytes(encoding, layout, NoEncryption()))
    assert _open(f"file:{tmp_path / 'key'}", test_keys) == _open(test_keys.pair("policy").uri, test_keys)


@pytest.mark.parametrize(
    ("query", "env", "message"),
    [
        ("", {}, "encrypted and no passphrase"),
        ("", {"IPE_BUILD_KEY_PASSPHRASE": "wrong guess"}, "passphrase is wrong"),
        ("?passphrase-env=UNSET", {}, "UNSET"),
        ("?passphrase-file=/nonexistent/secret", {}, "cannot be read"),
        ("?passphrase=wrong guess", {}, "would put a secret on the command line"),
        ("?pin-source=x", {}, "unknown attribute"),
    ],
)
def test_unopened_key_says_why_and_tells_no_secret(
    query: str, env: dict[str, str], message: str, encrypted: Path, test_keys: KeySet
) -> None:
    with pytest.raises(SigningKeyError, match=message) as caught:
        _open(_uri(encrypted) + query, test_keys, **env)
    assert "wrong guess" not in str(caught.value)


@pytest.mark.parametrize("uri", ["policy.pem", "gopher:policy.pem", "file:", "file://server/policy.pem", "file:/nonexistent/key.pem", ""])
def test_bad_key_uri_is_one_clear_error(uri: str, test_keys: KeySet) -> None:
    with pytest.raises(SigningKeyError):
        _open(uri, test_keys)


def test_key_that_does_not_fit_its_certificate_is_refused(test_keys: KeySet) -> None:
    with pytest.raises(KeyMismatchError, match="does not belong"):
        _open(test_keys.pair("verity").uri, test_keys)


def test_key_readable_by_others_is_warned_about(test_keys: KeySet, tmp_path: Path) -> None:
    stream = io.StringIO()
    path = tmp_path / "key.pem"
    path.write_bytes(test_keys.pair("policy").key.read_bytes())
    path.chmod(0o644)
    open_signer(f"file:{path}", test_keys.pair("policy").certificate, Host(env={}, progress=Progress(stream)))
    assert "chmod 600" in stream.getvalue()


def test_signer_does_not_show_its_key(test_keys: KeySet, host: Host) -> None:
    shown = repr(test_keys.pair("policy").signer(host))
    assert "TEST" in shown
    assert "RSAPrivateKey" not in shown


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x82"])
def test_garbage_is_neither_certificate_nor_key(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SigningKeyError):
        load_certificates(tmp_path / "file")
    with pytest.raises(SigningKeyError):
        load_private_key(tmp_path / "file", None, "")


_RSA_FIELDS = ("modulus", "public_exponent", "private_exponent", "prime1", "prime2", "exponent1", "exponent2", "coefficient")


@pytest.mark.parametrize("change", [lambda _: 0, lambda _: 1, lambda _: -5, lambda value: value + 2, lambda value: value ^ 1 << 17])
@pytest.mark.parametrize("field", _RSA_FIELDS)
def test_rsa_key_with_a_damaged_number_is_refused_before_it_signs(
    field: str, change: Callable[[int], int], test_keys: KeySet, tmp_path: Path
) -> None:
    key = load_private_key(test_keys.pair("policy").key, None, "")
    numbers = asn1_keys.RSAPrivateKey.load(key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    path = tmp_path / "key.der"
    path.write_bytes(numbers.dump())
    assert load_private_key(path, None, "").private_numbers() == key.private_numbers()
    numbers[field] = change(numbers[field].native)
    path.write_bytes(numbers.dump(force=True))
    with pytest.raises(SigningKeyError, match="not a private key"):
        load_private_key(path, None, "")


def test_rsa_key_of_two_equal_factors_is_refused(test_keys: KeySet, tmp_path: Path) -> None:
    key = load_private_key(test_keys.pair("policy").key, None, "")
    prime = key.private_numbers().p
    numbers = asn1_keys.RSAPrivateKey.load(key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    numbers["prime2"], numbers["modulus"] = prime, prime * prime
    (tmp_path / "key.der").write_bytes(numbers.dump(force=True))
    with pytest.raises(SigningKeyError, match="not a private key"):
        load_private_key(tmp_path / "key.der", None, "")


def test_key_and_certificate_swapped_are_named(test_keys: KeySet) -> None:
    pair = test_keys.pair("policy")
    with pytest.raises(SigningKeyError, match="wanted a certificate, got a PEM private key"):
        load_certificate(pair.key)
    with pytest.raises(SigningKeyError, match="wanted a private key, got a PEM certificate"):
        load_private_key(pair.certificate, None, "")


def test_digest_that_no_kernel_takes_is_refused(test_keys: KeySet, host: Host) -> None:
    with pytest.raises(IpeBuildError, match="sha1"):
        test_keys.pair("policy").signer(host).sign(b"message", "sha1")


def test_bundle_is_not_taken_for_one_certificate(test_keys: KeySet) -> None:
    with pytest.raises(SigningKeyError, match="wanted one certificate, got 4"):
        load_certificate(test_keys.bundle)
