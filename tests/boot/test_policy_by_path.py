"""Our kernel patch, booted: new_policy takes the path of an unsigned policy that the policy in force vouches for, and no other one."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipe_build.formats.audit_record import Access, PolicyLoad, find_record
from ipe_build.host import Host
from ipe_build.integrity.table import dm_table
from ipe_build.integrity.verity import VerityParameters, format_image
from ipe_build.kernel.build import Kernel, build_kernel
from ipe_build.kernel.profiles import demo_kernel_request
from ipe_build.kernel.trust import KernelTrust
from ipe_build.signing.certificates import KeySet
from tests.fixtures.policy import policy_signer, sign_policy

pytestmark = [pytest.mark.boot, pytest.mark.slow]
_FILES = Path(__file__).parents[2] / "meta-ipe/recipes-kernel/linux/files"
PATCHES = (_FILES / "ipe-policy-by-path.patch", _FILES / "ipe-policy-digest-6.12.patch")
NEW_POLICY = "/sys/kernel/security/ipe/new_policy"


def text(name: str, version: str, *rules: str, default: str = "DENY") -> bytes:
    return "\n".join([f"policy_name={name} policy_version={version}", f"DEFAULT action={default}", *rules, ""]).encode()


EXECUTE = "op=EXECUTE boot_verified=TRUE action=ALLOW"
END = text("end", "0.0.2", EXECUTE)


@pytest.fixture(scope="session")
def patched_kernel(host: Host, kernel_factory, need) -> Callable[[KernelTrust], Kernel]:
    """`patched_kernel(trust)`: the demo's kernel with the patches."""
    need("patch")
    return lambda trust: build_kernel(replace(demo_kernel_request(), patches=PATCHES), trust, host)


def volumes(host: Host, need, folder: Path) -> tuple[list[Path], list[tuple[str, ...]], dict[str, str]]:
    """Two verity volumes /trusted and /foreign with policies: disks, the plan that mounts them, root hashes."""
    need("mkfs.erofs")
    disks: list[Path] = []
    plan: list[tuple[str, ...]] = []
    hashes = {}
    for number, name in enumerate(("trusted", "foreign")):
        root = folder / name
        (root / "sub").mkdir(parents=True)
        (root / "end.pol").write_bytes(END)
        (root / "broken.pol").write_bytes(b"policy_name=broken\n")
        (root / "volume.pol").write_bytes(text(f"from-{name}", "0.0.3", EXECUTE))
        (root / "large.pol").write_bytes(text("large", "0.0.1") + b"#" * (1 << 20))
        image, area = folder / f"{name}.erofs", folder / f"{name}.verity"
        host.run(["mkfs.erofs", "--quiet", "-T0", "--all-root", f"-U{'0' * 8}-0000-0000-0000-{number:012d}", image, root])
        tree = format_image(image, area, VerityParameters(salt=b"\x5a" * 8), host)
        table = dm_table(tree, f"/dev/vd{'bd'[number]}", f"/dev/vd{'ce'[number]}").to_line().split(" ", 3)
        plan += [("mkdir", f"/{name}"), ("dm", name, *table[1:]), ("mount", f"/dev/dm-{number}", f"/{name}", "erofs", "ro")]
        disks += [image, area]
        hashes[name] = f"sha256:{tree.root_hash.hex()}"
    return disks, plan, hashes


