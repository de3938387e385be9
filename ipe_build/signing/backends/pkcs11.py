"""Keys in a token: `pkcs11:` URIs of RFC 7512. The private key never leaves it: SoftHSM, an HSM, OP-TEE's or a TPM's module alike.

    pkcs11:token=NAME;id=%01;object=LABEL?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/pin

Keys are chosen by id; labels repeat. The PIN comes from `pin-source` (a file), `pin-env` (a variable), or IPE_BUILD_PIN.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, unquote_to_bytes

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ipe_build.errors import SigningKeyError, ToolMissingError
from ipe_build.signing.algorithms import algorithm_of
from ipe_build.signing.checked import check_result, ecdsa_digest, ecdsa_to_der
from ipe_build.signing.loading import public_key_of
from ipe_build.signing.uris import KeyUri, parse_key_uri, read_secret

if TYPE_CHECKING:
    from ipe_build.host import Host

ENVIRONMENT_NAME = "IPE_BUILD_PIN"
MODULE_VARIABLE = "PKCS11_MODULE_PATH"
_QUERY = ("module-path", "pin-source", "pin-env")
_PATH = ("token", "serial", "manufacturer", "model", "id", "object", "type")
_DIGEST_INFO = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
"""DER of DigestInfo up to the digest (RFC 8017 section 9.2, note 1): the token only pads and computes, whatever hashes it knows."""

_EXPLAINED: dict[str, tuple[str, str]] = {
    "PinIncorrect": ("the PIN is wrong", "tokens lock after a few wrong PINs: check it before you try again"),
    "PinLenRange": ("the PIN has a length that the token cannot have", ""),
    "PinInvalid": ("the PIN has characters that the token cannot take", ""),
    "PinLocked": ("the token is locked: too many wrong PINs", "its security officer must unlock it"),
    "PinExpired": ("the PIN has expired", "set a new one"),
    "UserPinNotInitialized": ("the token has no user PIN yet", "initialise it"),
    "NoSuchToken": ("no such token", "list tokens: pkcs11-tool -L, or softhsm2-util --show-slots"),
    "MultipleTokensReturned": ("more than one token fits", "add serial="),
    "NoSuchKey": ("the token has no such private key", "list keys: pkcs11-tool -O --login"),
    "MultipleObjectsReturned": ("more than one private key fits", "choose by id=: labels repeat"),
    "UserNotLoggedIn": ("the key wants a PIN", f"set {ENVIRONMENT_NAME}, or add pin-source=FILE or pin-env=NAME"),
    "DeviceRemoved": ("the token was removed", ""),
    "FunctionFailed": ("the token failed at its work", "look at the token's own log"),
    "KeyFunctionNotPermitted": ("the token does not allow this key to sign", "make the key with CKA_SIGN"),
    "MechanismInvalid": ("the token cannot sign this way", ""),
}
"""What a token's answers mean, by the class that python-pkcs11 raises: message, hint."""


class Pkcs11Signer:
    """A key in a token that is logged in. Satisfies `Signer`."""

    survives_fork = False

    def __init__(self, key: Any, certificate: x509.Certificate, where: str) -> None:
        """`key` is a private key object of python-pkcs11, in an open session."""
        self._key = key
        self._certificate = certificate
        self._where = where

    @property
    def certificate(self) -> x509.Certificate:
        """Returns the key's certificate."""
        return self._certificate

    def sign(self, message: bytes, digest_name: str) -> bytes:
        """Returns the raw signature, checked against the certificate; see `Signer.sign`."""
        import pkcs11

        public = public_key_of(self._certificate)
        algorithm_of(public).identifier(digest_name)
        try:
            if isinstance(public, rsa.RSAPublicKey):
                block = _DIGEST_INFO[digest_name] + hashlib.new(digest_name, message).digest()
                raw = bytes(self._key.sign(block, mechanism=pkcs11.Mechanism.RSA_PKCS))
            elif isinstance(public, ec.EllipticCurvePublicKey):
                block = ecdsa_digest(public, message, digest_name)
                raw = ecdsa_to_der(bytes(self._key.sign(block, mechanism=pkcs11.Mechanism.ECDSA)), self._where)
            else:
                raise SigningKeyError("tokens are asked for RSA and ECDSA signatures only", where=self._where)
        except pkcs11.PKCS11Error as error:
            _explain(error, self._where)
        return check_result(raw, message, digest_name, self._certificate, self._where)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """Which key in which token, as a pkcs11: URI says; None is anything. `id` is CKA_ID, `label` CKA_LABEL."""

    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    id: bytes | None = None
    label: str | None = None

    def fits(self, token: Any) -> bool:
        """Returns whether a token of python-pkcs11 is meant."""
        serial = token.serial.decode("ascii", "replace") if isinstance(token.serial, bytes) else token.serial
        pairs = ((self.token, token.label), (self.serial, serial), (self.manufacturer, token.manufacturer_id), (self.model, token.model))
        return all(wanted is None or wanted == found for wanted, found in pairs)


