"""The stages of a foreseen boot from the verity root on: volume, mount, policies, the root's first program.

Sources: Linux drivers/md/dm-verity-target.c, dm-verity-verify-sig.c, security/ipe/policy.c, fs/exec.c; our image/guest/.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from uuid import UUID

from ipe_build.audit.checks_kernel import FILESYSTEM_SYMBOLS, HASH_SYMBOLS
from ipe_build.audit.command_line import ipe_init_word, word_of, words_of
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.file_tree import TreeFile
from ipe_build.audit.findings import Answer
from ipe_build.audit.mounting import mount_problem, page_bytes
from ipe_build.audit.policies import SignedPolicy, boot_policy_in, named_policy, policy_path, signed_policies
from ipe_build.audit.root_hash import root_facts, root_hash_signer
from ipe_build.audit.sealed import enabled_in
from ipe_build.audit.tree_check import check_tree
from ipe_build.errors import IpeBuildError
from ipe_build.formats.command_line import kernel_bool
from ipe_build.formats.ipe_init import CAPABILITIES, signature_refusal, superblock_refusal
from ipe_build.formats.verity import SUPERBLOCK_SIZE
from ipe_build.formats.verity_sig import parse_verity_signature
from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import Facts
from ipe_build.policy.model import Policy, Rule
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.properties import Action, Operation
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.verify import verify_signature

if TYPE_CHECKING:
    from ipe_build.host import Host

from ipe_build.audit.walk import ON, Step, allows, drivers, ends, setting_of, settings_of, unforeseen
from ipe_build.audit.walk_integrity import integrity_set_up
from ipe_build.audit.walk_program import starts

_MAX_INIT = 255
_MOUNT_OPTIONS = {
    "erofs": (
        "ro",
        "user_xattr",
        "nouser_xattr",
        "acl",
        "noacl",
        *(f"cache_strategy={one}" for one in ("disabled", "readahead", "readaround")),
    ),
    "ext4": ("ro", "noload", "norecovery", "errors=continue", "errors=panic", "errors=remount-ro"),
    "squashfs": ("ro", "errors=continue", "errors=panic"),
}
"""Options that every kernel with IPE takes for these filesystems. Source: Linux fs/erofs/super.c, fs/ext4/super.c, fs/squashfs/super.c."""


def verity_opens(facts: ImageFacts, host: Host) -> Step:
    """ipe-init finds the partitions by the root hash and has the kernel open the volume, with its signature."""
    text = setting_of(facts, "root_hash")
    given = ipe_init_word(facts, "roothash")
    if text == "cmdline" and len(given) != 1:
        return ends("ipe-init wants one roothash= on the command line")
    try:
        wanted = bytes.fromhex(given[0] if text == "cmdline" else text)
    except ValueError:
        return ends("the root hash is no hexadecimal number")
    if not 32 <= len(wanted) <= 64:
        return ends(f"a root hash of {len(wanted)} bytes is not taken")
    if facts.table is not None and facts.table.from_backup and not any(word.name == "gpt" for word in words_of(facts)):
        return unforeseen("the first partition table is damaged: Linux does not use the second one unless firmware has repaired the first")
    missing = _missing_partition(facts, wanted)
    if missing:
        return ends(missing)
    if facts.superblock is None or facts.root is None or facts.root.data_region is None:
        return ends("the verity superblock cannot be read")
    if facts.superblock.data_blocks * facts.superblock.data_block_size > facts.root.data_region.size_bytes:
        return ends("the superblock says more data than the partition has")
    area = facts.root.hash_region
    refused = superblock_refusal(area.read(facts.root.hash_offset, SUPERBLOCK_SIZE)) if area is not None else ""
    if refused:
        return ends(f"ipe-init refuses the verity superblock: {refused}")
    if facts.superblock.data_block_size > page_bytes(facts):
        return ends(f"dm-verity takes no data blocks of {facts.superblock.data_block_size} bytes: they are larger than a page")
    there = drivers(facts, "BLK_DEV_DM", "DM_VERITY", HASH_SYMBOLS.get(facts.superblock.algorithm, ""))
    return _signed(facts, wanted) if there is ON else there


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
    source = setting_of(facts, "signature", "partition")
    required = kernel_bool(word_of(facts, "dm_verity.require_signatures") or "0")
    if source == "none":
        return ends("the kernel wants a signature and the initramfs gives none") if required else ON
    if source == "partition":
        raw = facts.root.signature_bytes if facts.root is not None else None
        try:
            stored = parse_verity_signature(raw or b"")
        except IpeBuildError as error:
            return ends(f"no usable signature partition: {error.message}")
        place, kind = facts.root.signature if facts.root is not None else None, setting_of(facts, "signature_type")
        if place is not None and (not kind or UUID(kind) != place.type_uuid):
            return ends(f"ipe-init looks for a signature partition of the type {kind or UUID(int=0)}, there is {place.type_uuid}")
        if refused := signature_refusal(raw or b""):
            return ends(f"ipe-init refuses the signature partition: {refused}")
        if stored.root_hash != wanted:
            return ends("no signature partition is for this root hash")
        signature = stored.signature
    elif source.startswith("file:"):
        given = facts.find_in_initramfs(source.removeprefix("file:").lstrip("/"))
        if given is None:
            return ends(f"{source.removeprefix('file:')} is not in the initramfs")
        signature = given.read(1 << 20)
    else:
        return unforeseen(f"the signature comes from {source}")
    takes = drivers(facts, "DM_VERITY_VERIFY_ROOTHASH_SIG")
    if takes is not ON:
        return takes._replace(why=f"the kernel takes no signature of the root hash: {takes.why}") if takes.goes_on is Answer.NO else takes
    assert facts.kernel is not None
    try:
        root_hash_signer(wanted, signature, facts.kernel)
    except IpeBuildError as error:
        return ends(f"the kernel refuses the root hash's signature: {error.message}")
    return ON


def root_mounts(facts: ImageFacts, host: Host) -> Step:
    """ipe-init mounts the root."""
    tree = check_tree(facts, host)
    if facts.files is None or tree is None:
        return (
            unforeseen("the root filesystem could not be read")
            if tree is None or tree.can_read(0, 4096)
            else ends("its first block cannot be read")
        )
    named = setting_of(facts, "filesystem")
    if named != facts.files.filesystem:
        return ends(f"ipe-init mounts {named}, the root is {facts.files.filesystem}")
    there = drivers(facts, FILESYSTEM_SYMBOLS.get(named, ""))
    if there is not ON:
        return there
    problem = mount_problem(facts, setting_of(facts, "mount_options"))
    if problem:
        return ends(problem)
    if not tree.can_read(0, 4096):
        return ends("dm-verity does not let the filesystem's first block be read")
    options = [one for one in setting_of(facts, "mount_options").split(",") if one and one not in _MOUNT_OPTIONS.get(named, ())]
    return unforeseen(f"whether {named} takes the mount option {options[0]} is not foreseen") if options else ON


def policies_load(facts: ImageFacts, host: Host) -> Step:
    """ipe-init loads and activates the policies, each from where it is told; then what IMA and EVM need."""
    step, active = _loaded(facts)
    return step if step is not ON else integrity_set_up(facts, active)


def _loaded(facts: ImageFacts) -> tuple[Step, Policy | None]:
    """Returns how loading goes, and the policy that is in force then."""
    assert facts.kernel is not None
    there = {one.path: one for one in signed_policies(facts)}
    active = boot_policy_in(facts)
    known = {active.name: active} if active is not None else {}
    for place in settings_of(facts, "policy"):
        inside = place.startswith("initramfs:")
        found = there.get(policy_path(place)) or named_policy(facts, place)
        if found is None:
            return ends(f"{place} is not there"), active
        reason, policy = (
            _taken_by_path(facts, found.signature, inside, active) if place.endswith(".pol") else _taken(facts, found, known, active)
        )
        if policy is None:
            return ends(f"{place}: {reason}"), active
        if PurePosixPath(place).stem != policy.display_name:
            return ends(f"{place}: its policy_name is {policy.display_name}"), active
        known[policy.name] = active = policy
    return _deleted(facts, known, active), active


def _deleted(facts: ImageFacts, known: dict[bytes, Policy], active: Policy | None) -> Step:
    """Returns how the deleting of policies goes; the kernel does not delete the one in force. Source: security/ipe/policy_fs.c."""
    there = set(known)
    for name in settings_of(facts, "delete_policy"):
        raw = name.encode("utf-8", "surrogateescape")
        if raw not in there:
            return ends(f"there is no policy {name} to delete")
        if active is not None and active.name == raw:
            return ends(f"the policy in force, {name}, cannot be deleted")
        there.remove(raw)
    return ON


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


def init_starts(facts: ImageFacts, host: Host) -> Step:
    """ipe-init moves into the root and starts its first program."""
    assert facts.files is not None
    unknown = [one for one in settings_of(facts, "drop_capability") if one not in CAPABILITIES]
    if unknown:
        return ends(f"there is no capability {unknown[0]}")
    mounted = {"/dev", "/proc", "/sys"}
    for place in settings_of(facts, "move"):
        if place.rstrip("/") not in mounted:
            return ends(f"nothing is mounted on {place} that could be moved to the root")
        mounted.remove(place.rstrip("/"))
        folder = facts.files.tree.find(place)
        if folder is None or folder.mode >> 12 != 4:
            return ends(f"the root has no folder {place} to move {place} to")
    chosen = ipe_init_word(facts, "init") if setting_of(facts, "init_from_command_line") == "yes" else ()
    path = (chosen or ("",))[-1]
    if len(path.encode("utf-8", "surrogateescape")) > _MAX_INIT or (path and not path.startswith("/")):
        return ends(f"ipe-init takes no init={path[:40]}: it is too long, or no absolute path")
    policy, tree, known = policy_in_force(facts), check_tree(facts, host), root_facts(facts) or Facts()

    def refuses(program: TreeFile) -> str:
        if tree is not None and program.starts_at is not None and not tree.can_read(program.starts_at, min(program.size_bytes, 4096)):
            return f"dm-verity does not let /{program.path} be read"
        if not allows(facts, policy, Operation.EXECUTE, known):
            return f"{policy.display_name if policy is not None else 'the policy'} denies /{program.path}"
        return ""

    return starts(facts, path or setting_of(facts, "init"), facts.files.tree.find, refuses, "the root")


def root_is_whole(facts: ImageFacts, host: Host) -> Step:
    """Whatever else of the root is needed can be read."""
    tree = check_tree(facts, host)
    if tree is None or not tree.unreadable:
        return ON
    return unforeseen(f"{len(tree.unreadable)} parts of the root cannot be read: what needs them fails")
