"""The audit: a good image has no error, and every way to break it is found by the check that is meant for it."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.audit.checks import CHECKS, audit, checks_table
from ipe_build.audit.facts import ImageFacts
from ipe_build.audit.findings import AuditReport, Verdict
from ipe_build.audit.report import render_summary, render_text
from ipe_build.examine import examined
from ipe_build.formats.gpt import Partition, PartitionTable, write_gpt
from ipe_build.formats.verity_sig import parse_verity_signature
from ipe_build.host import Host, Progress
from ipe_build.image.disk import Disk, read_disk
from ipe_build.pipeline import audit_image
from ipe_build.signing.profiles import PROFILES, root_hash_payload, sign_payload


@pytest.fixture
def quiet(host: Host) -> Host:
    return Host(env=host.env, progress=Progress(io.StringIO(), quiet=True))


@pytest.fixture
def image(demo_build: Path, tmp_path: Path) -> Path:
    """A copy of the demo's disk that may be broken."""
    copy = tmp_path / "broken.raw"
    shutil.copyfile(demo_build / "demo.raw", copy)
    return copy


def failed(report: AuditReport) -> set[str]:
    """The checks that failed, but for the demo's test keys."""
    return {one.check for one in report.findings if one.verdict is Verdict.FAIL} - {"test-keys"}


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def retable(path: Path, change: Callable[[Partition], Partition | None]) -> None:
    """Writes the partition table anew with each partition changed, or left out."""
    table = read_disk(path).table
    partitions = tuple(one for one in map(change, table.partitions) if one is not None)
    for piece in write_gpt(PartitionTable(table.disk_uuid, table.size_bytes, partitions, table.sector_bytes)):
        write(path, piece.offset, piece.data)


def replaced(partition: Partition, **changes: object) -> Partition:
    import dataclasses

    return dataclasses.replace(partition, **changes)  # type: ignore[arg-type]


def test_the_good_image_has_no_failure_but_its_test_keys(image: Path, quiet: Host) -> None:
    report = audit_image(image, quiet)
    assert failed(report) == set()
    assert {one.check for one in report.findings if one.verdict is Verdict.UNKNOWN} == set()
    assert {one.check for one in report.findings} == {check.id for check in CHECKS}


def break_data(path: Path, disk: Disk, host: Host) -> None:
    flip(path, disk.root.offset_bytes + 8192)


def break_tree(path: Path, disk: Disk, host: Host) -> None:
    flip(path, disk.root_verity.offset_bytes + 4096 + 7)


def break_superblock(path: Path, disk: Disk, host: Host) -> None:
    flip(path, disk.root_verity.offset_bytes)


def break_salt(path: Path, disk: Disk, host: Host) -> None:
    flip(path, disk.root_verity.offset_bytes + 88)


def break_signature(path: Path, disk: Disk, host: Host) -> None:
    offset = disk.root_verity_sig.offset_bytes
    raw = path.read_bytes()[offset : offset + disk.root_verity_sig.size_bytes]
    at = raw.index(b'"signature":"') + len(b'"signature":"') + 600
    write(path, offset + at, b"A" if raw[at : at + 1] != b"A" else b"B")


def foreign_signature(path: Path, disk: Disk, host: Host) -> None:
    from dataclasses import replace

    from ipe_build.steps import make_test_keys

    offset = disk.root_verity_sig.offset_bytes
    stored = parse_verity_signature(path.read_bytes()[offset : offset + disk.root_verity_sig.size_bytes])
    signer = make_test_keys("foreign", host).pair("verity").signer(host)
    signature = sign_payload(PROFILES["dm-verity-root-hash"], root_hash_payload(stored.root_hash), signer)
    write(path, offset, replace(stored, signature=signature).build())


def other_root_hash(path: Path, disk: Disk, host: Host) -> None:
    from dataclasses import replace

    offset = disk.root_verity_sig.offset_bytes
    stored = parse_verity_signature(path.read_bytes()[offset : offset + disk.root_verity_sig.size_bytes])
    write(path, offset, replace(stored, root_hash=bytes(32)).build())


def garbage_signature_partition(path: Path, disk: Disk, host: Host) -> None:
    write(path, disk.root_verity_sig.offset_bytes, b"\xff" * 4096)


def other_partuuid(path: Path, disk: Disk, host: Host) -> None:
    uuid = read_disk(path).table.disk_uuid
    retable(path, lambda one: replaced(one, uuid=uuid) if one == disk.root else one)


def no_signature_partition(path: Path, disk: Disk, host: Host) -> None:
    retable(path, lambda one: None if one == disk.root_verity_sig else one)


def no_esp(path: Path, disk: Disk, host: Host) -> None:
    retable(path, lambda one: None if one == disk.esp else one)


