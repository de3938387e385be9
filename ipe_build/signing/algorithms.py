"""THE table of signature algorithms: one row says how a key is made, recognised, named in CMS and checked, and who takes it.

Sources: crypto/asymmetric_keys/pkcs7_parser.c (pkcs7_sig_note_pkey_algo), x509_cert_parser.c, crypto/ecdsa.c, crypto/mldsa.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

try:
    from cryptography.hazmat.primitives.asymmetric import mldsa
except ImportError:  # an older cryptography: ML-DSA keys are then of an unknown type, everything else works
    mldsa = None  # type: ignore[assignment]

from ipe_build.errors import SigningKeyError
from ipe_build.formats.cms import AlgorithmIdentifier

Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

HASHES: dict[str, Hash] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
"""The digests that we sign with, by kernel name. SHA-1 is refused everywhere."""

KernelVersion = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A row. `key_types` are the names that `keys create --key-type` takes, each with the function that makes such a key.

    `identifiers`: the CMS signature algorithm for each digest that may be used. `first_kernel` is the first mainline release whose
    PKCS#7 parser takes it, None when none does; `symbols` are the Kconfig symbols that the kernel then needs.
    `prehashed`: the signature is over a digest, so a digest is enough to sign, and `sign_digest` does; `deterministic`: the same inputs
    give the same bytes.
    """

    name: str
    key_types: tuple[tuple[str, Callable[[], CertificateIssuerPrivateKeyTypes]], ...]
    fits: Callable[[PublicKeyTypes], bool]
    identifiers: tuple[tuple[str, AlgorithmIdentifier], ...]
    sign: Callable[[PrivateKeyTypes, bytes, str], bytes]
    verify: Callable[[PublicKeyTypes, bytes, bytes, str], None]
    certificate_hash: Hash | None
    first_kernel: KernelVersion | None
    symbols: tuple[str, ...]
    prehashed: bool = True
    deterministic: bool = True
    sign_digest: Callable[[PrivateKeyTypes, bytes, str], bytes] | None = None

    @property
    def digests(self) -> tuple[str, ...]:
        """Returns the digests that may go with this algorithm, the preferred one first."""
        return tuple(name for name, _ in self.identifiers)

    def identifier(self, digest_name: str) -> AlgorithmIdentifier:
        """Returns the CMS signature algorithm with that digest. Raises: SigningKeyError when they do not go together."""
        for name, identifier in self.identifiers:
            if name == digest_name:
                return identifier
        raise SigningKeyError(f"digest {digest_name} does not go with a {self.name} key", hint=f"it goes with {', '.join(self.digests)}")


def _rsa_sign(key: PrivateKeyTypes, message: bytes, digest_name: str) -> bytes:
    """Returns an RSASSA-PKCS1-v1_5 signature (deterministic)."""
    assert isinstance(key, rsa.RSAPrivateKey)
    return key.sign(message, padding.PKCS1v15(), HASHES[digest_name])


def _rsa_sign_digest(key: PrivateKeyTypes, digest: bytes, digest_name: str) -> bytes:
    """Returns the signature that `_rsa_sign` gives for the message with this digest."""
    assert isinstance(key, rsa.RSAPrivateKey)
    return key.sign(digest, padding.PKCS1v15(), Prehashed(HASHES[digest_name]))


def _rsa_verify(key: PublicKeyTypes, signature: bytes, message: bytes, digest_name: str) -> None:
    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(signature, message, padding.PKCS1v15(), HASHES[digest_name])


def _ecdsa_sign(key: PrivateKeyTypes, message: bytes, digest_name: str) -> bytes:
    """Returns a DER ECDSA signature with the nonce of RFC 6979, so that the same inputs give the same bytes."""
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.sign(message, ec.ECDSA(HASHES[digest_name], deterministic_signing=True))


