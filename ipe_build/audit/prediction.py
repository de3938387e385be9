"""What a boot entry is foreseen to do: the boot walked through stage by stage, as kernel and ipe-init do, with nothing run.

STEPS is THE table of stages, in their order; the first that ends the boot is the answer. Each boot of `tests/boot/test_audit_boots.py`
is held against it. Sources: Linux init/main.c (kernel_init), init/initramfs.c, security/security.c (ordered_lsm_init), security/ipe/,
drivers/md/dm-verity-target.c and dm-verity-verify-sig.c; our image/guest/*.c.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from ipe_build.audit.checks_boot import RD_SYMBOLS, kernel_bool
from ipe_build.audit.checks_disk import root_facts
from ipe_build.audit.checks_kernel import FILESYSTEM_SYMBOLS, HASH_SYMBOLS
from ipe_build.audit.checks_policy import SignedPolicy, signed_policies
from ipe_build.audit.facts import EntryKind, ImageFacts
from ipe_build.audit.file_tree import TreeFile
from ipe_build.audit.findings import Answer, Prediction, Stage
from ipe_build.audit.sealed import enabled_in
from ipe_build.audit.tree_check import check_tree
from ipe_build.errors import IpeBuildError
from ipe_build.formats.verity_sig import parse_verity_signature
from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import Facts
from ipe_build.policy.model import Policy, Rule
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Action, Operation
from ipe_build.signing.profiles import PROFILES, root_hash_payload
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

CONFIG = "etc/ipe-init.conf"
_INITRAMFS = Facts(boot_verified=True)
_STRANGER = Facts()
_ELF, _SCRIPT = b"\x7fELF", b"#!"
_FOREIGN = "its first program is not ipe-init: what that does is not foreseen"


class Step(NamedTuple):
    """How a stage goes: YES and the boot goes on, NO and it ends there, UNKNOWN and nothing more is foreseen."""

    goes_on: Answer
    why: str


ON = Step(Answer.YES, "")


def _ends(why: str) -> Step:
    return Step(Answer.NO, why)


def _open(why: str) -> Step:
    return Step(Answer.UNKNOWN, why)


Walk = Callable[[ImageFacts, "Host"], Step]


def words_of(facts: ImageFacts) -> tuple[tuple[str, str], ...]:
    """Returns names (`_` for `-`) and values of the kernel's whole command line, its built-in words first; what follows `--` is init's."""
    if facts.boot_entry is None:
        return ()
    built_in = facts.kernel.command_line or "" if facts.kernel is not None else ""
    words = f"{built_in} {facts.boot_entry.command_line}".split()
    kept = words[: words.index("--")] if "--" in words else words
    split = (word.partition("=") for word in kept)
    return tuple((name.replace("-", "_"), value.strip('"')) for name, _, value in split)


def _word(facts: ImageFacts, name: str) -> str | None:
    """Returns the last value of a word of the command line."""
    return next((value for key, value in reversed(words_of(facts)) if key == name), None)


def _on(facts: ImageFacts, *symbols: str) -> str:
    """Returns the first Kconfig symbol that is neither built in nor loaded by ipe-init; "" when all are, or the kernel does not say."""
    return next((one for one in symbols if facts.has_driver(one) is False), "")


def _settings(facts: ImageFacts, name: str) -> tuple[str, ...]:
    return (facts.initramfs_config() or {}).get(name, ())


def _setting(facts: ImageFacts, name: str, default: str = "") -> str:
    return (_settings(facts, name) or (default,))[-1]


def ipe_active(facts: ImageFacts) -> Step:
    """Returns whether the kernel has an initialised IPE."""
    kernel = facts.kernel
    if kernel is None:
        return _open("the kernel could not be read")
    if not kernel.ipe:
        return _ends("the kernel has no IPE")
    chosen = _word(facts, "lsm")
    order = tuple(chosen.split(",")) if chosen is not None else kernel.lsms
    if order is None:
        return _open("the kernel's order of security modules was not found")
    if "ipe" not in order:
        return _ends(f"ipe is not among the security modules {','.join(order)}")
    # A boot policy that the kernel refuses leaves IPE without one, but its hooks are there (security/ipe/ipe.c, ipe_init).
    return ON


def _switched_off(facts: ImageFacts) -> bool:
    """Returns whether ipe.enforce= takes the enforcement away; a value that is no truth value is not taken."""
    values = [answer for key, value in words_of(facts) if key == "ipe.enforce" and (answer := kernel_bool(value or "1")) is not None]
    return bool(values) and not values[-1]


def _enforcing(facts: ImageFacts) -> Step:
    """Returns whether IPE denies anything at all."""
    active = ipe_active(facts)
    if active.goes_on is not Answer.YES:
        return active
    return _ends("the command line switches enforcement off") if _switched_off(facts) else ON


def _allows(facts: ImageFacts, policy: Policy | None, op: Operation, known: Facts) -> bool:
    """Returns whether something may happen: a policy that allows it, none at all, or an IPE that denies nothing."""
    if policy is None or _enforcing(facts).goes_on is not Answer.YES:
        return True
    return decide(policy, op, known, enabled_in(facts)).action is Action.ALLOW


def _boot_policy(facts: ImageFacts) -> Policy | None:
    kernel = facts.kernel
    if kernel is None or kernel.boot_policy is None:
        return None
    return parse(kernel.boot_policy, kernel.version, Role.BOOT).policy


def _loader(facts: ImageFacts, host: Host) -> Step:
    """Firmware finds something, and that finds the kernel."""
    entry = facts.boot_entry
    if entry is None or not entry.kernel:
        return _ends("nothing of the image names a kernel")
    if facts.esp is not None and entry.kind is not EntryKind.GIVEN and not any(_is_loader(name) for name in facts.esp.files):
        return _ends("firmware finds no boot loader (EFI/BOOT/BOOT*.EFI)")
    if facts.esp is not None and facts.esp.loader_is_uki and not entry.default:
        return _open("firmware starts another unified kernel image")
    return ON


def _is_loader(name: str) -> bool:
    return name.upper().startswith("/EFI/BOOT/BOOT") and name.upper().endswith(".EFI")


def _kernel(facts: ImageFacts, host: Host) -> Step:
    """The kernel unpacks itself."""
    if facts.kernel is not None:
        return ON
    reason = next((why for part, why in facts.unreadable.items() if part.startswith("kernel")), "the kernel could not be read")
    return _ends(reason) if "damaged" in reason else _open(reason)


def _initramfs(facts: ImageFacts, host: Host) -> Step:
    """The kernel unpacks the initramfs and starts its first program."""
    archive = facts.archive
    if archive is None:
        return (
            _open("there is no initramfs; how the kernel mounts root= by itself is not foreseen")
            if _word(facts, "root")
            else _ends("there is no initramfs, and no root= names what the kernel should mount")
        )
    config = facts.kernel.config if facts.kernel is not None else None
    if config is not None and not config.enabled("BLK_DEV_INITRD"):
        return _ends("the kernel takes no initramfs (CONFIG_BLK_DEV_INITRD)")
    off = [part.kind for part in archive.parts if part.kind != "cpio" and config is not None and not config.enabled(RD_SYMBOLS[part.kind])]
    if off:
        return _ends(f"the kernel cannot unpack {off[0]} (CONFIG_{RD_SYMBOLS[off[0]]})")
    path = (_word(facts, "rdinit") or "/init").lstrip("/")
    program = facts.find_in_initramfs(path)
    if program is None or not program.is_executable or any(name.lstrip("./") == path for name in archive.incomplete):
        return (
            _ends(f"the initramfs has no executable /{path}")
            if _word(facts, "root") is None
            else _open(f"there is no /{path}, root= is mounted")
        )
    if archive.error:
        return _open(f"the initramfs is damaged: {archive.error}")
    if program.read(4)[:4] != _ELF and program.read(2) != _SCRIPT:
        return _ends(f"/{path} is no program")
    if not _allows(facts, _boot_policy(facts), Operation.EXECUTE, _INITRAMFS):
        return _ends(f"the boot policy denies /{path}")
    return ON if facts.initramfs_config() is not None else _open(_FOREIGN)


def _ipe(facts: ImageFacts, host: Host) -> Step:
    """ipe-init looks whether IPE enforces, and loads the modules that it needs."""
    active = ipe_active(facts)
    if active.goes_on is not Answer.YES:
        return active
    if _switched_off(facts):
        return _ends("ipe-init wants IPE to enforce, and the command line switches that off")
    for path in _settings(facts, "module"):
        if facts.find_in_initramfs(path.lstrip("/")) is None:
            return _ends(f"{path} is not in the initramfs")
        if not _allows(facts, _boot_policy(facts), Operation.KMODULE, _INITRAMFS):
            return _ends(f"the boot policy denies the module {path}")
    return ON


def _verity(facts: ImageFacts, host: Host) -> Step:
    """ipe-init finds the partitions by the root hash and has the kernel open the volume, with its signature."""
    text = _setting(facts, "root_hash")
    given = [value for key, value in words_of(facts) if key == "roothash"]
    if text == "cmdline" and len(given) != 1:
        return _ends("ipe-init wants one roothash= on the command line")
    try:
        wanted = bytes.fromhex(given[0] if text == "cmdline" else text)
    except ValueError:
        return _ends("the root hash is no hexadecimal number")
    if not 32 <= len(wanted) <= 64:
        return _ends(f"a root hash of {len(wanted)} bytes is not taken")
    missing = _missing_partition(facts, wanted)
    if missing:
        return _ends(missing)
    if facts.superblock is None or facts.root is None or facts.root.data_region is None:
        return _ends("the verity superblock cannot be read")
    if facts.superblock.data_blocks * facts.superblock.data_block_size > facts.root.data_region.size_bytes:
        return _ends("the superblock says more data than the partition has")
    symbol = _on(facts, "BLK_DEV_DM", "DM_VERITY", *filter(None, [HASH_SYMBOLS.get(facts.superblock.algorithm)]))
    return _ends(f"the kernel has no CONFIG_{symbol} built in") if symbol else _signed(facts, wanted)


def _missing_partition(facts: ImageFacts, wanted: bytes) -> str:
    """Returns why ipe-init does not find data and tree of a root hash by the partitions' UUIDs; "" when it does."""
    if facts.table is None:
        return "" if facts.root is not None and facts.root.data_region and facts.root.hash_region else "data or hash tree are not there"
    for what, half in (("data", wanted[:16]), ("hash", wanted[-16:])):
        hits = sum(one.uuid == UUID(bytes=half) for one in facts.table.partitions)
        if hits != 1:
            return f"{hits or 'no'} partitions have the UUID {UUID(bytes=half)} of the {what} partition"
    return ""


