"""What a build leaves for a verifier: reference values, provenance and a bill of materials that hold for its own files."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ipe_build.attest.dsse import parse_envelope, verify_envelope
from ipe_build.attest.reference import read_reference_values
from ipe_build.cli import main
from ipe_build.config import load_config
from ipe_build.config.schema import KeySection, Profile
from ipe_build.errors import SigningKeyError
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate
from ipe_build.steps.attest import measure_image
from ipe_build.steps.provenance import attestation_test_key, make_statement
from tests.fixtures.demo import ipe_build

pytestmark = pytest.mark.slow


@pytest.fixture
def trusted(host: Host, tmp_path: Path) -> Path:
    """The certificate of the TEST key that signs a development build's statement."""
    from cryptography.hazmat.primitives.serialization import Encoding

    place = tmp_path / "attestation.pem"
    place.write_bytes(attestation_test_key(host).certificate.public_bytes(Encoding.PEM))
    return place


def test_reference_values_of_a_build_are_those_of_its_disk(demo_build: Path):
    values = read_reference_values(demo_build / "reference-values.json")
    assert values == measure_image(demo_build / "demo.raw")
    assert values.image_sha256 == hashlib.sha256((demo_build / "demo.raw").read_bytes()).digest()
    records = json.loads((demo_build / "reference-values.pcrlock").read_bytes())["records"]
    assert len(records) == len(values.events)


def test_statement_of_a_build_holds_and_says_what_it_was_made_from(demo_build: Path, demo_config: Path, trusted: Path, tmp_path: Path):
    done = ipe_build("attest", "statement", demo_build, "--verify", "--trusted", trusted, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert "TEST" in value["signer"]
    statement = value["statement"]
    names = {one["name"] for one in statement["subject"]}
    assert names == {path.name for path in demo_build.iterdir()} - {"provenance.dsse.json"}
    made_from = {one["name"]: one["digest"]["sha256"] for one in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert made_from["configuration"] == hashlib.sha256(demo_config.read_bytes()).hexdigest()
    assert made_from["kernel source"] == hashlib.sha256(Path("/usr/src/linux-source-6.12.tar.xz").read_bytes()).hexdigest()
    assert {"root filesystem", "boot loader"} <= set(made_from)
    assert "gcc" in statement["predicate"]["runDetails"]["builder"]["version"]
    copy = tmp_path / "copy"
    shutil.copytree(demo_build, copy)
    (copy / "sbom.cdx.json").write_bytes((copy / "sbom.cdx.json").read_bytes() + b"\n")
    refused = ipe_build("attest", "statement", copy, "--verify", "--trusted", trusted)
    assert refused.returncode == 1
    assert "sbom.cdx.json has SHA-256" in refused.stderr


def test_bill_of_materials_has_the_digests_that_the_statement_and_the_manifest_have(demo_build: Path):
    statement = json.loads(parse_envelope((demo_build / "provenance.dsse.json").read_bytes()).payload)
    stated = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    components = json.loads((demo_build / "sbom.cdx.json").read_bytes())["components"]
    files = {one["name"]: one["hashes"][0]["content"] for one in components if one["bom-ref"].startswith("file:")}
    assert files.items() <= stated.items()
    assert {"demo.raw", "vmlinuz", "initrd", "ipe-policy.p7b"} <= set(files)
    bound = {one["path"]: one["sha256"] for one in json.loads((demo_build / "manifest.json").read_bytes())["artefacts"]}
    assert bound.items() <= stated.items()


def test_statement_made_anew_from_the_configuration_is_the_build_s_own(
    demo_build: Path, demo_config: Path, trusted: Path, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / "copy"
    shutil.copytree(demo_build, copy)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    key = host.cache.root / "test-keys"
    pair = next(path for path in key.glob("*/keys/attestation.key.pem") if path.with_name("attestation.cert.pem").is_file())
    words = ["attest", "statement", str(copy), "-c", str(demo_config), "--key", f"file:{pair}"]
    assert main([*words, "--cert", str(pair.with_name("attestation.cert.pem")), "--quiet"]) == 0
    assert (copy / "provenance.dsse.json").read_bytes() == (demo_build / "provenance.dsse.json").read_bytes()


def test_named_key_signs_a_production_build_has_no_test_key_and_none_signs_nothing(
    demo_build: Path, demo_config: Path, test_keys: KeySet, host: Host, tmp_path: Path
):
    copy = tmp_path / "copy"
    shutil.copytree(demo_build, copy)
    place = copy / "provenance.dsse.json"
    config = load_config(demo_config)
    pair = test_keys.pair("policy")
    named = replace(config, keys=replace(config.keys, attestation=KeySection(pair.uri, pair.certificate)))
    make_statement(named, demo_config, (), "6.12", copy, host)
    assert verify_envelope(parse_envelope(place.read_bytes()), [load_certificate(pair.certificate)]) == load_certificate(pair.certificate)
    production = replace(named, build=replace(config.build, profile=Profile.PRODUCTION))
    with pytest.raises(SigningKeyError, match="TEST"):
        make_statement(production, demo_config, (), "6.12", copy, host)
    place.unlink()
    make_statement(replace(production, keys=config.keys), demo_config, (), "6.12", copy, host)
    assert not place.exists()
