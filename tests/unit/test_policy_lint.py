"""Every lint rule: a policy that it finds something in, and a twin that it leaves alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from ipe_build.formats.dotconfig import DotConfig, parse_dotconfig
from ipe_build.policy.facts import Digest, Facts
from ipe_build.policy.findings import Severity, Target
from ipe_build.policy.lint import RULES, check
from ipe_build.policy.model import PolicyVersion
from ipe_build.policy.parser import Role, parse
from ipe_build.policy.survey import Entry, Kind, Survey, Trait
from ipe_build.policy.versions import KernelVersion

HEAD = b"policy_name=p policy_version=1.0.0\nDEFAULT action=DENY\n"
EXEC = b"op=EXECUTE dmverity_signature=TRUE action=ALLOW\n"
KMOD = b"op=KMODULE dmverity_signature=TRUE action=ALLOW\n"
GOOD = HEAD + EXEC + KMOD
SHA256 = b"ab" * 31 + b"cd"
SIGNED = Facts(root_hash=Digest(b"sha256", b"\1" * 32), root_hash_signed=True)


def config(*on: str, **texts: str) -> DotConfig:
    always = ["SECURITY_IPE", "AUDIT", "MODULES", "BLK_DEV_INITRD", "IPE_PROP_DM_VERITY", "IPE_PROP_DM_VERITY_SIGNATURE", "FW_LOADER"]
    lines = [f"CONFIG_{symbol}=y" for symbol in (*always, *on)] + [f'CONFIG_{name}="{value}"' for name, value in texts.items()]
    return parse_dotconfig("\n".join(lines).encode())


def image(*entries: Entry, filesystem: str = "erofs", mounts: tuple[tuple[str, str], ...] = ()) -> Survey:
    return Survey(filesystem, entries, mounts)


def elf(path: str, *traits: Trait, facts: Facts = SIGNED) -> Entry:
    return Entry(path, Kind.ELF, frozenset(traits), facts)


def without(symbol: str, base: DotConfig) -> DotConfig:
    return DotConfig({name: value for name, value in base.values.items() if name != symbol})


@dataclass(frozen=True)
class Case:
    rule: str
    bad: bytes
    good: bytes = GOOD
    line: int = 0
    bad_target: Target = field(default_factory=Target)
    good_target: Target | None = None


_BOOT = Target(role=Role.BOOT)
_BOOT_GOOD = HEAD + b"op=EXECUTE boot_verified=TRUE action=ALLOW\n" + KMOD
_OFF = without("BLK_DEV_INITRD", config())
_PERMIT = b"policy_name=p policy_version=1.0.0\nDEFAULT action=ALLOW\nDEFAULT op=KMODULE action=DENY\n"

CASES = (
    Case("rejected", HEAD + b"op=EXEC action=ALLOW\n", line=3),
    Case("boot-policy-rejected", HEAD + b"op=EXEC action=ALLOW\n", _BOOT_GOOD, 3, _BOOT),
    Case("boot-policy-name", _BOOT_GOOD.replace(b"=p ", b"=a/b "), _BOOT_GOOD, 1, _BOOT),
    Case("signed-too-large", GOOD + b"#" * 65536),
    Case("boot-policy-too-large", _BOOT_GOOD + b"#" * (4 << 20), _BOOT_GOOD, 0, _BOOT),
    Case("text-after-nul", GOOD + b"\0op=EXECUTE action=ALLOW\n", GOOD + b"\0", 5),
    Case("unprintable", GOOD.replace(b"action=ALLOW\n", b"action=ALLOW\v\n", 1), GOOD + b"# \xc3\xa9\n", 3),
    Case("crlf", GOOD.replace(b"\n", b"\r\n"), line=1),
    Case("name-differs-from-file", GOOD, line=1, bad_target=Target(stem="q"), good_target=Target(stem="p")),
    Case("name-hidden", GOOD.replace(b"=p ", b"=.p "), line=1),
    Case("version-not-higher", GOOD, GOOD.replace(b"1.0.0", b"1.0.1"), 1, Target(recorded=(PolicyVersion(1, 0, 0), b""))),
    Case("version-below-active", GOOD, GOOD.replace(b"1.0.0", b"1.0.1"), 1, Target(active=parse(GOOD).policy)),
    Case(
        "version-below-active",
        GOOD,
        GOOD.replace(b"1.0.0", b"2.0.0"),
        1,
        Target(active=parse(HEAD.replace(b"=p ", b"=q ").replace(b"1.", b"2.")).policy),
    ),
    Case("kernel-without-ipe", GOOD, bad_target=Target(kernel=KernelVersion(6, 11)), good_target=Target(kernel=KernelVersion(6, 12))),
    Case(
        "digest-length",
        GOOD + b"op=EXECUTE dmverity_roothash=sha256:abcd action=ALLOW\n",
        GOOD + b"op=EXECUTE dmverity_roothash=sha256:" + SHA256 + b" action=ALLOW\n",
        5,
    ),
    Case(
        "algorithm-case",
        GOOD + b"op=EXECUTE dmverity_roothash=SHA256:" + SHA256 + b" action=ALLOW\n",
        GOOD + b"op=EXECUTE dmverity_roothash=sha256:" + SHA256 + b" action=ALLOW\n",
        5,
    ),
    Case(
        "algorithm-unknown",
        GOOD + b"op=EXECUTE fsverity_digest=sha384:" + b"ab" * 48 + b" action=ALLOW\n",
        GOOD + b"op=EXECUTE dmverity_roothash=sha384:" + b"ab" * 48 + b" action=ALLOW\n",
        5,
    ),
    Case("algorithm-unknown", GOOD + b"op=EXECUTE dmverity_roothash=sha-256:" + SHA256 + b" action=ALLOW\n", line=5),
    Case(
        "placeholder-digest",
        GOOD + b"op=EXECUTE dmverity_roothash=sha256:" + b"00" * 32 + b" action=ALLOW\n",
        GOOD + b"op=EXECUTE dmverity_roothash=sha256:" + SHA256 + b" action=ALLOW\n",
        5,
    ),
    Case(
        "contradictory-properties",
        GOOD + b"op=POLICY boot_verified=TRUE dmverity_signature=TRUE action=ALLOW\n",
        GOOD + b"op=POLICY boot_verified=FALSE dmverity_signature=TRUE action=ALLOW\n",
        5,
    ),
    Case(
        "repeated-property",
        GOOD + b"op=POLICY boot_verified=TRUE boot_verified=TRUE action=ALLOW\n",
        GOOD + b"op=POLICY boot_verified=TRUE fsverity_signature=FALSE action=ALLOW\n",
        5,
    ),
    Case(
        "shadowed-rule",
        GOOD + b"op=EXECUTE dmverity_signature=TRUE boot_verified=FALSE action=DENY\n",
        HEAD + b"op=EXECUTE dmverity_roothash=sha256:" + SHA256 + b" action=DENY\n" + EXEC + KMOD,
        5,
    ),
    Case("shadowed-rule", GOOD + b"op=POLICY action=DENY\nop=POLICY boot_verified=TRUE action=ALLOW\n", line=6),
    Case("default-allow-execute", _PERMIT, line=2),
    Case("default-allow", GOOD + b"DEFAULT op=FIRMWARE action=ALLOW\n", GOOD + b"DEFAULT op=FIRMWARE action=DENY\n", 5),
    Case("no-kmodule-rule", HEAD + EXEC, HEAD + EXEC + b"DEFAULT op=KMODULE action=DENY\n", 2),
    Case("allows-everything", GOOD + b"op=FIRMWARE action=ALLOW\n", GOOD + b"op=FIRMWARE action=DENY\n", 5),
    Case(
        "allows-unverified",
        GOOD + b"op=FIRMWARE boot_verified=FALSE action=ALLOW\n",
        GOOD + b"op=FIRMWARE boot_verified=FALSE dmverity_signature=TRUE action=ALLOW\n",
        5,
    ),
    Case("denies-all-execute", HEAD + KMOD, line=2),
    Case("denies-initramfs", GOOD, _BOOT_GOOD, 2, _BOOT),
    Case("denies-initramfs", GOOD, GOOD, 2, Target(role=Role.BOOT, config=config()), Target(role=Role.BOOT, config=_OFF)),
    Case("initramfs-stays-allowed", GOOD + b"op=EXECUTE boot_verified=TRUE action=ALLOW\n", line=5),
    Case(
        "target-without-ipe",
        GOOD,
        bad_target=Target(config=without("SECURITY_IPE", config())),
        good_target=Target(config=config(LSM="lockdown,ipe")),
    ),
    Case(
        "target-without-ipe",
        GOOD,
        bad_target=Target(config=config(LSM="lockdown,yama")),
        good_target=Target(config=config(LSM="lockdown,ipe")),
    ),
    Case(
        "property-off",
        GOOD,
        line=3,
        bad_target=Target(config=without("IPE_PROP_DM_VERITY_SIGNATURE", config())),
        good_target=Target(config=config()),
    ),
    Case(
        "property-off",
        HEAD + KMOD + b"op=EXECUTE dmverity_signature=FALSE action=DENY\n",
        line=3,
        bad_target=Target(config=without("IPE_PROP_DM_VERITY_SIGNATURE", config())),
        good_target=Target(config=config()),
    ),
    Case(
        "fsverity-signatures-off",
        GOOD + b"op=EXECUTE fsverity_signature=TRUE action=ALLOW\n",
        GOOD + b"op=EXECUTE fsverity_signature=TRUE action=ALLOW\n",
        5,
        Target(config=config("FS_VERITY")),
        Target(config=config("FS_VERITY", "FS_VERITY_BUILTIN_SIGNATURES", "IPE_PROP_FS_VERITY_BUILTIN_SIG")),
    ),
    Case(
        "no-initramfs",
        _BOOT_GOOD,
        _BOOT_GOOD,
        3,
        Target(role=Role.BOOT, config=without("BLK_DEV_INITRD", config())),
        Target(role=Role.BOOT, config=config()),
    ),
    Case(
        "operation-never-asked",
        GOOD,
        GOOD,
        4,
        Target(config=without("MODULES", config())),
        Target(config=config()),
    ),
    Case(
        "modules-from-buffer",
        GOOD,
        GOOD,
        4,
        Target(config=config("MODULE_COMPRESS", "MODULE_COMPRESS_XZ")),
        Target(config=config("MODULE_COMPRESS", "MODULE_COMPRESS_XZ", "MODULE_DECOMPRESS")),
    ),
    Case(
        "firmware-from-buffer",
        GOOD + b"op=FIRMWARE dmverity_signature=TRUE action=ALLOW\n",
        GOOD + b"op=FIRMWARE dmverity_signature=TRUE action=ALLOW\n",
        5,
        Target(config=config("FW_LOADER_USER_HELPER")),
        Target(config=config()),
    ),
    Case(
        "certificate-path-denied",
        _BOOT_GOOD,
        _BOOT_GOOD + b"op=X509_CERT boot_verified=TRUE action=ALLOW\n",
        0,
        Target(role=Role.BOOT, config=config("IMA_LOAD_X509")),
    ),
    Case("audit-off", GOOD, bad_target=Target(config=without("AUDIT", config())), good_target=Target(config=config())),
    Case(
        "image-init-denied",
        GOOD,
        line=2,
        bad_target=Target(survey=image(elf("sbin/init", Trait.INIT, facts=Facts()))),
        good_target=Target(survey=image(elf("sbin/init", Trait.INIT))),
    ),
    Case(
        "image-loader-denied",
        GOOD,
        line=2,
        bad_target=Target(survey=image(elf("bin/veritysetup", Trait.LOADER, facts=Facts()))),
        good_target=Target(survey=image(elf("bin/veritysetup", Trait.LOADER))),
    ),
    Case(
        "image-files-denied",
        GOOD,
        line=2,
        bad_target=Target(survey=image(elf("bin/a"), elf("bin/b", facts=Facts()))),
        good_target=Target(survey=image(elf("bin/a"), elf("bin/b"))),
    ),
    Case(
        "image-filesystem",
        GOOD,
        bad_target=Target(survey=image(filesystem="btrfs")),
        good_target=Target(survey=image(filesystem="ext4")),
    ),
    Case(
        "image-overlay",
        GOOD,
        bad_target=Target(survey=image(mounts=(("/etc", "overlay"),))),
        good_target=Target(survey=image(mounts=(("/tmp", "tmpfs"),))),
    ),
    Case(
        "image-jit",
        GOOD,
        GOOD + b"op=EXECUTE action=ALLOW\n",
        2,
        Target(survey=image(elf("usr/bin/node", Trait.JIT))),
    ),
    Case("image-libffi", GOOD, line=2, bad_target=Target(survey=image(elf("a", Trait.LIBFFI))), good_target=Target(survey=image(elf("a")))),
    Case("image-upx", GOOD, line=2, bad_target=Target(survey=image(elf("a", Trait.UPX))), good_target=Target(survey=image(elf("a")))),
    Case("image-memfd", GOOD, bad_target=Target(survey=image(elf("a", Trait.MEMFD))), good_target=Target(survey=image(elf("a")))),
    Case(
        "image-interpreters",
        GOOD,
        bad_target=Target(survey=image(elf("bin/sh", Trait.INTERPRETER))),
        good_target=Target(survey=image(elf("bin/sh", Trait.INTERPRETER, facts=Facts()))),
    ),
    Case(
        "image-compressed-modules",
        GOOD,
        line=2,
        bad_target=Target(survey=image(Entry("a.ko.xz", Kind.COMPRESSED_MODULE, facts=SIGNED)), config=config()),
        good_target=Target(survey=image(Entry("a.ko.xz", Kind.COMPRESSED_MODULE, facts=SIGNED)), config=config("MODULE_DECOMPRESS")),
    ),
    Case(
        "image-compressed-modules-unknown",
        GOOD,
        line=2,
        bad_target=Target(survey=image(Entry("a.ko.xz", Kind.COMPRESSED_MODULE, facts=SIGNED))),
        good_target=Target(survey=image(Entry("a.ko", Kind.MODULE, facts=SIGNED))),
    ),
)


@pytest.mark.parametrize("case", CASES, ids=[case.rule for case in CASES])
def test_rule_finds_the_bad_policy_and_leaves_its_twin_alone(case: Case) -> None:
    found = [finding for finding in check(case.bad, case.bad_target).findings if finding.rule == case.rule]
    assert found
    assert found[0].line == case.line
    assert found[0].message
    assert found[0].hint
    twin = check(case.good, case.good_target or case.bad_target)
    assert case.rule not in {finding.rule for finding in twin.findings}


def test_every_rule_has_a_case_and_every_id_is_unique() -> None:
    assert {case.rule for case in CASES} == {rule.id for rule in RULES}
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_the_good_policy_has_no_findings() -> None:
    assert check(GOOD).findings == ()


def test_refused_boot_policy_says_that_nothing_would_be_enforced() -> None:
    report = check(b"policy_name=p policy_version=1.0\nDEFAULT action=DENY\n", _BOOT)
    assert report.failed
    assert any("boot with nothing enforced" in finding.message for finding in report.findings)


def test_finding_has_the_column_of_its_token() -> None:
    text = GOOD + b"  op=EXECUTE \t dmverity_roothash=SHA256:" + SHA256 + b" action=ALLOW\n"
    finding = next(finding for finding in check(text).findings if finding.rule == "algorithm-case")
    assert text.split(b"\n")[finding.line - 1][finding.column - 1 :].startswith(b"dmverity_roothash=SHA256")


def test_a_thousand_equal_mistakes_are_summed_up() -> None:
    text = GOOD + b"op=EXECUTE dmverity_roothash=sha256:ab action=ALLOW\n" * 1000
    found = [finding for finding in check(text).findings if finding.rule == "digest-length"]
    assert len(found) == 101
    assert "900 more" in "".join(finding.message for finding in found)
    assert found[0].severity is Severity.ERROR


def test_rule_behind_a_dead_one_is_not_shadowed() -> None:
    text = HEAD + b"op=EXECUTE fsverity_signature=FALSE action=ALLOW\n" + b"op=EXECUTE fsverity_signature=FALSE action=DENY\n" + EXEC + KMOD
    assert "shadowed-rule" in {finding.rule for finding in check(text).findings}
    off = Target(config=config("FS_VERITY"))
    assert "shadowed-rule" not in {finding.rule for finding in check(text, off).findings}


def test_interpreters_that_may_ask_are_spoken_of_from_linux_6_19_on() -> None:
    found = image(elf("bin/sh", Trait.INTERPRETER))
    old, new = (
        "".join(finding.message for finding in check(GOOD, Target(kernel=KernelVersion(6, minor), survey=found)).findings)
        for minor in (18, 19)
    )
    assert "AT_EXECVE_CHECK" in new
    assert "AT_EXECVE_CHECK" not in old
