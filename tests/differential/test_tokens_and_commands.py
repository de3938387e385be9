"""Keys that are not files: a PKCS#11 token (SoftHSM) and a program. Same bytes as with the key file; every refusal is one clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipe_build.errors import KeyMismatchError, SigningKeyError, ToolFailedError, ToolMissingError
from ipe_build.host import Host
from ipe_build.signing.backends import open_signer
from ipe_build.signing.backends.pkcs11 import _explain, parse_token_key
from ipe_build.signing.certificates import KeySet, create_keys
from ipe_build.signing.loading import load_certificate
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.verify import verify_signature
from tests.fixtures.keys import NOT_BEFORE
from tests.fixtures.token import PIN, Token

ROOT_HASH = "cd" * 32


def _sign(token: Token, uri: str, certificate: Path, out: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Signs a root hash in a process of its own: a PKCS#11 module is configured and logged in once a process."""
    argv = [
        sys.executable,
        "-m",
        "ipe_build",
        "sign",
        "root-hash",
        ROOT_HASH,
        "--key",
        uri,
        "--cert",
        str(certificate),
        "-o",
        str(out),
        "--verbose",
    ]
    base = {name: value for name, value in os.environ.items() if name != "IPE_BUILD_PIN"}
    return subprocess.run(argv, capture_output=True, text=True, env={**base, "SOFTHSM2_CONF": str(token.config), **env}, timeout=120)


@pytest.mark.parametrize("source", ["environment", "pin-env", "pin-source", "pin-source-uri"])
def test_token_gives_the_same_bytes_as_the_key_file(source: str, token: Token, test_keys: KeySet, host: Host, tmp_path: Path) -> None:
    (tmp_path / "pin").write_text(PIN + "\n")
    query = {"pin-env": "&pin-env=MINE", "pin-source": f"&pin-source={tmp_path}/pin", "pin-source-uri": f"&pin-source=file:{tmp_path}/pin"}
    env = {"environment": {"IPE_BUILD_PIN": PIN}, "pin-env": {"MINE": PIN}}.get(source, {})
    pair = test_keys.pair("verity")
    done = _sign(token, token.uri("id=%02", query.get(source, "")), pair.certificate, tmp_path / "out", **env)
    assert done.returncode == 0, done.stderr
    assert PIN not in done.stdout + done.stderr
    wanted = sign_payload(PROFILES["dm-verity-root-hash"], ROOT_HASH.encode(), pair.signer(host))
    assert (tmp_path / "out").read_bytes() == wanted


def test_elliptic_key_in_the_token_signs_what_verifies(token: Token, tmp_path: Path) -> None:
    pair = token.p384.pair("verity")
    done = _sign(token, token.uri("id=%03;type=private"), pair.certificate, tmp_path / "out", IPE_BUILD_PIN=PIN)
    assert done.returncode == 0, done.stderr
    certificate = load_certificate(pair.certificate)
    assert (
        verify_signature(PROFILES["dm-verity-root-hash"], ROOT_HASH.encode(), (tmp_path / "out").read_bytes(), [certificate]) == certificate
    )