def test_a_policy_file_that_the_policy_vouches_for_is_loaded_by_its_path_and_no_other_one(
    host: Host, need, patched_kernel, policy_agent, test_keys: KeySet, foreign_keys: KeySet, tmp_path: Path
) -> None:
    disks, plan, hashes = volumes(host, need, tmp_path)
    rules = (EXECUTE, f"op=POLICY dmverity_roothash={hashes['trusted']} action=ALLOW")
    kernel = patched_kernel(KernelTrust(text("ipe-boot", "0.0.1", *rules), (test_keys.bundle.read_bytes(),)))
    signed = {
        "signed": sign_policy(text("signed", "0.0.1", *rules), policy_signer(test_keys, host)),
        "foreign-signed": sign_policy(text("foreign-signed", "0.0.1", *rules), policy_signer(foreign_keys, host)),
        "end.pol": END,
    }
    plan += [("mkdir", "/t"), ("mount", "none", "/t", "tmpfs", "rw"), ("copy", "/trusted/end.pol", "/t/end.pol")]
    tried = {
        "/end.pol": errno.EACCES,  # in the initramfs, for which this policy has no rule
        "/t/end.pol": errno.EACCES,  # the same text on tmpfs
        "/foreign/end.pol": errno.EACCES,  # on a verity volume that is not pinned
        "/trusted/nothing.pol": errno.ENOENT,
        "/trusted/sub": errno.EINVAL,
        "/trusted/broken.pol": errno.EBADMSG,
        "/trusted/large.pol": errno.EFBIG,
        "trusted/end.pol": errno.EBADMSG,  # no path: it does not begin with a slash, and is no signed policy
        "/trusted/end.pol": 0,
        "/trusted/volume.pol": 0,
    }
    plan += [("write", NEW_POLICY, path) for path in tried]
    plan += [("write", NEW_POLICY, "/trusted/end.pol")]
    plan += [("write", "/sys/kernel/security/ipe/enforce", "0"), ("write", NEW_POLICY, "/t/end.pol")]
    plan += [("write", "/sys/kernel/security/ipe/enforce", "1")]
    plan += [("activate", "/signed", "signed"), ("activate", "/foreign-signed", "foreign-signed")]
    plan += [("exec", "before", "/tiny"), ("write", "/sys/kernel/security/ipe/policies/end/active", "1"), ("exec", "after", "/tiny")]
    plan += [("write", NEW_POLICY, "/trusted/volume.pol")]
    answers = policy_agent(kernel.image, plan, signed, disks)
    writes = [int(row[3]) for row in answers.rows if row[1] == "write" and row[2] == NEW_POLICY]
    assert dict(zip(tried, writes, strict=False)) == tried
    again, permissive, after_end = writes[len(tried) :]
    assert again == errno.EEXIST
    assert permissive == errno.EACCES, "permissive mode vouches for nothing"
    assert after_end == errno.EACCES, "the policy that took over has no rule for POLICY"
    assert {row[2]: int(row[3]) for row in answers.rows if row[1] == "activate"} == {"/signed": 0, "/foreign-signed": errno.ENOKEY}
    assert answers.did("exec") == {"before": 0, "after": 0}
    events = [record.event for line in answers.audit if (record := find_record(line)) is not None]
    loads = {event.policy.name: event.policy.digest for event in events if isinstance(event, PolicyLoad) and event.success and event.policy}
    assert loads["end"] == hashlib.sha256(END).digest(), "the record of an unsigned policy has the digest of its text"
    denied = [event for event in events if isinstance(event, Access) and event.op == "POLICY" and event.action == "DENY"]
    assert {event.path for event in denied} >= {"/end.pol", "/t/end.pol", "/foreign/end.pol"}


@pytest.mark.parametrize(
    ("default", "rules"),
    [("ALLOW", ()), ("DENY", (EXECUTE, "op=POLICY action=ALLOW")), ("DENY", (EXECUTE, "DEFAULT op=POLICY action=ALLOW"))],
    ids=["default", "rule without properties", "default of the operation"],
)
def test_what_vouches_for_no_file_in_particular_loads_none_by_its_path(
    patched_kernel, policy_agent, default: str, rules: tuple[str, ...]
) -> None:
    kernel = patched_kernel(KernelTrust(text("ipe-boot", "0.0.1", *rules, default=default)))
    answers = policy_agent(kernel.image, [("write", NEW_POLICY, "/end.pol")], {"end.pol": END})
    assert [int(row[3]) for row in answers.rows if row[1] == "write"] == [errno.EACCES]


def test_a_kernel_without_the_patch_takes_no_path(kernel_factory, policy_agent) -> None:
    kernel = kernel_factory(KernelTrust(text("ipe-boot", "0.0.1", EXECUTE, "op=POLICY boot_verified=TRUE action=ALLOW")))
    answers = policy_agent(kernel.image, [("write", NEW_POLICY, "/end.pol")], {"end.pol": END})
    assert [int(row[3]) for row in answers.rows if row[1] == "write"] == [errno.EBADMSG]
