"""`ipe-build policy render`: a policy's text from a template; `policy make`: rendered, checked for its kernel and signed, in one go."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ipe_build.cli import Outcome
from ipe_build.cli.inputs import write_all
from ipe_build.cli.policy_check import fails, recorded, report_lines, report_options, report_value
from ipe_build.cli.policy_common import config_of, existing_ledger, kernel_of, root_hashes_option, target_options
from ipe_build.errors import ExitStatus, UsageError
from ipe_build.host import Host
from ipe_build.policy.findings import Target
from ipe_build.policy.lint import check
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.render import PROFILES as TEMPLATES
from ipe_build.policy.render import VARIABLES, render
from ipe_build.signing.backends import BACKENDS, open_signer
from ipe_build.signing.profiles import PROFILES, sign_payload
from ipe_build.signing.verify import verify_signature

_TEMPLATE_HELP = "a profile's name (see --list) or a jinja2 template's file"


def configure_render(parser: ArgumentParser) -> None:
    """Adds the options of `policy render`."""
    parser.add_argument("template", nargs="?", metavar="TEMPLATE", help=_TEMPLATE_HELP)
    parser.add_argument("--list", action="store_true", help="print the profiles and the variables and end")
    _template_options(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write it (default: stdout)")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")


def _template_options(parser: ArgumentParser) -> None:
    """Adds the options that become the template's variables."""
    parser.add_argument("-s", "--set", action="append", default=[], metavar="NAME=VALUE", help="a variable (repeatable)")
    parser.add_argument("--name", help="policy_name")
    parser.add_argument("--policy-version", metavar="A.B.C", help="policy_version")
    parser.add_argument("--role", choices=[role.value for role in Role], help="compiled into the kernel, or loaded later")
    root_hashes_option(parser, "a root hash, or a .roothash file")


def run_render(arguments: Namespace, host: Host) -> Outcome:
    """Returns the rendered text."""
    if arguments.list:
        return _render_list()
    if arguments.template is None:
        raise UsageError("wanted a TEMPLATE, or --list", where="ipe-build policy render")
    text = render(arguments.template, _variables(arguments))
    value = {"template": arguments.template, "text": text.decode(), "sha256": hashlib.sha256(text).hexdigest()}
    if arguments.output is None:
        return Outcome(value, text.decode().rstrip("\n"))
    with host.output(arguments.output, force=arguments.force) as temporary:
        temporary.write_bytes(text)
    return Outcome(value | {"file": str(arguments.output)}, f"{arguments.output}: {len(text)} bytes")


def _variables(arguments: Namespace) -> dict[str, object]:
    """Returns the template's variables that the options say. Raises: UsageError."""
    variables: dict[str, object] = dict(_assignment(word) for word in arguments.set)
    named = {"name": arguments.name, "version": arguments.policy_version, "role": arguments.role}
    variables |= {name: value for name, value in named.items() if value is not None}
    if arguments.root_hash:
        variables["root_hashes"] = [str(digest) for digest in arguments.root_hash]
    return variables


def _render_list() -> Outcome:
    """Returns the profiles and variables."""
    profiles = [{"profile": row.name, "role": row.role.value, "allows": row.meaning} for row in TEMPLATES]
    variables = [{"variable": row.name, "needed": row.default is None, "help": row.help} for row in VARIABLES]
    lines = [f"{row['profile']:24} {row['role']:7} {row['allows']}" for row in profiles]
    lines += ["", *(f"{row['variable']:18} {row['help']}{' (needed)' if row['needed'] else ''}" for row in variables)]
    return Outcome({"profiles": profiles, "variables": variables}, "\n".join(lines))


def _assignment(word: str) -> tuple[str, str]:
    """Returns name and value of NAME=VALUE."""
    name, equals, value = word.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"wanted NAME=VALUE, got {word!r}", where="--set")
    return name, value


def configure_make(parser: ArgumentParser) -> None:
    """Adds the options of `policy make`."""
    parser.add_argument("template", metavar="TEMPLATE", help=_TEMPLATE_HELP)
    _template_options(parser)
    target_options(parser)
    report_options(parser)
    parser.add_argument("--key", metavar="URI", help="signs it: one of " + ", ".join(row.example for row in BACKENDS).replace("%", "%%"))
    parser.add_argument("--cert", type=Path, metavar="PEM", help="the key's certificate")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="for NAME.pol and, with a key, NAME.p7b")
    parser.add_argument("--force", action="store_true", help="replace what exists")


def run_make(arguments: Namespace, host: Host) -> Outcome:
    """Returns what the check said; the text and the signed policy are written together, and only when it found no error."""
    if (arguments.key is None) != (arguments.cert is None):
        raise UsageError("--key and --cert belong together", where="policy make")
    variables = _variables(arguments)
    text = render(arguments.template, variables)
    policy = parse(text).policy
    assert policy is not None, "what comes out of render, the kernel accepts"
    role = Role(str(variables.get("role") or _role_of(arguments.template)))
    if role is Role.BOOT and arguments.key is not None:
        raise UsageError("a boot policy is compiled into the kernel, nobody signs it", where="policy make: --key")
    name = policy.display_name
    place = arguments.output / f"{name}.pol"
    ledger = existing_ledger(arguments.ledger) if arguments.ledger else None
    report = check(text, Target(kernel_of(arguments), role, config_of(arguments), name, recorded(ledger, text)))
    value = report_value(place, report) | {"files": []}
    said = report_lines(place, report)
    if fails(report, strict=arguments.strict):
        return Outcome(value, "\n".join(said), ExitStatus.FINDING)
    contents = [(place, text)]
    if arguments.key is not None:
        profile, signer = PROFILES["ipe-policy"], open_signer(arguments.key, arguments.cert, host)
        signature = sign_payload(profile, text, signer)
        verify_signature(profile, text, signature, [signer.certificate])
        contents.append((place.with_suffix(".p7b"), signature))
    write_all(contents, host, force=arguments.force)
    files = [str(path) for path, _ in contents]
    return Outcome(value | {"files": files}, "\n".join([*said, *files]))


def _role_of(template: str) -> Role:
    """Returns the role that a template has where none is asked for: a profile's own; a file's is the device's."""
    return next((row.role for row in TEMPLATES if row.name == template), Role.DEVICE)
