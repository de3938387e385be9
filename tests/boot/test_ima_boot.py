"""IMA appraisal and portable EVM in a booted kernel, under IPE: what is signed runs, all else is refused, with the kernel's own reason.

Everything here lies on a signed verity root, so IPE allows all of it: each refusal is IMA's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from ipe_build.boot.qemu import Ended
from ipe_build.image.ima import ImaFiles, ImaRequest, sign_rootfs
from ipe_build.image.integrity import IntegrityRequest
from ipe_build.image.rootfs import Entry, Rootfs
from ipe_build.kernel.module_signing import sign_module
from ipe_build.kernel.trust import KernelTrust
from ipe_build.policy.ima_policy import render_ima_policy
from tests.fixtures.ima import (
    BOOT_POLICY,
    NO_CERTIFICATE_POLICY,
    NO_IMA_POLICY_POLICY,
    REACHED,
    Change,
    ImaBoot,
    ImaBooter,
    ima_certificate,
)
from tests.fixtures.policy import tiny_program

pytestmark = [pytest.mark.boot, pytest.mark.slow]
POLICY = "/etc/ima/ima-policy"


@pytest.fixture(scope="module")
def tiny(host, need, tmp_path_factory) -> bytes:
    """A static program that ends with status 0."""
    return tiny_program(host, need("gcc"), tmp_path_factory.mktemp("tiny"))


def signed(host, keys, *, evm: bool = False, files: ImaFiles = ImaFiles.ALL) -> Change:
    """Signs all files."""
    signer = keys.pair("ima").signer(host)
    return lambda rootfs: sign_rootfs(rootfs, ImaRequest(signer, files, signer if evm else None), host)


def changed(rootfs: Rootfs, path: str, change: Callable[[Entry], Entry]) -> Rootfs:
    """The root filesystem with one entry changed."""
    assert any(entry.path == path for entry in rootfs.entries)
    return Rootfs(tuple(change(entry) if entry.path == path else entry for entry in rootfs.entries))


def without(name: str) -> Callable[[Entry], Entry]:
    return lambda entry: replace(entry, xattrs=tuple(row for row in entry.xattrs if row[0] != name))


def with_values_of(other: Entry) -> Callable[[Entry], Entry]:
    return lambda entry: replace(entry, xattrs=other.xattrs)


def policy_file(name: str = "code") -> Entry:
    return Entry.file(POLICY.lstrip("/"), render_ima_policy(name))


def program(name: str, content: bytes, mode: int = 0o755) -> Entry:
    return Entry.file(f"bin/{name}", content, mode=mode)


def plan_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [("exec", name, f"/bin/{name}") for name in names]


def assert_stopped(result: ImaBoot, reason: str) -> None:
    """The boot ended in ipe-init, for this reason, and nothing of the root ran."""
    fatal = [line for line in result.console if "ipe-init: FATAL:" in line]
    assert len(fatal) == 1 and reason in fatal[0], result.text
    assert not result.said(REACHED) and result.ended is Ended.PANIC


def test_signed_files_run_and_unsigned_tampered_and_foreign_ones_are_refused(
    ima_boot: ImaBooter, ima_kernel_factory, test_keys, foreign_keys, host, tiny: bytes
) -> None:
    kernel = ima_kernel_factory(KernelTrust(BOOT_POLICY, (test_keys.bundle.read_bytes(),)))
    modules = {path.name: path.read_bytes() for path in kernel.modules if path.name in ("dummy.ko", "michael_mic.ko")}
    module_signer = test_keys.pair("module").signer(host)
    names = ("signed", "unsigned", "tampered", "foreign", "hashed")
    files = [program(name, tiny) for name in names]
    files += [Entry.file(f"lib/{name}", sign_module(data, module_signer, None, None, name)) for name, data in modules.items()]
    files += [program("script", b"#!/bin/signed\n"), program("script-unsigned", b"#!/bin/signed\n# again\n"), policy_file()]

    def finish(rootfs: Rootfs) -> Rootfs:
        done = signed(host, test_keys)(rootfs)
        other = signed(host, foreign_keys)(rootfs)
        for path in ("bin/unsigned", "bin/script-unsigned", "lib/michael_mic.ko"):
            done = changed(done, path, without("security.ima"))
        done = changed(done, "bin/foreign", with_values_of(other.by_path()["bin/foreign"]))
        done = changed(done, "bin/tampered", lambda entry: replace(entry, content=tiny + b"\0"))
        digest = __import__("hashlib").sha256(tiny).digest()
        return changed(done, "bin/hashed", lambda entry: replace(entry, xattrs=(("security.ima", b"\x04\x04" + digest),)))

    plan = plan_of((*names, "script", "script-unsigned"))
    plan += [("mmap", "map-signed", "/bin/signed"), ("mmap", "map-unsigned", "/bin/unsigned"), ("read", "read-unsigned", "/bin/unsigned")]
    plan += [("finit", "mod-signed", "/lib/dummy.ko"), ("finit", "mod-unsigned", "/lib/michael_mic.ko")]
    plan += [("show", "policy", "/sys/kernel/security/ima/policy")]
    result = ima_boot(files, plan, IntegrityRequest(ima_certificate(test_keys), ima_policy=POLICY), finish=finish)
    assert result.said("ipe-init: keyring .ima has a key") and result.said(f"IMA policy {POLICY} is in force"), result.text
    denied = dict.fromkeys(("unsigned", "tampered", "foreign", "hashed", "script-unsigned", "map-unsigned", "mod-unsigned"), errno.EACCES)
    allowed = dict.fromkeys(("signed", "script", "map-signed", "mod-signed", "read-unsigned", "policy"), 0)
    assert result.did() == denied | allowed, result.text
    causes = result.causes()
    assert {name[:15]: causes.get(name[:15]) for name in denied} == {
        "unsigned": "IMA-signature-required",
        "tampered": "invalid-signature",
        "foreign": "invalid-signature",
        "hashed": "IMA-signature-required",
        "script-unsigned": "IMA-signature-required",
        "map-unsigned": "IMA-signature-required",
        "mod-unsigned": "IMA-signature-required",
    }
    assert "appraise func=POLICY_CHECK appraise_type=imasig" in result.values("SHOW")["policy"]


def test_init_without_a_signature_does_not_start(ima_boot: ImaBooter, test_keys, host) -> None:
    finish = lambda rootfs: changed(signed(host, test_keys)(rootfs), "sbin/init", without("security.ima"))  # noqa: E731
    result = ima_boot([policy_file()], [], IntegrityRequest(ima_certificate(test_keys), ima_policy=POLICY), finish=finish)
    assert_stopped(result, "init: /sbin/init: Permission denied")
    assert result.causes() == {"init": "IMA-signature-required"}


def test_certificate_that_ipe_does_not_allow_stops_the_boot(ima_boot: ImaBooter, test_keys, host) -> None:
    """The kernel itself goes on without the certificate; ipe-init does not. The twin with the rule is every other boot here."""
    request = IntegrityRequest(ima_certificate(test_keys), ima_policy=POLICY)
    result = ima_boot([policy_file()], [], request, finish=signed(host, test_keys), boot_policy=NO_CERTIFICATE_POLICY)
    assert_stopped(result, "keyring: .ima has no key")
    assert result.said("ipe_op=X509_CERT") and result.said("Unable to open file: /etc/keys/x509_ima.der (-13)"), result.text


def test_certificate_that_nobody_vouches_for_stops_the_boot(ima_boot: ImaBooter, test_keys, foreign_keys, host) -> None:
    request = IntegrityRequest(ima_certificate(foreign_keys), ima_policy=POLICY)
    result = ima_boot([policy_file()], [], request, finish=signed(host, foreign_keys))
    assert_stopped(result, "keyring: .ima has no key")
    assert result.said("Problem loading X.509 certificate -126"), result.text  # ENOKEY


def test_ima_policy_that_ipe_does_not_allow_stops_the_boot(ima_boot: ImaBooter, test_keys, host) -> None:
    request = IntegrityRequest(ima_certificate(test_keys), ima_policy=POLICY)
    result = ima_boot([policy_file()], [], request, finish=signed(host, test_keys), device_policy=NO_IMA_POLICY_POLICY)
    assert_stopped(result, f"ima: {POLICY}: refused, by IPE (op=POLICY) or because IMA wants it signed")
    assert result.said("ipe_op=POLICY"), result.text


@pytest.mark.parametrize("is_signed", [True, False])
def test_with_the_kernels_secure_boot_rules_the_ima_policy_itself_must_be_signed(
    is_signed: bool, ima_boot: ImaBooter, test_keys, host
) -> None:
    def finish(rootfs: Rootfs) -> Rootfs:
        done = signed(host, test_keys)(rootfs)
        return done if is_signed else changed(done, POLICY.lstrip("/"), without("security.ima"))

    request = IntegrityRequest(ima_certificate(test_keys), ima_policy=POLICY)
    result = ima_boot([policy_file()], [], request, finish=finish, command_line="ima_policy=secure_boot")
    if is_signed:
        assert result.said("ROOT: done"), result.text
    else:
        assert_stopped(result, f"ima: {POLICY}: refused")


def test_broken_ima_policy_stops_the_boot(ima_boot: ImaBooter, test_keys, host) -> None:
    broken = Entry.file(POLICY.lstrip("/"), b"appraise func=BPRM_CHECK appraise_type=imasig")
    request = IntegrityRequest(ima_certificate(test_keys), ima_policy=POLICY)
    result = ima_boot([broken], [], request, finish=signed(host, test_keys))
    assert_stopped(result, "the kernel does not understand it")


def test_evm_refuses_a_file_whose_mode_or_owner_differs_from_what_was_signed(ima_boot: ImaBooter, test_keys, host, tiny: bytes) -> None:
    names = ("signed", "setuid", "owner", "without-evm", "capability")

    def finish(rootfs: Rootfs) -> Rootfs:
        done = signed(host, test_keys, evm=True)(rootfs)
        done = changed(done, "bin/setuid", lambda entry: replace(entry, mode=entry.mode | 0o4000))
        done = changed(done, "bin/owner", lambda entry: replace(entry, uid=1000))
        done = changed(done, "bin/without-evm", without("security.evm"))
        caps = ("security.capability", bytes.fromhex("0100000200100000000000000000000000000000"))
        return changed(done, "bin/capability", lambda entry: replace(entry, xattrs=(*entry.xattrs, caps)))

    certificate = ima_certificate(test_keys)
    request = IntegrityRequest(certificate, certificate, ima_policy=POLICY)
    plan = [*plan_of(names), ("show", "evm", "/sys/kernel/security/evm")]
    result = ima_boot([*(program(name, tiny) for name in names), policy_file()], plan, request, finish=finish)
    assert result.did() == {"signed": 0, "evm": 0} | dict.fromkeys(names[1:], errno.EACCES), result.text
    assert {name: cause for name, cause in result.causes().items() if name in names} == {
        "setuid": "invalid-fail-immutable",
        "owner": "invalid-fail-immutable",
        "without-evm": "missing-HMAC",
        "capability": "invalid-fail-immutable",
    }
    assert result.values("SHOW")["evm"] == "2"


def test_without_an_evm_certificate_the_same_changes_are_not_noticed(ima_boot: ImaBooter, test_keys, host, tiny: bytes) -> None:
    """What EVM adds to IMA: the control of the test above."""
    finish = lambda rootfs: changed(  # noqa: E731
        signed(host, test_keys, evm=True)(rootfs), "bin/setuid", lambda entry: replace(entry, mode=entry.mode | 0o4000)
    )
    request = IntegrityRequest(ima_certificate(test_keys), ima_policy=POLICY)
    result = ima_boot([program("setuid", tiny), policy_file()], plan_of(["setuid"]), request, finish=finish)
    assert result.did() == {"setuid": 0}, result.text
