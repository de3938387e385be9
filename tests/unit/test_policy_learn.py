"""Audit logs in all their forms, and what is learnt from them."""

from __future__ import annotations

import json

import pytest

from ipe_build.formats.audit_log import read_log
from ipe_build.formats.audit_record import Access, EnforceChange, PolicyActivation, PolicyLoad
from ipe_build.policy.facts import Digest
from ipe_build.policy.learn import Knowledge, Lesson, Trust, learn
from ipe_build.policy.parser import parse

ROOT = Digest(b"sha256", b"\xab" * 32)
SESSION = "auid=4294967295 ses=4294967295"


def body(
    op: str = "EXECUTE",
    hook: str = "BPRM_CHECK",
    path: str = '"/opt/app"',
    dev: str = '"dm-0"',
    rule: str = "DEFAULT action=DENY",
    enforcing: int = 1,
) -> str:
    ino = "?" if path == "?" else "12"
    return f'ipe_op={op} ipe_hook={hook} enforcing={enforcing} pid=7 comm="sh" path={path} dev={dev} ino={ino} rule="{rule}"'


FORMS = {
    "dmesg": "[   12.345678] audit: type=1420 audit(1653364370.067:61): {}",
    "dmesg-with-level": "kern  :notice: [Tue May 24 2022] audit: type=1420 audit(1653364370.067:61): {}",
    "journal-short": "May 24 03:52:50 host kernel: audit: type=1420 audit(1653364370.067:61): {}",
    "journal-short-audit": "May 24 03:52:50 host audit[7]: IPE_ACCESS {}",
    "journal-short-unknown": "May 24 03:52:50 host audit[7]: UNKNOWN[1420] {}",
    "audit-log-new": "type=IPE_ACCESS msg=audit(1653364370.067:61): {}",
    "audit-log-old": "type=UNKNOWN[1420] msg=audit(1653364370.067:61): {}",
    "audit-log-number": "type=AUDIT1420 msg=audit(1653364370.067:61): {}",
    "audit-log-enriched": "node=host type=IPE_ACCESS msg=audit(1653364370.067:61): {}\x1dARCH=x86_64 AUID=unset",
}


@pytest.mark.parametrize("form", FORMS)
def test_record_is_read_in_every_form(form: str) -> None:
    log = read_log(b"other line\n" + FORMS[form].format(body()).encode() + b"\nSELinux: type=1400\n")
    assert not log.skipped
    assert [record.event for record in log.records] == [
        Access("EXECUTE", "BPRM_CHECK", True, 7, "sh", "/opt/app", "dm-0", 12, "DEFAULT action=DENY")
    ]


@pytest.mark.parametrize(
    "entry",
    [
        {"MESSAGE": "audit: type=1420 audit(1653364370.067:61): " + body(), "_TRANSPORT": "kernel"},
        {"MESSAGE": "IPE_ACCESS " + body(), "_TRANSPORT": "audit", "_AUDIT_ID": "61", "_SOURCE_REALTIME_TIMESTAMP": "1653364370067000"},
        {"MESSAGE": "UNKNOWN[1420] " + body(), "_AUDIT_TYPE": "1420", "_AUDIT_ID": "61", "__REALTIME_TIMESTAMP": "1653364370067999"},
        {"MESSAGE": list(b"audit: type=1420 audit(1653364370.067:61): " + body().encode())},
    ],
)
def test_record_is_read_from_the_journals_json(entry: dict[str, object]) -> None:
    log = read_log(json.dumps(entry).encode() + b"\n" + b"\x1e" + json.dumps(entry).encode())
    assert [(record.time_ms, record.serial) for record in log.records] == [(1653364370067, 61)]


def test_hex_encoded_fields_are_decoded() -> None:
    line = FORMS["audit-log-new"].format(body(path="2F746D702F612062", dev='"tmpfs"'))
    (record,) = read_log(line.encode()).records
    assert isinstance(record.event, Access)
    assert record.event.path == "/tmp/a b"