def test_modules_are_signed_with_the_token_too(token: Token, test_keys: KeySet, unsigned_module: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    for number in range(40):
        (folder / f"m{number}.ko").write_bytes(unsigned_module + bytes([number]))
    common = ["--key", token.uri("id=%01"), "--cert", str(test_keys.pair("policy").certificate), "--jobs", "2"]
    argv = [sys.executable, "-m", "ipe_build", "modules", "sign", str(folder), *common]
    env = {**os.environ, "SOFTHSM2_CONF": str(token.config), "IPE_BUILD_PIN": PIN}
    subprocess.run(argv, check=True, env=env, timeout=120, capture_output=True)
    argv = [sys.executable, "-m", "ipe_build", "modules", "verify", str(folder), "--trusted", str(test_keys.bundle)]
    assert "40 accepted, 0 refused" in subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout


REFUSED: dict[str, tuple[str, str, dict[str, str], str]] = {
    "wrong PIN": ("id=%02", "", {"IPE_BUILD_PIN": "111111"}, "the PIN is wrong"),
    "no PIN": ("id=%02", "", {}, "no PIN was given"),
    "absent key": ("id=%07", "", {"IPE_BUILD_PIN": PIN}, "no such private key"),
    "label of two keys": ("object=key", "", {"IPE_BUILD_PIN": PIN}, "more than one private key"),
    "absent label": ("object=other", "", {"IPE_BUILD_PIN": PIN}, "no such private key"),
    "key of another certificate": ("id=%01", "", {"IPE_BUILD_PIN": PIN}, "not a signature by"),
    "absent PIN file": ("id=%02", "&pin-source=/nonexistent/pin", {}, "secret cannot be read"),
    "PIN in the URI": (f"id=%02;pin-value={PIN}", "", {}, "would put the PIN on the command line"),
    "PIN in the query": ("id=%02", f"&pin-value={PIN}", {}, "would put a secret on the command line"),
    "no key named": ("type=private", "", {"IPE_BUILD_PIN": PIN}, "names no token or no private key"),
    "unknown attribute": ("id=%02;colour=red", "", {"IPE_BUILD_PIN": PIN}, "unknown attribute 'colour'"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_token_refusal_is_one_clear_error_without_the_pin(case: str, token: Token, test_keys: KeySet, tmp_path: Path) -> None:
    rest, query, env, message = REFUSED[case]
    done = _sign(token, token.uri(rest, query), test_keys.pair("verity").certificate, tmp_path / "out", **env)
    assert done.returncode == 2
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert "Traceback" not in done.stderr
    assert PIN not in done.stderr + done.stdout
    assert "111111" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pkcs11:token=signing;id=%02?module-path=/nonexistent/module.so", "module does not exist"),
        ("pkcs11:token=signing;id=%02?module-path=/etc/passwd", "not a PKCS#11 module"),
        ("pkcs11:token=signing;id=%02", "names no PKCS#11 module"),
        ("pkcs11:token=other;id=%02?module-path=MODULE", "no such token"),
    ],
)
def test_absent_module_or_token_is_one_clear_error(uri: str, message: str, token: Token, test_keys: KeySet, tmp_path: Path) -> None:
    uri = uri.replace("MODULE", token.module)
    done = _sign(token, uri, test_keys.pair("verity").certificate, tmp_path / "out", IPE_BUILD_PIN=PIN, PKCS11_MODULE_PATH="")
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_locked_token_is_named() -> None:
    pkcs11 = pytest.importorskip("pkcs11")
    with pytest.raises(SigningKeyError, match="locked: too many wrong PINs"):
        _explain(pkcs11.PinLocked(), "pkcs11 token x")


def test_token_uri_is_read_as_rfc_7512_says() -> None:
    wanted = parse_token_key("token=My%20Token;serial=ab%3Bcd;id=%00%ff%01;object=a%25b;type=private")
    assert (wanted.token, wanted.serial, wanted.id, wanted.label) == ("My Token", "ab;cd", b"\x00\xff\x01", "a%b")


def _script(folder: Path, text: str) -> Path:
    path = folder / "sign with kms"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _open(keys: KeySet, role: str, script: Path, query: str, host: Host):
    return open_signer(f"command:{str(script).replace(' ', '%20')}?{query}", keys.pair(role).certificate, host)


@pytest.mark.parametrize("digest", ["sha256", "sha512"])
@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", 'exec openssl dgst "-$IPE_BUILD_DIGEST" -sign "$1"'),
        ("input=digest", 'exec openssl pkeyutl -sign -inkey "$1" -pkeyopt "digest:$IPE_BUILD_DIGEST"'),
        ("output=base64", 'openssl dgst "-$IPE_BUILD_DIGEST" -sign "$1" | base64'),
    ],
)
def test_command_gives_the_same_bytes_as_the_key_file(
    query: str, text: str, digest: str, test_keys: KeySet, host: Host, tmp_path: Path, need
) -> None:
    need("openssl")
    signer = _open(test_keys, "policy", _script(tmp_path, text), f"arg={test_keys.pair('policy').key}&{query}", host)
    assert signer.sign(b"message", digest) == test_keys.pair("policy").signer(host).sign(b"message", digest)


