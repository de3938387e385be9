"""CMS SignedData (PKCS#7) around a raw signature: assembled and read byte for byte as the kernel's tools do.

The key never comes here: whoever made the raw signature (a file's key, a token, a signing server) gets it wrapped the same way.
Signed attributes are never made, so the raw signature is over the content itself.
Source: RFC 5652 sections 5.1 and 5.3, RFC 2315 section 9, crypto/asymmetric_keys/pkcs7.asn1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from asn1crypto import algos, cms, core, x509

from ipe_build.errors import FormatError


class Layout(StrEnum):
    """How the digest's AlgorithmIdentifier is written: the one place where OpenSSL's two signers differ."""

    SMIME = "smime"
    """`openssl smime` and `fsverity sign`: the digest algorithm carries NULL parameters."""
    CMS = "cms"
    """`openssl cms` and the kernel's scripts/sign-file: the digest algorithm carries no parameters."""


@dataclass(frozen=True, slots=True)
class AlgorithmIdentifier:
    """A signature algorithm as SignerInfo names it: dotted OID, and whether NULL parameters follow (RSA) or none (all others)."""

    oid: str
    null_parameters: bool


@dataclass(frozen=True, slots=True)
class SignerIdentity:
    """Who signed, as SignerInfo says it: the issuer's Name (DER) and serial number of the signer's certificate, or a key id."""

    issuer: bytes
    serial: int
    subject_key_id: bytes = b""


@dataclass(frozen=True, slots=True)
class SignerInfo:
    """One signature: who, with which algorithms, over which bytes.

    `signed_attributes` is the DER SET OF that the signature is over when attributes are signed, empty otherwise;
    `message_digest` is the attribute that then binds the content, `attribute_oids` the types of all signed attributes, in order.
    """

    signer: SignerIdentity
    digest_name: str
    algorithm: AlgorithmIdentifier
    signature: bytes
    signed_attributes: bytes = b""
    message_digest: bytes = b""
    attribute_oids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SignedData:
    """A CMS message: its content (None when detached), the certificates it carries (DER), its signatures."""

    content: bytes | None
    certificates: tuple[bytes, ...]
    signer_infos: tuple[SignerInfo, ...]


def signer_identity(certificate: bytes) -> SignerIdentity:
    """Returns issuer and serial of a DER certificate, the issuer's bytes exactly as the certificate has them."""
    tbs = x509.Certificate.load(certificate)["tbs_certificate"]
    return SignerIdentity(tbs["issuer"].dump(), tbs["serial_number"].native)


def encode_signed_data(message: SignedData, layout: Layout) -> bytes:
    """Returns the DER ContentInfo of a message with one signature and no attributes.

    The bytes are those that `openssl smime -sign -noattr -nosmimecap -binary -outform der` (SMIME) or
    `openssl cms -sign -noattr` and sign-file (CMS) make around the same raw signature.
    """
    (info,) = message.signer_infos
    digest_oid = algos.DigestAlgorithmId(info.digest_name).dotted
    digest = algos.DigestAlgorithm.load(algorithm_der(AlgorithmIdentifier(digest_oid, layout is Layout.SMIME)))
    algorithm = algos.SignedDigestAlgorithm.load(algorithm_der(info.algorithm))
    identity = cms.IssuerAndSerialNumber({"issuer": x509.Name.load(info.signer.issuer), "serial_number": info.signer.serial})
    content: dict[str, object] = {"content_type": "data"}
    if message.content is not None:
        content["content"] = message.content
    fields: dict[str, object] = {
        "version": "v1",
        "digest_algorithms": [digest],
        "encap_content_info": content,
        "signer_infos": [
            cms.SignerInfo(
                {
                    "version": "v1",
                    "sid": cms.SignerIdentifier("issuer_and_serial_number", identity),
                    "digest_algorithm": digest,
                    "signature_algorithm": algorithm,
                    "signature": info.signature,
                }
            )
        ],
    }
    if message.certificates:
        fields["certificates"] = [
            cms.CertificateChoices("certificate", x509.Certificate.load(certificate)) for certificate in message.certificates
        ]
    return bytes(cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(fields)}).dump())


