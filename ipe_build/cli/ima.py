"""`ipe-build ima sign | verify | policy`: a root filesystem whose files IMA and EVM accept."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import in_image, named, uuid_of
from ipe_build.cli.payloads import TRUSTED_HELP, target_of, target_options
from ipe_build.errors import ExitStatus, InputError, UsageError
from ipe_build.formats.dotconfig import parse_dotconfig
from ipe_build.image.contents import kind_of_image, read_image
from ipe_build.image.filesystem import MAKERS, FilesystemRequest, FilesystemType, rootfs_of
from ipe_build.image.ima import FileVerdict, ImaFiles, ImaRequest, ImaVerdict, verify_rootfs
from ipe_build.image.ima_image import sign_image
from ipe_build.image.rootfs import Entry, Rootfs
from ipe_build.kernel.keyring import read_trusted
from ipe_build.policy.ima_policy import TEMPLATES, load_ima_policy
from ipe_build.policy.ima_rules import Enabled, all_on
from ipe_build.signing.algorithms import HASHES
from ipe_build.signing.backends import BACKENDS, open_signer

if TYPE_CHECKING:
    from ipe_build.host import Host

POLICY_PATH = "etc/ima/ima-policy"
"""Where systemd (src/core/ima-setup.c) and ipe-init look for the policy."""
_FILES_HELP = "all (default): every ordinary file; code: what is run or loaded into the kernel"
_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-verbs."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    sign = actions.add_parser("sign", help="make an image whose files carry security.ima (and security.evm), without being root")
    sign.add_argument("source", type=Path, metavar="SOURCE", help="a folder, a tar, or an ext4, EROFS or SquashFS image")
    sign.add_argument("-o", "--output", type=Path, required=True, metavar="IMAGE", help="the image to write")
    sign.add_argument("--force", action="store_true", help="replace IMAGE when it exists")
    keys = "one of " + ", ".join(row.example for row in BACKENDS).replace("%", "%%")
    sign.add_argument("--key", required=True, metavar="URI", help=keys)
    sign.add_argument("--cert", required=True, type=Path, metavar="PEM", help="the key's certificate, which goes into .ima")
    sign.add_argument("--evm", action="store_true", help="also sign attributes, owner and mode (portable security.evm)")
    sign.add_argument("--evm-key", metavar="URI", help="another key for that (default: the same)")
    sign.add_argument("--evm-cert", type=Path, metavar="PEM", help="its certificate, which goes into .evm")
    sign.add_argument("--files", choices=[str(name) for name in ImaFiles], default="all", help=_FILES_HELP)
    sign.add_argument("--policy", metavar="TEMPLATE|file:PATH", help=f"put this IMA policy into the image as /{POLICY_PATH}, signed too")
    sign.add_argument("--digest", choices=list(HASHES), help="default: what suits the key")
    sign.add_argument("--32-bit", dest="is_32_bit", action="store_true", help="the device's kernel is a 32-bit one (matters to EVM)")
    target_options(sign)
    sign.add_argument("--filesystem", choices=[str(name) for name in FilesystemType], default="erofs", help="of a folder or tar (erofs)")
    names = ", ".join(f"{row.filesystem}: {', '.join(row.compressions)}" for row in MAKERS)
    sign.add_argument("--compression", default="", metavar="NAME", help=f"the first is the default, or the source's: {names}")
    sign.add_argument("--uuid", help="of a folder's or tar's image (default: derived from SOURCE_DATE_EPOCH)")
    sign.add_argument("--keep-owners", action="store_true", help="keep a folder's owners; they become 0:0 otherwise")
    sign.add_argument("--jobs", type=int, metavar="N", help="workers (default: one a processor)")
    verify = actions.add_parser("verify", help="check every file of an image, folder or tar as IMA appraisal does")
    verify.add_argument("source", type=Path, metavar="SOURCE")
    verify.add_argument("--trusted", required=True, type=Path, metavar="FILE", help="what .ima holds: certificates (PEM, DER)")
    verify.add_argument("--evm-trusted", type=Path, metavar="FILE", help="what .evm holds; EVM must agree too. Both: " + TRUSTED_HELP)
    verify.add_argument("--files", choices=[str(name) for name in ImaFiles], default="all", help=_FILES_HELP)
    policy = actions.add_parser("policy", help="print an IMA policy, or check one of your own, as the kernel would load it")
    policy.add_argument("policy", nargs="?", metavar="TEMPLATE|file:PATH", help=", ".join(TEMPLATES))
    policy.add_argument("--list", action="store_true", help="list the templates")
    policy.add_argument("--kernel-config", type=Path, metavar="FILE", help="judge by this kernel's resolved .config")
    policy.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there")
    policy.add_argument("--force", action="store_true", help="replace FILE when it exists")


def run(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs the sub-verb."""
    return {"sign": _sign, "verify": _verify, "policy": _policy}[arguments.action](arguments, host)