def _signed(facts: ImageFacts, wanted: bytes) -> Step:
    """The kernel checks the signature that it is given."""
    source = _setting(facts, "signature", "partition")
    required = kernel_bool(_word(facts, "dm_verity.require_signatures") or "0")
    if source == "none":
        return _ends("the kernel wants a signature and the initramfs gives none") if required else ON
    if source == "partition":
        raw = facts.root.signature_bytes if facts.root is not None else None
        try:
            stored = parse_verity_signature(raw or b"")
        except IpeBuildError as error:
            return _ends(f"no usable signature partition: {error.message}")
        if stored.root_hash != wanted:
            return _ends("no signature partition is for this root hash")
        signature = stored.signature
    elif source.startswith("file:"):
        there = facts.find_in_initramfs(source.removeprefix("file:").lstrip("/"))
        if there is None:
            return _ends(f"{source.removeprefix('file:')} is not in the initramfs")
        signature = there.read(1 << 20)
    else:
        return _open(f"the signature comes from {source}")
    if _on(facts, "DM_VERITY_VERIFY_ROOTHASH_SIG"):
        return _ends("the kernel takes no signatures of root hashes (CONFIG_DM_VERITY_VERIFY_ROOTHASH_SIG)")
    assert facts.kernel is not None
    try:
        verify_signature(
            PROFILES["dm-verity-root-hash"], root_hash_payload(wanted), signature, facts.kernel.certificates, facts.kernel.revoked
        )
    except IpeBuildError as error:
        return _ends(f"the kernel refuses the root hash's signature: {error.message}")
    return ON


