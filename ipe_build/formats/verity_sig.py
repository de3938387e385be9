"""The content of a root-verity-sig partition: JSON that carries a signed root hash, padded with NUL.

Source: UAPI group, "Discoverable Partitions Specification", verity signature partitions; systemd src/shared/dissect-image.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipe_build.errors import FormatError

ALIGNMENT = 4096


@dataclass(frozen=True, slots=True)
class VeritySignature:
    """A signed root hash: the hash, SHA-256 of the signer's DER certificate (32 bytes), the detached PKCS#7 in DER."""

    root_hash: bytes
    certificate_fingerprint: bytes
    signature: bytes

    def to_json(self) -> str:
        """Returns the JSON object in one line, keys in the specification's order."""
        import base64
        import json

        value = {
            "rootHash": self.root_hash.hex(),
            "certificateFingerprint": self.certificate_fingerprint.hex(),
            "signature": base64.b64encode(self.signature).decode(),
        }
        return json.dumps(value, separators=(",", ":"))

    def build(self) -> bytes:
        """Returns the partition's bytes: the JSON, then NULs up to a multiple of 4096."""
        text = self.to_json().encode()
        return text + bytes(-len(text) % ALIGNMENT)


def parse_verity_signature(data: bytes, *, where: str = "") -> VeritySignature:
    """Returns what a root-verity-sig partition (or a `.verity-sig` file) says; trailing NULs are ignored.

    `certificate_fingerprint` is empty when the key is absent, which the specification allows.
    Raises: FormatError when it is no JSON object or a value is not what it should be.
    """
    import base64
    import binascii
    import json

    try:
        value = json.loads(data.rstrip(b"\0").decode())
        if not isinstance(value, dict):
            raise FormatError("wanted a JSON object with rootHash and signature", where=where)
        root_hash = bytes.fromhex(value["rootHash"])
        fingerprint = bytes.fromhex(value.get("certificateFingerprint", ""))
        signature = base64.b64decode(value["signature"], validate=True)
    except KeyError as error:
        raise FormatError(f"the verity signature has no {error.args[0]}", where=where) from error
    except (TypeError, binascii.Error) as error:
        raise FormatError(f"a value of the verity signature is not text in hex or base64: {error}", where=where) from error
    except ValueError as error:
        raise FormatError(f"wanted the JSON of a verity signature: {error}", where=where) from error
    if not root_hash or len(fingerprint) not in (0, 32) or not signature:
        raise FormatError("a root hash or signature is empty, or the fingerprint is not 32 bytes", where=where)
    return VeritySignature(root_hash, fingerprint, signature)