def test_all_four_types_are_read() -> None:
    name = f'"p" policy_version=1.0.0 policy_digest=sha256:{"AB" * 32}'
    old, new = (
        f'{age}_active_pol_name="p" {age}_active_pol_version=1.0.0 {age}_policy_digest=sha256:{"CD" * 32}' for age in ("old", "new")
    )
    lines = [
        f"type=1420 audit(1.000:1): {body()}",
        f"type=1421 audit(1.000:2): {old} {new} {SESSION} lsm=ipe res=1",
        f"type=1422 audit(1.000:3): policy_name={name} {SESSION} lsm=ipe res=1",
        f"type=1422 audit(1.000:4): policy_name=? policy_version=? policy_digest=? {SESSION} lsm=ipe res=0 errno=-74",
        f"type=1404 audit(1.000:5): enforcing=0 old_enforcing=1 {SESSION} enabled=1 old-enabled=1 lsm=ipe res=1",
        f"type=1404 audit(1.000:6): enforcing=0 old_enforcing=1 {SESSION} enabled=1 old-enabled=1 lsm=selinux res=1",
    ]
    log = read_log("\n".join(lines).encode())
    assert [type(record.event) for record in log.records] == [Access, PolicyActivation, PolicyLoad, PolicyLoad, EnforceChange]
    events = " | ".join(learn(log.records).events)
    assert "p 1.0.0 was activated" in events
    assert "p 1.0.0 was loaded" in events
    assert "refused with errno 74" in events
    assert "switched off" in events


def test_cut_record_is_named_and_the_others_are_read() -> None:
    lines = [FORMS["dmesg"].format(body())[:-20], FORMS["dmesg"].format(body())]
    log = read_log("\n".join(lines).encode())
    assert [row.line for row in log.skipped] == [1]
    assert len(log.records) == 1


def lesson(*bodies: str, knowledge: Knowledge | None = None) -> Lesson:
    lines = [f"type=1420 audit(1.000:{serial}): {text}" for serial, text in enumerate(bodies, 1)]
    log = read_log("\n".join(lines).encode())
    assert len(log.records) == len(bodies)
    return learn(log.records, knowledge)


def test_signature_comes_before_root_hash_and_digest() -> None:
    (denial,) = lesson(body(), knowledge=Knowledge(root_hashes=(ROOT,))).denials
    assert [row.trust for row in denial.proposals] == [Trust.SIGNATURE, Trust.ROOT_HASH]
    on_disk = body(dev='"vda2"')
    (denial,) = lesson(on_disk, knowledge=Knowledge(file_digest=lambda path: ROOT if path == "/opt/app" else None)).denials
    assert [str(row.rule) for row in denial.proposals] == [
        "op=EXECUTE fsverity_signature=TRUE action=ALLOW",
        f"op=EXECUTE fsverity_digest={ROOT} action=ALLOW",
    ]


def test_volume_denied_although_signatures_are_allowed_was_opened_without_one() -> None:
    text = b"policy_name=p policy_version=1.0.0\nDEFAULT action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n"
    (denial,) = lesson(body(), knowledge=Knowledge(parse(text).policy, (ROOT,))).denials
    assert "root-hash-signature" in denial.fix
    assert "(line 2)" in denial.sentence
    assert [row.trust for row in denial.proposals] == [Trust.ROOT_HASH]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (body(dev='"tmpfs"', path='"/tmp/x"'), "verified image"),
        (body("KMODULE", "KERNEL_LOAD", "?", "?"), "MODULE_DECOMPRESS"),
        (body("EXECUTE", "MMAP", "?", "?"), "JIT"),
        (body(dev='"rootfs"', path='"/bin/sh"'), "initramfs"),
        (body(dev='"overlay"'), "layer"),
        (body(dev='"proc"'), "verified image"),
        (body("FIRMWARE", "KERNEL_LOAD", "?", "?"), "read firmware itself"),
    ],
)
def test_fix_fits_where_the_file_was(text: str, part: str) -> None:
    (denial,) = lesson(text).denials
    assert part in denial.fix
    assert denial.sentence


def test_unverified_rules_are_a_last_resort_and_never_allow_all() -> None:
    text = body("KMODULE", "KERNEL_LOAD", "?", "?")
    assert lesson(text).rules == ()
    (rule,) = lesson(text, knowledge=Knowledge(last_resort=True)).rules
    assert rule.conditions
    assert all(condition.value is False for condition in rule.conditions)


def test_equal_denials_are_told_once() -> None:
    (denial,) = lesson(body(), body(), body()).denials
    assert denial.count == 3
    assert "3 times" in denial.sentence


def test_allowed_by_a_rule_is_no_denial_but_by_the_global_default_it_is() -> None:
    assert lesson(body(rule="op=EXECUTE dmverity_signature=TRUE action=ALLOW")).denials == ()
    (denial,) = lesson(body(rule="DEFAULT action=ALLOW")).denials
    assert "global default only" in denial.sentence
    (denial,) = lesson(body(enforcing=0)).denials
    assert "would have been denied" in denial.sentence