def _mount(facts: ImageFacts, host: Host) -> Step:
    """ipe-init mounts the root."""
    tree = check_tree(facts, host)
    if facts.files is None or tree is None:
        return (
            _open("the root filesystem could not be read")
            if tree is None or tree.can_read(0, 4096)
            else _ends("its first block cannot be read")
        )
    named = _setting(facts, "filesystem")
    if named != facts.files.filesystem:
        return _ends(f"ipe-init mounts {named}, the root is {facts.files.filesystem}")
    symbol = _on(facts, *filter(None, [FILESYSTEM_SYMBOLS.get(named)]))
    if symbol:
        return _ends(f"the kernel has no CONFIG_{symbol} built in")
    return ON if tree.can_read(0, 4096) else _ends("dm-verity does not let the filesystem's first block be read")


def _policy(facts: ImageFacts, host: Host) -> Step:
    """ipe-init loads and activates the policies, each from where it is told."""
    return _loaded(facts)[0]


def _loaded(facts: ImageFacts) -> tuple[Step, Policy | None]:
    """Returns how loading goes, and the policy that is in force then."""
    assert facts.kernel is not None
    there = {one.path: one for one in signed_policies(facts)}
    active = _boot_policy(facts)
    known = {active.name: active} if active is not None else {}
    for place in _settings(facts, "policy"):
        inside = place.startswith("initramfs:")
        key = f"initramfs: {place.removeprefix('initramfs:').lstrip('/')}" if inside else place.lstrip("/")
        found = there.get(key) or _elsewhere(facts, place, inside)
        if found is None:
            return _ends(f"{place} is not there"), active
        reason, policy = (
            _taken_by_path(facts, found.signature, inside, active) if place.endswith(".pol") else _taken(facts, found, known, active)
        )
        if policy is None:
            return _ends(f"{place}: {reason}"), active
        if PurePosixPath(place).stem != policy.display_name:
            return _ends(f"{place}: its policy_name is {policy.display_name}"), active
        known[policy.name] = active = policy
    return ON, active