def _sign(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `ima sign`."""
    if (arguments.evm_key is None) != (arguments.evm_cert is None):
        raise UsageError("--evm-key and --evm-cert go together", where="ima sign")
    signer = open_signer(arguments.key, arguments.cert, host)
    evm = open_signer(arguments.evm_key, arguments.evm_cert, host) if arguments.evm_key else signer if arguments.evm else None
    request = ImaRequest(
        signer,
        ImaFiles(arguments.files),
        evm,
        arguments.digest,
        32 if arguments.is_32_bit else 64,
        target_of(arguments),
        arguments.jobs,
    )
    additions: tuple[Entry, ...] = ()
    if arguments.policy is not None:
        if arguments.source.is_file() and kind_of_image(arguments.source) is not None:
            raise UsageError(
                "a policy cannot be put into a finished image", where="--policy", hint="give the folder or tar it was made from"
            )
        additions = (Entry.file(POLICY_PATH, load_ima_policy(arguments.policy)),)
    form = FilesystemRequest(
        arguments.source,
        uuid_of(arguments.uuid) or uuid5(NAMESPACE_URL, f"ipe-build:filesystem:{host.source_date_epoch}"),
        FilesystemType(arguments.filesystem),
        arguments.compression,
        True if arguments.keep_owners else None,
        additions,
    )
    with named(arguments.source, "IMA"), in_image(arguments.source):
        image = sign_image(request, form, arguments.output, host, force=arguments.force)
    value = {
        "path": str(image.path),
        "filesystem": str(image.filesystem),
        "signed": image.signed,
        "evm": evm is not None,
        "signer": signer.certificate.subject.rfc4514_string(),
    }
    return Outcome(value, f"{image.path}: {image.filesystem}, {image.signed} files signed by {value['signer']}")


def _verify(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `ima verify`; the exit status is 1 when a file would be refused."""
    trusted = read_trusted(arguments.trusted).certificates
    evm_trusted = read_trusted(arguments.evm_trusted).certificates if arguments.evm_trusted else ()
    with host.scratch() as scratch:
        with in_image(arguments.source):
            rootfs = _entries(arguments.source, scratch, host)
        verdicts = verify_rootfs(rootfs, trusted, evm_trusted, files=ImaFiles(arguments.files))
    counts = Counter(row.verdict for row in verdicts)
    value = {
        "counts": {str(verdict): counts[verdict] for verdict in ImaVerdict},
        "files": [{"path": f"/{row.path}", "verdict": str(row.verdict), "reason": row.reason} for row in verdicts],
    }
    refused = [row for row in verdicts if row.verdict is not ImaVerdict.SIGNED]
    if not verdicts:
        raise InputError("holds no file to check", where=str(arguments.source))
    return Outcome(value, _verdict_text(refused, counts), ExitStatus.FINDING if refused else ExitStatus.OK)


def _entries(source: Path, scratch: Path, host: Host) -> Rootfs:
    """Returns the entries of an image, a folder or a tar."""
    if source.is_file() and kind_of_image(source) is not None:
        return read_image(source, scratch / "image", host)
    return rootfs_of(source, scratch, host, keep_owners=True)


def _verdict_text(refused: list[FileVerdict], counts: Counter[ImaVerdict]) -> str:
    """Returns the files that would be refused, the first of them, and the counts."""
    lines = [f"{row.verdict}: /{row.path}: {row.reason}" for row in refused[:_SHOWN]]
    if len(refused) > _SHOWN:
        lines.append(f"… and {len(refused) - _SHOWN} more")
    return "\n".join([*lines, ", ".join(f"{counts[verdict]} {verdict}" for verdict in ImaVerdict)])


def _policy(arguments: argparse.Namespace, host: Host) -> Outcome:
    """Runs `ima policy`."""
    if arguments.list:
        rows = [{"name": row.name, "what": row.what, "needs": list(row.needs), "rules": list(row.lines)} for row in TEMPLATES.values()]
        return Outcome(rows, "\n".join(f"{row.name:15} {row.what}" for row in TEMPLATES.values()))
    if arguments.policy is None:
        raise UsageError("wants a template or file:PATH", where="ima policy", hint="ipe-build ima policy --list names the templates")
    enabled: Enabled = all_on
    if arguments.kernel_config is not None:
        enabled = parse_dotconfig(arguments.kernel_config.read_bytes(), where=str(arguments.kernel_config)).enabled
    data = load_ima_policy(arguments.policy, enabled)
    if arguments.output is not None:
        with host.output(arguments.output, force=arguments.force) as temporary:
            temporary.write_bytes(data)
    rules = sum(1 for line in data.split(b"\n") if line.strip() and not line.lstrip().startswith(b"#"))
    value = {"policy": arguments.policy, "rules": rules, "text": data.decode("utf-8", "replace")}
    return Outcome(value, f"{arguments.output}: {rules} rules" if arguments.output else data.decode("utf-8", "replace").rstrip("\n"))
