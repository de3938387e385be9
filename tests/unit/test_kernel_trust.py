"""What is linked into a kernel: the same certificates give the same bundle, whatever form they came in."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ipe_build.errors import InputError
from ipe_build.kernel.trust import KernelTrust, certificate_bundle, certificates_der, check_trust
from ipe_build.signing.certificates import KeySet

POLICY = b"policy_name=p policy_version=0.0.1\nDEFAULT action=DENY\n"


def test_pem_with_remarks_and_der_give_the_same_bundle(test_keys: KeySet) -> None:
    pem = test_keys.bundle.read_bytes()
    certificates = x509.load_pem_x509_certificates(pem)
    der = tuple(row.public_bytes(Encoding.DER) for row in certificates)
    assert certificates_der((b"remarks\n" + pem.replace(b"\n", b"\r\n"),)) == der
    assert certificate_bundle(der) == certificate_bundle((pem,)) == pem


def test_a_certificate_that_is_given_twice_is_built_in_once(test_keys: KeySet) -> None:
    pem = test_keys.bundle.read_bytes()
    assert certificate_bundle((pem, pem)) == certificate_bundle((pem,))


def test_no_certificates_make_an_empty_bundle() -> None:
    assert certificate_bundle(()) == b""


def test_the_digest_changes_with_every_part_of_the_trust(test_keys: KeySet, foreign_keys: KeySet) -> None:
    ours, theirs = test_keys.bundle.read_bytes(), foreign_keys.bundle.read_bytes()
    trusts = [
        KernelTrust(POLICY),
        KernelTrust(POLICY + b"#"),
        KernelTrust(POLICY, (ours,)),
        KernelTrust(POLICY, (theirs,)),
        KernelTrust(POLICY, (ours, theirs)),
        KernelTrust(POLICY, (theirs, ours)),
        KernelTrust(POLICY, (), (ours,)),
    ]
    assert len({trust.digest() for trust in trusts}) == len(trusts)


def test_a_policy_that_the_kernel_takes_passes() -> None:
    check_trust(KernelTrust(POLICY))
    check_trust(KernelTrust(b""))


@pytest.mark.parametrize(
    "text", [b"policy_version=0.0.1 policy_name=p\n", b"\n", b"policy_name=p policy_version=0.0.70000\nDEFAULT action=DENY\n"]
)
def test_a_policy_that_the_kernel_refuses_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="the kernel would refuse it"):
        check_trust(KernelTrust(text))


@pytest.mark.parametrize(
    "data", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x30\x03\x02\x01\x00", b"-----BEGIN"]
)
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"trusted certificate 1: wanted an X\.509 certificate"):
        certificate_bundle((data,))
