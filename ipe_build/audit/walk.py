"""What the stages of a foreseen boot have in common: their answer, the command line, ipe-init's settings, whether IPE denies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ipe_build.audit.command_line import word_of, words_of
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.findings import Answer
from ipe_build.audit.hidden import boot_config
from ipe_build.audit.sealed import enabled_in
from ipe_build.formats.command_line import kernel_bool
from ipe_build.policy.evaluate import decide
from ipe_build.policy.facts import Facts
from ipe_build.policy.model import Policy
from ipe_build.policy.properties import Action, Operation

if TYPE_CHECKING:
    from ipe_build.host import Host

OF_INITRAMFS = Facts(boot_verified=True)


class Step(NamedTuple):
    """How a stage goes: YES and the boot goes on, NO and it ends there, UNKNOWN and nothing more is foreseen."""

    goes_on: Answer
    why: str


ON = Step(Answer.YES, "")


def ends(why: str) -> Step:
    """Returns that the boot ends here."""
    return Step(Answer.NO, why)


def unforeseen(why: str) -> Step:
    """Returns that nothing more is foreseen."""
    return Step(Answer.UNKNOWN, why)


Walk = Callable[[ImageFacts, "Host"], Step]


def drivers(facts: ImageFacts, *symbols: str) -> Step:
    """Returns whether each of these Kconfig symbols is built in or loaded by ipe-init; a kernel without configuration may not show it."""
    there = {symbol: facts.has_driver(symbol) for symbol in symbols if symbol}
    for symbol, answer in there.items():
        if answer is False:
            return ends(f"the kernel has no CONFIG_{symbol} built in")
    hidden = next((symbol for symbol, answer in there.items() if answer is None), "")
    return unforeseen(f"the kernel does not show whether it has CONFIG_{hidden}") if hidden else ON


def settings_of(facts: ImageFacts, name: str) -> tuple[str, ...]:
    """Returns the values of a setting of ipe-init that may come more than once."""
    return (facts.initramfs_config() or {}).get(name, ())


def setting_of(facts: ImageFacts, name: str, default: str = "") -> str:
    """Returns the value of a setting of ipe-init; the last one counts."""
    return (settings_of(facts, name) or (default,))[-1]


def ipe_active(facts: ImageFacts) -> Step:
    """Returns whether the kernel has an initialised IPE."""
    kernel = facts.kernel
    if kernel is None:
        return unforeseen("the kernel could not be read")
    if not kernel.ipe:
        return ends("the kernel has no IPE")
    chosen = word_of(facts, "lsm")
    order = tuple(chosen.split(",")) if chosen is not None else kernel.lsms
    if order is None:
        return unforeseen("the kernel's order of security modules was not found")
    if "ipe" not in order:
        return ends(f"ipe is not among the security modules {','.join(order)}")
    # A boot policy that the kernel refuses leaves IPE without one, but its hooks are there (security/ipe/ipe.c, ipe_init).
    return ON


def switched_off(facts: ImageFacts) -> bool:
    """Returns whether ipe.enforce= takes the enforcement away; a value that is no truth value is not taken."""
    given = ("1" if word.value is None else word.value for word in words_of(facts) if word.name == "ipe.enforce")
    values = [answer for value in given if (answer := kernel_bool(value)) is not None]
    return bool(values) and not values[-1]


def enforcing(facts: ImageFacts) -> Step:
    """Returns whether IPE denies anything at all."""
    active = ipe_active(facts)
    if active.goes_on is not Answer.YES:
        return active
    if added := boot_config(facts):
        return unforeseen(f"the words of a boot configuration {added} may switch enforcement off")
    return ends("the command line switches enforcement off") if switched_off(facts) else ON


def allows(facts: ImageFacts, policy: Policy | None, op: Operation, known: Facts) -> bool:
    """Returns whether something may happen: a policy that allows it, none at all, or an IPE that denies nothing."""
    if policy is None or enforcing(facts).goes_on is not Answer.YES:
        return True
    return decide(policy, op, known, enabled_in(facts)).action is Action.ALLOW
