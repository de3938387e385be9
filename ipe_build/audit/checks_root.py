"""Checks of what is on the verity root: every program and module by the policy that will be in force, and what weakens the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ipe_build.audit.checks_policy import device_policies
from ipe_build.audit.facts import ImageFacts, ModuleView, RootFiles
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.audit.root_hash import root_facts
from ipe_build.audit.sealed import enabled_in, takes_unsigned_modules
from ipe_build.policy.evaluate import evaluate
from ipe_build.policy.facts import NO_FILE, Facts
from ipe_build.policy.properties import Action, Operation
from ipe_build.policy.survey import Entry, Kind, Trait

if TYPE_CHECKING:
    from ipe_build.host import Host

PROBES = "usr/lib/ipe-build/"
"""Where the probe program and its fixtures lie: unsigned modules there are on purpose."""
_OPERATIONS = {
    Kind.ELF: Operation.EXECUTE,
    Kind.SCRIPT: Operation.EXECUTE,
    Kind.MODULE: Operation.KMODULE,
    Kind.COMPRESSED_MODULE: Operation.KMODULE,
    Kind.FIRMWARE: Operation.FIRMWARE,
    Kind.KERNEL: Operation.KEXEC_IMAGE,
}
_SHOWN = 20


def _files(facts: ImageFacts) -> RootFiles | Outcome:
    return facts.files if facts.files is not None else unknown("root filesystem", "it could not be read")


def _named(found: list[str], why: str, fine: str) -> Iterator[Outcome]:
    """Yields one failure for each path (at most 20, then their number), or a pass."""
    for path in found[:_SHOWN]:
        yield bad(path, why)
    if len(found) > _SHOWN:
        yield bad(f"{len(found) - _SHOWN} more", why)
    if not found:
        yield good("root filesystem", fine)


def with_verity(known: Facts, entry: Entry) -> Facts:
    """Returns what the kernel knows of a file: that of the root, and what fs-verity says of the file itself."""
    return replace(known, fsverity_digest=entry.facts.fsverity_digest, fsverity_signed=entry.facts.fsverity_signed)


def _admitted(facts: ImageFacts, kinds: tuple[Kind, ...], what: str) -> Iterator[Outcome]:
    """Yields, for every file of these kinds, whether some device policy denies it."""
    files, known = _files(facts), root_facts(facts, trusted=True)
    if isinstance(files, Outcome):
        yield files
        return
    policies = device_policies(facts)
    if known is None or not policies:
        yield unknown(what, "the device policy or the root hash could not be read")
        return
    entries = [entry for entry in files.survey.entries if entry.kind in kinds]
    denied = []
    for entry in entries:
        for policy in policies:
            if evaluate(policy, _OPERATIONS[entry.kind], with_verity(known, entry), enabled_in(facts)).action is Action.DENY:
                denied.append(entry.path)
                break
    yield from _named(denied, "is denied by the device policy", f"the policy allows all {len(entries)} {what}")


def programs_admitted(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the device policy allows every ELF file and script of the root."""
    yield from _admitted(facts, (Kind.ELF, Kind.SCRIPT), "programs, libraries and scripts")


