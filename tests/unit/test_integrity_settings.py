"""What the initramfs is told about IMA and EVM, by the verb and by ipe-init's own parser."""

from __future__ import annotations

import gzip
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.cli import main
from ipe_build.errors import InputError
from ipe_build.formats.cpio import read_archive
from ipe_build.image.integrity import EVM_CERTIFICATE_PATH, IMA_CERTIFICATE_PATH, IntegrityRequest, TrustedSource
from tests.fixtures.ima import ima_certificate

BASE = ["image", "initramfs", "--root-hash", "00" * 32, "--filesystem", "erofs"]
UUID_TEXT = "01234567-89ab-cdef-0123-456789abcdef"


def test_verb_puts_certificates_and_settings_into_the_initramfs(test_keys, need, tmp_path: Path, capsys) -> None:
    need("gcc")
    certificate = str(test_keys.pair("ima").certificate)
    words = ["--ima-certificate", certificate, "--evm-certificate", certificate, "--ima-policy", "/etc/ima/ima-policy"]
    words += ["--evm-key", UUID_TEXT, "--evm-provision", "--trusted-source", "tee", "-o", str(tmp_path / "initrd")]
    assert main([*BASE, *words]) == 0
    entries = {entry.path: entry for entry in read_archive(gzip.decompress((tmp_path / "initrd").read_bytes())).entries}
    assert entries[IMA_CERTIFICATE_PATH].data == entries[EVM_CERTIFICATE_PATH].data == ima_certificate(test_keys)
    lines = entries["etc/ipe-init.conf"].data.decode().splitlines()
    wanted = ("keyring = .ima", "keyring = .evm", "ima_policy = /etc/ima/ima-policy", f"evm_key = {UUID_TEXT}", "evm_provision = yes")
    assert {*wanted, "trusted_source = tee"} <= {*lines}
    capsys.readouterr()


def test_without_the_options_nothing_is_there(need, tmp_path: Path, capsys) -> None:
    need("gcc")
    assert main([*BASE, "-o", str(tmp_path / "initrd")]) == 0
    entries = {entry.path: entry for entry in read_archive(gzip.decompress((tmp_path / "initrd").read_bytes())).entries}
    text = entries["etc/ipe-init.conf"].data.decode()
    assert not any(word in text for word in ("keyring", "ima_policy", "evm", "trusted"))
    assert not any(path.startswith("etc/keys") for path in entries)
    capsys.readouterr()


@pytest.mark.parametrize(
    "words",
    [["--evm-provision"], ["--evm-key", "1234"], ["--ima-policy", "etc/ima"], ["--ima-certificate", "/dev/null"]],
    ids=lambda words: words[0],
)
def test_settings_that_ipe_init_would_refuse_are_errors_here(words: list[str], tmp_path: Path, capsys) -> None:
    assert main([*BASE, *words, "-o", str(tmp_path / "initrd")]) == 2
    assert not (tmp_path / "initrd").exists()
    capsys.readouterr()


def test_pcrs_are_those_of_a_tpm() -> None:
    key = UUID(UUID_TEXT)
    assert ("evm_pcr", "7") in IntegrityRequest(evm_key=key, evm_pcrs=(7, 11)).settings()
    for wrong in (
        IntegrityRequest(evm_key=key, evm_pcrs=(24,)),
        IntegrityRequest(evm_key=key, evm_pcrs=(7,), trusted_source=TrustedSource.TEE),
    ):
        with pytest.raises(InputError, match="wanted PCRs 0 to 23 of a TPM"):
            wrong.settings()


def test_relative_policy_path_is_refused() -> None:
    with pytest.raises(InputError, match="wanted an absolute path"):
        IntegrityRequest(ima_policy="initramfs:etc/ima").settings()
