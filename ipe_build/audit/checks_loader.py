"""Checks of who loads the device policy, and of what fs-verity and IMA say of single files of the root."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cryptography import x509

from ipe_build.audit.checks_policy import all_policies
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.file_tree import FileTree
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.policies import POLICY_FOLDERS
from ipe_build.audit.sealed import sealed_by
from ipe_build.errors import IpeBuildError
from ipe_build.formats.fsverity import formatted_digest
from ipe_build.formats.ima_xattr import SECURITY_IMA, IntegrityKind, parse_integrity_xattr
from ipe_build.signing.loading import parse_certificates
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

FIRST_SYSTEMD = 257
"""The first systemd that loads IPE policies itself. Source: systemd NEWS, src/core/ipe-setup.c."""
_SYSTEMD_LIBRARY = re.compile(r"(?:usr/)?lib/(?:[^/]+/)?systemd/libsystemd-(?:core|shared)-(\d{1,6})[^/]*\.so")
_MAX_SIGNED_BYTES = 1 << 30
_MAX_CERTIFICATE_BYTES = 1 << 16
_SHOWN = 20


def policy_loader(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks who hands the signed policy to the kernel: ipe-init, or a systemd that is new enough; otherwise nobody does."""
    if facts.files is None or facts.initramfs is None:
        yield unknown("policy loader", "the root filesystem or the initramfs could not be read")
    elif sealed_by(facts):
        yield good("policy loader", "not needed: sealed, the boot policy stays in force")
    elif (settings := facts.ipe_init()) is not None:
        outcome, why = (bad, f", which refuses its configuration: {settings.problem}") if settings.problem else (good, "")
        yield outcome("policy loader", f"ipe-init of the initramfs{why}")
    else:
        version = systemd_version(facts.files.tree)
        in_place = [one.path for folder in POLICY_FOLDERS for one in facts.files.tree.below(folder, ".p7b")]
        if version is None:
            yield bad("policy loader", "the initramfs has no ipe-init and the root no systemd: nobody is known to load a policy")
        elif version < FIRST_SYSTEMD:
            yield bad("policy loader", f"systemd {version} loads none: {FIRST_SYSTEMD} is the first that does")
        elif not in_place:
            yield bad("policy loader", f"systemd {version} finds no .p7b in /{', /'.join(POLICY_FOLDERS)}")
        else:
            yield good("policy loader", f"systemd {version} loads {', '.join(in_place)}")


def systemd_version(tree: FileTree) -> int | None:
    """Returns the version of the root's systemd, by its libraries' names; None when there is none."""
    found = [int(match[1]) for one in tree if (match := _SYSTEMD_LIBRARY.fullmatch(one.path))]
    return max(found, default=None)


def fsverity_files(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether each file of an ext4 root has the content that fs-verity says, and its builtin signature is by a trusted key."""
    if facts.files is None:
        yield unknown("fs-verity", "the root filesystem could not be read")
        return
    sealed = [one for one in facts.files.tree if one.verity is not None]
    wrong = 0
    for one in sealed:
        assert one.verity is not None
        problem = (
            ("its content is not what its fs-verity digest says" if one.verity.digest else "its descriptor cannot be read")
            if one.verity.matches is False
            else _fsverity_problem(facts, one.verity.hash_name, one.verity.digest, one.verity.signature)
        )
        if problem and wrong < _SHOWN:
            yield bad(one.path, problem)
        wrong += bool(problem)
    skipped = sum(one.verity is not None and one.verity.matches is None for one in sealed)
    if skipped:
        yield unknown("fs-verity", f"{skipped} files were not hashed again: they share their blocks, or are larger than the image")
    elif not wrong:
        signed = sum(bool(one.verity and one.verity.signature) for one in sealed)
        yield good("fs-verity", f"{len(sealed)} files have it, {signed} of them a builtin signature")


def _fsverity_problem(facts: ImageFacts, hash_name: str, digest: bytes, signature: bytes) -> str:
    """Returns what is wrong with a builtin signature, "" when nothing is or there is none."""
    if not signature or facts.kernel is None:
        return ""
    try:
        signed = formatted_digest(hash_name, digest)
        verify_signature(PROFILES["fs-verity-builtin"], signed, signature, facts.kernel.certificates, facts.kernel.revoked)
    except IpeBuildError as error:
        return f"its builtin signature: {error.message}"
    return ""


def fsverity_keyring(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether a policy wants signatures of fs-verity files: their keyring is empty after boot until something fills it."""
    rules = [
        str(rule)
        for policy in all_policies(facts)
        for rule in policy.rules
        if any(one.property.name == "fsverity_signature" for one in rule.conditions)
    ]
    if not rules:
        yield good("keyring .fs-verity", "no policy asks for signatures of fs-verity files")
    elif facts.initramfs_config() is not None and not any(facts.find_in_initramfs(path) for path in ("bin/keyctl", "usr/bin/keyctl")):
        yield bad(
            "keyring .fs-verity", f"the kernel makes it empty and nothing in the initramfs fills it, so this never matches: {rules[0]}"
        )
    else:
        yield unknown("keyring .fs-verity", "something in the initramfs may fill it; with which keys is not known")


def ima_signatures(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether every signature in security.ima is over its file's content, and by a key that this kernel can come to trust."""
    if facts.files is None or facts.kernel is None:
        yield unknown("security.ima", "the root filesystem or the kernel could not be read")
        return
    labelled = [one for one in facts.files.tree if one.is_file and SECURITY_IMA in one.xattrs]
    certificates = [*facts.kernel.certificates, *_certificates(facts)] if labelled else []
    wrong = signed = 0
    for one in labelled:
        problem = ""
        try:
            value = parse_integrity_xattr(SECURITY_IMA, one.xattrs[SECURITY_IMA])
            if value.kind is IntegrityKind.SIGNATURE:
                signed += 1
                verify_signature(PROFILES["ima-file"], one.read(_MAX_SIGNED_BYTES), one.xattrs[SECURITY_IMA], certificates)
        except IpeBuildError as error:
            problem = error.message
        if problem and wrong < _SHOWN:
            yield bad(one.path, problem)
        wrong += bool(problem)
    if wrong > _SHOWN:
        yield bad(f"{wrong - _SHOWN} more", "are wrong too")
    if not wrong:
        yield good("security.ima", f"{len(labelled)} files have it, {signed} of them a signature")


def _certificates(facts: ImageFacts) -> Iterator[x509.Certificate]:
    """Yields the certificates in /etc/keys of the initramfs (CONFIG_IMA_X509_PATH) and of the root (IMA's tools)."""
    tree = facts.files.tree if facts.files is not None else None
    found = [(entry.path, entry.data) for entry in facts.initramfs or () if entry.path.lstrip("./").startswith("etc/keys/")]
    if tree is not None:
        found += [
            (one.path, one.read(_MAX_CERTIFICATE_BYTES)) for one in (*tree.below("etc/keys", ".der"), *tree.below("etc/keys/ima", ".der"))
        ]
    for path, data in found:
        try:
            yield from parse_certificates(data, path)
        except IpeBuildError:
            continue
