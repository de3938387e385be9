"""Policy texts from jinja2 templates: named profiles, or a template of your own. What comes out, the kernel accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from ipe_build.errors import InputError
from ipe_build.policy.parser import ParseResult, Role, parse
from ipe_build.policy.properties import DIGEST_SIZES, FSVERITY_ALGORITHMS, Operation

_PACKAGE = PackageLoader("ipe_build.policy", "templates")


class Profile(NamedTuple):
    """A row: a template of the package, the role unless another is asked, the roles that need root hashes, what it allows."""

    name: str
    role: Role
    needs_root_hashes: tuple[Role, ...]
    meaning: str


PROFILES: tuple[Profile, ...] = (
    Profile("allow-initramfs", Role.BOOT, (), "only what is in the initramfs"),
    Profile("signed-verity", Role.DEVICE, (), "what is on a dm-verity volume with a signed root hash"),
    Profile(
        "pinned-roothash", Role.DEVICE, tuple(Role), "what is on a dm-verity volume with one of the given root hashes (give two for A/B)"
    ),
    Profile("fsverity-signed", Role.DEVICE, (), "files with a built-in fs-verity signature"),
    Profile(
        "initramfs-then-pinned",
        Role.BOOT,
        (Role.DEVICE,),
        "boot: the initramfs, and the volumes with the given root hashes once they are known; device: those volumes only (keyless)",
    ),
    Profile(
        "sealed",
        Role.BOOT,
        tuple(Role),
        "for a kernel without keys: programs of the initramfs, and everything else from the volumes with the given root hashes alone",
    ),
    Profile(
        "permissive-then-enforce",
        Role.DEVICE,
        (),
        "enforce=false: everything, so that success_audit=1 shows what falls through; enforce=true: signed dm-verity volumes only",
    ),
)
_PROFILE = {row.name: row for row in PROFILES}


def _text(value: object, where: str) -> str:
    """Returns a word of the header: no space, no comment sign, no control character."""
    if not isinstance(value, str) or not value or any(c.isspace() or c == "#" or not c.isprintable() for c in value):
        raise InputError(f"wanted one word without space and #, got {value!r}", where=where)
    return value


def _flag(value: object, where: str) -> bool:
    """Returns a switch; from the command line it comes as the word true or false."""
    words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise InputError(f"wanted true or false, got {value!r}", where=where)
    return found


def _role(value: object, where: str) -> str:
    """Returns `boot` or `device`."""
    if value not in (Role.BOOT.value, Role.DEVICE.value):
        raise InputError(f"wanted boot or device, got {value!r}", where=where)
    return str(value)


def _digests(value: object, where: str) -> tuple[tuple[str, str], ...]:
    """Returns pairs (algorithm, lower-case hex). Each item is such a pair (the digest as hex or bytes) or `ALGORITHM:HEX`."""
    if isinstance(value, str):
        value = [word for word in value.replace(",", " ").split() if word]
    if not isinstance(value, Iterable):
        raise InputError(f"wanted a list of digests, got {value!r}", where=where)
    return tuple(_digest(item, where) for item in value)


def _digest(item: object, where: str) -> tuple[str, str]:
    """Returns one pair, checked against the algorithm's size: the kernel would take a wrong one, and never match it."""
    if isinstance(item, str):
        item = tuple(item.split(":", 1))
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(f"wanted ALGORITHM:HEX, got {item!r}", where=where, hint="for instance sha256: and 64 hexadecimal digits")
    algorithm, raw = str(item[0]), item[1]
    size = DIGEST_SIZES.get(algorithm)
    if size is None:
        raise InputError(f"{algorithm!r} is no hash the kernel names so", where=where, hint=f"one of: {', '.join(DIGEST_SIZES)}")
    try:
        value = raw if isinstance(raw, bytes) else bytes.fromhex(str(raw))
    except ValueError:
        raise InputError(f"wanted hexadecimal digits, got {str(raw)[:80]!r}", where=where) from None
    if len(value) != size:
        raise InputError(f"a {algorithm} digest has {size} bytes, got {len(value)}", where=where)
    return algorithm, value.hex()


def _fsverity_digests(value: object, where: str) -> tuple[tuple[str, str], ...]:
    """Returns pairs as `_digests`, of algorithms that fs-verity has."""
    pairs = _digests(value, where)
    for algorithm, _hex in pairs:
        if algorithm not in FSVERITY_ALGORITHMS:
            raise InputError(f"fs-verity has no {algorithm}", where=where, hint="it has sha256 and sha512")
    return pairs


class Variable(NamedTuple):
    """A row: a variable of the templates, its default (None: it must be given), its check and one sentence of help."""

    name: str
    default: object
    check: Callable[[object, str], object]
    help: str