def backup_table(path: Path, disk: Disk, host: Host) -> None:
    flip(path, path.stat().st_size - 512 + 16)


def in_esp(path: Path, disk: Disk, host: Host, name: str, change: Callable[[bytes], bytes]) -> None:
    """Changes a file of the EFI system partition in place, through mtools."""
    target = f"{path}@@{disk.esp.offset_bytes}"
    content = path.with_name("content")
    content.write_bytes(change(host.run(["mcopy", "-i", target, f"::{name}", "-"]).stdout))
    host.run(["mcopy", "-o", "-i", target, content, f"::{name}"])


def entry_files(path: Path, disk: Disk, host: Host) -> dict[str, str]:
    text = host.run(["mcopy", "-i", f"{path}@@{disk.esp.offset_bytes}", "::/loader/entries/demo.conf", "-"]).text
    return dict(line.split(None, 1) for line in text.splitlines() if line.strip())


def options(words: str) -> Callable[[Path, Disk, Host], None]:
    return lambda path, disk, host: in_esp(
        path, disk, host, "/loader/entries/demo.conf", lambda text: text.replace(b"panic=-1", f"panic=-1 {words}".encode())
    )


def no_entry(path: Path, disk: Disk, host: Host) -> None:
    host.run(["mdel", "-i", f"{path}@@{disk.esp.offset_bytes}", "::/loader/entries/demo.conf"])


def damaged_initramfs(path: Path, disk: Disk, host: Host) -> None:
    name = entry_files(path, disk, host)["initrd"].strip()
    in_esp(path, disk, host, name, lambda data: data[:4000] + b"damaged" + data[4007:])


def damaged_kernel(path: Path, disk: Disk, host: Host) -> None:
    name = entry_files(path, disk, host)["linux"].strip()
    in_esp(path, disk, host, name, lambda data: data[:200_000] + bytes(4096) + data[204_096:])


BREAKS: tuple[tuple[str, Callable[[Path, Disk, Host], None]], ...] = (
    ("hash-tree", break_data),
    ("hash-tree", break_tree),
    ("hash-tree", break_superblock),
    ("hash-tree", break_salt),
    ("hash-tree", other_root_hash),
    ("root-hash-signature", break_signature),
    ("root-hash-signature", foreign_signature),
    ("root-hash-signature", other_root_hash),
    ("initramfs-root-hash", other_root_hash),
    ("partition-uuids", other_root_hash),
    ("partition-uuids", other_partuuid),
    ("signature-partition", garbage_signature_partition),
    ("root-partitions", no_signature_partition),
    ("boot-entry", no_esp),
    ("boot-entry", no_entry),
    ("gpt-intact", backup_table),
    ("command-line", options("ipe.enforce=0")),
    ("command-line", options("lsm=landlock,yama")),
    ("command-line", options("init=/bin/sh")),
    ("command-line", options("security=selinux")),
    ("image-readable", damaged_initramfs),
    ("image-readable", damaged_kernel),
)


@pytest.mark.parametrize(("check", "damage"), BREAKS, ids=[f"{check}-{number}" for number, (check, _) in enumerate(BREAKS)])
def test_a_broken_image_is_found_by_the_check_meant_for_it(
    image: Path, quiet: Host, check: str, damage: Callable[[Path, Disk, Host], None]
) -> None:
    damage(image, read_disk(image), quiet)
    report = audit_image(image, quiet)
    assert check in failed(report), render_text(report)


def judged(image: Path, host: Host, change: Callable[[ImageFacts], ImageFacts]) -> AuditReport:
    with examined(image, host) as facts:
        return audit(change(facts), host)


def with_boot_policy(text: bytes | None) -> Callable[[ImageFacts], ImageFacts]:
    from dataclasses import replace

    return lambda facts: replace(facts, kernel=replace(facts.kernel, boot_policy=text))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("boot-policy-parses", None),
        ("boot-policy-parses", b"policy_name=x policy_version=0.0.1\nDEFAULT action=DENY\nop=EXEC action=ALLOW\n"),
        ("boot-policy-denies", b"policy_name=x policy_version=0.0.1\nDEFAULT action=ALLOW\n"),
        ("boot-policy-initramfs", b"policy_name=x policy_version=0.0.1\nDEFAULT action=DENY\n"),
    ],
)
def test_a_bad_boot_policy_is_found(image: Path, quiet: Host, check: str, text: bytes | None) -> None:
    assert check in failed(judged(image, quiet, with_boot_policy(text)))


def test_a_kernel_without_ipe_or_certificates_is_found(image: Path, quiet: Host) -> None:
    from dataclasses import replace

    def bare(facts: ImageFacts) -> ImageFacts:
        assert facts.kernel is not None
        return replace(facts, kernel=replace(facts.kernel, ipe=False, lsms=("yama",), certificates=()))

    report = judged(image, quiet, bare)
    assert {"kernel-ipe", "kernel-certificates", "root-hash-signature", "device-policy-signature"} <= failed(report)


