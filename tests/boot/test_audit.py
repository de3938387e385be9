"""The audit: a good image has no error, and every way to break it is found by the check that is meant for it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ipe_build.audit.checks import CHECKS, checks_table
from ipe_build.audit.facts import ImageFacts, ModuleView
from ipe_build.audit.file_tree import FileTree, TreeFile, VerityOfFile, file_of
from ipe_build.audit.findings import Answer, AuditReport, Stage, Verdict
from ipe_build.audit.judge import audit
from ipe_build.audit.policies import signed_policies
from ipe_build.audit.report import render_summary, render_text
from ipe_build.examine import examined
from ipe_build.examine.root import survey_of
from ipe_build.formats.cpio import CpioEntry, regular_file
from ipe_build.formats.dotconfig import DotConfig
from ipe_build.host import Host, Progress
from ipe_build.image.disk import read_disk
from ipe_build.pipeline import audit_image
from ipe_build.policy.ledger import Ledger, parse_ledger
from ipe_build.policy.parser import parse
from ipe_build.policy.survey import Entry, Kind, Survey, Trait
from ipe_build.signing.profiles import PROFILES, sign_payload
from tests.fixtures.audit_breaks import BREAKS, GOOD, Break


@pytest.fixture
def quiet(host: Host) -> Host:
    return Host(env=host.env, progress=Progress(io.StringIO(), quiet=True))


@pytest.fixture
def image(demo_build: Path, tmp_path: Path) -> Path:
    """A copy of the demo's disk that may be broken."""
    copy = tmp_path / "broken.raw"
    shutil.copyfile(demo_build / "demo.raw", copy)
    return copy


OF_THE_DEMO = {
    "test-keys",
    "command-line-signed",
    "initramfs-override",
    "initramfs-mac-admin",
    "root-module-loader",
    "root-probes",
    "root-interpreters",
    "command-line-fixed",
    "initramfs-corruption",
}
"""What the audit says of the good demo: none of it an error, all of it true."""


def failed(report: AuditReport) -> set[str]:
    """The checks that failed, but for those that the good demo fails too."""
    return {one.check for one in report.findings if one.verdict is Verdict.FAIL} - OF_THE_DEMO


def test_the_good_image_has_no_error_and_every_check_looks(image: Path, quiet: Host) -> None:
    report = audit_image(image, quiet)[0]
    assert {one.check for one in report.findings if one.verdict is Verdict.FAIL} == OF_THE_DEMO
    assert not report.failed
    assert {one.check for one in report.findings if one.verdict is Verdict.UNKNOWN} == {"device-policy-ledger"}, "no ledger is given"
    assert {one.check for one in report.findings} == {check.id for check in CHECKS}


@pytest.mark.parametrize("row", BREAKS, ids=[row.id for row in BREAKS])
def test_a_broken_image_is_found_by_the_check_meant_for_it(image: Path, quiet: Host, row: Break) -> None:
    row.damage(image, read_disk(image), quiet)
    report = audit_image(image, quiet)[0]
    assert not row.check or row.check in failed(report), render_text(report)


def judged(image: Path, host: Host, change: Callable[[ImageFacts], ImageFacts]) -> AuditReport:
    with examined(image, host) as facts:
        return audit(change(facts), host)


@pytest.fixture(scope="module")
def good(demo_build: Path, host: Host) -> Iterator[ImageFacts]:
    """The demo's facts, read once; a test judges a changed copy."""
    with examined(demo_build / "demo.raw", Host(env=host.env, progress=Progress(io.StringIO(), quiet=True))) as facts:
        yield facts


Change = Callable[[ImageFacts], ImageFacts]


def kernel(**changes: object) -> Change:
    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.kernel is not None
        return replace(facts, kernel=replace(facts.kernel, **changes))  # type: ignore[arg-type]

    return change


def config(**symbols: str) -> Change:
    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.kernel is not None
        assert facts.kernel.config is not None
        return kernel(config=DotConfig({**facts.kernel.config.values, **symbols}))(facts)

    return change


def setting(name: str, value: str | None) -> Change:
    """Changes a setting of ipe-init in the initramfs (None: takes it out)."""

    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.initramfs is not None
        old = next(one for one in facts.initramfs if one.path == "etc/ipe-init.conf")
        lines = [line for line in old.data.decode().splitlines() if line.partition(" =")[0] != name]
        lines += [f"{name} = {value}"] if value is not None else []
        new = replace(old, data="\n".join(lines).encode() + b"\n")
        return replace(facts, initramfs=tuple(new if one is old else one for one in facts.initramfs))

    return change