def test_command_may_give_r_and_s_of_an_elliptic_signature(host: Host, tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys", host, not_before=NOT_BEFORE, key_type="p256")
    text = f"""exec {sys.executable} -c '
import sys
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import hashes, serialization
key = serialization.load_pem_private_key(open("{keys.pair("policy").key}", "rb").read(), None)
r, s = decode_dss_signature(key.sign(sys.stdin.buffer.read(), ec.ECDSA(hashes.SHA256())))
sys.stdout.buffer.write(r.to_bytes(32, "big") + s.to_bytes(32, "big"))'"""
    payload = b"policy_name=a policy_version=0.0.1\nDEFAULT action=DENY\n"
    signature = sign_payload(PROFILES["ipe-policy"], payload, _open(keys, "policy", _script(tmp_path, text), "form=p1363", host))
    certificate = load_certificate(keys.pair("policy").certificate)
    assert verify_signature(PROFILES["ipe-policy"], payload, signature, [certificate]) == certificate


@pytest.mark.parametrize(
    ("text", "query", "error", "message"),
    [
        ("echo garbage", "", KeyMismatchError, "not a signature by"),
        ("cat >/dev/null", "", SigningKeyError, "printed nothing"),
        ("printf '%%%%'", "output=base64", SigningKeyError, "not base64"),
        ("echo no key for you >&2; exit 3", "", ToolFailedError, "ended with status 3"),
        ("sleep 600", "timeout=1", ToolFailedError, "did not end within 1 s"),
        ("kill -9 $$", "", ToolFailedError, "killed by signal 9"),
    ],
)
def test_command_that_misbehaves_is_one_clear_error(
    text: str, query: str, error: type[Exception], message: str, test_keys: KeySet, host: Host, tmp_path: Path
) -> None:
    signer = _open(test_keys, "policy", _script(tmp_path, text), query, host)
    with pytest.raises(error, match=message):
        signer.sign(b"message", "sha256")


def test_command_sees_only_the_variables_that_it_was_given(test_keys: KeySet, tmp_path: Path) -> None:
    host = Host(env={"PATH": os.environ["PATH"], "AWS_TOKEN": "t0ken", "OTHER": "hidden"})
    script = _script(tmp_path, f'env > "{tmp_path}/seen"; exec openssl dgst -sha256 -sign "$1"')
    _open(test_keys, "policy", script, f"env=AWS_TOKEN&arg={test_keys.pair('policy').key}", host).sign(b"m", "sha256")
    seen = (tmp_path / "seen").read_text()
    assert "AWS_TOKEN=t0ken" in seen
    assert "hidden" not in seen
    with pytest.raises(SigningKeyError, match="NOT_SET"):
        _open(test_keys, "policy", script, "env=NOT_SET", host)


@pytest.mark.parametrize("query", ["input=file", "output=hex", "timeout=soon", "timeout=0", "pin=1234", "colour=red"])
def test_bad_command_uri_is_refused(query: str, test_keys: KeySet, host: Host, tmp_path: Path) -> None:
    with pytest.raises(SigningKeyError):
        _open(test_keys, "policy", _script(tmp_path, "true"), query, host)


def test_absent_command_is_a_missing_tool(test_keys: KeySet, host: Host, tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError, match="not found"):
        _open(test_keys, "policy", tmp_path / "absent", "", host)


def test_modules_are_signed_by_a_command_in_parallel(unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, need) -> None:
    need("openssl")
    from ipe_build.kernel.module_signing import sign_modules
    from ipe_build.kernel.modules import find_modules

    script = _script(tmp_path, 'exec openssl dgst -sha256 -sign "$1"')
    for number in range(20):
        (tmp_path / f"m{number}.ko").write_bytes(unsigned_module + bytes([number]))
    pair = test_keys.pair("module")
    (tmp_path / "by-key").mkdir()
    sign_modules(find_modules([tmp_path]), pair.signer(host), host, out=tmp_path / "by-key", root=tmp_path)
    sign_modules(sorted(tmp_path.glob("*.ko")), _open(test_keys, "module", script, f"arg={pair.key}", host), host, jobs=2)
    assert all((tmp_path / "by-key" / path.name).read_bytes() == path.read_bytes() for path in tmp_path.glob("*.ko"))