def rewritten_policy(name: str, text: bytes | None, signer_set: str = "ipe-build") -> Callable[[Path, Host], None]:
    """Puts another signed policy (None: no policy at all) into the extracted root filesystem."""

    def change(rootfs: Path, host: Host) -> None:
        from ipe_build.steps import make_test_keys

        policy = rootfs / "etc/ipe/ipe-policy.p7b"
        policy.unlink()
        if text is not None:
            signer = make_test_keys(signer_set, host).pair("policy").signer(host)
            (policy.parent / name).write_bytes(sign_payload(PROFILES["ipe-policy"], text, signer))

    return change


GOOD = (
    b"policy_name=ipe-policy policy_version=0.0.1\nDEFAULT action=DENY\n"
    b"op=EXECUTE dmverity_signature=TRUE action=ALLOW\nop=KMODULE dmverity_signature=TRUE action=ALLOW\n"
)


def put_private_key(rootfs: Path, host: Host) -> None:
    from ipe_build.steps import make_test_keys

    place = rootfs / "srv/forgotten.pem"
    place.write_bytes(make_test_keys("foreign", host).pair("module").key.read_bytes())
    os.chmod(place, stat.S_IRUSR)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("device-policy-signature", rewritten_policy("ipe-policy.p7b", None)),
        ("device-policy-signature", rewritten_policy("ipe-policy.p7b", GOOD, "foreign")),
        ("device-policy-parses", rewritten_policy("other-name.p7b", GOOD)),
        ("device-policy-parses", rewritten_policy("ipe-policy.p7b", GOOD.replace(b"0.0.1", b"0.0.70000"))),
        ("device-policy-denies", rewritten_policy("ipe-policy.p7b", GOOD.replace(b"DENY", b"ALLOW"))),
        ("device-policy-denies", rewritten_policy("ipe-policy.p7b", GOOD + b"DEFAULT op=KMODULE action=ALLOW\n")),
        ("device-policy-init", rewritten_policy("ipe-policy.p7b", GOOD.replace(b"EXECUTE dmverity_signature", b"EXECUTE boot_verified"))),
        ("device-policy-initramfs", rewritten_policy("ipe-policy.p7b", GOOD + b"op=EXECUTE boot_verified=TRUE action=ALLOW\n")),
        ("private-keys", put_private_key),
    ],
)  # fmt: skip
def test_a_bad_root_filesystem_is_found(image: Path, quiet: Host, check: str, change: Callable[[Path, Host], None]) -> None:
    def changed(facts: ImageFacts) -> ImageFacts:
        assert facts.rootfs is not None
        change(facts.rootfs, quiet)
        return facts

    assert check in failed(judged(image, quiet, changed))


def test_the_same_policy_signed_again_is_still_good(image: Path, quiet: Host) -> None:
    def changed(facts: ImageFacts) -> ImageFacts:
        assert facts.rootfs is not None
        rewritten_policy("ipe-policy.p7b", GOOD)(facts.rootfs, quiet)
        return facts

    assert failed(judged(image, quiet, changed)) == set()


def test_no_disk_image_at_all_is_one_finding_not_a_traceback(tmp_path: Path, quiet: Host) -> None:
    nothing = tmp_path / "nothing.raw"
    nothing.write_bytes(os.urandom(1 << 16))
    report = audit_image(nothing, quiet)
    assert report.failed
    assert "image-readable" in failed(report)
    assert "GPT" in render_summary(report) or "partition table" in render_summary(report)


def test_report_as_json_counts_its_findings(image: Path, quiet: Host) -> None:
    value = audit_image(image, quiet).to_json()
    assert json.loads(json.dumps(value)) == value
    assert value["verdict"] == "pass"
    findings = value["findings"]
    assert isinstance(findings, list)
    assert value["counts"] == {word: sum(one["verdict"] == word for one in findings) for word in ("pass", "fail", "unknown")}


def test_the_documentation_has_the_table_of_checks() -> None:
    page = (Path(__file__).parents[2] / "docs/audit.md").read_text()
    assert page.endswith(checks_table())


def test_a_kernel_that_does_not_force_module_signatures_is_found(image: Path, quiet: Host) -> None:
    from dataclasses import replace

    from ipe_build.formats.dotconfig import DotConfig

    def lax(facts: ImageFacts) -> ImageFacts:
        assert facts.kernel is not None
        assert facts.kernel.config is not None
        values = {**facts.kernel.config.values, "MODULE_SIG_FORCE": "n"}
        return replace(facts, kernel=replace(facts.kernel, config=DotConfig(values)))

    assert "module-signatures" in failed(judged(image, quiet, lax))
