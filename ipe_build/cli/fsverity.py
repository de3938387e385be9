"""`ipe-build fsverity`: digests of files as the kernel measures them, builtin signatures, manifests of folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.errors import UsageError
from ipe_build.integrity.fsverity import FsVerityParameters

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from ipe_build.host import Host


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    digest = actions.add_parser("digest", help="print the fs-verity digests of files", description="Print the fs-verity digests of files.")
    digest.add_argument("files", nargs="+", metavar="FILE")
    digest.add_argument("--compact", action="store_true", help="only the digests, without algorithm and file name")
    sign = actions.add_parser("sign", help="write builtin signatures of files", description="Sign the fs-verity digests of files.")
    sign.add_argument("files", nargs="+", metavar="FILE")
    sign.add_argument("--key", required=True, metavar="URI", help="file:key.pem, pkcs11:… or command:…")
    sign.add_argument("--cert", required=True, type=Path, metavar="PEM", help="the key's certificate")
    sign.add_argument("-o", "--output", type=Path, metavar="OUT", help="the signature of a single file (default: FILE.fsverity.p7s)")
    sign.add_argument("--force", action="store_true", help="replace outputs that exist")
    manifest = actions.add_parser(
        "manifest", help="the digests of a whole folder as JSON", description="The digests of all regular files below a folder."
    )
    manifest.add_argument("folder", type=Path, metavar="DIR")
    manifest.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the manifest to FILE")
    manifest.add_argument("--rules", action="store_true", help="print IPE rules (fsverity_digest=) instead")
    manifest.add_argument("--force", action="store_true", help="replace FILE when it exists")
    seal = actions.add_parser(
        "seal",
        help="make files of an ext4 image verity files, without mounting it",
        description="Give files of a finished ext4 image their Merkle tree, descriptor and signature; the image is replaced in one step.",
    )
    seal.add_argument("image", type=Path, metavar="IMAGE")
    seal.add_argument("paths", nargs="*", metavar="PATH", help="absolute in the image (default: all regular files)")
    seal.add_argument("--key", metavar="URI", help="also sign each file: file:key.pem, pkcs11:… or command:…")
    seal.add_argument("--cert", type=Path, metavar="PEM", help="the key's certificate")
    for sub in (digest, sign, manifest, seal):
        sub.add_argument("--hash-alg", "--hash", dest="hash_name", default="sha256", metavar="NAME", help="sha256 (default) or sha512")
        sub.add_argument("--block-size", type=int, default=4096, metavar="BYTES", help="1024 to 65536 (default: 4096)")
        sub.add_argument("--salt", default="", metavar="HEX", help="salt of up to 32 bytes (default: none)")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Returns the outcome of the sub-verb."""
    actions = {"digest": _digest, "sign": _sign, "manifest": _manifest, "seal": _seal}
    return actions[arguments.action](arguments, host)


def _parameters(arguments: argparse.Namespace) -> FsVerityParameters:
    """Returns what the options say. Raises: UsageError, InputError."""
    try:
        salt = bytes.fromhex(arguments.salt)
    except ValueError:
        raise UsageError(f"wanted an even number of hex digits, got {arguments.salt!r}", where="--salt") from None
    return FsVerityParameters(arguments.hash_name, arguments.block_size, salt)


def _digest(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.integrity.fsverity import measure_all

    parameters = _parameters(arguments)
    name = parameters.hash_name
    found = measure_all(arguments.files, parameters, host)
    pairs = zip(arguments.files, found, strict=True)
    if arguments.json:
        return Outcome(
            [{"file": path, "hash_name": name, "digest": one.digest.hex(), "size_bytes": one.size_bytes} for path, one in pairs], ""
        )
    if arguments.compact:
        return Outcome(None, "\n".join([one.digest.hex() for one in found]))
    return Outcome(None, "\n".join([f"{name}:{one.digest.hex()} {path}" for path, one in pairs]))


def _sign(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.formats.fsverity import formatted_digest
    from ipe_build.integrity.fsverity import measure_all

    if arguments.output is not None and len(arguments.files) > 1:
        raise UsageError("-o names one output, several files were given", where="-o", hint="leave it out: each gets FILE.fsverity.p7s")
    parameters = _parameters(arguments)
    sign = _signer(arguments, host)
    value = []
    for file, one in zip(arguments.files, measure_all(arguments.files, parameters, host), strict=True):
        signature = sign(formatted_digest(parameters.hash_name, one.digest))
        output = arguments.output if arguments.output is not None else Path(f"{file}.fsverity.p7s")
        with host.output(output, force=arguments.force) as temporary:
            temporary.write_bytes(signature)
        value.append({"file": file, "digest": one.digest.hex(), "signature": str(output)})
    return Outcome(value, "\n".join(f"{one['signature']}: signs {parameters.hash_name}:{one['digest']}" for one in value))


def _signer(arguments: argparse.Namespace, host: Host) -> Callable[[bytes], bytes]:
    """Returns a function that signs formatted digests with the key that the options name. Raises: UsageError, SigningKeyError."""
    from ipe_build.signing.algorithms import algorithm_of
    from ipe_build.signing.backends import open_signer
    from ipe_build.signing.loading import public_key_of
    from ipe_build.signing.profiles import PROFILES, sign_payload
    from ipe_build.signing.verify import verify_signature

    if arguments.key is None or arguments.cert is None:
        raise UsageError("a signature needs --key and --cert", where="--key")
    profile = PROFILES["fs-verity-builtin"]
    signer = open_signer(arguments.key, arguments.cert, host)
    # As `fsverity sign` does: the file's own hash also for the signature, where the key can go with it.
    possible = algorithm_of(public_key_of(signer.certificate)).digests
    digest = arguments.hash_name if arguments.hash_name in possible else None

    def sign(payload: bytes) -> bytes:
        signature = sign_payload(profile, payload, signer, digest)
        # Checked before it is kept: a token or a signing server may give back anything.
        verify_signature(profile, payload, signature, [signer.certificate])
        return signature

    return sign


def _seal(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.integrity.fsverity_ext4 import seal_ext4

    sign = _signer(arguments, host) if arguments.key is not None or arguments.cert is not None else None
    parameters = _parameters(arguments)
    files = seal_ext4(arguments.image, parameters, host, paths=arguments.paths or None, sign=sign)
    value = [
        {"paths": list(file.paths), "hash_name": parameters.hash_name, "digest": file.digest.hex(), "size_bytes": file.size_bytes}
        for file in files
    ]
    signed = ", signed" if sign is not None else ""
    return Outcome(value, f"{arguments.image}: {len(files)} files are verity files now{signed}")


def _manifest(arguments: argparse.Namespace, host: Host) -> Outcome:
    from ipe_build.integrity.manifest import make_manifest

    manifest = make_manifest(arguments.folder, _parameters(arguments), host)
    text = "\n".join(manifest.rules()) if arguments.rules else manifest.to_json()
    if arguments.output is not None:
        with host.output(arguments.output, force=arguments.force) as temporary:
            temporary.write_text(text + "\n", "utf-8")
        return Outcome(manifest.to_value(), f"{arguments.output}: {len(manifest.entries)} files")
    return Outcome(manifest.to_value(), text)
