"""`ipe-build sign policy | root-hash | fsverity | verify`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome
from ipe_build.errors import InputError, UsageError
from ipe_build.integrity.fsverity import FsVerityParameters, measure
from ipe_build.policy.parser import parse
from ipe_build.signing.algorithms import HASHES
from ipe_build.signing.backends import BACKENDS, open_signer
from ipe_build.signing.certificates import fingerprint
from ipe_build.signing.loading import load_certificates
from ipe_build.signing.profiles import PROFILES, Profile, root_hash_payload, sign_payload
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

_ROOT_HASH = re.compile(r"[0-9A-Fa-f]{40,128}")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    policy = verbs.add_parser("policy", help="sign an IPE policy (attached; what securityfs takes)")
    policy.add_argument("input", metavar="FILE")
    root_hash = verbs.add_parser("root-hash", help="sign a dm-verity root hash (detached; --root-hash-signature)")
    root_hash.add_argument("input", metavar="HEX|FILE")
    fsverity = verbs.add_parser("fsverity", help="sign a file's fs-verity digest (detached; FS_IOC_ENABLE_VERITY)")
    fsverity.add_argument("input", metavar="FILE")
    fsverity.add_argument("--hash-alg", "--hash", dest="hash_name", default="sha256", metavar="NAME", help="sha256 (default) or sha512")
    fsverity.add_argument("--block-size", type=int, default=4096, metavar="BYTES", help="1024 to 65536 (default: 4096)")
    fsverity.add_argument("--salt", default="", metavar="HEX", help="salt of up to 32 bytes (default: none)")
    for verb in (policy, root_hash, fsverity):
        verb.add_argument("--key", required=True, metavar="URI", help="one of " + ", ".join(row.example for row in BACKENDS))
        verb.add_argument("--cert", required=True, type=Path, metavar="PEM", help="the key's certificate")
        verb.add_argument("--digest", choices=list(HASHES), help="default: what suits the key")
        verb.add_argument("-o", "--output", required=True, type=Path, metavar="OUT")
        verb.add_argument("--force", action="store_true", help="replace OUT when it exists")
    verify = verbs.add_parser("verify", help="check a signature as the kernel does, against a set of certificates")
    verify.add_argument("profile", choices=sorted(PROFILES))
    verify.add_argument("payload", type=Path, metavar="PAYLOAD", help="the exact bytes that were signed")
    verify.add_argument("signature", type=Path, metavar="SIGNATURE")
    verify.add_argument("--trusted", required=True, type=Path, metavar="PEM", help="the certificates that the kernel trusts")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs the sub-verb."""
    if arguments.action == "verify":
        return _verify(arguments)
    profile, payload = _PAYLOADS[arguments.action](arguments, host)
    signer = open_signer(arguments.key, arguments.cert, host)
    signature = sign_payload(profile, payload, signer, arguments.digest)
    # The signature is checked before it is kept: a token or a signing server may give back anything.
    verify_signature(profile, payload, signature, [signer.certificate])
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_bytes(signature)
    value = {
        "profile": profile.name,
        "output": str(arguments.output),
        "bytes": len(signature),
        "signer": signer.certificate.subject.rfc4514_string(),
        "certificate_sha256": fingerprint(signer.certificate),
    }
    return Outcome(value, f"{arguments.output}: {profile.what} signed by {value['signer']}")


def _policy(arguments: argparse.Namespace, _host: Host) -> tuple[Profile, bytes]:
    """Returns the policy's text, which the kernel must be able to load. Raises: InputError."""
    text = arguments.input
    payload = Path(text).read_bytes()
    profile = PROFILES["ipe-policy"]
    profile.check(payload)
    result = parse(payload)
    if result.problem is not None:
        problem = result.problem
        raise InputError(
            f"the kernel would refuse this policy ({problem.errno}): {problem.message}", where=f"{text}:{problem.line}", hint=problem.hint
        )
    return profile, payload


def _root_hash(arguments: argparse.Namespace, _host: Host) -> tuple[Profile, bytes]:
    """Returns the payload of a root hash given as hex, or in a file as hex. Raises: InputError."""
    text = arguments.input
    path, hexadecimal = Path(text), text
    if not _ROOT_HASH.fullmatch(text) or path.is_file():
        if not path.is_file():
            raise InputError(
                "is neither a root hash in hex (40 to 128 digits) nor a file that holds one", where=text[:200], hint="see: verity format"
            )
        hexadecimal = path.read_bytes()[:4096].decode("ascii", "replace").strip()
    if not _ROOT_HASH.fullmatch(hexadecimal) or len(hexadecimal) % 2:
        raise InputError(f"wanted 40 to 128 hex digits, got {hexadecimal[:140]!r}", where=text[:200])
    return PROFILES["dm-verity-root-hash"], root_hash_payload(bytes.fromhex(hexadecimal))


def _fsverity(arguments: argparse.Namespace, host: Host) -> tuple[Profile, bytes]:
    """Returns the payload of a file's fs-verity digest."""
    try:
        salt = bytes.fromhex(arguments.salt)
    except ValueError:
        raise UsageError(f"wanted an even number of hex digits, got {arguments.salt!r}", where="--salt") from None
    parameters = FsVerityParameters(arguments.hash_name, arguments.block_size, salt)
    return PROFILES["fs-verity-builtin"], measure(Path(arguments.input), parameters, host).payload


_PAYLOADS = {"policy": _policy, "root-hash": _root_hash, "fsverity": _fsverity}


def _verify(arguments: argparse.Namespace) -> Outcome:
    """Checks a signature; a negative answer is a VerificationError (exit status 1)."""
    profile = PROFILES[arguments.profile]
    trusted = load_certificates(arguments.trusted)
    signer = verify_signature(profile, arguments.payload.read_bytes(), arguments.signature.read_bytes(), trusted)
    subject = signer.subject.rfc4514_string()
    value = {"profile": profile.name, "signer": subject, "certificate_sha256": fingerprint(signer)}
    return Outcome(value, f"{arguments.signature}: {profile.what}, signed by {subject}")