def _elsewhere(facts: ImageFacts, place: str, inside: bool) -> SignedPolicy | None:
    """Returns a policy file outside the folders that are looked into for all images."""
    from ipe_build.audit.checks_policy import MAX_POLICY_BYTES, opened

    path = place.removeprefix("initramfs:").lstrip("/")
    found = facts.find_in_initramfs(path) if inside else (facts.files.tree.find(path) if facts.files is not None else None)
    return opened(path, found.read(MAX_POLICY_BYTES)) if found is not None and found.is_file else None


def _taken_by_path(facts: ImageFacts, raw: bytes, inside: bool, active: Policy | None) -> tuple[str, Policy | None]:
    """Returns the policy in plain text that a kernel with ipe-policy-by-path.patch makes of a file; whether it has it, nothing tells."""
    assert facts.kernel is not None
    on = Facts(boot_verified=True) if inside else root_facts(facts, trusted=True)
    rule = decide(active, Operation.POLICY, on, enabled_in(facts)) if active is not None and on is not None else None
    if not isinstance(rule, Rule) or rule.action is not Action.ALLOW or not rule.conditions:
        return "the policy in force vouches for no policy there (op=POLICY)", None
    policy = parse(raw, facts.kernel.version, Role.DEVICE).policy
    return ("", policy) if policy is not None else ("the kernel refuses its text", None)


def _taken(facts: ImageFacts, signed: SignedPolicy, known: dict[bytes, Policy], active: Policy | None) -> tuple[str, Policy | None]:
    """Returns the policy that the kernel makes of a signed file, else why it refuses it."""
    assert facts.kernel is not None
    if signed.text is None:
        return "not a signed policy", None
    try:
        verify_signature(PROFILES["ipe-policy"], signed.text, signed.signature, facts.kernel.certificates, facts.kernel.revoked)
    except IpeBuildError as error:
        return error.message, None
    policy = parse(signed.text, facts.kernel.version, Role.DEVICE).policy
    if policy is None:
        return "the kernel refuses its text", None
    older = known.get(policy.name)
    if older is not None and policy.version <= older.version:
        return f"its version {policy.version} is not higher than that of the loaded one, {older.version}", None
    if active is not None and policy.version < active.version:
        return f"its version {policy.version} is lower than that of the active one, {active.version}", None
    return "", policy


def policy_in_force(facts: ImageFacts) -> Policy | None:
    """Returns the policy that is in force once ipe-init has loaded what it is told to; None when there is none."""
    return None if facts.kernel is None else _loaded(facts)[1]


def _init(facts: ImageFacts, host: Host) -> Step:
    """ipe-init moves into the root and starts its first program."""
    assert facts.files is not None
    for place in _settings(facts, "move"):
        folder = facts.files.tree.find(place)
        if folder is None or folder.mode >> 12 != 4:
            return _ends(f"the root has no folder {place} to move {place} to")
    chosen = _word(facts, "init") if _setting(facts, "init_from_command_line") == "yes" else None
    return _starts(facts, chosen or _setting(facts, "init", "/sbin/init"), host, policy_in_force(facts))


