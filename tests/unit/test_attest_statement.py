"""Statements: what is signed, who may sign, and that no file of the folder can be changed, lost or slipped in."""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path

import pytest
from cryptography import x509
from cyclonedx import schema
from cyclonedx.validation import json as validation

from ipe_build.attest.dsse import parse_envelope, pre_authentication_encoding, seal, verify_envelope
from ipe_build.attest.manifest import measure_folder
from ipe_build.attest.provenance import FILE_NAME, PAYLOAD_TYPE, Material, Provenance, Tool, check_subjects, subjects_of
from ipe_build.attest.sbom import make_sbom, read_packages
from ipe_build.cli import main
from ipe_build.errors import FormatError, InputError, VerificationError
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate
from ipe_build.steps.provenance import packages_of, tree_sha256

MATERIALS = (Material("configuration", "file:a.toml", bytes(32)), Material("root filesystem", "file:rootfs", bytes(range(32))))


def certificate(keys: KeySet, role: str) -> x509.Certificate:
    return load_certificate(keys.root.certificate if role == "root" else keys.pair(role).certificate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small output folder."""
    place = tmp_path / "out"
    (place / "sub").mkdir(parents=True)
    (place / "vmlinuz").write_bytes(b"kernel")
    (place / "sub" / "file").write_bytes(b"content")
    return place


def statement(folder: Path) -> bytes:
    subjects = subjects_of(folder)
    return Provenance("demo", "0.1", 1_700_000_000, "6.12", subjects, MATERIALS, (Tool("gcc", "12"),)).to_bytes()


@pytest.fixture
def signed(folder: Path, test_keys: KeySet, host: Host) -> Path:
    (folder / FILE_NAME).write_bytes(seal(statement(folder), PAYLOAD_TYPE, test_keys.pair("verity").signer(host)))
    return folder


def test_pre_authentication_encoding_is_that_of_the_specification():
    assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_envelope_is_accepted_from_its_signer_and_from_its_issuer(signed: Path, test_keys: KeySet):
    envelope = parse_envelope((signed / FILE_NAME).read_bytes())
    own = certificate(test_keys, "verity")
    for trusted in (own, certificate(test_keys, "root")):
        assert verify_envelope(envelope, [trusted]) == own


def test_envelope_of_others_is_refused(signed: Path, test_keys: KeySet, foreign_keys: KeySet):
    envelope = parse_envelope((signed / FILE_NAME).read_bytes())
    for stranger in (certificate(foreign_keys, "verity"), certificate(foreign_keys, "root"), certificate(test_keys, "policy")):
        with pytest.raises(VerificationError, match="whom none of them vouches for"):
            verify_envelope(envelope, [stranger])


@pytest.mark.parametrize("curve", ["p256", "p384"])
def test_envelope_of_an_elliptic_curve_key_is_accepted(curve: str, curve_keys: dict[str, KeySet], host: Host):
    keys = curve_keys[curve]
    made = seal(b"payload", PAYLOAD_TYPE, keys.pair("policy").signer(host))
    assert verify_envelope(parse_envelope(made), [certificate(keys, "root")]) == certificate(keys, "policy")


def test_changed_payload_or_type_is_refused(signed: Path, test_keys: KeySet):
    value = json.loads((signed / FILE_NAME).read_bytes())
    trusted = [certificate(test_keys, "verity")]
    payload = base64.b64decode(value["payload"]).replace(b"demo", b"Demo")
    for change in ({"payload": base64.b64encode(payload).decode()}, {"payloadType": "application/json"}):
        with pytest.raises(VerificationError, match="no signature"):
            verify_envelope(parse_envelope(json.dumps(value | change).encode()), trusted)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"payload": "!", "payloadType": "x", "signatures": [{"sig": "AA=="}]}'])
def test_what_is_no_envelope_is_refused(raw: bytes):
    with pytest.raises(FormatError, match="wanted a DSSE envelope"):
        parse_envelope(raw)


def test_statement_is_in_toto_v1_with_slsa_provenance(folder: Path):
    value = json.loads(statement(folder))
    assert (value["_type"], value["predicateType"]) == ("https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1")
    assert [one["name"] for one in value["subject"]] == ["sub/file", "vmlinuz"]
    definition = value["predicate"]["buildDefinition"]
    assert [one["name"] for one in definition["resolvedDependencies"]] == ["configuration", "root filesystem"]
    assert value["predicate"]["runDetails"]["builder"]["version"] == {"ipe-build": "0.1", "gcc": "12"}
    assert statement(folder) == statement(folder)


def test_folder_that_is_as_signed_is_accepted(signed: Path, folder: Path):
    (signed / "evidence.json").write_text("{}")
    assert check_subjects(statement(folder), signed, "x") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: (place / "vmlinuz").write_bytes(b"kernel!"), "vmlinuz has SHA-256"),
        (lambda place: (place / "sub/file").unlink(), "sub/file is missing"),
        (lambda place: (place / "sub/new").write_bytes(b""), "sub/new is not named"),
    ],
    ids=["changed", "missing", "added"],
)
def test_folder_that_differs_is_refused_and_the_file_is_named(signed: Path, test_keys: KeySet, change, message: str, capsys):
    words = ["attest", "statement", str(signed), "--verify", "--trusted", str(test_keys.pair("verity").certificate)]
    assert main(words) == 0
    change(signed)
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_subject_outside_of_the_folder_is_refused(folder: Path):
    (folder.parent / "outside").write_bytes(b"x")
    value = json.loads(statement(folder))
    value["subject"].append({"name": "../outside", "digest": {"sha256": "00" * 32}})
    with pytest.raises(VerificationError, match=r"\.\./outside is missing"):
        check_subjects(json.dumps(value).encode(), folder, "x")


def test_other_statements_are_refused(folder: Path):
    for change in ({"_type": "x"}, {"predicateType": "x"}, {"subject": []}, {"subject": [{"name": "x"}]}):
        with pytest.raises(FormatError):
            check_subjects(json.dumps(json.loads(statement(folder)) | change).encode(), folder, "x")


def test_verb_signs_again_with_another_key_and_wants_all_its_words(signed: Path, foreign_keys: KeySet, test_keys: KeySet, capsys):
    pair = foreign_keys.pair("policy")
    again = ["attest", "statement", str(signed)]
    assert main([*again, "--key", pair.uri, "--cert", str(pair.certificate), "--quiet"]) == 0
    assert main([*again, "--verify", "--trusted", str(foreign_keys.root.certificate), "--quiet"]) == 0
    assert main([*again, "--verify", "--trusted", str(test_keys.root.certificate), "--quiet"]) == 1
    for words in ([], ["--key", pair.uri], ["--verify"], ["--verify", "--trusted", str(pair.certificate), "--key", pair.uri]):
        assert main([*again, *words]) == 2
    (signed / "vmlinuz").write_bytes(b"other")
    assert main([*again, "--key", pair.uri, "--cert", str(pair.certificate)]) == 1, "a folder that differs must not be signed again"
    capsys.readouterr()


def test_plan_key_asks_for_the_signature_and_takes_it(signed: Path, test_keys: KeySet, tmp_path: Path, host: Host, capsys):
    pair = test_keys.pair("policy")
    words = ["attest", "statement", str(signed), "--key", f"plan:{tmp_path}/plan", "--cert", str(pair.certificate)]
    before = (signed / FILE_NAME).read_bytes()
    assert main(words) == 1
    assert (signed / FILE_NAME).read_bytes() == before
    (request,) = (tmp_path / "plan").glob("*.json")
    value = json.loads(request.read_bytes())
    message = base64.b64decode(value["message"])
    assert message.startswith(b"DSSEv1 28 application/vnd.in-toto+json ")
    (tmp_path / "plan" / value["answer"]).write_bytes(pair.signer(host).sign(message, value["digest_name"]))
    assert main(words) == 0
    assert main(["attest", "statement", str(signed), "--verify", "--trusted", str(pair.certificate)]) == 0
    capsys.readouterr()


# The bill of materials

DPKG = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u14
Description: words
 Version: not this one

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_bill_of_materials_is_cyclonedx_by_its_own_schema(folder: Path):
    packages = read_packages({"var/lib/dpkg/status": DPKG, "etc/os-release": b'ID="debian"\n'})
    raw = make_sbom("demo", "0.1", 1_700_000_000, "6.12", measure_folder(folder), MATERIALS, packages)
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(raw.decode()) is None
    value = json.loads(raw)
    components = {one["bom-ref"]: one for one in value["components"]}
    digests = {one.path: one.sha256.hex() for one in measure_folder(folder)}
    assert {path: components[f"file:{path}"]["hashes"][0]["content"] for path in digests} == digests
    assert components["kernel"]["hashes"][0]["content"] == digests["vmlinuz"]
    assert components["material:configuration"]["hashes"][0]["content"] == "00" * 32
    assert "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64" in components
    assert not any("gone" in reference for reference in components)
    broken = raw.replace(b'"alg": "SHA-256"', b'"alg": "SHA-7"')
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(broken.decode()) is not None


def test_bill_of_materials_has_the_same_bytes_for_the_same_inputs(folder: Path):
    made = [make_sbom("demo", "0.1", 0, "6.12", measure_folder(folder), MATERIALS) for _ in range(2)]
    assert made[0] == made[1]
    assert b"timestamp" not in made[0]
    (folder / "vmlinuz").write_bytes(b"other")
    other = make_sbom("demo", "0.1", 0, "6.12", measure_folder(folder), MATERIALS)
    assert json.loads(other)["serialNumber"] != json.loads(made[0])["serialNumber"]


def test_packages_of_alpine_and_opkg_are_read_from_folders_and_tars(tmp_path: Path):
    root = tmp_path / "root"
    for path, content in {
        "lib/apk/db/installed": b"C:Q1\nP:musl\nV:1.2.5-r0\nA:x86_64\n\n",
        "usr/lib/opkg/status": b"Package: busybox\nVersion: 1.36\nStatus: install ok installed\nArchitecture: core2\n",
        "etc/os-release": b"ID=poky\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    wanted = ["pkg:apk/poky/musl@1.2.5-r0?arch=x86_64", "pkg:opkg/poky/busybox@1.36?arch=core2"]
    assert [one.url for one in packages_of(root)] == wanted
    with tarfile.open(tmp_path / "root.tar.gz", "w:gz") as archive:
        archive.add(root, arcname=".")
    assert [one.url for one in packages_of(tmp_path / "root.tar.gz")] == wanted
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match="cannot be read"):
        packages_of(tmp_path / "bad.tar")
    (tmp_path / "root.erofs").write_bytes(b"")
    assert packages_of(tmp_path / "root.erofs") == ()


def test_digest_of_a_folder_follows_content_names_modes_and_links(tmp_path: Path):
    def make(name: str) -> Path:
        root = tmp_path / name
        (root / "bin").mkdir(parents=True)
        (root / "bin/a").write_bytes(b"a")
        (root / "bin/b").symlink_to("a")
        return root

    one = make("one")
    assert tree_sha256(one) == tree_sha256(make("two"))
    seen = {tree_sha256(one)}
    for number, change in enumerate(
        (
            lambda root: (root / "bin/a").write_bytes(b"A"),
            lambda root: (root / "bin/a").chmod(0o755),
            lambda root: (root / "bin/a").rename(root / "bin/c"),
            lambda root: ((root / "bin/b").unlink(), (root / "bin/b").symlink_to("c")),
            lambda root: (root / "empty").mkdir(),
        )
    ):
        root = make(f"changed{number}")
        change(root)
        digest = tree_sha256(root)
        assert digest not in seen
        seen.add(digest)


def test_statement_about_named_files_of_another_build(folder: Path, test_keys: KeySet, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    (folder / "disk-1").write_bytes(b"a disk")
    (folder / "disk").symlink_to("disk-1")
    (tmp_path / "kernel").write_bytes(b"kernel")
    pair, place = test_keys.pair("verity"), tmp_path / "it.dsse.json"
    words = ["attest", "statement", str(folder), "--statement", str(place), "--quiet"]
    new = ["--file", "sub", "--file", "disk", "--material", f"kernel={tmp_path}/kernel", "--name", "an image", "--builder", "urn:ours"]
    assert main([*words, *new, "--key", pair.uri, "--cert", str(pair.certificate)]) == 0
    first = place.read_bytes()
    value = json.loads(parse_envelope(first).payload)
    assert [one["name"] for one in value["subject"]] == ["disk", "sub/file"]
    definition = value["predicate"]["buildDefinition"]
    assert definition["buildType"] == "urn:ipe-build:files:v1" and definition["externalParameters"]["name"] == "an image"
    assert definition["resolvedDependencies"][0]["uri"] == "file:kernel"
    assert value["predicate"]["runDetails"]["builder"]["id"] == "urn:ours"
    assert main([*words, *new, "--key", pair.uri, "--cert", str(pair.certificate)]) == 0 and place.read_bytes() == first
    verify = [*words, "--verify", "--trusted", str(test_keys.root.certificate)]
    assert main([*verify, "--others"]) == 0
    assert main(verify) == 1 and "vmlinuz is not named" in capsys.readouterr().err
    (folder / "disk-1").write_bytes(b"a disc")
    assert main([*verify, "--others"]) == 1 and "disk has SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--file", "nothing"], "is neither a file nor a folder"),
        (["--file", "../secret"], "leads out of the folder"),
        (["--file", "vmlinuz", "--material", "kernel"], "wanted WHAT=PATH"),
        (["--file", "vmlinuz", "--material", "kernel=/nowhere"], "there is no such file or folder"),
        (["--material", "kernel=/nowhere"], "--material for --file"),
        (["--file", "vmlinuz", "--config", "a.toml"], "another build"),
        (["--file", "vmlinuz", "--others"], "--others is for --verify"),
    ],
)
def test_statement_about_files_that_cannot_be_is_refused(folder: Path, test_keys: KeySet, words: list[str], message: str, capsys):
    (folder.parent / "secret").write_bytes(b"x")
    pair = test_keys.pair("verity")
    assert main(["attest", "statement", str(folder), *words, "--key", pair.uri, "--cert", str(pair.certificate)]) == 2
    assert message in capsys.readouterr().err and not (folder / FILE_NAME).exists()