def algorithm_der(identifier: AlgorithmIdentifier) -> bytes:
    """Returns the DER of an AlgorithmIdentifier with exactly the parameters that were asked for.

    The generic class is used because asn1crypto's DigestAlgorithm puts NULL parameters where none were given.
    """
    parameters = {"parameters": core.Null()} if identifier.null_parameters else {}
    return bytes(algos.AlgorithmIdentifier({"algorithm": identifier.oid, **parameters}).dump())


def decode_signed_data(der: bytes, where: str = "signature") -> SignedData:
    """Returns what a DER ContentInfo holds; `where` names it in errors.

    Raises: FormatError when it is not DER SignedData of content type data with at least one signature.
    """
    try:
        return _decode(der, where)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise FormatError(
            f"is not CMS SignedData: {text}", where=where, hint="a DER file is wanted, not PEM and not S/MIME text"
        ) from error


def _decode(der: bytes, where: str) -> SignedData:
    """Returns the message. asn1crypto parses lazily: `native` makes it read whole fields, for the kernel's parser does that too.

    Certificates are left as bytes: who verifies parses them with `cryptography`, which knows newer keys.
    """
    outer = cms.ContentInfo.load(der, strict=True)
    if outer["content_type"].native != "signed_data":
        raise FormatError(f"wanted CMS SignedData, got {outer['content_type'].native}", where=where)
    data = outer["content"]
    for field in ("version", "digest_algorithms", "encap_content_info", "crls", "signer_infos"):
        _ = data[field].native
    versions = (_number(data["version"]), *(_number(info["version"]) for info in data["signer_infos"]))
    wanted = [(1, "issuer_and_serial_number"), (3, "subject_key_identifier")]
    if any((versions[0], info["sid"].name) not in wanted for info in data["signer_infos"]) or len(set(versions)) != 1:
        raise FormatError(f"wanted versions 1 with issuer and serial number, or 3 with key ids, got {versions}", where=where)
    inner = data["encap_content_info"]
    if inner["content_type"].native != "data":
        raise FormatError(f"wanted content of type data, got {inner['content_type'].native}", where=where)
    infos = tuple(decode_signer_info(info) for info in data["signer_infos"])
    if not infos:
        raise FormatError("holds no signature", where=where)
    certificates = tuple(choice.chosen.dump() for choice in data["certificates"] if choice.name == "certificate")
    return SignedData(inner["content"].native, certificates, infos)


def _number(version: cms.CMSVersion) -> int:
    """Returns the number of a version, which asn1crypto names v0 to v5."""
    return int(str(version.native).removeprefix("v"))


def decode_signer_info(info: cms.SignerInfo) -> SignerInfo:
    """Returns one SignerInfo."""
    sid = info["sid"]
    if sid.name == "issuer_and_serial_number":
        identity = SignerIdentity(sid.chosen["issuer"].dump(), sid.chosen["serial_number"].native)
    else:
        identity = SignerIdentity(b"", 0, sid.chosen.native)
    algorithm = info["signature_algorithm"]
    parameters = algorithm["parameters"]
    attributes, message_digest = b"", b""
    oids: tuple[str, ...] = ()
    if info["signed_attrs"]:
        attributes = info["signed_attrs"].untag().dump()
        oids = tuple(item["type"].dotted for item in info["signed_attrs"])
        message_digest = next((item["values"][0].native for item in info["signed_attrs"] if item["type"].native == "message_digest"), b"")
    return SignerInfo(
        identity,
        info["digest_algorithm"]["algorithm"].native,
        AlgorithmIdentifier(algorithm["algorithm"].dotted, isinstance(parameters, core.Null)),
        info["signature"].native,
        attributes,
        message_digest,
        oids,
    )
