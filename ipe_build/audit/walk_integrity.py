"""The last thing that ipe-init does before it moves into the root: IMA's and EVM's keyrings, EVM's key, the IMA policy.

Sources: our image/guest/integrity.c; Linux security/integrity/digsig.c (integrity_load_x509), certs/system_keyring.c
(restrict_link_by_builtin_trusted), security/integrity/ima/ima_fs.c (ima_read_policy).
"""

from __future__ import annotations

from uuid import UUID

from cryptography import x509

from ipe_build.audit.facts import ImageFacts, KernelView, Region
from ipe_build.audit.policies import boot_policy_in
from ipe_build.audit.root_hash import root_facts
from ipe_build.audit.walk import OF_INITRAMFS, ON, Step, allows, ends, setting_of, settings_of, unforeseen
from ipe_build.errors import IpeBuildError
from ipe_build.policy.facts import Facts
from ipe_build.policy.ima_rules import all_on, check_policy
from ipe_build.policy.model import Policy
from ipe_build.policy.properties import Operation
from ipe_build.signing.loading import parse_certificates
from ipe_build.signing.verify import issued_by

_KEYRINGS = {".ima": ("IMA_LOAD_X509", "IMA_X509_PATH"), ".evm": ("EVM_LOAD_X509", "EVM_X509_PATH")}
_SEALED_BY = {"tpm": "TRUSTED_KEYS_TPM", "tee": "TRUSTED_KEYS_TEE"}
_KEY_BYTES, _KEY_MAGIC = 8192, b"ipe-evm-key 1\nkmk "
_MAX_BYTES = 1 << 20


def integrity_set_up(facts: ImageFacts, active: Policy | None) -> Step:
    """Returns how it goes, `active` being the IPE policy in force."""
    for name in settings_of(facts, "keyring"):
        step = _keyring(facts, name)
        if step is not ON:
            return step
    for step in (_evm_key(facts), _ima_policy(facts, active)):
        if step is not ON:
            return step
    return ON


def _keyring(facts: ImageFacts, name: str) -> Step:
    """The kernel has put the certificate of the initramfs into a keyring, or ipe-init ends the boot."""
    config, row = facts.kernel_config, _KEYRINGS.get(name)
    if config is None or row is None or facts.kernel is None:
        return unforeseen(f"whether the keyring {name} gets a key is not foreseen")
    loads, place = row
    if not config.enabled(loads):
        return ends(f"the keyring {name} stays empty: CONFIG_{loads} is off")
    path = config.text(place) or ""
    found = facts.find_in_initramfs(path.lstrip("/"))
    if found is None or not found.is_file:
        return ends(f"the keyring {name} stays empty: there is no {path} in the initramfs")
    if not allows(facts, boot_policy_in(facts), Operation.X509_CERT, OF_INITRAMFS):
        return ends(f"the keyring {name} stays empty: the boot policy denies {path} (op=X509_CERT)")
    try:
        certificate = parse_certificates(found.read(_MAX_BYTES), path)[0]
    except IpeBuildError as error:
        return ends(f"the keyring {name} stays empty: {path}: {error.message}")
    if not _vouches(facts.kernel, certificate):
        return ends(f"the keyring {name} stays empty: no certificate of the kernel vouches for {path}")
    return ON


def _vouches(kernel: KernelView, certificate: x509.Certificate) -> bool:
    """Returns whether one of the kernel's own certificates is this one, or issued it."""
    return any(known == certificate or issued_by(certificate, known) for known in kernel.certificates if known not in kernel.enrolled)


def _evm_key(facts: ImageFacts) -> Step:
    """EVM's key is there, or is made; whether this device unseals it, no image says."""
    wanted = setting_of(facts, "evm_key")
    if not wanted:
        return ON
    config = facts.kernel_config
    for symbol in ("EVM", "ENCRYPTED_KEYS", _SEALED_BY.get(setting_of(facts, "trusted_source", "tpm"), "")):
        if config is not None and symbol and not config.enabled(symbol):
            return ends(f"EVM's key is not loaded: CONFIG_{symbol} is off")
    there = [one for one in facts.table.partitions if one.uuid == UUID(wanted)] if facts.table is not None else []
    if len(there) == 1:
        stored = Region(facts.image, there[0].offset_bytes, there[0].size_bytes).read(0, _KEY_BYTES)
        if not any(stored) and setting_of(facts, "evm_provision") != "yes":
            return ends("the partition of EVM's key is empty, and evm_provision is not yes")
        if any(stored) and not stored.startswith(_KEY_MAGIC):
            return ends("the partition of EVM's key holds no key of ipe-init's")
    return unforeseen("whether the device's TPM or TEE has, or makes, EVM's key is not foreseen")


def _ima_policy(facts: ImageFacts, active: Policy | None) -> Step:
    """The kernel takes the IMA policy by its path."""
    place = setting_of(facts, "ima_policy")
    if not place:
        return ON
    config, inside = facts.kernel_config, place.startswith("initramfs:")
    path = place.removeprefix("initramfs:").lstrip("/")
    found = facts.find_in_initramfs(path) if inside else facts.files.tree.find(path) if facts.files is not None else None
    if found is None or not found.is_file:
        return ends(f"there is no IMA policy {place}")
    if config is not None and not config.enabled("IMA"):
        return ends("the kernel has no IMA: CONFIG_IMA is off")
    known = OF_INITRAMFS if inside else root_facts(facts) or Facts()
    if not allows(facts, active, Operation.POLICY, known):
        return ends(f"{active.display_name if active is not None else 'the policy'} denies the IMA policy {place} (op=POLICY)")
    refusal = check_policy(found.read(_MAX_BYTES), config.enabled if config is not None else all_on)
    if refusal is not None:
        return ends(f"the kernel refuses the IMA policy {place}, line {refusal.line}: {refusal.message} ({refusal.errno})")
    if config is None or config.enabled("IMA_APPRAISE_REQUIRE_POLICY_SIGS"):
        return unforeseen("whether IMA wants its policy signed, or takes it, is not foreseen")
    return ON
