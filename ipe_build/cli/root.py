"""`ipe-build root IMAGE`: everything that makes a filesystem image a signed verity root, in one go: what image builders call."""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import named
from ipe_build.errors import UsageError
from ipe_build.formats.verity_sig import VeritySignature
from ipe_build.image.disk import partition_uuids
from ipe_build.integrity.verity import VerityParameters, VerityTree, format_image
from ipe_build.signing.backends import BACKENDS, open_signer
from ipe_build.signing.loading import load_certificate
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host
    from ipe_build.signing.signer import Signer

_DIGEST_MINIMUM = 32


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="the filesystem image; its sidecars go beside it")
    parser.add_argument("--hash", dest="hash_name", metavar="NAME", default="sha256", help="hash algorithm (default: sha256)")
    parser.add_argument("--salt", metavar="HEX", help="salt in hex, - for none (default: derived from IMAGE's name, so the same each time)")
    parser.add_argument("--salt-from", metavar="TEXT", help="derive the salt from this text instead of IMAGE's name")
    parser.add_argument("--data-block-size", type=int, default=4096, metavar="BYTES", help="512 to 524288 (default: 4096)")
    parser.add_argument("--hash-block-size", type=int, default=4096, metavar="BYTES", help="512 to 524288 (default: 4096)")
    parser.add_argument("--uuid", type=_uuid, help="the superblock's UUID (default: derived from the root hash)")
    parser.add_argument("--pad", action="store_true", help="lengthen IMAGE with zeros to a whole block")
    keys = " or ".join(row.example for row in BACKENDS).replace("%", "%%")
    parser.add_argument("--key", metavar="URI", help=f"who signs the root hash: {keys}")
    parser.add_argument("--signature", type=Path, metavar="FILE", help="instead of --key: a signature made elsewhere; it is checked")
    parser.add_argument("--cert", type=Path, metavar="PEM", help="the signer's certificate")
    parser.add_argument("--force", action="store_true", help="replace sidecars that exist")
    parser.epilog = (
        "Writes IMAGE.verity (superblock and hash tree), IMAGE.roothash (hex), IMAGE.verity.env (shell: the names that meta-security's "
        "dm-verity-img uses) and, when signed, IMAGE.roothash.p7s and IMAGE.verity-sig (the content of the signature partition). "
        "Without --key and --signature nothing is signed: sign IMAGE.roothash with `sign plan` and come back with --signature."
    )


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns what was written."""
    signed = arguments.key is not None or arguments.signature is not None
    if arguments.key is not None and arguments.signature is not None:
        raise UsageError("either a key or a finished signature", where="--key, --signature")
    if signed != (arguments.cert is not None):
        raise UsageError("a signature needs --cert and --key (or --signature)", where="ipe-build root")
    image: Path = arguments.image
    parameters = VerityParameters(
        arguments.hash_name, _salt(arguments), arguments.uuid, arguments.data_block_size, arguments.hash_block_size
    )
    # The key is opened before the image is hashed, and all files appear together: a set of an old and a new root boots nowhere.
    signer = open_signer(arguments.key, arguments.cert, host) if arguments.key is not None else None
    suffixes = (".verity", ".roothash", ".verity.env", *((".roothash.p7s", ".verity-sig") if signed else ()))
    places = [_beside(image, suffix) for suffix in suffixes]
    with host.outputs(*places, force=arguments.force) as (hash_area, *others):
        with named(places[0], str(hash_area)):
            tree = format_image(image, hash_area, parameters, host, pad=arguments.pad, force=arguments.force)
        payload = root_hash_payload(tree.root_hash)
        contents = [payload + b"\n", _environment(image, tree)]
        if signed:
            contents += _signature_files(arguments, signer, tree, payload)
        for temporary, content in zip(others, contents, strict=True):
            temporary.write_bytes(content)
    files = [str(place) for place in places]
    value: dict[str, object] = {"image": str(image), "root_hash": tree.root_hash.hex(), "signed": signed, "files": files}
    return Outcome(value, f"{image}: root hash {tree.root_hash.hex()}, {'signed' if signed else 'not signed'}")


def _signature_files(arguments: argparse.Namespace, signer: Signer | None, tree: VerityTree, payload: bytes) -> list[bytes]:
    """Returns the signature, checked before it is kept, and the content of the signature partition."""
    profile = PROFILES["dm-verity-root-hash"]
    if signer is not None:
        certificate, signature = signer.certificate, sign_payload(profile, payload, signer)
    else:
        certificate, signature = load_certificate(arguments.cert), arguments.signature.read_bytes()
    verify_signature(profile, payload, signature, [certificate])
    fingerprint = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    return [signature, VeritySignature(tree.root_hash, fingerprint, signature).build()]


def _environment(image: Path, tree: VerityTree) -> bytes:
    """Returns shell assignments that describe the tree, under the names that `veritysetup format` prints, in capitals."""
    parameters = tree.parameters
    rows: dict[str, object] = {
        "UUID": parameters.uuid,
        "HASH_TYPE": parameters.hash_type,
        "DATA_BLOCKS": tree.data_blocks,
        "DATA_BLOCK_SIZE": parameters.data_block_size,
        "HASH_BLOCK_SIZE": parameters.hash_block_size,
        "HASH_ALGORITHM": parameters.hash_name,
        "SALT": parameters.salt.hex() or "-",
        "ROOT_HASH": tree.root_hash.hex(),
        "DATA_SIZE": image.stat().st_size,
        "SEPARATE_HASH": 1,
    }
    if len(tree.root_hash) >= _DIGEST_MINIMUM:
        rows["ROOT_UUID"], rows["RHASH_UUID"] = partition_uuids(tree.root_hash)
    return "".join(f"{name}={value}\n" for name, value in rows.items()).encode("ascii")


def _salt(arguments: argparse.Namespace) -> bytes:
    """Returns the salt of the options. Raises: UsageError."""
    if arguments.salt is None:
        text = arguments.salt_from if arguments.salt_from is not None else arguments.image.name
        return hashlib.sha256(b"ipe-build root salt\0" + text.encode()).digest()
    if arguments.salt == "-":
        return b""
    if not re.fullmatch(r"([0-9a-fA-F]{2})+", arguments.salt):
        raise UsageError(f"wanted an even number of hex digits, or -, got {arguments.salt!r}", where="--salt")
    return bytes.fromhex(arguments.salt)


def _uuid(text: str) -> UUID:
    """Returns a UUID; argparse makes the ValueError a usage error."""
    return UUID(text)


def _beside(image: Path, suffix: str) -> Path:
    """Returns the path of a sidecar."""
    return image.with_name(f"{image.name}{suffix}")
