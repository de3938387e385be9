"""boot.probe_disk and boot.expectation: plans, policies under other versions, what is skipped and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.boot.damage import DAMAGES
from ipe_build.boot.expectation import Facts, Layer, Need, Outcome, resolve
from ipe_build.boot.probe_disk import (
    PolicyMaterial,
    build_disk,
    dotted,
    newer,
    older,
    policy_facts,
    policy_files,
    policy_header,
    with_header,
)
from ipe_build.boot.probes import PROBES
from ipe_build.errors import InputError, VerificationError
from ipe_build.formats.cpio import read_archive
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.verify import verify_signature

POLICY = b"# a comment policy_name=no policy_version=9.9.9\n\npolicy_name=device policy_version=1.2.3\nDEFAULT action=DENY\n"
PROFILE = PROFILES["ipe-policy"]


@pytest.fixture(scope="module")
def material(test_keys: KeySet, foreign_keys: KeySet, host: Host) -> PolicyMaterial:
    return PolicyMaterial(POLICY, test_keys.pair("policy").signer(host), foreign_keys.pair("policy").signer(host))


def test_header_is_read_past_comments_and_replaced_alone():
    assert policy_header(POLICY) == ("device", (1, 2, 3))
    changed = with_header(POLICY, "other", (0, 65535, 7))
    assert changed == POLICY.replace(b"policy_name=device policy_version=1.2.3", b"policy_name=other policy_version=0.65535.7")


@pytest.mark.parametrize("text", [b"", b"# only a comment\n", b"DEFAULT action=DENY\npolicy_name=a policy_version=1.0.0\n"])
def test_policy_without_header_is_an_error(text: bytes):
    with pytest.raises(InputError, match="policy_name"):
        policy_header(text)


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ((0, 0, 0), None, (0, 0, 1)),
        ((0, 0, 1), (0, 0, 0), (0, 0, 2)),
        ((1, 0, 0), (0, 65535, 65535), (1, 0, 1)),
        ((1, 2, 65535), (1, 2, 65534), (1, 3, 0)),
        ((65535, 65535, 65535), (65535, 65535, 65534), None),
    ],
)
def test_neighbour_versions_carry_as_the_kernel_compares(version, before, after):
    assert (older(version), newer(version)) == (before, after)


def test_policies_are_signed_by_whom_they_should_be(material: PolicyMaterial):
    files = policy_files(material)
    trusted = [material.signer.certificate]
    newer_text = with_header(POLICY, "device", (1, 2, 4))
    verify_signature(PROFILE, POLICY, files["policy-same"], trusted)
    verify_signature(PROFILE, newer_text, files["policy-newer"], trusted)
    verify_signature(PROFILE, with_header(POLICY, "device", (1, 2, 2)), files["policy-older"], trusted)
    verify_signature(PROFILE, newer_text, files["policy-foreign"], [material.foreign.certificate])
    assert files["policy-unsigned"] == newer_text
    with pytest.raises(VerificationError):
        verify_signature(PROFILE, newer_text, files["policy-foreign"], trusted)
    with pytest.raises(VerificationError):
        verify_signature(PROFILE, newer_text, files["policy-tampered"], trusted)


def test_tampered_policy_differs_in_one_bit(material: PolicyMaterial):
    files = policy_files(material)
    differing = [a ^ b for a, b in zip(files["policy-newer"], files["policy-tampered"], strict=True) if a != b]
    assert differing == [1]


def test_disk_is_an_archive_of_plan_and_files(material: PolicyMaterial):
    words = {"application": ("/bin/app", "-x"), "interpreter": ("/bin/sh",), "module": ("/m.ko",)}
    facts = Facts({**policy_facts(material).words, **words}, policy_facts(material).missing)
    probes = [probe for probe in (resolve(row, facts) for row in PROBES) if not isinstance(probe, str)]
    disk = build_disk(probes, policy_files(material))
    assert len(disk) % 512 == 0
    content = {entry.path: entry.data for entry in read_archive(disk).entries}
    lines = content["plan"].decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == [row.id for row in PROBES if Need.FOREIGN_POLICY not in row.needs]
    assert "run-application\trun\t/bin/app\t-x" in lines
    assert "policy-newer\tpolicy-update\tdevice\t@disk:policy-newer" in lines
    named = {word.split(":")[1] for line in lines for word in line.split("\t") if word.startswith("@disk:policy")}
    assert named <= set(content)


def test_plan_with_a_tab_is_refused():
    probe = resolve(PROBES[2], Facts({"application": ("/bin/a\tb",)}))
    assert not isinstance(probe, str)
    with pytest.raises(InputError, match="tab"):
        build_disk([probe], {})


def test_without_a_policy_its_probes_are_skipped_with_the_reason():
    facts = policy_facts(None)
    for row in PROBES:
        if {Need.POLICY, Need.NEWER_POLICY, Need.OLDER_POLICY} & set(row.needs):
            assert "no policy" in str(resolve(row, facts))


def test_lowest_version_has_no_older_policy_and_only_those_probes_are_skipped(material: PolicyMaterial):
    lowest = PolicyMaterial(b"policy_name=p policy_version=0.0.0\nDEFAULT action=DENY\n", material.signer, material.foreign)
    facts = policy_facts(lowest)
    assert set(facts.missing) == {Need.OLDER_POLICY, Need.FOREIGN_POLICY}
    assert facts.words["newer"] == (dotted((0, 0, 1)),)
    assert not {"policy-older", "policy-other"} & set(policy_files(lowest))


def test_for_a_kernel_without_keys_a_policy_by_a_foreign_key_is_all_that_is_tried(material: PolicyMaterial):
    keyless = PolicyMaterial(material.text, None, material.foreign)
    facts = policy_facts(keyless)
    tried = {row.id for row in PROBES if row.plan[0].startswith("policy") and not isinstance(resolve(row, facts), str)}
    assert tried == {"policy-any-key"}
    assert set(policy_files(keyless)) == {"policy-foreign-other"}


def test_what_a_kernel_without_keys_makes_of_modules_is_expected_of_it():
    words = {"voucher": ("the boot policy pins",), "module": ("/m.ko",)}
    rows = {row.id: resolve(row, Facts(words, keyless=True)) for row in PROBES if row.id.startswith("module-")}
    outcomes = {name: row.expected.outcome for name, row in rows.items() if not isinstance(row, str)}
    assert outcomes["module-unsigned"] == outcomes["module-foreign"] == Outcome.ALLOWED
    assert outcomes["module-copy"] == outcomes["module-buffer"] == Outcome.DENIED
    copied = rows["module-copy"]
    assert not isinstance(copied, str)
    assert copied.plan == ("finit-module", "@tmpfs:/m.ko")


def test_dropped_capability_turns_what_needs_it_into_eperm(material: PolicyMaterial):
    words = policy_facts(material).words
    for row in PROBES:
        if row.capability != "CAP_MAC_ADMIN" or Need.FOREIGN_POLICY in row.needs:
            continue
        kept, dropped = resolve(row, Facts(words)), resolve(row, Facts(words, dropped=frozenset({"CAP_MAC_ADMIN"})))
        assert not isinstance(kept, str) and not isinstance(dropped, str)
        assert kept.expected.errors != ("EPERM",)
        assert (dropped.expected.outcome, dropped.expected.layer) == (Outcome.DENIED, Layer.CAPABILITY)
        assert dropped.expected.errors == ("EPERM",)


def test_ids_are_unique_and_every_allow_has_a_deny():
    ids = [row.id for row in PROBES]
    assert len(set(ids)) == len(ids)
    kinds = {row.plan[0] for row in PROBES if row.expected.outcome is Outcome.ALLOWED}
    denied = {row.plan[0] for row in PROBES if row.expected.outcome is Outcome.DENIED}
    assert kinds - {"policy-new"} <= denied


def test_every_probe_and_every_damage_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "boot.md").read_text()
    for row in (*PROBES, *DAMAGES):
        assert f"`{row.id}`" in page, row.id