def modules_admitted(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the device policy allows every kernel module of the root."""
    yield from _admitted(facts, (Kind.MODULE, Kind.COMPRESSED_MODULE), "modules")


def firmware_admitted(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the device policy allows every firmware file of the root."""
    yield from _admitted(facts, (Kind.FIRMWARE,), "firmware files")


def refused_by_loader(module: ModuleView, facts: ImageFacts) -> bool:
    """Returns whether the kernel's module loader refuses a module. Source: kernel/module/signing.c (module_sig_check)."""
    if not module.errno or (module.forgiven and takes_unsigned_modules(facts)):
        return False
    config = facts.kernel_config
    return module.errno == "ENOEXEC" or config is None or config.enabled("MODULE_SIG")


def module_refusal(facts: ImageFacts, path: str) -> str | None:
    """Returns why the kernel's module loader refuses a module of the initramfs, "" when it takes it; None where nobody looked at it."""
    found = facts.find_in_initramfs(path.lstrip("/"))
    if found is None:
        return "it is not in the initramfs"
    one = next((one for one in facts.initramfs_modules if one.path == found.path), None)
    if one is None:
        return None
    return f"{one.errno}: {one.reason}" if refused_by_loader(one, facts) else ""


def modules_load(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether this kernel accepts every module of the root: signature, signer, and the kernel it was built for."""
    files = _files(facts)
    if isinstance(files, Outcome):
        yield files
        return
    judged = [one for one in files.modules if not one.path.startswith(PROBES)]
    refused = [one for one in judged if refused_by_loader(one, facts)]
    for one in refused[:_SHOWN]:
        yield bad(one.path, f"{one.errno}: {one.reason}")
    if len(refused) > _SHOWN:
        yield bad(f"{len(refused) - _SHOWN} more", "are refused too")
    if not refused:
        unsigned = sum(bool(one.errno) for one in judged)
        yield good("modules", f"the kernel accepts all {len(judged)}" + (f", {unsigned} of them unsigned" if unsigned else ""))


def modules_from_buffer(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether BusyBox loads the modules: its insmod falls back to init_module, which is judged without a file."""
    files = _files(facts)
    if isinstance(files, Outcome):
        yield files
        return
    insmod = [name for name in ("sbin/insmod", "bin/insmod", "usr/sbin/insmod") if _is_busybox(files, name)]
    kmod = any(files.tree.find(name) is not None for name in ("bin/kmod", "usr/bin/kmod"))
    denied = [one for one in device_policies(facts) if evaluate(one, Operation.KMODULE, NO_FILE, enabled_in(facts)).action is Action.DENY]
    if files.modules and insmod and not kmod and denied:
        yield bad(insmod[0], "is BusyBox's: where it does not use finit_module the policy denies the module")
    else:
        yield good("module loader", "none that falls back to init_module is needed")


def _is_busybox(files: RootFiles, name: str) -> bool:
    parent = files.tree.find(name.rpartition("/")[0])
    there = files.tree.by_path.get(f"{parent.path}/{name.rpartition('/')[2]}") if parent is not None else None
    return there is not None and there.target.rpartition("/")[2] == "busybox"


def probes_absent(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for the probe program: it belongs into images that are proven, not into devices."""
    files = _files(facts)
    if isinstance(files, Outcome):
        yield files
        return
    yield from _named(
        [PROBES] if any(one.path.startswith(PROBES) for one in files.tree) else [],
        "holds the probe program and module fixtures",
        "it holds no probe program",
    )


def _with_trait(facts: ImageFacts, trait: Trait, why: str, fine: str) -> Iterator[Outcome]:
    files = _files(facts)
    if isinstance(files, Outcome):
        yield files
        return
    yield from _named([entry.path for entry in files.survey.entries if trait in entry.traits], why, fine)


def interpreters(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for interpreters: before Linux 6.19 whoever controls their input runs what he likes."""
    yield from _with_trait(facts, Trait.INTERPRETER, "runs scripts that IPE does not judge", "it holds no interpreter")


def jits(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for just-in-time compilers: they need executable memory without a file, which the policy denies."""
    yield from _with_trait(facts, Trait.JIT, "compiles at run time, which the policy denies", "no just-in-time compiler was recognised")


def packed(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for programs packed with UPX: they unpack themselves into anonymous memory, which the policy denies."""
    yield from _with_trait(facts, Trait.UPX, "is packed with UPX and will not start", "no packed program was recognised")


def setuid(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for set-user-id and set-group-id files: a hole in one of them is a hole in root."""
    files = _files(facts)
    if isinstance(files, Outcome):
        yield files
        return
    yield from _named(list(files.setuid), "runs with its owner's rights", "it holds no set-user-id file")


def writable_mounts(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for overlayfs and btrfs in /etc/fstab: what IPE knows of a verity volume is lost through them."""
    files = _files(facts)
    if isinstance(files, Outcome):
        yield files
        return
    found = [f"{place} ({kind})" for place, kind in files.survey.mounts if kind in ("overlay", "btrfs")]
    yield from _named(found, "files seen through it are on no verity volume", "/etc/fstab mounts no overlay over it")