VARIABLES: tuple[Variable, ...] = (
    Variable("name", None, _text, "policy_name; systemd wants it to be the stem of the .p7b file"),
    Variable("version", None, _text, "policy_version A.B.C; must grow with every change"),
    Variable("role", "", _role, "`boot` (compiled into the kernel) or `device` (loaded later); each profile has its own default"),
    Variable("root_hashes", (), _digests, "root hashes as ALGORITHM:HEX; the old and the new one for an A/B update"),
    Variable("fsverity_digests", (), _fsverity_digests, "fs-verity digests of single files as ALGORITHM:HEX"),
    Variable("allow_modules", True, _flag, "also decide KMODULE by the profile's condition; otherwise no module can be loaded"),
    Variable("allow_firmware", True, _flag, "the same for FIRMWARE"),
    Variable("allow_kexec", False, _flag, "the same for KEXEC_IMAGE and KEXEC_INITRAMFS"),
    Variable("allow_ima_policy", False, _flag, "the same for POLICY (IMA policies loaded by path)"),
    Variable("allow_certificates", False, _flag, "the same for X509_CERT (CONFIG_IMA_X509_PATH, CONFIG_EVM_X509_PATH)"),
    Variable("policy_by_path", False, _flag, "sealed: the initramfs may hold the policy that takes over, unsigned (our kernel patch)"),
    Variable("enforce", True, _flag, "permissive-then-enforce: whether what no rule allows is denied"),
)
_ALLOWED_BY: tuple[tuple[str, tuple[Operation, ...]], ...] = (
    ("allow_modules", (Operation.KMODULE,)),
    ("allow_firmware", (Operation.FIRMWARE,)),
    ("allow_kexec", (Operation.KEXEC_IMAGE, Operation.KEXEC_INITRAMFS)),
    ("allow_ima_policy", (Operation.POLICY,)),
    ("allow_certificates", (Operation.X509_CERT,)),
)


def load_template(template: str | Path) -> Template:
    """Returns the jinja2 template of a profile's name, or of a file (also `file:PATH`; it may include and import those of the package).

    Raises: InputError when there is no such profile or file, or the template's syntax is wrong.
    """
    own = not isinstance(template, Path) and template in _PROFILE
    path = Path(str(template).removeprefix("file:"))
    loader: BaseLoader = _PACKAGE if own else ChoiceLoader([FileSystemLoader(path.parent), _PACKAGE])
    if not own and not path.is_file():
        names = ", ".join(row.name for row in PROFILES)
        raise InputError("is neither a profile nor a file", where=str(template), hint=f"the profiles are {names}")
    try:
        return _environment(loader).get_template(f"{template}.j2" if own else path.name)
    except TemplateError as error:
        raise _template_error(error, str(template)) from error
    except UnicodeDecodeError as error:
        raise InputError("the template is not UTF-8", where=str(template)) from error


def _environment(loader: BaseLoader) -> Environment:
    """Returns jinja2's settings: an undefined variable is an error, a template cannot reach Python."""
    return SandboxedEnvironment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )


def render(template: str | Path, variables: Mapping[str, object]) -> bytes:
    """Returns the text (UTF-8) of a policy: `template` is a profile's name or a file, `variables` those of `VARIABLES` and any others.

    Raises: InputError when a variable is missing or wrong, the template fails, or the kernel would refuse what came out.
    """
    loaded = load_template(template)
    values = _complete(str(template), variables)
    try:
        text = loaded.render(values).encode()
    except TemplateError as error:
        raise _template_error(error, str(template)) from error
    except Exception as error:
        raise InputError(f"the template failed: {error}", where=str(template)) from error
    result = parse(text, role=Role(str(values["role"])))
    if not result.accepted:
        raise _refused(result, str(template))
    return text


def _complete(template: str, variables: Mapping[str, object]) -> dict[str, object]:
    """Returns the variables with defaults filled in and checked, and `operations`: what the profile's condition decides."""
    profile = _PROFILE.get(template)
    values: dict[str, object] = dict(variables)
    for row in VARIABLES:
        where = f"{template}: variable {row.name}"
        default = (profile.role.value if profile else Role.DEVICE.value) if row.name == "role" else row.default
        value = values.get(row.name, default)
        if value is None:
            raise InputError("must be given", where=where, hint=row.help)
        values[row.name] = row.check(value, where)
    if profile and values["role"] in profile.needs_root_hashes and not values["root_hashes"]:
        raise InputError("must hold at least one root hash", where=f"{template}: variable root_hashes", hint="build the image first")
    extra = [op for name, ops in _ALLOWED_BY if values[name] for op in ops]
    values["operations"] = tuple(op.value for op in (Operation.EXECUTE, *extra))
    return values


def _template_error(error: TemplateError, template: str) -> InputError:
    """Returns our error for jinja2's, with the line where it says one."""
    line = getattr(error, "lineno", None)
    return InputError(error.message or str(error) or type(error).__name__, where=f"{template}:{line}" if line else template)


def _refused(result: ParseResult, template: str) -> InputError:
    """Returns the error for a rendered text that the kernel would refuse."""
    problem = result.problem
    where = f"{template}: rendered text" + (f", line {problem.line}" if problem and problem.line else "")
    return InputError(
        f"the kernel would refuse it with {result.errno}: {problem.message if problem else ''}",
        where=where,
        hint=problem.hint if problem else "",
    )
