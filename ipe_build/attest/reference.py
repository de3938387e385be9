"""Reference values: the events a boot must log and the PCRs they lead to, as one JSON that a verifier keeps.

docs/attestation.md documents the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipe_build.attest.predict import BANKS, REFERENCE_PCRS, ExpectedEvent, pcr_values
from ipe_build.errors import FormatError
from ipe_build.formats.tpm_event_log import EventType, type_name

SCHEMA = "ipe-build/reference-values/1"
FILE_NAME = "reference-values.json"


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """What a boot of an image must measure. `boots` says how it is started, `notes` what was assumed; `image_sha256` may be empty."""

    image: str
    image_sha256: bytes
    boots: str
    secure_boot: bool
    events: tuple[ExpectedEvent, ...]
    notes: tuple[str, ...] = ()
    banks: tuple[str, ...] = BANKS

    @property
    def pcrs(self) -> dict[str, dict[int, bytes]]:
        """Returns the PCRs by bank and number; zeros where nothing may be measured."""
        return pcr_values(self.events, self.banks)

    @property
    def zero_pcrs(self) -> tuple[int, ...]:
        """Returns the reference PCRs that nothing may extend."""
        used = {event.pcr for event in self.events}
        return tuple(pcr for pcr in REFERENCE_PCRS if pcr not in used)

    def to_json(self) -> dict[str, object]:
        """Returns JSON's values, keys in a fixed order; digests are lower-case hex."""
        return {
            "schema": SCHEMA,
            "image": {"name": self.image, "sha256": self.image_sha256.hex()},
            "boots": self.boots,
            "secure_boot": self.secure_boot,
            "pcrs": {bank: {str(pcr): value.hex() for pcr, value in values.items()} for bank, values in self.pcrs.items()},
            "must_be_zero": list(self.zero_pcrs),
            "events": [
                {
                    "pcr": event.pcr,
                    "type": type_name(event.type),
                    "what": event.what,
                    "digests": {bank: digest.hex() for bank, digest in event.digests},
                }
                for event in self.events
            ],
            "notes": list(self.notes),
        }

    def to_bytes(self) -> bytes:
        """Returns the file's bytes: indented UTF-8 JSON and a newline."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False).encode() + b"\n"

    def to_pcrlock(self) -> bytes:
        """Returns a `.pcrlock` file of systemd-pcrlock(8): a record for each event. It stands for the whole boot, not for one component."""
        records = [
            {"pcr": event.pcr, "digests": [{"hashAlg": bank, "digest": digest.hex()} for bank, digest in event.digests]}
            for event in self.events
        ]
        return json.dumps({"records": records}, indent=2).encode() + b"\n"


def read_reference_values(path: Path) -> ReferenceValues:
    """Returns the reference values in a file that `to_bytes` made. The PCRs in it must be those that its events lead to.

    Raises: FormatError.
    """
    try:
        value = json.loads(path.read_bytes())
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']!r}")
        banks = tuple(str(bank) for bank in value["pcrs"])
        if not banks or set(banks) - set(BANKS):
            raise ValueError(f"banks {', '.join(banks)}")
        found = ReferenceValues(
            str(value["image"]["name"]),
            bytes.fromhex(value["image"]["sha256"]),
            str(value["boots"]),
            bool(value["secure_boot"]),
            tuple(_event(one, banks) for one in value["events"]),
            tuple(str(note) for note in value["notes"]),
            banks,
        )
        stated = {bank: {int(pcr): bytes.fromhex(digest) for pcr, digest in value["pcrs"][bank].items()} for bank in banks}
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"wanted reference values of ipe-build ({SCHEMA}): {error}", where=str(path)) from error
    if stated != found.pcrs:
        raise FormatError("its PCRs are not those that its events lead to: the file was changed", where=str(path))
    return found


def _event(value: dict[str, object], banks: Sequence[str]) -> ExpectedEvent:
    """Returns an event. Raises: ValueError, KeyError, TypeError."""
    pcr, digests = value["pcr"], value["digests"]
    if pcr not in REFERENCE_PCRS or not isinstance(pcr, int) or not isinstance(digests, dict):
        raise ValueError(f"event of PCR {pcr}")
    found = tuple((bank, bytes.fromhex(digests[bank])) for bank in banks)
    return ExpectedEvent(pcr, EventType[str(value["type"])], str(value["what"]), found)
