"""CoRIM: reference values as concise CBOR that other verifiers read. Experimental: the specification is a draft.

An unsigned CoRIM (tag 501) with one CoMID (tag 506) with one reference triple: an environment, and the values of its PCRs as integrity
registers. It says what the draft can say; that a PCR must be zero is said by its value.
Source: draft-ietf-rats-corim-10, chapters 4 and 5 (CDDL); RFC 8949, section 4.2.1 (deterministic CBOR); IANA "Named Information Hash
Algorithm Registry".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ipe_build.errors import FormatError, ToolMissingError

DRAFT = "draft-ietf-rats-corim-10"
ALGORITHMS = {"sha256": 1, "sha384": 7, "sha512": 8}
"""Names of hashlib and their numbers in the registry."""
_CORIM, _COMID = 501, 506
_ID, _TAGS = 0, 1
_TAG_IDENTITY, _TRIPLES, _REFERENCE_TRIPLES = 1, 4, 0
_CLASS, _VENDOR, _MODEL = 0, 1, 2
_MKEY, _MVAL, _NAME, _INTEGRITY_REGISTERS = 0, 1, 11, 14
_WHERE = "CoRIM"


def encode_corim(identity: str, vendor: str, model: str, pcrs: Mapping[str, Mapping[int, bytes]]) -> bytes:
    """Returns the CoRIM's bytes (deterministic CBOR). `identity` names the manifest, `model` the image, `pcrs` are by bank and number.

    Raises: ToolMissingError when the library cbor2 is not installed.
    """
    cbor2 = _library()
    numbers = sorted({number for values in pcrs.values() for number in values})
    registers = {number: [[ALGORITHMS[bank], values[number]] for bank, values in pcrs.items() if number in values] for number in numbers}
    environment = {_CLASS: {_VENDOR: vendor, _MODEL: model}}
    measurement = {_MKEY: "tpm-pcrs", _MVAL: {_NAME: model, _INTEGRITY_REGISTERS: registers}}
    comid = {_TAG_IDENTITY: {0: identity}, _TRIPLES: {_REFERENCE_TRIPLES: [[environment, [measurement]]]}}
    inner = cbor2.CBORTag(_COMID, cbor2.dumps(comid, canonical=True))
    made: bytes = cbor2.dumps(cbor2.CBORTag(_CORIM, {_ID: identity, _TAGS: [inner]}), canonical=True)
    return made


def decode_corim(data: bytes) -> dict[str, dict[int, bytes]]:
    """Returns the PCRs, by bank and number, of a CoRIM that `encode_corim` made. Raises: FormatError, ToolMissingError."""
    cbor2 = _library()
    try:
        corim = cbor2.loads(data)
        comid = cbor2.loads(corim.value[_TAGS][0].value)
        if (corim.tag, corim.value[_TAGS][0].tag) != (_CORIM, _COMID):
            raise ValueError("another tag")
        ((_, (measurement,)),) = comid[_TRIPLES][_REFERENCE_TRIPLES]
        names = {number: name for name, number in ALGORITHMS.items()}
        pcrs: dict[str, dict[int, bytes]] = {}
        for register, digests in measurement[_MVAL][_INTEGRITY_REGISTERS].items():
            for algorithm, digest in digests:
                pcrs.setdefault(names[algorithm], {})[register] = digest
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, cbor2.CBORDecodeError) as error:
        raise FormatError(f"wanted a CoRIM with PCRs as integrity registers: {error}", where=_WHERE) from error
    return pcrs


def _library() -> Any:
    """Returns the module cbor2."""
    try:
        import cbor2
    except ImportError as error:
        raise ToolMissingError("the Python package cbor2 is needed for CoRIM", hint="pip install 'ipe-build[attest]'") from error
    return cbor2
