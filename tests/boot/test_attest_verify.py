"""`attest verify` on what a booted machine's TPM really signed, and on every way to lie with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipe_build.attest.predict import REFERENCE_PCRS
from ipe_build.cli import main
from ipe_build.formats.tpm_event_log import build_event_log, parse_event_log
from ipe_build.formats.tpm_quote import parse_public, parse_quote
from tests.fixtures.attest import COMMAND_LINE, NONCE, SCHEMES, Quoted

pytestmark = [pytest.mark.boot, pytest.mark.slow]


@pytest.fixture
def sent(quoted: Quoted, measured_image: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with all that a verifier has: reference values, and what the device sent."""
    for name, content in quoted.files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "log").write_bytes(quoted.boot.log)
    assert main(["attest", "measure", str(measured_image("entry")), "-o", str(tmp_path / "reference.json"), "--quiet"]) == 0
    return tmp_path


def verify(folder: Path, capsys, *, scheme: str = "rsassa", **changed: object) -> tuple[int, dict]:
    """Runs the verb on the folder's files; returns status and JSON."""
    words: dict[str, object] = {
        "--log": folder / "log",
        "--quote": folder / f"{scheme}.msg",
        "--signature": folder / f"{scheme}.sig",
        "--ak": folder / f"{scheme}.pub",
        "--nonce": NONCE.hex(),
    }
    words |= {f"--{name}": value for name, value in changed.items()}
    capsys.readouterr()
    flat = [str(word) for pair in words.items() if pair[1] is not None for word in pair]
    status = main(["attest", "verify", str(folder / "reference.json"), "--json", *flat])
    return status, json.loads(capsys.readouterr().out)


def failed(value: dict) -> list[str]:
    return [check["id"] for check in value["checks"] if not check["ok"]]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("key", ["pub", "pem"])
def test_real_quote_of_the_expected_boot_is_accepted(scheme: str, key: str, sent: Path, capsys):
    status, value = verify(sent, capsys, scheme=scheme, ak=sent / f"{scheme}.{key}")
    assert (status, value["ok"], value["authenticated"], value["first_difference"]) == (0, True, True, None)
    assert ("key-attributes" in {check["id"] for check in value["checks"]}) == (key == "pub")


def test_real_quote_without_a_log_is_accepted_as_it_is_over_the_reference_pcrs(sent: Path, capsys):
    assert verify(sent, capsys, log=None)[0] == 0


def test_quote_says_what_was_asked(sent: Path):
    quote = parse_quote((sent / "ecdsa.msg").read_bytes())
    assert quote.nonce == NONCE
    assert quote.selections == (("sha256", REFERENCE_PCRS), ("sha384", REFERENCE_PCRS))
    assert parse_public((sent / "ecdsa.pub").read_bytes()).is_attestation_key


def test_other_nonce_is_refused(sent: Path, capsys):
    status, value = verify(sent, capsys, nonce="00" * 20)
    assert (status, failed(value)) == (1, ["nonce"])


def test_other_key_is_refused(sent: Path, capsys):
    status, value = verify(sent, capsys, ak=sent / "rsapss.pub")
    assert (status, failed(value)) == (1, ["signature"])


def test_quote_with_a_flipped_bit_is_refused(sent: Path, capsys):
    raw = bytearray((sent / "rsassa.msg").read_bytes())
    raw[-1] ^= 1
    (sent / "rsassa.msg").write_bytes(raw)
    assert failed(verify(sent, capsys)[1]) == ["signature", "pcr-digest"]


def test_key_that_is_no_attestation_key_is_refused(sent: Path, capsys):
    raw = bytearray((sent / "rsassa.pub").read_bytes())
    raw[7] ^= 1  # the bit `restricted`
    (sent / "loose.pub").write_bytes(raw)
    assert failed(verify(sent, capsys, ak=sent / "loose.pub")[1]) == ["key-attributes"]


def test_boot_of_another_command_line_is_refused_and_the_event_is_named(sent: Path, measured_image, capsys):
    other = measured_image("entry", f"{COMMAND_LINE} x=1")
    assert main(["attest", "measure", str(other), "-o", str(sent / "reference.json"), "--force", "--quiet"]) == 0
    status, value = verify(sent, capsys)
    assert (status, failed(value)) == (1, ["events"])
    found = value["first_difference"]
    assert (found["pcr"], found["what"].split(" (")[1].split(":")[0]) == (12, "EV_IPL")
    assert "x=1" in found["expected"]
    assert "x=1" not in found["what"]


def test_log_that_was_changed_to_look_right_does_not_lead_to_the_quoted_pcrs(sent: Path, measured_image, capsys):
    other = measured_image("entry", f"{COMMAND_LINE} x=1")
    assert main(["attest", "measure", str(other), "-o", str(sent / "reference.json"), "--force", "--quiet"]) == 0
    wanted = {(one["pcr"], one["what"]): one["digests"] for one in json.loads((sent / "reference.json").read_bytes())["events"]}
    log = parse_event_log((sent / "log").read_bytes())
    lies = {9: iter([d for (pcr, _), d in wanted.items() if pcr == 9]), 12: iter([d for (pcr, _), d in wanted.items() if pcr == 12])}

    def lie(event):
        if event.pcr not in lies:
            return event
        return replace(event, digests=tuple((bank, bytes.fromhex(digest)) for bank, digest in next(lies[event.pcr]).items()))

    (sent / "log").write_bytes(build_event_log(replace(log, events=tuple(lie(event) for event in log.events))))
    status, value = verify(sent, capsys)
    assert (status, failed(value), value["first_difference"]) == (1, ["pcr-digest"], None)


def test_event_that_is_missing_or_added_is_named(sent: Path, capsys):
    log = parse_event_log((sent / "log").read_bytes())
    last = [event for event in log.events if event.pcr == 9][-1]
    (sent / "log").write_bytes(build_event_log(replace(log, events=tuple(event for event in log.events if event is not last))))
    value = verify(sent, capsys)[1]
    assert failed(value) == ["pcr-digest", "events"]
    assert (value["first_difference"]["event"], value["first_difference"]["pcr"]) == (None, 9)
    added = replace(last, pcr=11)
    (sent / "log").write_bytes(build_event_log(replace(log, events=(*log.events, added))))
    value = verify(sent, capsys)[1]
    assert (value["first_difference"]["event"], value["first_difference"]["expected"]) == (len(log.events), "no further event")


def test_log_alone_is_never_called_authenticated(sent: Path, capsys):
    capsys.readouterr()
    assert main(["attest", "verify", str(sent / "reference.json"), "--log", str(sent / "log"), "--without-quote", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["authenticated"] is False


def test_changed_reference_values_are_not_used(sent: Path, capsys):
    value = json.loads((sent / "reference.json").read_bytes())
    value["pcrs"]["sha256"]["4"] = "00" * 32
    (sent / "reference.json").write_text(json.dumps(value))
    assert verify(sent, capsys)[0] == 2
