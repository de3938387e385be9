"""boot.console and boot.judge: what the console says -> verdicts. Every claim of a row must be able to fail."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ipe_build.boot.console import kernel_release, read_console
from ipe_build.boot.damage import DAMAGES, FIRMWARE
from ipe_build.boot.evidence import Evidence, ProbeResult, Subject, evidence_table, evidence_value
from ipe_build.boot.expectation import Facts, Probe, resolve
from ipe_build.boot.judge import describe_expected, judge_damage, judge_probe, skipped_damage, skipped_probe
from ipe_build.boot.probes import PROBES
from ipe_build.boot.qemu import Boot, Ended, Patch

FACTS = Facts(
    {"policy": ("p",), "other": ("o",), "version": ("1.0.0",), "older": ("0.9.9",), "newer": ("1.0.1",), "interpreter": ("/bin/sh",)}
)
START = '{"start":1,"release":"6.12.1","machine":"x86_64","enforce":"1","policy":"p","version":"1.0.0","success_audit":"1","audit":""}'
DENIED = (
    'audit: type=1420 audit(1.000:9): ipe_op=EXECUTE ipe_hook=BPRM_CHECK enforcing=1 pid=9 comm="ipe-probe" '
    'path="/run/ipe-probe/copy-0/ipe-probe" dev="tmpfs" ino=3 rule="DEFAULT action=DENY"'
)
DAMAGE = {damage.id: damage for damage in DAMAGES}


def row(probe_id: str) -> Probe:
    probe = resolve(next(probe for probe in PROBES if probe.id == probe_id), FACTS)
    assert not isinstance(probe, str)
    return probe


def said(
    probe_id: str, *kernel: str, errno: int = 0, error: str = "", status: int = -1, detail: str = "", start: str = START
) -> ProbeResult:
    """The verdict on a probe that the console reports like this."""
    result = json.dumps({"id": probe_id, "errno": errno, "error": error, "status": status, "detail": detail})
    lines = [f"@ipe-probe {start}", f'@ipe-probe {{"begin":"{probe_id}"}}', *kernel, f"@ipe-probe {result}", '@ipe-probe {"end":1}']
    transcript = read_console([f"[    1.{number:06d}] {line}" for number, line in enumerate(lines)])
    assert transcript.finished
    return judge_probe(row(probe_id), transcript.report(probe_id), transcript.start)


def test_denied_copy_with_its_record_is_as_expected():
    result = said("run-copy", DENIED, errno=13, error="EACCES")
    assert result.as_expected
    assert (result.expected, result.observed) == ("denied: EACCES", "denied: EACCES")
    assert result.measured.records == (DENIED.removeprefix("audit: "),)


@pytest.mark.parametrize(
    ("kernel", "result", "problem"),
    [
        ((DENIED,), {"status": 0, "detail": "hello"}, "observed allowed"),
        ((DENIED,), {"errno": 1, "error": "EPERM"}, "observed denied: EPERM"),
        ((), {"errno": 13, "error": "EACCES"}, "no audit record"),
        ((DENIED.replace("tmpfs", "dm-0"),), {"errno": 13, "error": "EACCES"}, "no audit record"),
        ((DENIED.replace("BPRM_CHECK", "MMAP"),), {"errno": 13, "error": "EACCES"}, "no audit record"),
        ((DENIED.replace("action=DENY", "action=ALLOW"),), {"errno": 13, "error": "EACCES"}, "no audit record"),
    ],
)
def test_every_other_outcome_of_a_denied_probe_is_not_as_expected(kernel, result, problem):
    verdict = said("run-copy", *kernel, **result)
    assert not verdict.as_expected
    assert problem in "; ".join(verdict.problems)


def test_allowed_probe_needs_success_status_detail_and_record():
    allowed = DENIED.replace("/run/ipe-probe/copy-0/ipe-probe", "/usr/lib/ipe-build/ipe-probe").replace("tmpfs", "dm-0")
    allowed = allowed.replace("DEFAULT action=DENY", "op=EXECUTE dmverity_signature=TRUE action=ALLOW")
    assert said("run-program", allowed, status=0, detail="hello").as_expected
    assert not said("run-program", allowed, status=1, detail="hello").as_expected
    assert not said("run-program", allowed, status=139, detail="").as_expected
    assert not said("run-program", allowed, status=0, detail="other").as_expected
    assert not said("run-program", status=0, detail="hello").as_expected
    assert not said("run-program", allowed, errno=13, error="EACCES").as_expected
    silent = START.replace('"success_audit":"1"', '"success_audit":"0"')
    assert said("run-program", status=0, detail="hello", start=silent).as_expected


def test_module_signature_layer_needs_the_kernels_own_words():
    allowed = DENIED.replace("EXECUTE ipe_hook=BPRM_CHECK", "KMODULE ipe_hook=KERNEL_READ").replace("action=DENY", "action=ALLOW")
    allowed = allowed.replace("/run/ipe-probe/copy-0/ipe-probe", "/usr/lib/ipe-build/probes/module-unsigned.ko")
    words = "Loading of unsigned module is rejected"
    assert said("module-unsigned", allowed, words, errno=129, error="EKEYREJECTED").as_expected
    assert not said("module-unsigned", allowed, words.replace("unsigned", "other"), errno=129, error="EKEYREJECTED").as_expected
    assert not said("module-unsigned", allowed, words, errno=13, error="EACCES").as_expected


def test_loader_that_maps_the_copy_after_all_is_not_as_expected():
    record = DENIED.replace("BPRM_CHECK", "MMAP")
    message = "error while loading shared libraries: x: failed to map segment from shared object"
    assert said("loader-maps-library", record, status=127, detail=message).as_expected
    assert not said("loader-maps-library", record, status=0, detail="the library is mapped").as_expected
    assert not said("loader-maps-library", record, status=127, detail="x: cannot open shared object file").as_expected


def test_policy_detail_must_show_the_version_in_force():
    assert said("policy-same", errno=116, error="ESTALE", detail="p version=1.0.0 active=1").as_expected
    assert not said("policy-same", errno=116, error="ESTALE", detail="p version=1.0.1 active=1").as_expected
    assert not said("policy-same", errno=22, error="EINVAL", detail="p version=1.0.0 active=1").as_expected


def test_not_covered_rows_fail_too_when_the_device_differs():
    eio = said("overwrite-text", errno=5, error="EIO")
    assert eio.as_expected and eio.expected == "not covered: EIO or allowed"
    assert said("overwrite-text", status=0, detail="ran the new code").as_expected
    assert not said("overwrite-text", errno=38, error="ENOSYS").as_expected
    assert not said("overwrite-text", status=1).as_expected


def test_missing_and_damaged_reports_are_not_as_expected():
    assert judge_probe(row("run-copy"), None, None).problems == ("the probe gave no result",)
    lines = ['@ipe-probe {"begin":"run-copy"}', '@ipe-probe {"id":"run-copy","errno":1[ 3.0] other line', '@ipe-probe {"end":1}']
    transcript = read_console(lines)
    assert transcript.report("run-copy") is None
    assert not transcript.finished
    assert read_console(['@ipe-probe {"failed":"no probe disk","error":"ENOENT"}']).failed == "no probe disk ENOENT"


def test_records_belong_to_the_probe_that_ran_when_they_were_printed():
    lines = [
        DENIED,
        '@ipe-probe {"begin":"a"}',
        "audit: type=1107 audit(1.000:5): pid=1 uid=0 auid=4294967295 ses=4294967295 msg='ipe-probe-mark=1'",
        '@ipe-probe {"id":"a","errno":0,"error":"","status":0,"detail":""}',
        '@ipe-probe {"begin":"b"}',
        DENIED,
        '@ipe-probe {"id":"b","errno":13,"error":"EACCES","status":-1,"detail":""}',
    ]
    a, b = read_console([f"[    0.100000][    T1] {line}" for line in lines]).reports
    assert (a.log, a.records) == ((), ())
    assert len(b.records) == 1


def test_kernel_release_is_that_of_the_banner():
    assert kernel_release(["x", "[    0.000000] Linux version 6.12.117 (b@h) (gcc) #1"]) == "6.12.117"
    assert kernel_release([]) == ""


def booted(*lines: str, ended: Ended = Ended.PANIC) -> Boot:
    return Boot(ended, tuple(f"[    1.0] {line}" for line in lines), ("qemu",), 1.0)


CORRUPT = "device-mapper: verity: 254:2: data block 17 is corrupted"
PATCH = [Patch(4160, b"x")]


def test_boot_of_a_flipped_init_must_not_reach_it():
    good = judge_damage(DAMAGE["flip-init"], booted(CORRUPT, "Kernel panic - not syncing: Attempted to kill init!"), PATCH, "eio")
    assert good.as_expected
    assert good.changed == ("4160 1",)
    assert any("Kernel panic" in line for line in good.measured.proof)
    panicked = booted(CORRUPT, "Kernel panic - not syncing: x", "RIP: 0033:0x0")
    assert judge_damage(DAMAGE["flip-init"], panicked, PATCH, "eio").measured.tail[-1].endswith("Kernel panic - not syncing: x")
    assert not judge_damage(DAMAGE["flip-init"], booted(CORRUPT, f"@ipe-probe {START}"), PATCH, "eio").as_expected
    assert not judge_damage(DAMAGE["flip-init"], booted("Kernel panic - not syncing"), PATCH, "eio").as_expected
    assert not judge_damage(DAMAGE["flip-init"], booted(CORRUPT, ended=Ended.TIMEOUT), PATCH, "eio").as_expected


def test_boot_with_a_foreign_signature_must_not_mount_the_root():
    refused = "device-mapper: table: 254:0: verity: Root hash verification failed (-ENOKEY)"
    assert judge_damage(DAMAGE["foreign-signature"], booted(refused), PATCH, "eio").as_expected
    mounted = booted(refused, "erofs: (device dm-0): mounted with root inode @ nid 36.")
    assert not judge_damage(DAMAGE["foreign-signature"], mounted, PATCH, "eio").as_expected
    assert not judge_damage(DAMAGE["foreign-signature"], booted("nothing"), PATCH, "eio").as_expected


def test_boot_with_a_flipped_application_must_run_the_others():
    start = f"@ipe-probe {START}"
    control = '@ipe-probe {"id":"run-program","errno":0,"error":"","status":0,"detail":"hello"}'
    failed = '@ipe-probe {"id":"run-dynamic","errno":5,"error":"EIO","status":-1,"detail":""}'
    end = '@ipe-probe {"end":2}'
    flip = DAMAGE["flip-application"]
    good = judge_damage(flip, booted(start, control, CORRUPT, failed, end, ended=Ended.POWER_OFF), PATCH, "eio")
    assert good.as_expected, good.problems
    ran = failed.replace('"errno":5,"error":"EIO","status":-1', '"errno":0,"error":"","status":0')
    assert not judge_damage(flip, booted(start, control, CORRUPT, ran, end), PATCH, "eio").as_expected
    assert not judge_damage(flip, booted(start, CORRUPT, failed, end), PATCH, "eio").as_expected
    assert not judge_damage(flip, booted(CORRUPT), PATCH, "eio").as_expected
    assert judge_damage(flip, booted(start, control, CORRUPT), PATCH, "panic").as_expected
    assert not judge_damage(flip, booted(start, control, CORRUPT, failed, end), PATCH, "panic").as_expected


def test_firmware_boot_must_start_the_images_init():
    assert judge_damage(FIRMWARE, booted("ipe-init: starting /sbin/init", ended=Ended.STOPPED), (), "eio").as_expected
    assert not judge_damage(FIRMWARE, booted("BdsDxe: failed to load", ended=Ended.TIMEOUT), (), "eio").as_expected
    fatal = booted("ipe-init: starting /sbin/init", "ipe-init: FATAL: init: /sbin/init: Permission denied")
    assert not judge_damage(FIRMWARE, fatal, (), "eio").as_expected


def evidence(*probes: ProbeResult, problems: tuple[str, ...] = ()) -> Evidence:
    subject = Subject("i.raw", 1, "aa", "bb", "cc", "6.12.1", "a", "b", "p 1.0.0", True, "QEMU 7.2", "tcg")
    return Evidence(subject, probes, (skipped_damage(FIRMWARE, "not asked for"),), problems, 1.5)


def test_evidence_is_as_expected_only_if_everything_is():
    good, bad = said("run-copy", DENIED, errno=13, error="EACCES"), said("run-copy", DENIED, status=0)
    skipped = skipped_probe(row("policy-same"), "no key")
    assert evidence(good, skipped).as_expected
    assert not evidence(good, bad).as_expected
    assert not evidence(good, problems=("the kernel panicked",)).as_expected


def test_evidence_value_is_json_and_says_each_verdict():
    good, bad = said("run-copy", DENIED, errno=13, error="EACCES"), said("run-memfd", status=0)
    value = evidence_value(evidence(good, bad, skipped_probe(row("policy-same"), "no key")))
    assert json.loads(json.dumps(value))["schema"] == "ipe-build.evidence/1"
    assert value["as_expected"] is False
    assert [item["verdict"] for item in value["probes"]] == ["as expected", "not as expected", "skipped"]
    assert list(value["probes"][0]["measured"]["records"]) == [DENIED.removeprefix("audit: ")]


def test_evidence_apart_from_measured_does_not_change_between_runs():
    def stable(value: object) -> object:
        if isinstance(value, dict):
            return {name: stable(item) for name, item in value.items() if name != "measured"}
        return [stable(item) for item in value] if isinstance(value, list | tuple) else value

    one = evidence(said("run-copy", DENIED, errno=13, error="EACCES"))
    other = evidence(
        said("run-copy", "noise", DENIED.replace("pid=9", "pid=77").replace("audit(1.000:9)", "audit(5.123:20)"), errno=13, error="EACCES")
    )
    assert evidence_value(one) != evidence_value(replace(other, seconds=9.0))
    assert stable(evidence_value(one)) == stable(evidence_value(replace(other, seconds=9.0)))


def test_table_names_what_is_wrong_and_what_was_skipped():
    text = evidence_table(evidence(said("run-copy", status=0), skipped_probe(row("policy-same"), "no key")))
    assert "✗  run-copy" in text
    assert "✗ run-copy: expected denied: EACCES, observed allowed" in text
    assert "- skipped, no key: policy-same" in text
    assert text.splitlines()[-1].startswith("0 as expected, 1 not as expected, 2 skipped")


def test_expectations_are_described_in_the_words_of_observations():
    assert describe_expected(row("run-program").expected) == "allowed"
    assert describe_expected(row("dlopen-library").expected) == "denied: exit status 3"
    assert describe_expected(row("script-by-interpreter").expected) == "not covered: allowed"