def open_pkcs11(uri: str, certificate: x509.Certificate, host: Host) -> Pkcs11Signer:
    """Returns the signer of a pkcs11: URI. Raises: SigningKeyError, ToolMissingError; never with the PIN in it."""
    parts = parse_key_uri(uri, _QUERY)
    wanted = parse_token_key(parts.body)
    where = f"pkcs11 token {wanted.token or wanted.serial}"
    return Pkcs11Signer(_find_key(_module_path(parts, host), wanted, _pin(parts, host), where), certificate, where)


def parse_token_key(body: str) -> TokenKey:
    """Returns what a pkcs11: URI says before its `?`. Raises: SigningKeyError for an unknown attribute, a PIN, or too little."""
    found: dict[str, str] = {}
    for item in filter(None, body.split(";")):
        name, _, value = item.partition("=")
        if name == "pin-value":
            raise SigningKeyError("pin-value would put the PIN on the command line", where="pkcs11: URI", hint="use pin-source or pin-env")
        if name not in _PATH:
            raise SigningKeyError(f"unknown attribute {name[:40]!r}", where="pkcs11: URI", hint=f"known are {', '.join(_PATH)}")
        found[name] = value
    if not found.keys() & {"token", "serial"} or not found.keys() & {"id", "object"} or found.get("type", "private") != "private":
        raise SigningKeyError(
            "names no token or no private key", where="pkcs11: URI", hint="wanted 'pkcs11:token=NAME;id=%01' (quoted: a shell ends at ;)"
        )
    text = {name: unquote(value) for name, value in found.items()}
    key_id = unquote_to_bytes(found["id"]) if "id" in found else None
    return TokenKey(text.get("token"), text.get("serial"), text.get("manufacturer"), text.get("model"), key_id, text.get("object"))


def _pin(parts: KeyUri, host: Host) -> str | None:
    """Returns the PIN. `pin-source` is a path or a file: URI."""
    source = parts.get("pin-source")
    if source is not None:
        source = source.removeprefix("file://").removeprefix("file:")
    return read_secret(variable=parts.get("pin-env"), path=source, default_variable=ENVIRONMENT_NAME, env=host.env)


def _module_path(parts: KeyUri, host: Host) -> Path:
    """Returns the PKCS#11 module to load. Raises: SigningKeyError when none is named or it is missing."""
    named = parts.get("module-path") or host.env.get(MODULE_VARIABLE)
    if not named:
        raise SigningKeyError(
            "names no PKCS#11 module", where="pkcs11: URI", hint=f"add ?module-path=/usr/lib/….so, or set {MODULE_VARIABLE}"
        )
    if not Path(named).is_file():
        raise SigningKeyError("the PKCS#11 module does not exist", where=named, hint="install the token's software")
    return Path(named)


def _find_key(module: Path, wanted: TokenKey, pin: str | None, where: str) -> Any:
    """Returns the private key object in a session that is logged in."""
    try:
        import pkcs11
    except ImportError as error:
        raise ToolMissingError(
            "the Python package python-pkcs11 is needed for pkcs11: keys", hint="pip install 'ipe-build[pkcs11]'"
        ) from error
    try:
        tokens = [token for token in pkcs11.lib(str(module)).get_tokens() if wanted.fits(token)]
        if len(tokens) != 1:
            raise pkcs11.MultipleTokensReturned if tokens else pkcs11.NoSuchToken
        try:
            session = tokens[0].open(user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:
            # A process logs in to a token once; another key of the same token is opened in a further session.
            session = tokens[0].open()
        return session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, id=wanted.id, label=wanted.label)
    except (pkcs11.PKCS11Error, RuntimeError, OSError) as error:
        if pin is None and isinstance(error, pkcs11.NoSuchKey):
            _, hint = _EXPLAINED["UserNotLoggedIn"]
            raise SigningKeyError("no PIN was given, and without one the token shows no such private key", where=where, hint=hint) from None
        _explain(error, where)


def _explain(error: Exception, where: str) -> NoReturn:
    """Raises our error for a token's answer. The library's text is left out where it may hold what was asked with."""
    name = type(error).__name__
    message, hint = _EXPLAINED.get(name, (f"the token refused: {name}", ""))
    if name in ("RuntimeError", "PKCS11Error", "OSError"):
        message, hint = "is not a PKCS#11 module that can be loaded", "name the token's own .so file"
    raise SigningKeyError(message, where=where, hint=hint) from None
