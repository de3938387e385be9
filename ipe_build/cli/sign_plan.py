"""`ipe-build sign plan | attach`: signing on another machine, or by people."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import files_below
from ipe_build.cli.payloads import fsverity_options, fsverity_payload, policy_payload, root_hash_text, target_of, target_options
from ipe_build.errors import ExitStatus, InputError, UsageError
from ipe_build.formats.module_signature import strip_signatures
from ipe_build.kernel.module_compression import unpack
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.kernel.modules import find_modules
from ipe_build.signing.algorithms import HASHES
from ipe_build.signing.authenticode import unsigned
from ipe_build.signing.certificates import IMA_ROLE, ROLES, fingerprint
from ipe_build.signing.efi_image import UEFI_ROLE, sign_image
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.plan import AnsweredSigner, Answers, Plan, Request, check_answers, make_request, read_answers, read_plan
from ipe_build.signing.profiles import PROFILES, sign_payload

if TYPE_CHECKING:
    from ipe_build.host import Host

_ROLE_NAMES = tuple(role.name for role in (*ROLES, IMA_ROLE, UEFI_ROLE))


class _Item(NamedTuple):
    """A payload on its way into a plan."""

    profile: str
    source: str
    output: str
    payload: bytes


def configure(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both sub-verbs."""
    making = verbs.add_parser("plan", help="write one file with everything that is to be signed elsewhere")
    making.add_argument("--policy", action="append", default=[], metavar="FILE", help="an IPE policy; result: FILE with suffix .p7b")
    making.add_argument("--root-hash", action="append", default=[], metavar="HEX|FILE", help="result: FILE.p7s, or HEX….roothash.p7s")
    making.add_argument("--module", action="append", default=[], type=Path, metavar="DIR|FILE", help="result: the module, signed in place")
    making.add_argument("--fsverity", action="append", default=[], type=Path, metavar="FILE", help="result: FILE.fsverity.p7s")
    making.add_argument(
        "--ima", action="append", default=[], type=Path, metavar="DIR|FILE", help="content for IMA; result: FILE.sig, a security.ima value"
    )
    making.add_argument("--efi", action="append", default=[], metavar="FILE[=OUT]", help="a UKI, say; result: OUT or FILE.signed")
    fsverity_options(making)
    roles = ", ".join(_ROLE_NAMES)
    making.add_argument("--cert", action="append", required=True, metavar="[ROLE=]PEM", help=f"who must sign; ROLE is one of {roles}")
    making.add_argument("--digest", choices=list(HASHES), help="default: what suits the key")
    target_options(making)
    making.add_argument("-o", "--output", required=True, type=Path, metavar="PLAN")
    making.add_argument("--force", action="store_true", help="replace PLAN when it exists")
    attaching = verbs.add_parser("attach", help="check what was signed elsewhere and put it in place; says what is missing")
    attaching.add_argument("plan", type=Path, metavar="PLAN")
    attaching.add_argument(
        "--signatures", action="append", required=True, type=Path, metavar="DIR|JSON", help="ID.sig files, or a JSON file"
    )
    attaching.add_argument("--cert", action="append", required=True, type=Path, metavar="PEM", help="the certificates that the plan names")
    attaching.add_argument("--jobs", type=int, metavar="N", help="workers for modules (default: one a processor)")


