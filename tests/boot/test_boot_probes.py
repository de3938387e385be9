"""The probes and destructive boots against the real kernel: what must hold holds, and what must fail makes the evidence fail."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ipe_build.boot.evidence import Evidence, ProbeResult, evidence_table, evidence_value
from ipe_build.boot.expectation import Layer, Outcome
from ipe_build.boot.probe_disk import policy_files
from ipe_build.boot.probes import PROBES
from ipe_build.boot.prove import BootRequest, boot_image
from ipe_build.cli import main
from ipe_build.formats.audit_record import PolicyActivation, PolicyIdentity, PolicyLoad, find_record
from ipe_build.host import Host
from ipe_build.image.filesystem import FilesystemType
from ipe_build.signing.certificates import KeySet
from tests.fixtures.boot import PERMISSIVE_POLICY, ImageMaker

pytestmark = pytest.mark.boot
DENIED_BY_IPE = {row.id for row in PROBES if row.expected.outcome is Outcome.DENIED and row.expected.layer is Layer.IPE}


def probes_only(request: BootRequest) -> BootRequest:
    return replace(request, destructive=False)


def by_id(evidence: Evidence) -> dict[str, ProbeResult]:
    return {result.id: result for result in evidence.probes}


def stable(value: object) -> object:
    """The evidence without what docs/boot.md says may differ from run to run."""
    if isinstance(value, dict):
        return {name: stable(item) for name, item in value.items() if name != "measured"}
    return [stable(item) for item in value] if isinstance(value, list | tuple) else value


def test_image_allows_what_is_authorised_denies_the_rest_and_stays_as_it_is(probe_image: ImageMaker, host: Host):
    image = probe_image()
    before = hashlib.sha256(image.disk.read_bytes()).hexdigest()
    evidence = boot_image(replace(image.request, firmware=True), host)
    assert evidence.as_expected, evidence_table(evidence)
    assert {result.id for result in evidence.results if result.skipped} == {"initramfs-frozen", "policy-any-key"}
    assert evidence.subject.image_sha256 == before == hashlib.sha256(image.disk.read_bytes()).hexdigest()
    assert (evidence.subject.kernel_release, evidence.subject.policy) == ("6.12.117", "ipe-policy 1.0.0")
    for result in evidence.probes:
        assert len(result.measured.records) == len(result.wanted_records), result.id
    assert image.request.policy is not None
    newer = hashlib.sha256(policy_files(image.request.policy)["policy-newer"]).digest()
    load, activation = (find_record(text) for text in by_id(evidence)["policy-newer"].measured.records)
    assert load is not None and isinstance(load.event, PolicyLoad)
    assert load.event.policy == PolicyIdentity("ipe-policy", "1.0.1", newer)
    assert activation is not None and isinstance(activation.event, PolicyActivation)
    assert activation.event.new == load.event.policy


def test_permissive_policy_makes_the_evidence_fail(probe_image: ImageMaker, host: Host):
    evidence = boot_image(probes_only(probe_image(policy=PERMISSIVE_POLICY).request), host)
    assert not evidence.as_expected
    results = by_id(evidence)
    for probe_id in DENIED_BY_IPE:
        assert results[probe_id].observed == "allowed", probe_id
        assert results[probe_id].problems, probe_id
    assert results["module-unsigned"].observed == "denied: EKEYREJECTED"
    assert results["run-program"].as_expected


def test_without_cap_mac_admin_policies_and_enforcement_are_fixed(probe_image: ImageMaker, host: Host):
    request = probes_only(probe_image(drop=("CAP_MAC_ADMIN", "CAP_SYS_PTRACE")).request)
    evidence = boot_image(request, host)
    assert evidence.as_expected, evidence_table(evidence)
    for result in evidence.probes:
        if (result.id.startswith("policy-") or result.id == "enforce-off") and not result.skipped:
            assert (result.observed, result.decided_by) == ("denied: EPERM", "dropped capability"), result.id
    skipped = {result.id for result in evidence.probes if result.skipped}
    assert skipped == {"policy-other-activate", "initramfs-frozen", "policy-any-key"}
    kept = by_id(boot_image(replace(request, dropped_capabilities=frozenset()), host))
    assert kept["policy-newer"].problems and kept["enforce-off"].problems


@pytest.mark.parametrize("filesystem", [FilesystemType.SQUASHFS, FilesystemType.EXT4])
def test_damaged_copies_of_other_filesystems_stop_where_they_must(probe_image: ImageMaker, host: Host, filesystem: FilesystemType):
    evidence = boot_image(probe_image(filesystem=filesystem).request, host)
    assert evidence.as_expected, evidence_table(evidence)
    assert all(result.as_expected for result in evidence.boots)


@pytest.mark.parametrize("action", ["panic", "restart"])
def test_device_that_must_stop_on_corruption_does_so(probe_image: ImageMaker, host: Host, action: str):
    request = replace(probe_image(verity_option=f"{action}_on_corruption").request, policy=None, foreign=None)
    boots = {result.id: result for result in boot_image(replace(request, on_corruption=action), host).boots}
    application = boots["flip-application"]
    assert application.as_expected, application.problems
    assert application.observed == "the machine stopped when it was read"
    assert any("Kernel panic" in line for line in application.measured.proof) == (action == "panic")
    assert boots["flip-init"].as_expected and boots["flip-hash-tree"].as_expected
    assert boots["foreign-signature"].skipped == "no foreign key was given"


def test_interrupted_run_ends_at_once_and_leaves_no_machine(probe_image: ImageMaker, tmp_path: Path):
    out = tmp_path / "evidence.json"
    words = ["boot", str(probe_image().disk), "--evidence", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "ipe_build", *words], stderr=subprocess.PIPE, start_new_session=True)
    machines: list[str] = []
    for _ in range(600):
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [child for task in tasks for child in task.read_text().split()]
        machines = [child for child in children if "qemu-system" in Path(f"/proc/{child}/cmdline").read_text()]
        if machines:
            break
        time.sleep(0.05)
    assert machines
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert b"Traceback" not in errors
    assert not [machine for machine in machines if Path(f"/proc/{machine}").exists()]
    assert not out.exists()


def test_two_runs_give_the_same_evidence_apart_from_what_is_measured(probe_image: ImageMaker, host: Host):
    request = probes_only(probe_image().request)
    one, other = (evidence_value(boot_image(request, host)) for _ in range(2))
    assert stable(one) == stable(other)


def test_verb_writes_evidence_and_its_exit_status_is_the_verdict(
    probe_image: ImageMaker, test_keys: KeySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image, pair = probe_image(), test_keys.pair("policy")
    policy = tmp_path / "device.pol"
    policy.write_bytes(image.policy)
    words = ["boot", str(image.disk), "--policy", str(policy), "--key", pair.uri, "--cert", str(pair.certificate)]
    words += ["--application", "/bin/busybox true", "--no-destructive", "--memory", "256"]
    out = tmp_path / "evidence.json"
    assert main([*words, "--json", "--evidence", str(out)]) == 0
    value = json.loads(out.read_text())
    assert value == json.loads(capsys.readouterr().out)
    assert value["as_expected"] is True
    verdicts = {item["id"]: item["verdict"] for item in value["probes"]}
    sealed_only = {"initramfs-frozen", "policy-any-key"}
    assert {one for one, verdict in verdicts.items() if verdict == "skipped"} == sealed_only
    assert {verdict for one, verdict in verdicts.items() if one not in sealed_only} == {"as expected"}
    assert main([*words, "--evidence", str(out)]) == 2, "an existing output is left as it is"
    assert main([*words, "--quiet", "--application", "/bin/none"]) == 1
    assert "✗  run-application" in capsys.readouterr().out