def initramfs(change: Callable[[tuple[CpioEntry, ...]], tuple[CpioEntry, ...]]) -> Change:
    def changed(facts: ImageFacts) -> ImageFacts:
        assert facts.initramfs is not None
        return replace(facts, initramfs=change(facts.initramfs))

    return changed


def superblock(**changes: object) -> Change:
    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.superblock is not None
        return replace(facts, superblock=facts.superblock._replace(**changes))  # type: ignore[arg-type]

    return change


def files(**changes: object) -> Change:
    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.files is not None
        return replace(facts, files=replace(facts.files, **changes))  # type: ignore[arg-type]

    return change


def surveyed(*entries: Entry, mounts: tuple[tuple[str, str], ...] = ()) -> Change:
    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.files is not None
        return files(survey=Survey("erofs", (*facts.files.survey.entries, *entries), mounts))(facts)

    return change


def with_files(*some: TreeFile) -> Change:
    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.files is not None
        return files(tree=facts.files.tree.with_files(*some))(facts)

    return change


def archive(**changes: object) -> Change:
    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.archive is not None
        return replace(facts, archive=replace(facts.archive, **changes))  # type: ignore[arg-type]

    return change


def boot_config_behind(facts: ImageFacts) -> ImageFacts:
    """Puts a boot configuration behind the initramfs, of a kernel that takes one and is asked to."""
    assert facts.boot_entry is not None
    asked = replace(facts, boot_entry=replace(facts.boot_entry, command_line=f"{facts.boot_entry.command_line} bootconfig"))
    return archive(boot_config=b"kernel.ipe.enforce = 0\n")(config(BOOT_CONFIG="y")(asked))


def module_of_initramfs(errno: str, path: str = "x.ko") -> Change:
    """Has ipe-init load a module, to which the kernel gives this answer."""

    def change(facts: ImageFacts) -> ImageFacts:
        told = setting("module", f"/{path}")(initramfs(lambda entries: (*entries, regular_file(path, b"")))(facts))
        views = (ModuleView(path, "", "", errno, "of somebody else", forgiven=errno == "EKEYREJECTED"),)
        return replace(told, initramfs_modules=views)

    return change


