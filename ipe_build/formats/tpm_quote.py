"""What a TPM 2.0 signs when it is asked for a quote, the signature, and the attestation key's public part: bytes to values.

Everything is big-endian; a size in front of a buffer is 16 bits wide. Nothing is trusted, every length is checked.

Source: TCG "Trusted Platform Module Library", part 2: Structures, revision 1.59 (TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC).
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ipe_build.formats.byte_reader import ByteReader
from ipe_build.formats.tpm_event_log import ALGORITHMS, PCR_COUNT

MAGIC = 0xFF544347
TYPE_QUOTE = 0x8018
FIXED_TPM, SENSITIVE_DATA_ORIGIN, RESTRICTED, DECRYPT, SIGN = 1 << 1, 1 << 5, 1 << 16, 1 << 17, 1 << 18
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
_RSA, _ECC, _NULL = 0x0001, 0x0023, 0x0010
_RSASSA, _RSAPSS, _ECDSA = 0x0014, 0x0016, 0x0018
_SCHEMES = {_RSASSA: "rsassa", _RSAPSS: "rsapss", _ECDSA: "ecdsa"}
_HASHES: dict[str, hashes.HashAlgorithm] = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
_NAMES = {row.identifier: row.name for row in ALGORITHMS}
_CURVES: dict[int, ec.EllipticCurve] = {3: ec.SECP256R1(), 4: ec.SECP384R1(), 5: ec.SECP521R1()}
_MAX_SELECTIONS = 16
_DEFAULT_EXPONENT = 65537


@dataclass(frozen=True, slots=True)
class Quote:
    """A parsed TPMS_ATTEST of a quote. `data` is the exact bytes that are signed; `selections` are (bank, PCRs in order).

    `nonce` is what the asker gave (extraData); `reset_count` and `restart_count` grow with each start of the TPM.
    """

    data: bytes
    qualified_signer: bytes
    nonce: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[tuple[str, tuple[int, ...]], ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True)
class QuoteSignature:
    """A parsed TPMT_SIGNATURE: `scheme` is rsassa, rsapss or ecdsa, `value` as `cryptography` takes it (ECDSA: DER of r and s)."""

    scheme: str
    digest_name: str
    value: bytes


@dataclass(frozen=True, slots=True)
class TpmPublic:
    """A parsed TPM2B_PUBLIC: the key and the attributes that the TPM gave it."""

    key: PublicKey
    attributes: int

    @property
    def is_attestation_key(self) -> bool:
        """Returns whether the key never left its TPM and signs only what that TPM itself says (restricted)."""
        wanted = FIXED_TPM | SENSITIVE_DATA_ORIGIN | RESTRICTED | SIGN
        return self.attributes & (wanted | DECRYPT) == wanted


def parse_quote(data: bytes, where: str = "quote") -> Quote:
    """Returns the quote in a TPMS_ATTEST (the file that `tpm2_quote --message` writes).

    Raises: FormatError when the magic is not a TPM's, it attests something else, or lengths do not fit.
    """
    reader = ByteReader(data, where, "big")
    magic = reader.number(4, "magic")
    if magic != MAGIC:
        raise reader.error(f"wanted the magic of what a TPM signs, {MAGIC:#x}, got {magic:#x}")
    kind = reader.number(2, "type")
    if kind != TYPE_QUOTE:
        raise reader.error(f"wanted a quote (type {TYPE_QUOTE:#x}), got {kind:#x}")
    signer, nonce = reader.sized("qualified signer"), reader.sized("extra data")
    clock, resets, restarts = reader.number(8, "clock"), reader.number(4, "reset count"), reader.number(4, "restart count")
    safe, version = reader.number(1, "safe"), reader.number(8, "firmware version")
    count = reader.number(4, "number of selections")
    if count > _MAX_SELECTIONS:
        raise reader.error(f"wanted at most {_MAX_SELECTIONS} PCR selections, got {count}")
    selections = tuple(_selection(reader) for _ in range(count))
    digest = reader.sized("PCR digest")
    reader.end()
    return Quote(data, signer, nonce, clock, resets, restarts, bool(safe), version, selections, digest)


def parse_signature(data: bytes, where: str = "quote signature") -> QuoteSignature:
    """Returns the signature in a TPMT_SIGNATURE (the file that `tpm2_quote --signature` writes). Raises: FormatError."""
    reader = ByteReader(data, where, "big")
    scheme = reader.number(2, "scheme")
    if scheme not in _SCHEMES:
        raise reader.error(f"wanted a signature of scheme rsassa, rsapss or ecdsa, got {scheme:#06x}")
    digest_name = _NAMES.get(number := reader.number(2, "hash algorithm"), f"{number:#06x}")
    if digest_name not in _HASHES:
        raise reader.error(f"wanted a signature over {', '.join(_HASHES)}, got {digest_name}")
    if scheme == _ECDSA:
        r, s = reader.sized("r"), reader.sized("s")
        value = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    else:
        value = reader.sized("signature")
    reader.end()
    return QuoteSignature(_SCHEMES[scheme], digest_name, value)


def parse_public(data: bytes, where: str = "attestation key") -> TpmPublic:
    """Returns the key in a TPM2B_PUBLIC (what `tpm2_createak --public` writes). Raises: FormatError."""
    reader = ByteReader(data, where, "big")
    size = reader.number(2, "size")
    if size != len(data) - 2:
        raise reader.error(f"wanted a TPM2B_PUBLIC of {len(data) - 2} bytes, it says {size}")
    kind = reader.number(2, "type")
    reader.number(2, "name algorithm")
    attributes = reader.number(4, "attributes")
    reader.sized("policy")
    if reader.number(2, "symmetric algorithm") != _NULL:
        reader.take(4, "symmetric parameters")
    if reader.number(2, "scheme") != _NULL:
        reader.number(2, "scheme's hash")
    try:
        key = _rsa_key(reader) if kind == _RSA else _ecc_key(reader) if kind == _ECC else None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise reader.error(f"the key is not a usable one: {error}") from error
    if key is None:
        raise reader.error(f"wanted an RSA or ECC key, got type {kind:#06x}")
    reader.end()
    return TpmPublic(key, attributes)


def is_signed_by(quote: Quote, signature: QuoteSignature, key: PublicKey) -> bool:
    """Returns whether the signature is the key's, over the quote's exact bytes."""
    algorithm = _HASHES[signature.digest_name]
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if signature.scheme != "ecdsa":
                return False
            key.verify(signature.value, quote.data, ec.ECDSA(algorithm))
            return True
        if signature.scheme == "ecdsa":
            return False
        pad = padding.PKCS1v15() if signature.scheme == "rsassa" else padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
        key.verify(signature.value, quote.data, pad, algorithm)
    except (InvalidSignature, ValueError):
        return False
    return True


def _selection(reader: ByteReader) -> tuple[str, tuple[int, ...]]:
    """Returns a bank and its selected PCRs. Raises: FormatError."""
    number = reader.number(2, "bank")
    bank = _NAMES.get(number)
    if bank is None:
        raise reader.error(f"wanted a PCR bank that is known, got {number:#06x}")
    bits = reader.take(reader.number(1, "size of the selection"), "selection")
    chosen = tuple(pcr for pcr in range(8 * len(bits)) if bits[pcr // 8] >> (pcr % 8) & 1)
    if chosen and chosen[-1] >= PCR_COUNT:
        raise reader.error(f"wanted PCRs below {PCR_COUNT}, got {chosen[-1]}")
    return bank, chosen


def _rsa_key(reader: ByteReader) -> rsa.RSAPublicKey:
    """Returns the RSA key that follows. Raises: FormatError, ValueError."""
    reader.number(2, "key bits")
    exponent = reader.number(4, "exponent") or _DEFAULT_EXPONENT
    return rsa.RSAPublicNumbers(exponent, int.from_bytes(reader.sized("modulus"), "big")).public_key()


def _ecc_key(reader: ByteReader) -> ec.EllipticCurvePublicKey:
    """Returns the ECC key that follows. Raises: FormatError, ValueError."""
    number = reader.number(2, "curve")
    if reader.number(2, "key derivation") != _NULL:
        reader.number(2, "key derivation's hash")
    x, y = reader.sized("x"), reader.sized("y")
    curve = _CURVES.get(number)
    if curve is None:
        raise reader.error(f"wanted P-256, P-384 or P-521, got curve {number:#06x}")
    return ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve).public_key()
