"""The keyless pattern and A/B updates in a booted kernel that has no certificate at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ipe_build.formats.audit_record import Access, find_record
from ipe_build.integrity.table import dm_table
from ipe_build.integrity.verity import VerityParameters, format_image
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.render import render
from tests.fixtures.policy import tiny_program


def verity_disks(host, need, folder: Path, names: tuple[str, ...]) -> tuple[list[Path], list[tuple[str, ...]], list[str]]:
    """Unsigned verity volumes /NAME with a program: disks (data, tree) from /dev/vdb on, the plan that mounts them, root hashes."""
    need("mkfs.erofs")
    disks: list[Path] = []
    plan: list[tuple[str, ...]] = []
    root_hashes = []
    (folder / "root").mkdir()
    (folder / "root" / "tiny").write_bytes(tiny_program(host, need("gcc"), folder))
    (folder / "root" / "tiny").chmod(0o755)
    for number, name in enumerate(names):
        image, area = folder / f"{name}.erofs", folder / f"{name}.verity"
        (folder / "root" / "name").write_text(name)
        host.run(["mkfs.erofs", "--quiet", "-T0", "--all-root", f"-U{'0' * 8}-0000-0000-0000-{number:012d}", image, folder / "root"])
        tree = format_image(image, area, VerityParameters(salt=b"\x5a" * 8), host)
        table = dm_table(tree, f"/dev/vd{'bdfh'[number]}", f"/dev/vd{'cegi'[number]}").to_line().split(" ", 3)
        plan += [("mkdir", f"/{name}"), ("dm", name, *table[1:]), ("mount", f"/dev/dm-{number}", f"/{name}", "erofs", "ro")]
        disks += [image, area]
        root_hashes.append(f"sha256:{tree.root_hash.hex()}")
    return disks, plan, root_hashes


@pytest.mark.boot
@pytest.mark.slow
def test_kernel_without_keys_runs_the_pinned_roots_and_nothing_else(host, need, kernel_factory, policy_agent, tmp_path: Path) -> None:
    disks, plan, root_hashes = verity_disks(host, need, tmp_path, ("old", "new", "foreign"))
    boot_policy = render("initramfs-then-pinned", {"name": "ipe-boot", "version": "0.0.2", "root_hashes": root_hashes[:2]})
    kernel = kernel_factory(KernelTrust(boot_policy))
    plan += [("mkdir", "/t"), ("mount", "none", "/t", "tmpfs", "rw"), ("copy", "/tiny", "/t/tiny")]
    tried = {"initramfs": "/tiny", "old": "/old/tiny", "new": "/new/tiny", "foreign": "/foreign/tiny", "tmpfs": "/t/tiny"}
    plan += [("exec", tag, path) for tag, path in tried.items()]
    answers = policy_agent(kernel.image, plan, {}, disks)
    assert all(row[3] == "0" for row in answers.rows if row[1] in ("mkdir", "dm", "mount", "copy")), answers.rows
    assert answers.did("exec") == {"initramfs": 0, "old": 0, "new": 0, "foreign": errno.EACCES, "tmpfs": errno.EACCES}
    events = [record.event for line in answers.audit if (record := find_record(line)) is not None]
    denied = {event.comm: event.rule for event in events if isinstance(event, Access) and event.action == "DENY"}
    assert denied == {"foreign": "DEFAULT action=DENY", "tmpfs": "DEFAULT action=DENY"}
