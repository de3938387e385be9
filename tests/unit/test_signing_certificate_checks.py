"""Each check of a certificate fires on the certificate that it is for, and is silent on a good one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ipe_build.host import Host
from ipe_build.signing.certificate_checks import CHECKS, Severity, check_certificate
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.target import KernelTarget
from tests.fixtures.keys import NOT_BEFORE

AT = NOT_BEFORE + timedelta(days=400)
_KEY = ec.generate_private_key(ec.SECP256R1())
_RSA_1024 = rsa.generate_private_key(65537, 1024)
_RSA_2048 = rsa.generate_private_key(65537, 2048)
_DSA = dsa.generate_private_key(2048)


@dataclass(frozen=True)
class Recipe:
    """A certificate to make: all is right unless said otherwise."""

    key: object = _KEY
    ends: datetime = AT + timedelta(days=1000)
    starts: datetime = NOT_BEFORE
    authority: bool | None = False
    bits: tuple[str, ...] = ("digital_signature",)
    purposes: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CODE_SIGNING,)
    key_id: bool = True
    issuer: str = "Acme root"
    issuer_key_id: bool = True
    hash: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)


def _make(recipe: Recipe) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Acme policy")])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, recipe.issuer)])
    public = recipe.key.public_key()  # type: ignore[attr-defined]
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(public).serial_number(7)
    builder = builder.not_valid_before(recipe.starts).not_valid_after(recipe.ends)
    if recipe.authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(recipe.authority, None), critical=True)
    if recipe.bits:
        names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
        builder = builder.add_extension(x509.KeyUsage(**{bit: bit in recipe.bits for bit in names}), critical=True)
    if recipe.purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(recipe.purposes), critical=False)
    if recipe.key_id:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    if recipe.issuer_key_id:
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(b"\1" * 20, None, None), critical=False)
    return builder.sign(_RSA_2048, recipe.hash)


def _rules(certificate: x509.Certificate, **given: object) -> set[str]:
    return {finding.rule for finding in check_certificate(certificate, **{"at": AT, **given})}  # type: ignore[arg-type]


BAD: dict[str, tuple[Recipe, dict[str, object]]] = {
    "test-key-in-production": (Recipe(issuer="TEST root"), {"production": True}),
    "expired": (Recipe(ends=AT - timedelta(seconds=1)), {}),
    "not-yet-valid": (Recipe(starts=AT + timedelta(seconds=1)), {}),
    "unusable-key": (Recipe(key=_DSA), {}),
    "kernel-cannot-check": (Recipe(), {"target": KernelTarget((5, 12))}),
    "weak-key": (Recipe(key=_RSA_1024), {}),
    "weak-hash": (Recipe(hash=hashes.SHA224()), {}),
    "key-mismatch": (Recipe(), {"key": _RSA_2048.public_key()}),
    "no-digital-signature": (Recipe(bits=("key_agreement",)), {}),
    "authority-cannot-sign": (Recipe(authority=True), {}),
    "no-subject-key-id": (Recipe(key_id=False), {}),
    "duplicate-key-id": (Recipe(), {"bundle": [_make(Recipe()), _make(Recipe(ends=AT + timedelta(days=2000)))]}),
    "not-trusted": (Recipe(), {"bundle": [_make(Recipe(key=_RSA_2048))]}),
    "kept-out-of-keyring": (Recipe(), {"keyring": ".ima", "bundle": [_make(Recipe(key=_RSA_2048))]}),
    "no-authority-key-id": (Recipe(issuer_key_id=False), {}),
    "no-code-signing": (Recipe(purposes=()), {}),
    "no-basic-constraints": (Recipe(authority=None), {}),
    "short-key": (Recipe(key=_RSA_2048), {}),
    "expires-soon": (Recipe(ends=AT + timedelta(days=89)), {}),
}


def test_every_check_has_a_bad_certificate_here() -> None:
    assert {row.rule for row in CHECKS} == set(BAD) | {"only-through-issuer"}


@pytest.mark.parametrize("rule", sorted(BAD))
def test_check_fires_on_the_certificate_it_is_for(rule: str) -> None:
    recipe, given = BAD[rule]
    assert rule in _rules(_make(recipe), **given)


@pytest.mark.parametrize("rule", sorted(BAD))
def test_check_is_silent_on_a_good_certificate(rule: str) -> None:
    good = _make(Recipe())
    assert _rules(good, production=True, key=_KEY.public_key(), bundle=[good], target=KernelTarget((6, 12))) == set()


def test_made_keys_have_nothing_against_them(test_keys: KeySet) -> None:
    bundle = load_certificates(test_keys.bundle)
    for certificate in bundle:
        assert _rules(certificate, bundle=bundle) == set()


def test_made_test_keys_are_refused_in_production(test_keys: KeySet) -> None:
    for certificate in load_certificates(test_keys.bundle):
        assert _rules(certificate, production=True) == {"test-key-in-production"}


def test_certificate_reached_only_through_its_issuer_is_warned_about(test_keys: KeySet) -> None:
    root = load_certificate(test_keys.root.certificate)
    findings = check_certificate(load_certificate(test_keys.pair("verity").certificate), at=AT, bundle=[root])
    assert [(finding.rule, finding.severity) for finding in findings] == [("only-through-issuer", Severity.WARNING)]


def test_foreign_certificate_is_not_trusted(test_keys: KeySet, foreign_keys: KeySet) -> None:
    assert _rules(load_certificate(foreign_keys.pair("policy").certificate), bundle=load_certificates(test_keys.bundle)) == {"not-trusted"}


def test_certificate_signed_with_sha1_is_weak(tmp_path: Path, host: Host, need: Callable[[str], Path]) -> None:
    """`cryptography` makes none, so OpenSSL does; its SHA-256 twin is not weak."""
    found = {}
    for digest in ("sha1", "sha256"):
        words = [
            "-newkey",
            "rsa:3072",
            "-nodes",
            "-keyout",
            tmp_path / "k.pem",
            "-subj",
            "/CN=TEST",
            "-days",
            "1",
            "-out",
            tmp_path / "c.pem",
        ]
        host.run([need("openssl"), "req", "-x509", f"-{digest}", *words])
        found[digest] = _rules(load_certificate(tmp_path / "c.pem"))
    assert "weak-hash" in found["sha1"]
    assert "weak-hash" not in found["sha256"]


def test_errors_come_before_warnings() -> None:
    findings = check_certificate(_make(Recipe(purposes=(), ends=AT - timedelta(days=1))), at=AT)
    assert [finding.severity for finding in findings] == sorted((f.severity for f in findings), key=list(Severity).index)
    assert len(findings) == 2
