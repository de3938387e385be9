"""formats.audit_record: records as security/ipe/audit.c writes them. Samples: Documentation/admin-guide/LSM/ipe.rst, and booted kernels."""

from __future__ import annotations

import pytest

from ipe_build.errors import FormatError
from ipe_build.formats.audit_record import Access, EnforceChange, PolicyActivation, PolicyLoad, RecordType, find_record

EMPTY = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"
DENIED = (
    'audit: type=1420 audit(1653364370.067:61): ipe_op=EXECUTE ipe_hook=MMAP enforcing=1 pid=2241 comm="ld-linux.so" '
    'path="/deny/lib/libc.so.6" dev="sda2" ino=14549020 rule="DEFAULT action=DENY"'
)
BUFFER = (
    "audit: type=1420 audit(1653364735.161:64): ipe_op=KMODULE ipe_hook=KERNEL_LOAD enforcing=0 pid=2472 "
    'comm="insmod" path=? dev=? ino=? rule="DEFAULT op=KMODULE action=DENY"'
)


def test_denied_mmap_is_read_whole():
    record = find_record(f"[   12.345678] {DENIED}\r\n")
    assert record is not None
    assert (record.type, record.time_ms, record.serial) == (RecordType.ACCESS, 1653364370067, 61)
    assert record.event == Access(
        "EXECUTE", "MMAP", True, 2241, "ld-linux.so", "/deny/lib/libc.so.6", "sda2", 14549020, "DEFAULT action=DENY"
    )
    assert record.event.action == "DENY"
    assert record.text == DENIED.removeprefix("audit: ")


def test_buffer_has_no_file_and_permissive_mode_is_seen():
    record = find_record(BUFFER)
    assert record is not None
    assert isinstance(record.event, Access)
    assert (record.event.path, record.event.dev, record.event.ino, record.event.enforcing) == (None, None, None, False)


def test_hex_strings_are_decoded():
    path = "/tmp/with space é".encode().hex().upper()
    line = DENIED.replace('"/deny/lib/libc.so.6"', path).replace('"ld-linux.so"', b'a"b'.hex().upper())
    record = find_record(line)
    assert record is not None
    assert isinstance(record.event, Access)
    assert (record.event.path, record.event.comm) == ("/tmp/with space é", 'a"b')


def test_digest_in_a_rule_keeps_its_own_quotes():
    rule = 'op=EXECUTE dmverity_roothash="sha256":' + "AB" * 32 + " action=ALLOW"
    record = find_record(DENIED.replace("DEFAULT action=DENY", rule))
    assert record is not None
    assert isinstance(record.event, Access)
    assert (record.event.rule, record.event.action) == (rule, "ALLOW")


def test_policy_load_activation_and_enforce_are_read():
    load = f'policy_name="p" policy_version=1.0.0 policy_digest=sha256:{EMPTY} auid=4294967295 ses=4294967295 lsm=ipe res=1'
    record = find_record(f"audit: type=1422 audit(1653425529.927:53): {load}")
    assert record is not None
    assert isinstance(record.event, PolicyLoad)
    assert record.event.policy is not None
    assert (record.event.policy.name, record.event.policy.version, record.event.success) == ("p", "1.0.0", True)
    assert record.event.policy.digest == bytes.fromhex(EMPTY)
    old = f'old_active_pol_name="Allow_All" old_active_pol_version=0.0.0 old_policy_digest=sha256:{EMPTY}'
    new = f'new_active_pol_name="boot_verified" new_active_pol_version=0.0.1 new_policy_digest=sha256:{EMPTY}'
    record = find_record(f"audit: type=1421 audit(1653425583.136:54): {old} {new} auid=0 ses=1 lsm=ipe res=1")
    assert record is not None
    assert isinstance(record.event, PolicyActivation)
    assert record.event.old is not None
    assert (record.event.old.name, record.event.new.name, record.event.new.version) == ("Allow_All", "boot_verified", "0.0.1")
    none = "old_active_pol_name=? old_active_pol_version=? old_policy_digest=?"
    record = find_record(f"audit: type=1421 audit(1653425583.136:54): {none} {new} auid=0 ses=1 lsm=ipe res=1")
    assert record is not None
    assert isinstance(record.event, PolicyActivation)
    assert record.event.old is None
    enforce = "enforcing=0 old_enforcing=1 auid=0 ses=1 enabled=1 old-enabled=1 lsm=ipe res=1"
    record = find_record(f"audit: type=1404 audit(1653425689.008:55): {enforce}")
    assert record is not None
    assert record.event == EnforceChange(enforcing=False, old_enforcing=True)


def test_refused_policy_load_of_newer_kernels_carries_errno():
    body = "policy_name=? policy_version=? policy_digest=? auid=0 ses=1 lsm=ipe res=0 errno=-74"
    record = find_record(f"audit: type=1422 audit(1.000:5): {body}")
    assert record is not None
    assert record.event == PolicyLoad(None, success=False, errno=74)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "audit: type=1300 audit(1.000:5): arch=c000003e syscall=59",
        "audit: type=1404 audit(1.000:5): enforcing=1 old_enforcing=0 auid=0 ses=1 enabled=1 old-enabled=1 lsm=selinux res=1",
        "audit: type=1404 audit(1.000:5): ",
        "audit: type=1107 audit(1.000:5): pid=1 uid=0 auid=0 ses=1 msg='ipe-probe-mark=3'",
    ],
)
def test_records_of_others_are_none(line: str):
    assert find_record(line) is None


@pytest.mark.parametrize("cut", [len(DENIED) - 1, len(DENIED) - 20, DENIED.index("path=")])
def test_record_that_is_cut_off_is_an_error(cut: int):
    with pytest.raises(FormatError, match="1420"):
        find_record(DENIED[:cut])


def test_odd_hex_is_an_error():
    with pytest.raises(FormatError, match="hex"):
        find_record(DENIED.replace('"/deny/lib/libc.so.6"', "ABC"))
