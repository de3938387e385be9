"""ML-DSA signatures and certificates of ours, checked by another implementation of FIPS 204 than the one that made them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from dilithium_py.ml_dsa import ML_DSA_44, ML_DSA_65, ML_DSA_87

from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet, create_keys
from ipe_build.signing.loading import load_certificate, public_key_of
from ipe_build.signing.profiles import PROFILES, sign_payload
from tests.fixtures.keys import NOT_BEFORE

PEERS = {"mldsa44": ML_DSA_44, "mldsa65": ML_DSA_65, "mldsa87": ML_DSA_87}
SIGNATURE_BYTES = {"mldsa44": 2420, "mldsa65": 3309, "mldsa87": 4627}
"""FIPS 204, table 2."""
PAYLOADS = {
    "ipe-policy": b"policy_name=a policy_version=0.0.1\nDEFAULT action=DENY\n",
    "dm-verity-root-hash": b"ab" * 32,
    "module": b"\x7fELF",
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, host: Host) -> dict[str, KeySet]:
    folder = tmp_path_factory.mktemp("mldsa")
    return {kind: create_keys(folder / kind, host, not_before=NOT_BEFORE, key_type=kind) for kind in PEERS}


def _raw_public(pair_certificate: Path) -> bytes:
    return public_key_of(load_certificate(pair_certificate)).public_bytes(Encoding.Raw, PublicFormat.Raw)


def _last_octets(der: Path, need, host: Host) -> bytes:
    """The last OCTET STRING of a CMS, as openssl's ASN.1 parser finds it: the signature value."""
    text = host.run([need("openssl"), "asn1parse", "-inform", "DER", "-in", der]).stdout.decode()
    row = [line for line in text.splitlines() if "OCTET STRING" in line][-1]
    offset, header = int(row.split(":")[0]), int(row.split("hl=")[1].split()[0])
    length = int(row.split("l=")[2].split()[0])
    return der.read_bytes()[offset + header : offset + header + length]


@pytest.mark.parametrize("profile", PAYLOADS)
@pytest.mark.parametrize("kind", PEERS)
def test_signature_verifies_by_another_implementation_and_a_changed_payload_does_not(
    kind: str, profile: str, keys: dict[str, KeySet], host: Host, tmp_path: Path, need
) -> None:
    row, payload = PROFILES[profile], PAYLOADS[profile]
    pair = keys[kind].pair(row.role)
    sealed = sign_payload(row, payload, pair.signer(host))
    (tmp_path / "p7").write_bytes(sealed)
    signature = _last_octets(tmp_path / "p7", need, host)
    assert len(signature) == SIGNATURE_BYTES[kind]
    assert PEERS[kind].verify(_raw_public(pair.certificate), payload, signature)
    assert not PEERS[kind].verify(_raw_public(pair.certificate), payload + b"\n", signature)


@pytest.mark.parametrize("kind", PEERS)
def test_certificate_verifies_by_another_implementation(kind: str, keys: dict[str, KeySet]) -> None:
    certificate = load_certificate(keys[kind].pair("policy").certificate)
    root = _raw_public(keys[kind].root.certificate)
    assert PEERS[kind].verify(root, certificate.tbs_certificate_bytes, certificate.signature)
    assert not PEERS[kind].verify(
        _raw_public(keys[kind].pair("verity").certificate), certificate.tbs_certificate_bytes, certificate.signature
    )


@pytest.mark.parametrize("kind", PEERS)
def test_signature_of_the_other_implementation_verifies_by_ours(kind: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import mldsa

    from ipe_build.signing.algorithms import is_signature

    public, private = PEERS[kind].keygen()
    key = getattr(mldsa, f"MLDSA{kind[-2:]}PublicKey").from_public_bytes(public)
    signature = PEERS[kind].sign(private, b"message")
    assert is_signature(key, signature, b"message", "sha512")
    assert not is_signature(key, signature, b"massage", "sha512")