def plan(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Writes the plan."""
    certificates = _certificates_by_role(arguments.cert)
    target, requests = target_of(arguments), []
    for number, item in enumerate(_items(arguments, host), 1):
        profile = PROFILES[item.profile]
        certificate = certificates.get(profile.role)
        if certificate is None:
            raise UsageError(f"wants a certificate for {profile.what}", where="sign plan", hint=f"add --cert {profile.role}=PEM")
        request = make_request(
            profile,
            number,
            item.payload,
            certificate,
            source=item.source,
            output=item.output,
            digest_name=arguments.digest,
            carry=item.profile not in _READ_AGAIN,
            target=target,
        )
        requests.append(request)
    if not requests:
        raise UsageError("names nothing to sign", where="sign plan", hint="give --policy, --root-hash, --module, --ima, --efi, …")
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_text(Plan(tuple(requests)).to_json(), encoding="utf-8")
    value = {
        "output": str(arguments.output),
        "requests": [{"id": row.id, "profile": row.profile, "source": row.source} for row in requests],
    }
    return Outcome(value, f"{arguments.output}: {len(requests)} signatures wanted")


def _items(arguments: argparse.Namespace, host: Host) -> Iterator[_Item]:
    """Yields what the options name."""
    for text in arguments.policy:
        payload = policy_payload(text)  # first: a folder has no name to put another suffix to
        yield _Item("ipe-policy", text, str(Path(text).with_suffix(".p7b")), payload)
    for text in arguments.root_hash:
        payload = root_hash_text(text)
        output = f"{text}.p7s" if Path(text).is_file() else f"{payload[:16].decode()}.roothash.p7s"
        yield _Item("dm-verity-root-hash", text, output, payload)
    for path in arguments.fsverity:
        yield _Item("fs-verity-builtin", str(path), f"{path}.fsverity.p7s", fsverity_payload(arguments, host, path))
    for path in find_modules(arguments.module):
        yield _Item("module", str(path), str(path), _module_payload(path))
    for path in _files(arguments.ima):
        yield _Item("ima-file", str(path), f"{path}.sig", path.read_bytes())
    for text in arguments.efi:
        source, _, output = text.partition("=")
        yield _Item("efi-image", source, output or f"{source}.signed", _efi_payload(Path(source)))


def _files(places: list[Path]) -> Iterator[Path]:
    """Yields files, and the ordinary files below folders, sorted. Raises: InputError."""
    for place in places:
        if place.is_dir():
            yield from files_below(place)
        elif place.is_file():
            yield place
        else:
            raise InputError("is neither a file nor a folder", where=str(place))


def _module_payload(path: Path) -> bytes:
    """Returns what is signed of a module."""
    return strip_signatures(unpack(path.read_bytes(), str(path))[0], str(path))


def _efi_payload(path: Path) -> bytes:
    """Returns what is signed of an EFI program."""
    return unsigned(path.read_bytes(), str(path))


_READ_AGAIN: dict[str, Callable[[Path], bytes]] = {"module": _module_payload, "efi-image": _efi_payload, "ima-file": Path.read_bytes}
"""The profiles whose payload a plan does not carry, because it is large, and how it is read again."""


def _certificates_by_role(words: list[str]) -> dict[str, x509.Certificate]:
    """Returns each role's certificate from `ROLE=PEM` words; a word without a role is for all roles that have none of their own."""
    found: dict[str, x509.Certificate] = {}
    for word in words:
        role, equals, path = word.partition("=")
        is_for_one = bool(equals) and role in _ROLE_NAMES
        certificate = load_certificate(Path(path if is_for_one else word))
        for name in (role,) if is_for_one else [name for name in _ROLE_NAMES if name not in found]:
            found[name] = certificate
    return found


def attach(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Places every signature that is right; the exit status is 1 while one is missing or wrong. Run again with more, it goes on."""
    wanted = read_plan(arguments.plan)
    certificates = [certificate for path in arguments.cert for certificate in load_certificates(path)]
    answers = read_answers(arguments.signatures)
    unknown = sorted(answers.keys() - {row.id for row in wanted.requests})
    if unknown:
        raise InputError(f"answers {unknown[0]!r}, which the plan does not ask for", where=str(arguments.signatures[0]))
    payloads = {row.id: _READ_AGAIN[row.profile](Path(row.source)) for row in wanted.requests if row.payload is None}
    checked = check_answers(wanted, answers, certificates, payloads)
    unplaced = {row.id for row in (*checked.missing, *(row for row, _ in checked.wrong))}
    placed = [row for row in wanted.requests if row.id not in unplaced]
    _place(placed, checked, certificates, host, arguments.jobs)
    value = {
        "placed": [{"id": row.id, "output": row.output} for row in placed],
        "missing": [{"id": row.id, "profile": row.profile, "source": row.source, "subject": row.subject} for row in checked.missing],
        "wrong": [{"id": row.id, "source": row.source, "reason": reason} for row, reason in checked.wrong],
    }
    lines = [f"missing: {row.id} ({row.source}), to be signed by {row.subject}" for row in checked.missing]
    lines += [f"wrong: {row.id}: {reason}" for row, reason in checked.wrong]
    lines.append(f"{len(placed)} placed, {len(checked.missing)} missing, {len(checked.wrong)} wrong")
    return Outcome(value, "\n".join(lines), ExitStatus.FINDING if unplaced else ExitStatus.OK)


def _place(rows: list[Request], checked: Answers, certificates: list[x509.Certificate], host: Host, jobs: int | None) -> None:
    """Writes the signature files and signs the modules; an output that is there is replaced, because an earlier run may have made it."""
    signers = {fingerprint(certificate): AnsweredSigner(certificate, checked.good) for certificate in certificates}
    modules: dict[tuple[str, str], list[Path]] = {}
    for row in rows:
        if row.profile == "efi-image":
            made = sign_image(Path(row.source).read_bytes(), signers[row.certificate_sha256], row.digest_name)
            with host.output(Path(row.output), force=True) as temporary:
                temporary.write_bytes(made)
            continue
        if row.profile == "module":
            modules.setdefault((row.certificate_sha256, row.digest_name), []).append(Path(row.source))
            continue
        payload = row.payload if row.payload is not None else _READ_AGAIN[row.profile](Path(row.source))
        signature = sign_payload(PROFILES[row.profile], payload, signers[row.certificate_sha256], row.digest_name)
        with host.output(Path(row.output), force=True) as temporary:
            temporary.write_bytes(signature)
    for (certificate, digest_name), files in modules.items():
        sign_modules(files, signers[certificate], host, digest_name=digest_name, jobs=jobs)
