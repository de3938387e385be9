"""`ipe-build sign policy | root-hash | fsverity | ima | evm | efi | verify | plan | attach`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.cli import Outcome, sign_efi, sign_plan
from ipe_build.cli.inputs import write_all
from ipe_build.cli.payloads import (
    TRUSTED_HELP,
    evm_attributes,
    evm_options,
    fsverity_options,
    fsverity_payload,
    policy_payload,
    root_hash_text,
    target_of,
    target_options,
)
from ipe_build.errors import UsageError
from ipe_build.formats.verity_sig import VeritySignature
from ipe_build.kernel.keyring import read_trusted
from ipe_build.signing.algorithms import HASHES
from ipe_build.signing.backends import BACKENDS, open_signer
from ipe_build.signing.certificates import fingerprint
from ipe_build.signing.profiles import PROFILES, Profile, sign_payload
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    policy = verbs.add_parser("policy", help="sign an IPE policy (attached; what securityfs takes)")
    policy.add_argument("input", metavar="FILE")
    root_hash = verbs.add_parser("root-hash", help="sign a dm-verity root hash (detached; --root-hash-signature)")
    root_hash.add_argument("input", metavar="HEX|FILE")
    root_hash.add_argument("--verity-sig", type=Path, metavar="OUT", help="also write the content of the signature partition")
    fsverity = verbs.add_parser("fsverity", help="sign a file's fs-verity digest (detached; FS_IOC_ENABLE_VERITY)")
    fsverity.add_argument("input", metavar="FILE")
    fsverity_options(fsverity)
    ima = verbs.add_parser("ima", help="sign a file's content (the value of security.ima)")
    ima.add_argument("input", metavar="FILE")
    evm = verbs.add_parser("evm", help="sign a file's attributes, owner and mode (portable; the value of security.evm)")
    evm_options(evm)
    efi = verbs.add_parser("efi", aliases=["uki"], help="sign an EFI program for Secure Boot: a UKI, a boot loader, a kernel")
    sign_efi.configure(efi)
    for verb in (policy, root_hash, fsverity, ima, evm, efi):
        verb.add_argument(
            "--key", required=True, metavar="URI", help="one of " + ", ".join(row.example for row in BACKENDS).replace("%", "%%")
        )
        verb.add_argument("--cert", required=True, type=Path, metavar="PEM", help="the key's certificate")
        verb.add_argument("--digest", choices=list(HASHES), help="default: what suits the key")
        target_options(verb)
        verb.add_argument("-o", "--output", required=True, type=Path, metavar="OUT")
        verb.add_argument("--force", action="store_true", help="replace OUT when it exists")
    verify = verbs.add_parser("verify", help="check a signature as the kernel does, against a set of certificates")
    verify.add_argument("profile", choices=sorted(PROFILES))
    verify.add_argument("payload", type=Path, metavar="PAYLOAD", help="the exact bytes that were signed")
    verify.add_argument("signature", type=Path, nargs="?", metavar="SIGNATURE", help="an EFI program carries its own")
    verify.add_argument("--trusted", required=True, type=Path, metavar="FILE", help=TRUSTED_HELP)
    verify.add_argument("--forbidden", type=Path, metavar="DBX", help="for efi-image: what firmware refuses (dbx: .esl, .auth)")
    sign_plan.configure(verbs)


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs the sub-verb."""
    others = dict.fromkeys(sign_efi.ACTIONS, sign_efi.sign) | {"verify": _verify, "plan": sign_plan.plan, "attach": sign_plan.attach}
    if arguments.action in others:
        return others[arguments.action](arguments, host)
    profile, payload = _payload(arguments, host)
    signer = open_signer(arguments.key, arguments.cert, host)
    signature = sign_payload(profile, payload, signer, arguments.digest, target_of(arguments))
    # The signature is checked before it is kept: a token or a signing server may give back anything.
    verify_signature(profile, payload, signature, [signer.certificate])
    contents = [(arguments.output, signature)]
    if getattr(arguments, "verity_sig", None) is not None:
        partition = VeritySignature(bytes.fromhex(payload.decode()), bytes.fromhex(fingerprint(signer.certificate)), signature)
        contents.append((arguments.verity_sig, partition.build()))
    write_all(contents, host, force=arguments.force)
    value = {
        "profile": profile.name,
        "output": str(arguments.output),
        "bytes": len(signature),
        "signer": signer.certificate.subject.rfc4514_string(),
        "certificate_sha256": fingerprint(signer.certificate),
    }
    return Outcome(value, f"{arguments.output}: {profile.what} signed by {value['signer']}")


def _payload(arguments: argparse.Namespace, host: Host) -> tuple[Profile, bytes]:
    """Returns what the sub-verb signs, and as what."""
    if arguments.action == "policy":
        return PROFILES["ipe-policy"], policy_payload(arguments.input)
    if arguments.action == "root-hash":
        return PROFILES["dm-verity-root-hash"], root_hash_text(arguments.input)
    if arguments.action == "ima":
        return PROFILES["ima-file"], Path(arguments.input).read_bytes()
    if arguments.action == "evm":
        return PROFILES["evm-portable"], evm_attributes(arguments)
    return PROFILES["fs-verity-builtin"], fsverity_payload(arguments, host)


def _verify(arguments: argparse.Namespace, _host: Host) -> Outcome:
    """Checks a signature; a negative answer is a VerificationError (exit status 1)."""
    profile = PROFILES[arguments.profile]
    if arguments.signature is None:
        if profile.name != "efi-image":
            raise UsageError("wants the signature's file", where=f"sign verify {profile.name}")
        return sign_efi.verify(arguments.payload, arguments.trusted, arguments.forbidden)
    trusted = read_trusted(arguments.trusted)
    signer = trusted.verify(profile, arguments.payload.read_bytes(), arguments.signature.read_bytes())
    subject = signer.subject.rfc4514_string()
    value = {"profile": profile.name, "signer": subject, "certificate_sha256": fingerprint(signer)}
    return Outcome(value, f"{arguments.signature}: {profile.what}, signed by {subject}")
