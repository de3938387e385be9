"""The Authenticode digest against sbsign, osslsigncode and Debian's own signature over its kernel."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipe_build.formats.pe import authenticode_digest, parse_pe, uncovered_ranges
from ipe_build.host import Host
from tests.fixtures.efi import make_pe


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory, host: Host) -> tuple[Path, Path]:
    """A TEST key and certificate, PEM."""
    folder = tmp_path_factory.mktemp("key")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    host.run([*words, "-subj", "/CN=TEST Authenticode", "-days", "3650"])
    return folder / "key.pem", folder / "cert.pem"


def digest_by_osslsigncode(program: Path, image: Path) -> list[str]:
    """What osslsigncode says the image's own digest is (calculated) and the signature's (current)."""
    told = subprocess.run([program, "verify", "-in", image], capture_output=True, text=True).stdout
    return [found.lower() for found in re.findall(r"message digest\s*: ([0-9A-F]{64})", told)]


@pytest.mark.parametrize("name", ["linuxx64.efi.stub", "systemd-bootx64.efi", "bzImage", "small PE32+", "small PE32"])
def test_digest_is_that_of_sbsign_and_osslsigncode(
    name: str,
    key: tuple[Path, Path],
    efi_programs: dict[str, bytes],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    host: Host,
    need: Callable[[str], Path],
) -> None:
    sbsign, osslsigncode = need("sbsign"), need("osslsigncode")
    sections = ((b".text", b"\x90" * 700), (b".data", b"d" * 512))
    made: dict[str, Callable[[], bytes]] = {
        "bzImage": lambda: request.getfixturevalue("test_kernel").image.read_bytes(),
        "small PE32+": lambda: make_pe(sections),
        "small PE32": lambda: make_pe(sections, plus=False),
    }
    data = efi_programs[name] if name in efi_programs else made[name]()
    plain, signed = tmp_path / "plain.efi", tmp_path / "signed.efi"
    plain.write_bytes(data)
    host.run([sbsign, "--key", key[0], "--cert", key[1], "--output", signed, plain])
    ours = authenticode_digest(signed.read_bytes())
    assert digest_by_osslsigncode(osslsigncode, signed) == [ours.hex(), ours.hex()]
    # sbsign's signature carries the digest it computed itself (SpcIndirectDataContent).
    assert ours in parse_pe(signed.read_bytes()).certificates[0].content
    assert authenticode_digest(data.ljust(-(-len(data) // 8) * 8, b"\0")) == ours, "signing does not change the digest"
    assert uncovered_ranges(parse_pe(signed.read_bytes())) == ()


def test_flipped_byte_is_seen_by_both(
    key: tuple[Path, Path], tmp_path: Path, efi_programs: dict[str, bytes], host: Host, need: Callable[[str], Path]
) -> None:
    plain, signed = tmp_path / "plain.efi", tmp_path / "signed.efi"
    plain.write_bytes(efi_programs["linuxx64.efi.stub"])
    host.run([need("sbsign"), "--key", key[0], "--cert", key[1], "--output", signed, plain])
    data = bytearray(signed.read_bytes())
    good = authenticode_digest(bytes(data))
    data[5000] ^= 1
    signed.write_bytes(bytes(data))
    bad = authenticode_digest(bytes(data))
    assert bad != good
    assert sorted(digest_by_osslsigncode(need("osslsigncode"), signed)) == sorted([good.hex(), bad.hex()])
