"""The signature that is inside a signed EFI program: PKCS#7 SignedData around SpcIndirectDataContent, written and read.

Source: "Windows Authenticode Portable Executable Signature Format" of Microsoft; EDK II, DxeImageVerificationLib (HashPeImageByType) and
BaseCryptLib (AuthenticodeVerify); crypto/asymmetric_keys/{mscode,pkcs7}.asn1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from asn1crypto import algos, cms, core, x509

from ipe_build.errors import FormatError
from ipe_build.formats.cms import AlgorithmIdentifier, SignerIdentity, SignerInfo, algorithm_der, decode_signer_info

INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4"
_PE_IMAGE_DATA = "1.3.6.1.4.1.311.2.1.15"


class _SpcString(core.Choice):  # type: ignore[misc]
    _alternatives = [("unicode", core.BMPString, {"implicit": 0}), ("ascii", core.IA5String, {"implicit": 1})]  # noqa: RUF012


class _SpcLink(core.Choice):  # type: ignore[misc]
    _alternatives = [  # noqa: RUF012
        ("url", core.IA5String, {"implicit": 0}),
        ("moniker", core.Any, {"implicit": 1}),
        ("file", _SpcString, {"explicit": 2}),
    ]


class _SpcPeImageData(core.Sequence):  # type: ignore[misc]
    _fields = [("flags", core.BitString), ("file", _SpcLink, {"explicit": 0})]  # noqa: RUF012


class _SpcAttribute(core.Sequence):  # type: ignore[misc]
    _fields = [("type", core.ObjectIdentifier), ("value", core.Any, {"optional": True})]  # noqa: RUF012


class _DigestInfo(core.Sequence):  # type: ignore[misc]
    _fields = [("digest_algorithm", algos.AlgorithmIdentifier), ("digest", core.OctetString)]  # noqa: RUF012


class _SpcIndirectData(core.Sequence):  # type: ignore[misc]
    _fields = [("data", _SpcAttribute), ("message_digest", _DigestInfo)]  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class SpcSignature:
    """A decoded signature. `image_digest` is what it says the image's Authenticode digest is, by `digest_name`.

    `content` is the value of SpcIndirectDataContent without its tag and length: what a signed messageDigest, or a signature without
    signed attributes, is over.
    """

    digest_name: str
    image_digest: bytes
    content: bytes
    certificates: tuple[bytes, ...]
    signer_infos: tuple[SignerInfo, ...]


def signed_attributes(image_digest: bytes, digest_name: str) -> bytes:
    """Returns the bytes that the key signs: DER SET OF contentType (SpcIndirectData) and messageDigest over the content.

    No signing time is in it, so the same image and key give the same signature.
    """
    content = _indirect_data(image_digest, digest_name)
    return bytes(_attributes(hashlib.new(digest_name, content.contents).digest()).dump())


def encode_spc(
    image_digest: bytes,
    digest_name: str,
    signer: SignerIdentity,
    algorithm: AlgorithmIdentifier,
    signature: bytes,
    certificates: tuple[bytes, ...],
) -> bytes:
    """Returns the DER of the whole signature; `signature` is the raw one over `signed_attributes`.

    It begins so that firmware finds the digest algorithm's OID at offset 32, where it looks for it: all lengths before take two bytes.
    """
    content = _indirect_data(image_digest, digest_name)
    digest = algos.DigestAlgorithm.load(_digest_algorithm(digest_name))
    info = cms.SignerInfo(
        {
            "version": "v1",
            "sid": cms.SignerIdentifier(
                "issuer_and_serial_number",
                cms.IssuerAndSerialNumber({"issuer": x509.Name.load(signer.issuer), "serial_number": signer.serial}),
            ),
            "digest_algorithm": digest,
            "signed_attrs": _attributes(hashlib.new(digest_name, content.contents).digest()),
            "signature_algorithm": algos.SignedDigestAlgorithm.load(algorithm_der(algorithm)),
            "signature": signature,
        }
    )
    fields = {
        "version": "v1",
        "digest_algorithms": [digest],
        "encap_content_info": {"content_type": INDIRECT_DATA, "content": content.retag({"explicit": 0})},
        "certificates": [cms.CertificateChoices("certificate", x509.Certificate.load(raw)) for raw in certificates],
        "signer_infos": [info],
    }
    return bytes(cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(fields)}).dump())


def decode_spc(der: bytes, where: str = "signature") -> SpcSignature:
    """Returns what a signature holds; zeros after it (padding of the certificate table) are passed over.

    Raises: FormatError when it is not SignedData around SpcIndirectDataContent of a PE image with at least one signature.
    """
    try:
        return _decode(_without_padding(der), where)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError) as error:
        raise FormatError(f"is no Authenticode signature: {' '.join(str(error).split())}", where=where) from error


def _decode(der: bytes, where: str) -> SpcSignature:
    """Returns the signature; `native` makes asn1crypto read whole fields, which it would else put off."""
    outer = cms.ContentInfo.load(der, strict=True)
    if outer["content_type"].native != "signed_data":
        raise FormatError(f"wanted PKCS#7 SignedData, got {outer['content_type'].native}", where=where)
    data = outer["content"]
    if data["version"].native != "v1":
        raise FormatError(f"wanted SignedData version 1, got {data['version'].native}", where=where)
    for field in ("digest_algorithms", "signer_infos"):
        _ = data[field].native
    inner = data["encap_content_info"]
    if inner["content_type"].native != INDIRECT_DATA:
        raise FormatError(f"wanted content of type SpcIndirectData, got {inner['content_type'].native}", where=where)
    content = _SpcIndirectData.load(inner["content"].parse(_SpcIndirectData).untag().dump(), strict=True)
    _ = content["message_digest"].native
    if content["data"]["type"].native != _PE_IMAGE_DATA:
        raise FormatError(f"wanted the digest of a PE image, got {content['data']['type'].native}", where=where)
    infos = tuple(decode_signer_info(info) for info in data["signer_infos"])
    if not infos:
        raise FormatError("holds no signature", where=where)
    certificates = tuple(choice.chosen.dump() for choice in data["certificates"] if choice.name == "certificate")
    digest = content["message_digest"]
    name = algos.DigestAlgorithmId(digest["digest_algorithm"]["algorithm"].dotted).native
    return SpcSignature(name, digest["digest"].native, content.contents, certificates, infos)


def _without_padding(der: bytes) -> bytes:
    """Returns the DER value at the start, without zeros behind it."""
    if der[:1] != b"\x30" or len(der) < 2:
        return der
    octets = der[1] & 0x7F if der[1] & 0x80 else 0
    length = int.from_bytes(der[2 : 2 + octets], "big") if octets else der[1]
    end = 2 + octets + length
    return der if der[end:].strip(b"\0") else der[:end]


def _indirect_data(image_digest: bytes, digest_name: str) -> Any:
    """Returns SpcIndirectDataContent: a PE image (its unused file name empty) with this digest."""
    image = _SpcPeImageData({"flags": (), "file": _SpcLink("file", _SpcString("unicode", core.BMPString("")))})
    digest = _DigestInfo({"digest_algorithm": algos.AlgorithmIdentifier.load(_digest_algorithm(digest_name)), "digest": image_digest})
    made = _SpcIndirectData({"data": {"type": _PE_IMAGE_DATA, "value": image}, "message_digest": digest})
    return _SpcIndirectData.load(made.dump())


def _digest_algorithm(name: str) -> bytes:
    """Returns the DER AlgorithmIdentifier of a digest, with NULL parameters as sbsign writes them."""
    return algorithm_der(AlgorithmIdentifier(algos.DigestAlgorithmId(name).dotted, null_parameters=True))


def _attributes(content_digest: bytes) -> cms.CMSAttributes:
    """Returns the signed attributes."""
    return cms.CMSAttributes(
        [
            cms.CMSAttribute({"type": "content_type", "values": [INDIRECT_DATA]}),
            cms.CMSAttribute({"type": "message_digest", "values": [content_digest]}),
        ]
    )