def _ecdsa_sign_digest(key: PrivateKeyTypes, digest: bytes, digest_name: str) -> bytes:
    """Returns the signature that `_ecdsa_sign` gives for the message with this digest."""
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.sign(digest, ec.ECDSA(Prehashed(HASHES[digest_name]), deterministic_signing=True))


def _ecdsa_verify(key: PublicKeyTypes, signature: bytes, message: bytes, digest_name: str) -> None:
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, message, ec.ECDSA(HASHES[digest_name]))


def _ed25519_sign(key: PrivateKeyTypes, message: bytes, _digest_name: str) -> bytes:
    """Returns a pure Ed25519 signature (deterministic)."""
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return key.sign(message)


def _ed25519_verify(key: PublicKeyTypes, signature: bytes, message: bytes, _digest_name: str) -> None:
    assert isinstance(key, ed25519.Ed25519PublicKey)
    key.verify(signature, message)


def _mldsa_sign(key: PrivateKeyTypes, message: bytes, _digest_name: str) -> bytes:
    """Returns a pure ML-DSA signature with an empty context; hedged (FIPS 204, 5.2), so two signatures of one message differ."""
    assert isinstance(key, mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey)
    return key.sign(message)


def _mldsa_verify(key: PublicKeyTypes, signature: bytes, message: bytes, _digest_name: str) -> None:
    assert isinstance(key, mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey)
    key.verify(signature, message)


def _is_curve(curve: type[ec.EllipticCurve]) -> Callable[[PublicKeyTypes], bool]:
    return lambda key: isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, curve)


def _make_rsa(bits: int) -> Callable[[], CertificateIssuerPrivateKeyTypes]:
    return lambda: rsa.generate_private_key(public_exponent=65537, key_size=bits)


_RSA_ID = AlgorithmIdentifier("1.2.840.113549.1.1.1", null_parameters=True)
_ECDSA_IDS = {
    "sha256": AlgorithmIdentifier("1.2.840.10045.4.3.2", null_parameters=False),
    "sha384": AlgorithmIdentifier("1.2.840.10045.4.3.3", null_parameters=False),
    "sha512": AlgorithmIdentifier("1.2.840.10045.4.3.4", null_parameters=False),
}


