"""Checks of what starts: boot entry, command line, initramfs, kernel and its certificates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography.x509.oid import NameOID

from ipe_build.audit.checks_disk import stored_root_hash
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.outcome import Outcome, bad, good, unknown
from ipe_build.policy.versions import FIRST_KERNEL

if TYPE_CHECKING:
    from ipe_build.host import Host

_OFF = frozenset({"0", "n", "N", "off", "no"})
_SHELLS = ("/bin/sh", "/bin/bash", "/bin/ash")
_SOON = timedelta(days=90)


def boot_entry(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the EFI system partition says what to start."""
    entry = facts.boot_entry
    if entry is None:
        yield bad("boot entry", "the image names no kernel to start")
        return
    yield good("boot entry", f"kernel of {len(entry.kernel)} bytes, initramfs of {len(entry.initramfs)} bytes")


def command_line(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for words that switch enforcement off: ipe.enforce, lsm= without ipe, module.sig_enforce, rdinit, break."""
    if facts.boot_entry is None:
        yield unknown("command line", "there is no boot entry")
        return
    found = False
    for word in facts.boot_entry.command_line.split():
        name, _, value = word.partition("=")
        complaint = _weakens(name.replace("-", "_"), value)
        if complaint:
            found = True
            yield bad(word, complaint)
    if not found:
        yield good("command line", "no word of it weakens enforcement")


def _weakens(name: str, value: str) -> str | None:
    """Returns what a word of the command line does to enforcement, None when nothing."""
    if name == "ipe.enforce" and value in _OFF:
        return "IPE only logs and denies nothing"
    if name == "lsm" and "ipe" not in value.split(","):
        return "the list of security modules has no ipe: nothing is enforced"
    if name == "security":
        return "chooses one legacy security module; the order of CONFIG_LSM is then ignored"
    if name == "module.sig_enforce" and value in _OFF:
        return "unsigned modules are accepted where the kernel does not force signatures"
    if name in ("rdinit", "init") and value in _SHELLS:
        return "starts a shell instead of the init program"
    if name == "dm_verity.require_signatures" and value in _OFF:
        return "dm-verity volumes without a signature are opened"
    return None


def initramfs_init(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the initramfs has an executable init and its configuration."""
    if facts.initramfs is None:
        yield unknown("initramfs", "there is none that could be read")
        return
    by_path = {entry.path: entry for entry in facts.initramfs}
    init = by_path.get("init")
    if init is None or not init.mode & 0o111:
        yield bad("initramfs", "has no executable /init")
    else:
        yield good("initramfs", f"/init of {len(init.data)} bytes")


def initramfs_root_hash(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the root hash that the initramfs will open is that of this disk."""
    stored = stored_root_hash(facts)
    named = _named_root_hash(facts)
    if stored is None or named is None:
        yield unknown("root hash", "the initramfs's configuration or the signature partition could not be read")
    elif named == stored.root_hash.hex():
        yield good("root hash", "initramfs and disk agree")
    else:
        yield bad("root hash", f"the initramfs opens {named or 'nothing'}, the disk has {stored.root_hash.hex()}")


def _named_root_hash(facts: ImageFacts) -> str | None:
    """Returns the root hash (hex) that the initramfs's configuration, or by its leave the command line, names; None when unreadable."""
    config = next((entry.data for entry in facts.initramfs or () if entry.path == "etc/ipe-init.conf"), None)
    if config is None or facts.boot_entry is None:
        return None
    found = re.search(rb"^root_hash\s*=\s*(\S+)\s*$", config, re.MULTILINE)
    value = found[1].decode("ascii", "replace") if found else ""
    if value != "cmdline":
        return value
    words = [word.partition("=")[2] for word in facts.boot_entry.command_line.split() if word.startswith("roothash=")]
    return words[-1] if words else ""


def kernel_ipe(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether IPE is built in and in the kernel's order of security modules (CONFIG_LSM)."""
    kernel = facts.kernel
    if kernel is None:
        yield unknown("kernel", "it could not be read")
        return
    if not kernel.ipe:
        newer = "was built without it" if kernel.version >= FIRST_KERNEL else f"{FIRST_KERNEL} is the first that has it"
        yield bad("kernel", f"{kernel.release} has no IPE: {newer}")
    else:
        yield good("kernel", f"{kernel.release} has IPE")
    if kernel.lsms is None:
        yield unknown("security modules", "their order was not found in the kernel")
    elif "ipe" in kernel.lsms:
        yield good("security modules", ",".join(kernel.lsms))
    else:
        yield bad("security modules", f"CONFIG_LSM has no ipe: {','.join(kernel.lsms)}")


def kernel_modules(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel forces module signatures, where it can load modules at all."""
    config = facts.kernel.config if facts.kernel is not None else None
    if config is None:
        yield unknown("module signatures", "the kernel does not carry its configuration (IKCONFIG)")
    elif not config.enabled("MODULES"):
        yield good("module signatures", "the kernel loads no modules")
    elif config.enabled("MODULE_SIG_FORCE"):
        yield good("module signatures", "an unsigned module is refused (CONFIG_MODULE_SIG_FORCE)")
    else:
        yield bad("module signatures", "CONFIG_MODULE_SIG_FORCE is off: unsigned modules of the verity root are loaded")


def certificates(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether the kernel holds any certificate to check signatures with."""
    if facts.kernel is None:
        yield unknown("certificates", "the kernel could not be read")
    elif not facts.kernel.certificates:
        yield bad("certificates", "the kernel trusts none: no policy, root hash or module can be accepted")
    else:
        names = "; ".join(one.subject.rfc4514_string() for one in facts.kernel.certificates)
        yield good("certificates", f"the kernel trusts {len(facts.kernel.certificates)}: {names}")


def test_keys(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks for certificates whose subject says TEST: their keys were made on the spot and belong to nobody."""
    if facts.kernel is None:
        yield unknown("test keys", "the kernel could not be read")
        return
    tests = [
        one.subject.rfc4514_string()
        for one in facts.kernel.certificates
        if any("TEST" in str(name.value).split() for name in one.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    ]
    if tests:
        yield bad("test keys", f"the kernel trusts {'; '.join(tests)}")
    else:
        yield good("test keys", "no certificate of the kernel says TEST")


def certificate_validity(facts: ImageFacts, host: Host) -> Iterator[Outcome]:
    """Looks whether certificates have expired at SOURCE_DATE_EPOCH or will within 90 days. The kernel itself does not look."""
    if facts.kernel is None:
        yield unknown("certificate validity", "the kernel could not be read")
        return
    if not host.source_date_epoch:
        yield unknown("certificate validity", "SOURCE_DATE_EPOCH says no time to compare with")
        return
    now = datetime.fromtimestamp(host.source_date_epoch, UTC)
    late = [one for one in facts.kernel.certificates if one.not_valid_after_utc < now + _SOON]
    for one in late:
        yield bad(one.subject.rfc4514_string(), f"valid until {one.not_valid_after_utc:%Y-%m-%d}")
    if not late:
        yield good("certificate validity", f"all are valid 90 days after {now:%Y-%m-%d}")
