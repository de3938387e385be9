"""The probe disk: a plan and the files it needs (policies of our making, scripts), as one cpio archive on a disk of its own.

It is not signed and need not be: what the kernel does with untrusted bytes is what the probes show.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ipe_build.boot import layout
from ipe_build.boot.expectation import Facts, Need, Probe
from ipe_build.errors import InputError
from ipe_build.formats.cpio import regular_file, write_cpio
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.signer import Signer

_HEADER = re.compile(rb"policy_name=(?P<name>\S+)[ \t]+policy_version=\+?(?P<a>\d+)\.\+?(?P<b>\d+)\.\+?(?P<c>\d+)")
_OTHER = "ipe-probe-other"
_TOP = 0xFFFF

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class PolicyMaterial:
    """The policy that is in force on the device after its boot (plain text), who signs such policies, and who must not.

    `signer` None: nobody does, the kernel has no key.
    """

    text: bytes
    signer: Signer | None
    foreign: Signer


def policy_header(text: bytes) -> tuple[str, Version]:
    """Returns a policy's name and version. Raises: InputError when its first line that is no comment is no header."""
    match = _header(text)
    return match["name"].decode("utf-8", "surrogateescape"), (int(match["a"]), int(match["b"]), int(match["c"]))


def with_header(text: bytes, name: str, version: Version) -> bytes:
    """Returns the policy under another name and version; everything else is left as it is."""
    match = _header(text)
    header = f"policy_name={name} policy_version={dotted(version)}".encode("utf-8", "surrogateescape")
    return text[: match.start()] + header + text[match.end() :]


def newer(version: Version) -> Version | None:
    """Returns the next version, None when there is none."""
    return _of_number(_number(version) + 1)


def older(version: Version) -> Version | None:
    """Returns the version before, None when there is none."""
    return _of_number(_number(version) - 1)


def dotted(version: Version) -> str:
    """Returns `A.B.C`."""
    return ".".join(str(part) for part in version)


def policy_facts(material: PolicyMaterial | None) -> Facts:
    """Returns the words for the plans, and which policies cannot be made for the probes and why."""
    if material is None:
        why = "no policy and no key to sign policies with were given"
        return Facts(missing=dict.fromkeys((Need.POLICY, Need.OLDER_POLICY, Need.NEWER_POLICY, Need.FOREIGN_POLICY), why))
    if material.signer is None:
        why = "the kernel has no key, so that no policy is signed for it"
        return Facts({"other": (_OTHER,)}, dict.fromkeys((Need.POLICY, Need.OLDER_POLICY, Need.NEWER_POLICY), why))
    name, version = policy_header(material.text)
    words: dict[str, tuple[str, ...]] = {"policy": (name,), "other": (_OTHER,), "version": (dotted(version),)}
    missing = {Need.FOREIGN_POLICY: "the kernel has keys: policy-foreign shows it"}
    for need, word, made in ((Need.OLDER_POLICY, "older", older(version)), (Need.NEWER_POLICY, "newer", newer(version))):
        if made is None:
            missing[need] = f"there is no {word} version than {dotted(version)}"
        else:
            words[word] = (dotted(made),)
    return Facts(words, missing)


def policy_files(material: PolicyMaterial) -> dict[str, bytes]:
    """Returns the files of the policy probes. Signing is all that happens to the text but its header."""
    name, version = policy_header(material.text)
    if material.signer is None:
        return {"policy-foreign-other": _sign(with_header(material.text, _OTHER, version), material.foreign)}
    files = {"policy-same": _sign(material.text, material.signer)}
    before, after = older(version), newer(version)
    if before is not None:
        files["policy-older"] = _sign(with_header(material.text, name, before), material.signer)
        files["policy-other"] = _sign(with_header(material.text, _OTHER, before), material.signer)
    if after is not None:
        text = with_header(material.text, name, after)
        signed = _sign(text, material.signer)
        files |= {"policy-unsigned": text, "policy-foreign": _sign(text, material.foreign)}
        files |= {"policy-newer": signed, "policy-tampered": _flip_content(signed, text)}
    return files


def script_files() -> dict[str, bytes]:
    """Returns the scripts: one with an interpreter of the verity root in its first line, one for an interpreter that is named."""
    return {
        "script": f"#!{layout.PROBE}\n".encode(),
        "script-text": b"echo the script ran\n",
    }


def build_disk(probes: Sequence[Probe], files: dict[str, bytes]) -> bytes:
    """Returns the disk's bytes: a newc archive padded to whole sectors, with the plan of the probes (resolved) and the files.

    Raises: InputError when a plan's field holds a tab or a newline.
    """
    lines = []
    for probe in probes:
        fields = (probe.id, *probe.plan)
        if any(separator in item for item in fields for separator in "\t\n"):
            raise InputError("a field of the plan holds a tab or a newline", where=f"probe {probe.id}")
        lines.append("\t".join(fields) + "\n")
    content = {"plan": "".join(lines).encode("utf-8", "surrogateescape")} | files
    return write_cpio(regular_file(name, data, mode=0o755) for name, data in sorted(content.items()))


def _header(text: bytes) -> re.Match[bytes]:
    """Returns where the header is: on the first line that has something other than a comment."""
    place = 0
    for line in re.split(rb"(?<=[\n\r])", text):
        code = line.split(b"#", 1)[0]
        if code.strip():
            match = _HEADER.search(text, place, place + len(code))
            if match is not None:
                return match
            break
        place += len(line)
    raise InputError("wanted a first line policy_name=NAME policy_version=A.B.C", where="IPE policy")


def _sign(text: bytes, signer: Signer) -> bytes:
    """Returns the policy as the kernel takes it."""
    return sign_payload(PROFILES["ipe-policy"], text, signer)


def _flip_content(signed: bytes, text: bytes) -> bytes:
    """Returns the signed policy with one bit of the text in it flipped. Raises: InputError when the text is not in it as it is."""
    place = signed.find(text)
    if place < 0:
        raise InputError("the signed policy does not hold its text in one piece", where="IPE policy")
    place += len(text.rstrip()) - 1
    return signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :]


def _number(version: Version) -> int:
    """Returns the version as the kernel compares it (ver_to_u64)."""
    return version[0] << 32 | version[1] << 16 | version[2]


def _of_number(number: int) -> Version | None:
    """Returns the version of a number, None when it is out of range."""
    a, b, c = number >> 32, number >> 16 & _TOP, number & _TOP
    return (a, b, c) if 0 <= a <= _TOP else None
