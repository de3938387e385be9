"""The verbs of attest: what they want, what they write, how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.formats.corim import decode_corim
from ipe_build.formats.tpm_event_log import build_event_log
from tests.unit.test_attest_appraise import EVENTS, NONCE, REFERENCE, attest, log_of, public, sign_ecc
from tests.unit.test_attest_predict import KERNEL, uki


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """What a verifier has: reference values, a log, a quote, its signature, the key as TPM2B_PUBLIC."""
    (tmp_path / "reference.json").write_bytes(REFERENCE.to_bytes())
    (tmp_path / "log").write_bytes(build_event_log(log_of()))
    (tmp_path / "msg").write_bytes(attest(log_of()))
    (tmp_path / "sig").write_bytes(sign_ecc(attest(log_of())))
    (tmp_path / "ak").write_bytes(public(0x50072))
    return tmp_path


def words(device: Path, *more: str) -> list[str]:
    named = {"--log": "log", "--quote": "msg", "--signature": "sig", "--ak": "ak"}
    flat = [word for name, file in named.items() for word in (name, str(device / file))]
    return ["attest", "verify", str(device / "reference.json"), *flat, "--nonce", NONCE.hex(), *more]


def test_measure_writes_all_three_forms_and_replaces_nothing(tmp_path: Path, capsys):
    (tmp_path / "image.efi").write_bytes(uki())
    outputs = {name: tmp_path / f"out.{name}" for name in ("output", "pcrlock", "corim")}
    flat = [str(word) for name, path in outputs.items() for word in (f"--{name}", path)]
    assert main(["attest", "measure", str(tmp_path / "image.efi"), "--json", *flat]) == 0
    value = json.loads(capsys.readouterr().out)
    assert json.loads(outputs["output"].read_bytes()) == value
    assert value["must_be_zero"] == [12]
    pcrs = {
        bank: {str(pcr): digest.hex() for pcr, digest in found.items()}
        for bank, found in decode_corim(outputs["corim"].read_bytes()).items()
    }
    assert pcrs == value["pcrs"]
    assert len(json.loads(outputs["pcrlock"].read_bytes())["records"]) == len(value["events"])
    assert main(["attest", "measure", str(tmp_path / "image.efi"), *flat]) == 2
    assert main(["attest", "measure", str(tmp_path / "image.efi"), "--force", *flat]) == 0
    assert "(must stay zero)" in capsys.readouterr().out


def test_measure_takes_pcr_7_from_a_good_device_s_log_or_says_that_it_has_none(device: Path, capsys):
    (device / "image.efi").write_bytes(uki())
    assert main(["attest", "measure", str(device / "image.efi"), "--reference-log", str(device / "log")]) == 2
    assert "PCR 7" in capsys.readouterr().err
    (device / "kernel.efi").write_bytes(KERNEL)
    assert main(["attest", "measure", str(device / "kernel.efi")]) == 2
    capsys.readouterr()


def test_verify_accepts_refuses_and_says_which(device: Path, capsys):
    assert main(words(device)) == 0
    assert "the boot is the expected one" in capsys.readouterr().out
    (device / "sig").write_bytes(sign_ecc(b"something else"))
    assert main(words(device)) == 1
    said = capsys.readouterr().out
    assert "✗ signature" in said
    assert "REFUSED" in said


def test_verify_names_the_first_event_that_differs(device: Path, capsys):
    (device / "log").write_bytes(build_event_log(log_of(EVENTS[:-1])))
    assert main(words(device)) == 1
    assert "first difference: PCR 9: end of the log: expected EV_EVENT_TAG (initramfs)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["log", "msg", "sig", "ak", "reference.json"])
def test_bytes_that_are_something_else_are_bad_input(name: str, device: Path, capsys):
    (device / name).write_bytes(b"something else")
    assert main(words(device)) == 2
    assert name in capsys.readouterr().err
    (device / name).unlink()
    assert main(words(device)) == 2
    assert name in capsys.readouterr().err


def test_half_a_quote_is_a_mistake_and_not_a_verdict(device: Path, capsys):
    whole = words(device)
    for missing in ("--quote", "--signature", "--ak", "--nonce"):
        at = whole.index(missing)
        assert main([*whole[:at], *whole[at + 2 :]]) == 2
        assert f"also give {missing}" in capsys.readouterr().err
    assert main([*whole, "--without-quote"]) == 2
    assert main([*whole[:-1], "not hex"]) == 2
    assert main(["attest", "verify", str(device / "reference.json"), "--without-quote"]) == 2
    capsys.readouterr()


def test_key_in_pem_is_taken_and_what_it_does_not_say_is_said(device: Path, test_keys, capsys):
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from tests.unit.test_attest_appraise import ECC_KEY

    (device / "ak").write_bytes(ECC_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert main(words(device)) == 0
    assert "taken on trust" in capsys.readouterr().out
    (device / "ak").write_bytes(test_keys.root.certificate.read_bytes())
    assert main(words(device)) == 1
    (device / "ak").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    assert main(words(device)) == 2
    capsys.readouterr()
