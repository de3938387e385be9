"""What a boot entry is foreseen to do: the boot walked through stage by stage, as kernel and ipe-init do, with nothing run.

STEPS is THE table of stages, in their order; the first that ends the boot is the answer. Each boot of `tests/boot/test_audit_boots.py`
is held against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.findings import Answer, Prediction, Stage
from ipe_build.audit.sealed import enabled_in
from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import Facts
from ipe_build.policy.properties import Action, Operation

if TYPE_CHECKING:
    from ipe_build.host import Host

from ipe_build.audit.walk import ON, Step, Walk, ends, enforcing, unforeseen
from ipe_build.audit.walk_root import init_starts, policies_load, policy_in_force, root_is_whole, root_mounts, verity_opens
from ipe_build.audit.walk_start import initramfs_starts, ipe_enforces, kernel_unpacks, loader

_STRANGER = Facts()

STEPS: tuple[tuple[Stage, Walk], ...] = (
    (Stage.FIRMWARE, loader),
    (Stage.KERNEL, kernel_unpacks),
    (Stage.INITRAMFS, initramfs_starts),
    (Stage.IPE, ipe_enforces),
    (Stage.VERITY, verity_opens),
    (Stage.MOUNT, root_mounts),
    (Stage.POLICY, policies_load),
    (Stage.INIT, init_starts),
    (Stage.RUNS, root_is_whole),
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
        return unforeseen("it does not boot")
    denying = enforcing(facts)
    if denying.goes_on is not Answer.YES:
        return denying
    if step.goes_on is Answer.UNKNOWN and stage is not Stage.RUNS and facts.initramfs_config() is None:
        return unforeseen("which policy the initramfs loads is not foreseen")
    policy = policy_in_force(facts)
    if policy is None:
        return ends("no policy is in force")
    by = decide(policy, Operation.EXECUTE, _STRANGER, enabled_in(facts))
    return Step(Answer.YES if by.action is Action.DENY else Answer.NO, f"{policy.display_name} {policy.version}: {by}")