def _starts(facts: ImageFacts, path: str, host: Host, policy: Policy | None, depth: int = 0) -> Step:
    """Returns whether a program of the root starts, with the interpreter that it names."""
    assert facts.files is not None
    program, tree = facts.files.tree.find(path), check_tree(facts, host)
    if program is None or not program.is_executable:
        return _ends(f"{path} is no executable file of the root")
    if tree is not None and program.starts_at is not None and not tree.can_read(program.starts_at, min(program.size_bytes, 4096)):
        return _ends(f"dm-verity does not let {path} be read")
    if not _allows(facts, policy, Operation.EXECUTE, root_facts(facts) or Facts()):
        return _ends(f"{policy.display_name if policy is not None else 'the policy'} denies {path}")
    interpreter = _interpreter(program)
    if interpreter is None:
        return _ends(f"{path} is no program that the kernel knows")
    if interpreter and depth < 4:
        return _starts(facts, interpreter, host, policy, depth + 1)
    return ON


def _interpreter(program: TreeFile) -> str | None:
    """Returns what a program names to be run by: a script's first line, an ELF file's PT_INTERP; "" for none, None for no program."""
    head = program.read(4096)
    if head[:2] == _SCRIPT:
        words = head[2:].split(b"\n", 1)[0].split()
        return words[0].decode("utf-8", "surrogateescape") if words else None
    if head[:4] != _ELF or len(head) < 64 or head[4] != 2:
        return None if head[:4] != _ELF else ""
    order = "little" if head[5] == 1 else "big"

    def number(raw: bytes) -> int:
        return int.from_bytes(raw, "little" if order == "little" else "big")

    start, size, count = number(head[32:40]), number(head[54:56]), number(head[56:58])
    for index in range(min(count, 64)):
        row = program.read_at(start + index * size, 56)
        if len(row) == 56 and number(row[:4]) == 3:
            raw = program.read_at(number(row[8:16]), min(number(row[32:40]), 4096))
            return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return ""


def _whole(facts: ImageFacts, host: Host) -> Step:
    """Whatever else of the root is needed can be read."""
    tree = check_tree(facts, host)
    if tree is None or not tree.unreadable:
        return ON
    return _open(f"{len(tree.unreadable)} parts of the root cannot be read: what needs them fails")


STEPS: tuple[tuple[Stage, Walk], ...] = (
    (Stage.FIRMWARE, _loader),
    (Stage.KERNEL, _kernel),
    (Stage.INITRAMFS, _initramfs),
    (Stage.IPE, _ipe),
    (Stage.VERITY, _verity),
    (Stage.MOUNT, _mount),
    (Stage.POLICY, _policy),
    (Stage.INIT, _init),
    (Stage.RUNS, _whole),
)


def predict(facts: ImageFacts, host: Host) -> Prediction:
    """Returns what the boot entry that the facts are seen from is foreseen to do."""
    entry = facts.boot_entry
    stage, step = Stage.RUNS, ON
    for reached, walk in STEPS:
        stage = reached
        step = walk(facts, host)
        if step.goes_on is not Answer.YES:
            break
    enforces = _enforces(facts, step, stage)
    return Prediction(
        entry=entry.name if entry is not None else "",
        kind=str(entry.kind) if entry is not None else "",
        default=entry is None or entry.default,
        boots=step.goes_on,
        stage=stage,
        why=step.why or "every stage goes well",
        enforces=enforces.goes_on,
        enforces_why=enforces.why,
    )


def _enforces(facts: ImageFacts, step: Step, stage: Stage) -> Step:
    """Returns whether IPE denies a program that nothing vouches for, once the system runs."""
    if step.goes_on is Answer.NO:
        return _open("it does not boot")
    enforcing = _enforcing(facts)
    if enforcing.goes_on is not Answer.YES:
        return enforcing
    if step.goes_on is Answer.UNKNOWN and stage is not Stage.RUNS and facts.initramfs_config() is None:
        return _open("which policy the initramfs loads is not foreseen")
    policy = policy_in_force(facts)
    if policy is None:
        return _ends("no policy is in force")
    by = decide(policy, Operation.EXECUTE, _STRANGER, enabled_in(facts))
    return Step(Answer.YES if by.action is Action.DENY else Answer.NO, f"{policy.display_name} {policy.version}: {by}")