def _mldsa_rows() -> tuple[Algorithm, ...]:
    """Returns a row for each parameter set of FIPS 204, none when this machine's cryptography does not know ML-DSA."""
    if mldsa is None:
        return ()
    sets = (
        ("44", "2.16.840.1.101.3.4.3.17", mldsa.MLDSA44PrivateKey, mldsa.MLDSA44PublicKey),
        ("65", "2.16.840.1.101.3.4.3.18", mldsa.MLDSA65PrivateKey, mldsa.MLDSA65PublicKey),
        ("87", "2.16.840.1.101.3.4.3.19", mldsa.MLDSA87PrivateKey, mldsa.MLDSA87PublicKey),
    )
    return tuple(
        Algorithm(
            name=f"ml-dsa-{number}",
            key_types=((f"mldsa{number}", private.generate),),
            fits=lambda key, public=public: isinstance(key, public),  # type: ignore[misc]
            identifiers=(("sha512", AlgorithmIdentifier(oid, null_parameters=False)),),
            sign=_mldsa_sign,
            verify=_mldsa_verify,
            certificate_hash=None,
            first_kernel=(7, 0),
            symbols=("CRYPTO_MLDSA",),
            prehashed=False,
            deterministic=False,
        )
        for number, oid, private, public in sets
    )


ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm(
        name="rsa",
        key_types=(("rsa3072", _make_rsa(3072)), ("rsa4096", _make_rsa(4096)), ("rsa2048", _make_rsa(2048))),
        fits=lambda key: isinstance(key, rsa.RSAPublicKey),
        identifiers=tuple((name, _RSA_ID) for name in HASHES),
        sign=_rsa_sign,
        sign_digest=_rsa_sign_digest,
        verify=_rsa_verify,
        certificate_hash=hashes.SHA256(),
        first_kernel=(3, 7),
        symbols=("CRYPTO_RSA",),
    ),
    Algorithm(
        name="ecdsa-p256",
        key_types=(("p256", lambda: ec.generate_private_key(ec.SECP256R1())),),
        fits=_is_curve(ec.SECP256R1),
        identifiers=tuple(_ECDSA_IDS.items()),
        sign=_ecdsa_sign,
        sign_digest=_ecdsa_sign_digest,
        verify=_ecdsa_verify,
        certificate_hash=hashes.SHA256(),
        first_kernel=(5, 13),
        symbols=("CRYPTO_ECDSA",),
    ),
    Algorithm(
        name="ecdsa-p384",
        key_types=(("p384", lambda: ec.generate_private_key(ec.SECP384R1())),),
        fits=_is_curve(ec.SECP384R1),
        identifiers=tuple((name, _ECDSA_IDS[name]) for name in ("sha384", "sha512", "sha256")),
        sign=_ecdsa_sign,
        sign_digest=_ecdsa_sign_digest,
        verify=_ecdsa_verify,
        certificate_hash=hashes.SHA384(),
        first_kernel=(5, 13),
        symbols=("CRYPTO_ECDSA",),
    ),
    Algorithm(
        name="ed25519",
        key_types=(),
        fits=lambda key: isinstance(key, ed25519.Ed25519PublicKey),
        identifiers=(("sha512", AlgorithmIdentifier("1.3.101.112", null_parameters=False)),),
        sign=_ed25519_sign,
        verify=_ed25519_verify,
        certificate_hash=None,
        first_kernel=None,
        symbols=(),
        prehashed=False,
    ),
    *_mldsa_rows(),
)


def algorithm_of(key: PublicKeyTypes) -> Algorithm:
    """Returns the row of a public key. Raises: SigningKeyError when no row fits (DSA, an unknown curve, …)."""
    for row in ALGORITHMS:
        if row.fits(key):
            return row
    curve = f" on {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else ""
    raise SigningKeyError(
        f"a key of type {type(key).__name__.removesuffix('PublicKey').lstrip('_')}{curve} cannot sign what a kernel checks",
        hint=f"use one of {', '.join(KEY_MAKERS)}",
    )


KEY_MAKERS: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {name: make for row in ALGORITHMS for name, make in row.key_types}
"""The key types that `keys create` can make, by name."""


def is_signature(key: PublicKeyTypes, signature: bytes, message: bytes, digest_name: str) -> bool:
    """Returns whether `signature` is the key's over `message`. Raises: SigningKeyError for a key or digest that no row knows."""
    row = algorithm_of(key)
    row.identifier(digest_name)
    try:
        row.verify(key, signature, message, digest_name)
    except InvalidSignature:
        return False
    return True


def name_of_oid(oid: str) -> str:
    """Returns the name of the algorithm that a CMS signature names: `rsa`, `ecdsa` (the OID does not say the curve), or the OID."""
    rows = [row.name for row in ALGORITHMS if any(identifier.oid == oid for _, identifier in row.identifiers)]
    return rows[0] if len(rows) == 1 else rows[0].partition("-")[0] if rows else oid


def errno_of_wrong_signature(key: PublicKeyTypes, signature: bytes, digest_name: str) -> str:
    """Returns what the kernel's signature check itself answers to a wrong signature; above it that often becomes EKEYREJECTED.

    An RSA signature that is not a padded block at all is EINVAL, one over another digest EKEYREJECTED (crypto/rsa-pkcs1pad.c,
    pkcs1pad_verify_complete).
    """
    if isinstance(key, rsa.RSAPublicKey):
        try:
            key.recover_data_from_signature(signature, padding.PKCS1v15(), HASHES[digest_name])
        except InvalidSignature:
            return "EINVAL"
    return "EKEYREJECTED"