def certificate(*, bits: int = 3072, name: str = "device", days: int = 36500) -> x509.Certificate:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime(2020, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
    return builder.not_valid_before(begin).not_valid_after(begin + timedelta(days=days)).sign(key, hashes.SHA256())


def trusting(**of: object) -> Change:
    def change(facts: ImageFacts) -> ImageFacts:
        assert facts.kernel is not None
        return kernel(certificates=(*facts.kernel.certificates, certificate(**of)))(facts)  # type: ignore[arg-type]

    return change


def revoked(facts: ImageFacts) -> ImageFacts:
    assert facts.kernel is not None
    return kernel(revoked=facts.kernel.certificates[:1])(facts)


def all_revoked(facts: ImageFacts) -> ImageFacts:
    assert facts.kernel is not None
    return kernel(revoked=facts.kernel.certificates)(facts)


def went_out(version: str, digest: int) -> Change:
    """The ledger says that this version of the demo's policy went out, with a text of this SHA-256."""
    text = {"format": 1, "policies": {"ipe-policy": [{"version": version, "sha256": f"{digest:064x}"}]}}
    return lambda facts: replace(facts, ledger=parse_ledger(json.dumps(text).encode()))


def renamed_root(facts: ImageFacts) -> ImageFacts:
    assert facts.root is not None
    assert facts.root.data is not None
    return replace(facts, root=replace(facts.root, data=replace(facts.root.data, name="root-arm64")))


HEADER = b"policy_name=ipe-boot policy_version=0.0.1\nDEFAULT action=DENY\n"

MUTATIONS: tuple[tuple[str, Change], ...] = (
    ("boot-policy-parses", kernel(boot_policy=None)),
    ("boot-policy-parses", kernel(boot_policy=HEADER + b"op=EXEC action=ALLOW\n")),
    ("boot-policy-denies", kernel(boot_policy=HEADER.replace(b"DENY", b"ALLOW"))),
    ("boot-policy-initramfs", kernel(boot_policy=HEADER)),
    ("boot-policy-ima", kernel(boot_policy=HEADER + b"op=EXECUTE boot_verified=TRUE action=ALLOW\n")),
    ("boot-policy-lint", kernel(boot_policy=HEADER + b"op=EXECUTE dmverity_roothash=sha256:00 action=ALLOW\n")),
    ("device-policy-version", kernel(boot_policy=HEADER.replace(b"0.0.1", b"0.1.0"))),
    ("device-policy-names", kernel(boot_policy=HEADER.replace(b"ipe-boot", b"ipe-policy"))),
    ("kernel-ipe", kernel(ipe=False)),
    ("kernel-lsm", kernel(lsms=("landlock", "yama"))),
    ("kernel-architecture", renamed_root),
    ("kernel-config", kernel(config=None)),
    ("kernel-properties", config(IPE_PROP_DM_VERITY_SIGNATURE="n")),
    ("kernel-verity-signatures", config(DM_VERITY_VERIFY_ROOTHASH_SIG="n")),
    ("kernel-filesystem", config(EROFS_FS="m")),
    ("kernel-hash", config(CRYPTO_SHA256="m")),
    ("kernel-certificates", kernel(certificates=())),
    ("root-hash-signature", kernel(certificates=())),
    ("device-policy-signature", kernel(certificates=())),
    ("weak-certificates", trusting(bits=1024)),
    ("certificate-validity", trusting(days=30)),
    ("autogenerated-key", trusting(name="Build time autogenerated kernel key")),
    ("revoked-signers", revoked),
    ("root-hash-signature", all_revoked),
    ("device-policy-signature", all_revoked),
    ("module-signatures", config(MODULE_SIG_FORCE="n")),
    ("module-compression", files(modules=(ModuleView("a.ko.xz", "", "xz", "", ""),))),
    ("kernel-boot-config", config(BOOT_CONFIG="y", BOOT_CONFIG_FORCE="y", BOOT_CONFIG_EMBED="y", BOOT_CONFIG_EMBED_FILE='"/x.bconf"')),
    ("kernel-boot-config", boot_config_behind),
    ("kernel-initramfs", config(INITRAMFS_SOURCE='"/x.cpio"')),
    ("kernel-devmem", config(DEVMEM="y")),
    ("kernel-kcore", config(PROC_KCORE="y")),
    ("kernel-debugfs", config(DEBUG_FS="y")),
    ("kernel-bpf", config(BPF_SYSCALL="y", BPF_UNPRIV_DEFAULT_OFF="n")),
    ("kernel-hibernation", config(HIBERNATION="y")),
    ("kernel-firmware-helper", config(FW_LOADER_USER_HELPER="y")),
    ("kernel-ptrace", config(SECURITY_YAMA="n")),
    ("kernel-lockdown", config(SECURITY_LOCKDOWN_LSM="n")),
    ("kernel-kaslr", config(RANDOMIZE_BASE="n")),
    ("kernel-stack", config(STACKPROTECTOR_STRONG="n")),
    ("kernel-usercopy", config(HARDENED_USERCOPY="n")),
    ("kernel-rwx", config(STRICT_KERNEL_RWX="n")),
    ("kernel-proc-mem", config(PROC_MEM_NO_FORCE="n", PROC_MEM_FORCE_PTRACE="n")),
    ("command-line-enforce", kernel(command_line="ipe.enforce=0")),
    ("initramfs-init", initramfs(lambda entries: tuple(one for one in entries if one.path != "init"))),
    ("initramfs-programs", initramfs(lambda entries: (*entries, regular_file("bin/sh", b"\x7fELF", mode=0o755)))),
    ("initramfs-modules-load", module_of_initramfs("EKEYREJECTED")),
    ("initramfs-modules-load", module_of_initramfs("ENOEXEC")),
    ("initramfs-modules-load", setting("module", "/lib/modules/absent.ko")),
    ("initramfs-unpacks", config(RD_GZIP="n")),
    ("initramfs-unpacks", config(BLK_DEV_INITRD="n")),
    ("initramfs-root-hash", setting("root_hash", 64 * "0")),
    ("initramfs-root-hash", setting("root_hash", "cmdline")),
    ("initramfs-filesystem", setting("filesystem", "squashfs")),
    ("initramfs-signature", setting("signature", "none")),
    ("initramfs-policy", setting("policy", "/etc/ipe/other.p7b")),
    ("initramfs-policy", setting("policy", None)),
    ("initramfs-failure", setting("on_failure", "recovery")),
    ("init-program", setting("init", "/sbin/absent")),
    ("device-policy-ledger", went_out("0.0.9", 0)),
    ("device-policy-ledger", went_out("0.0.1", 0)),
    ("verity-hash", superblock(algorithm="sha1")),
    ("verity-salt", superblock(salt=b"")),
    ("verity-superblock", superblock(data_blocks=100)),
    ("verity-superblock", superblock(data_blocks=1 << 30)),
    ("root-modules-load", files(modules=(ModuleView("lib/modules/x.ko", "", "", "EKEYREJECTED", "unsigned"),))),
    ("root-jit", surveyed(Entry("usr/bin/node", Kind.ELF, frozenset({Trait.JIT})))),
    ("root-packed", surveyed(Entry("usr/bin/small", Kind.ELF, frozenset({Trait.UPX})))),
    ("root-setuid", with_files(TreeFile("bin/su", 0o104755))),
    ("initramfs-intact", archive(error="offset 0x0: junk")),
    ("initramfs-replaced", archive(replaced=("init",))),
    ("policy-loader", initramfs(lambda entries: tuple(one for one in entries if one.path != "etc/ipe-init.conf"))),
    ("root-fs-verity", with_files(replace(file_of("srv/x", b""), verity=VerityOfFile("", b"", b"", matches=False)))),
    ("root-fs-verity-keys", kernel(boot_policy=HEADER + b"op=EXECUTE fsverity_signature=TRUE action=ALLOW\n")),
    ("root-ima", with_files(replace(file_of("srv/x", b"x"), xattrs={"security.ima": b"\x03\x02\x04abcd\x00\x01x"}))),
    ("root-overlays", surveyed(mounts=(("/etc", "overlay"),))),
)


@pytest.mark.parametrize(("check", "change"), MUTATIONS, ids=[f"{check}-{number}" for number, (check, _) in enumerate(MUTATIONS)])
def test_a_changed_part_is_found_by_the_check_meant_for_it(good: ImageFacts, quiet: Host, check: str, change: Change) -> None:
    assert check not in failed(audit(good, quiet))
    assert check in failed(audit(change(good), quiet))


def test_a_kernel_without_configuration_is_foreseen_by_what_its_code_shows(good: ImageFacts, quiet: Host) -> None:
    assert good.kernel is not None
    signs = good.kernel.signs
    shown = audit(kernel(config=None)(good), quiet).predictions[0]
    assert (shown.boots, shown.stage, shown.enforces) == (Answer.YES, Stage.RUNS, Answer.YES)
    for symbol, stage in (
        ("BLK_DEV_INITRD", Stage.INITRAMFS),
        ("RD_GZIP", Stage.INITRAMFS),
        ("DM_VERITY", Stage.VERITY),
        ("CRYPTO_SHA256", Stage.VERITY),
        ("DM_VERITY_VERIFY_ROOTHASH_SIG", Stage.VERITY),
        ("EROFS_FS", Stage.MOUNT),
    ):
        hidden = audit(kernel(config=None, signs=signs - {symbol})(good), quiet).predictions[0]
        assert (hidden.boots, hidden.stage) == (Answer.UNKNOWN, stage), symbol
        told = audit(config(**{symbol: "n"})(good), quiet).predictions[0]
        assert (told.boots, told.stage) == (Answer.NO, stage), symbol


Rewrite = Callable[[FileTree, Host], FileTree]


def rewritten_policy(name: str, text: bytes | None, signer_set: str = "ipe-build") -> Rewrite:
    """Puts another signed policy (None: no policy at all) into the root filesystem."""

    def change(tree: FileTree, host: Host) -> FileTree:
        from ipe_build.steps.keys import make_test_keys

        new = ()
        if text is not None:
            signer = make_test_keys(signer_set, host).pair("policy").signer(host)
            new = (file_of(f"etc/ipe/{name}", sign_payload(PROFILES["ipe-policy"], text, signer)),)
        return tree.with_files(*new, without=() if new and name == "ipe-policy.p7b" else ("etc/ipe/ipe-policy.p7b",))

    return change


def firmware_without_a_rule(tree: FileTree, host: Host) -> FileTree:
    """The policy GOOD says nothing of firmware, so its default decides."""
    return rewritten_policy("ipe-policy.p7b", GOOD)(tree, host).with_files(file_of("usr/lib/firmware/radio.bin", b"\0" * 64))


def put_private_key(tree: FileTree, host: Host) -> FileTree:
    from ipe_build.steps.keys import make_test_keys

    return tree.with_files(file_of("srv/forgotten.pem", make_test_keys("foreign", host).pair("module").key.read_bytes(), mode=0o400))


ROOT_BREAKS: tuple[tuple[str, Rewrite], ...] = (
    ("device-policy-signature", rewritten_policy("ipe-policy.p7b", None)),
    ("device-policy-signature", rewritten_policy("ipe-policy.p7b", GOOD, "foreign")),
    ("device-policy-parses", rewritten_policy("other-name.p7b", GOOD)),
    ("device-policy-parses", rewritten_policy("ipe-policy.p7b", GOOD.replace(b"0.0.1", b"0.0.70000"))),
    ("device-policy-denies", rewritten_policy("ipe-policy.p7b", GOOD.replace(b"DENY", b"ALLOW"))),
    ("device-policy-denies", rewritten_policy("ipe-policy.p7b", GOOD + b"DEFAULT op=KMODULE action=ALLOW\n")),
    ("device-policy-root", rewritten_policy("ipe-policy.p7b", GOOD.replace(b"EXECUTE dmverity_signature", b"EXECUTE boot_verified"))),
    ("device-policy-initramfs", rewritten_policy("ipe-policy.p7b", GOOD + b"op=EXECUTE boot_verified=TRUE action=ALLOW\n")),
    ("device-policy-reads", rewritten_policy("ipe-policy.p7b", GOOD + b"DEFAULT op=FIRMWARE action=ALLOW\n")),
    ("device-policy-memory", rewritten_policy("ipe-policy.p7b", GOOD + b"op=EXECUTE boot_verified=FALSE action=ALLOW\n")),
    ("device-policy-lint", rewritten_policy("ipe-policy.p7b", GOOD + b"op=EXECUTE fsverity_digest=sha256:00 action=ALLOW\n")),
    ("root-programs", rewritten_policy("ipe-policy.p7b", GOOD.replace(b"EXECUTE dmverity", b"FIRMWARE dmverity"))),
    ("root-modules", rewritten_policy("ipe-policy.p7b", GOOD.replace(b"KMODULE dmverity", b"FIRMWARE dmverity"))),
    ("root-firmware", firmware_without_a_rule),
    ("private-keys", put_private_key),
)
ROOT_CHECKS = tuple(check for check, _ in ROOT_BREAKS)


@pytest.mark.parametrize(("check", "change"), ROOT_BREAKS, ids=[f"{check}-{number}" for number, check in enumerate(ROOT_CHECKS)])
def test_a_bad_root_filesystem_is_found(image: Path, quiet: Host, check: str, change: Rewrite) -> None:
    def changed(facts: ImageFacts) -> ImageFacts:
        assert facts.files is not None
        tree = change(facts.files.tree, quiet)
        return files(tree=tree, survey=survey_of(tree, "erofs"))(facts)

    assert check in failed(judged(image, quiet, changed))


def test_a_policy_that_the_ledger_allows_passes(good: ImageFacts, quiet: Host) -> None:
    text = next(one.text for one in signed_policies(good) if one.text is not None)
    parsed = parse(text).policy
    assert parsed is not None
    for ledger in (Ledger(), Ledger().record(parsed, text), went_out("0.0.0", 0)(good).ledger):
        found = [one for one in audit(replace(good, ledger=ledger), quiet).findings if one.check == "device-policy-ledger"]
        assert [one.verdict for one in found] == [Verdict.PASS]


def test_a_hostile_file_name_can_be_printed(image: Path, quiet: Host) -> None:
    hostile = with_files(file_of(os.fsdecode(b"srv/\xff\x1b[2J.pem"), b"-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"))
    report = judged(image, quiet, hostile)
    assert "private-keys" in failed(report)
    assert "\x1b" not in render_text(report)
    assert json.dumps(report.to_json(), ensure_ascii=False).encode()


def test_the_same_policy_signed_again_is_still_good(image: Path, quiet: Host) -> None:
    def changed(facts: ImageFacts) -> ImageFacts:
        assert facts.files is not None
        return files(tree=rewritten_policy("ipe-policy.p7b", GOOD)(facts.files.tree, quiet))(facts)

    assert failed(judged(image, quiet, changed)) == set()


def test_no_disk_image_at_all_is_one_finding_not_a_traceback(tmp_path: Path, quiet: Host) -> None:
    nothing = tmp_path / "nothing.raw"
    nothing.write_bytes(os.urandom(1 << 16))
    report = audit_image(nothing, quiet)[0]
    assert report.failed
    assert "image-readable" in failed(report)
    assert "GPT" in render_summary(report) or "partition table" in render_summary(report)


def test_report_as_json_counts_its_findings(image: Path, quiet: Host) -> None:
    value = audit_image(image, quiet)[0].to_json()
    assert json.loads(json.dumps(value)) == value
    assert value["verdict"] == "pass"
    findings = value["findings"]
    assert isinstance(findings, list)
    assert value["counts"] == {word: sum(one["verdict"] == word for one in findings) for word in ("pass", "fail", "unknown")}


def test_the_documentation_has_the_table_of_checks() -> None:
    page = (Path(__file__).parents[2] / "docs/audit.md").read_text()
    assert page.endswith(checks_table())


def test_a_boot_configuration_that_the_kernel_does_not_take_is_none(good: ImageFacts, quiet: Host) -> None:
    of_kernel = {"BOOT_CONFIG": "y", "BOOT_CONFIG_EMBED": "y", "BOOT_CONFIG_EMBED_FILE": '"/x.bconf"'}
    for change in (
        archive(boot_config=b"kernel.ipe.enforce = 0\n"),
        lambda facts: config(BOOT_CONFIG="n")(boot_config_behind(facts)),
        config(**of_kernel, BOOT_CONFIG_FORCE="n"),
        config(**{**of_kernel, "BOOT_CONFIG_EMBED_FILE": '""'}, BOOT_CONFIG_FORCE="y"),
    ):
        assert "kernel-boot-config" not in failed(audit(change(good), quiet))


def test_what_a_kernel_adds_unread_is_not_foreseen(good: ImageFacts, quiet: Host) -> None:
    behind = audit(boot_config_behind(good), quiet).predictions[0]
    assert (behind.boots, behind.stage, behind.enforces) == (Answer.UNKNOWN, Stage.KERNEL, Answer.UNKNOWN)
    own = config(INITRAMFS_SOURCE='"/x.cpio"')
    alone = audit(own(replace(good, initramfs=None, archive=None)), quiet).predictions[0]
    assert (alone.boots, alone.stage, alone.enforces) == (Answer.UNKNOWN, Stage.INITRAMFS, Answer.UNKNOWN), "it boots from its own"


def test_modules_of_the_initramfs_are_foreseen_to_be_loaded_or_not(good: ImageFacts, quiet: Host) -> None:
    assert good.kernel is not None and good.kernel.boot_policy is not None
    admitting = kernel(boot_policy=good.kernel.boot_policy + b"op=KMODULE boot_verified=TRUE action=ALLOW\n")(good)
    taken, refused = module_of_initramfs(""), module_of_initramfs("EKEYREJECTED")
    for change, boots, stage in (
        (taken, Answer.YES, Stage.RUNS),
        (refused, Answer.NO, Stage.IPE),
        (lambda facts: config(MODULE_SIG_FORCE="n")(refused(facts)), Answer.YES, Stage.RUNS),
        (lambda facts: replace(taken(facts), initramfs_modules=()), Answer.UNKNOWN, Stage.IPE),
    ):
        report = audit(change(admitting), quiet)
        assert (report.predictions[0].boots, report.predictions[0].stage) == (boots, stage), report.predictions[0].why
        assert ("initramfs-modules-load" in failed(report)) == (boots is Answer.NO)


def ima_image(facts: ImageFacts, host: Host) -> ImageFacts:
    """The demo as `[ima] files` makes it: IMA's certificate in the initramfs, its policy in the root, which the device policy admits."""
    assert facts.kernel is not None and facts.files is not None
    der = next(one for one in facts.kernel.certificates).public_bytes(Encoding.DER)
    in_initramfs = initramfs(lambda entries: (*entries, regular_file("x509.der", der)))
    told = setting("keyring", ".ima")(setting("ima_policy", "/etc/ima-policy")(in_initramfs(facts)))
    tree = rewritten_policy("ipe-policy.p7b", GOOD + b"op=POLICY dmverity_signature=TRUE action=ALLOW\n")(facts.files.tree, host)
    tree = tree.with_files(file_of("etc/ima-policy", b"appraise func=BPRM_CHECK appraise_type=imasig\n"))
    loads = config(IMA="y", IMA_APPRAISE="y", IMA_LOAD_X509="y", IMA_X509_PATH='"/x509.der"', IMA_APPRAISE_REQUIRE_POLICY_SIGS="n")
    return loads(files(tree=tree)(told))


def foreign_certificate(facts: ImageFacts) -> ImageFacts:
    """Puts another certificate into the place of IMA's."""
    other = regular_file("x509.der", certificate().public_bytes(Encoding.DER))
    return initramfs(lambda entries: tuple(other if one.path == other.path else one for one in entries))(facts)


EVM = {"EVM": "y", "ENCRYPTED_KEYS": "y", "TRUSTED_KEYS_TPM": "y"}
UNKNOWN_POLICY = (Answer.UNKNOWN, Stage.POLICY)
INTEGRITY: tuple[tuple[str, Change, tuple[Answer, Stage]], ...] = (
    ("good", lambda facts: facts, (Answer.YES, Stage.RUNS)),
    ("no-loading", config(IMA_LOAD_X509="n"), (Answer.NO, Stage.POLICY)),
    ("no-certificate", config(IMA_X509_PATH='"/absent.der"'), (Answer.NO, Stage.POLICY)),
    ("nobody-vouches", foreign_certificate, (Answer.NO, Stage.POLICY)),
    ("denied-certificate", kernel(boot_policy=HEADER + b"op=EXECUTE boot_verified=TRUE action=ALLOW\n"), (Answer.NO, Stage.POLICY)),
    ("no-ima", config(IMA="n"), (Answer.NO, Stage.POLICY)),
    ("no-policy", setting("ima_policy", "/etc/absent"), (Answer.NO, Stage.POLICY)),
    ("broken-policy", with_files(file_of("etc/ima-policy", b"appraise func=NONSENSE\n")), (Answer.NO, Stage.POLICY)),
    ("signed-policy-wanted", config(IMA_APPRAISE_REQUIRE_POLICY_SIGS="y"), UNKNOWN_POLICY),
    ("no-evm", lambda facts: setting("evm_key", str(UUID(int=9)))(config(**{**EVM, "EVM": "n"})(facts)), (Answer.NO, Stage.POLICY)),
    ("evm-elsewhere", lambda facts: setting("evm_key", str(UUID(int=9)))(config(**EVM)(facts)), UNKNOWN_POLICY),
)


@pytest.mark.parametrize(("change", "wanted"), [row[1:] for row in INTEGRITY], ids=[row[0] for row in INTEGRITY])
def test_what_ipe_init_does_for_ima_and_evm_is_foreseen(
    good: ImageFacts, quiet: Host, change: Change, wanted: tuple[Answer, Stage]
) -> None:
    found = audit(change(ima_image(good, quiet)), quiet).predictions[0]
    assert (found.boots, found.stage) == wanted, found.why


def test_kexec_load_is_found_where_the_policy_allows_it(good: ImageFacts, quiet: Host) -> None:
    there = config(KEXEC="y")(good)
    assert "kernel-kexec" not in failed(audit(there, quiet)), "the demo's policy denies it"
    assert there.files is not None
    tree = rewritten_policy("ipe-policy.p7b", GOOD + b"DEFAULT op=KEXEC_IMAGE action=ALLOW\n")(there.files.tree, quiet)
    assert "kernel-kexec" in failed(audit(files(tree=tree)(there), quiet))
    assert "kernel-kexec" not in failed(audit(files(tree=tree)(good), quiet))


def test_every_check_has_an_image_that_fails_it() -> None:
    met = {row.check for row in BREAKS} | {check for check, _ in MUTATIONS} | OF_THE_DEMO | {*ROOT_CHECKS, "kernel-kexec"}
    assert {check.id for check in CHECKS} - met == {"uki-signed", "uki-sections", "uki-extras", "uki-credentials"}
    assert len(BREAKS) + len(MUTATIONS) + len(ROOT_CHECKS) >= 60
