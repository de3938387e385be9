"""No private key and no PIN is in what a build leaves behind: work folders, task scripts and logs, sstate, deployed files, images."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipe_build.signing.certificates import KeySet
from tests.fixtures.bitbake import Builder
from tests.fixtures.token import PIN, Token
from tests.layer.test_runqueue import DISK, POLICY, SIGN, shared

ALL = "ipe-image ipe-uki ipe-disk ipe-audit ipe-attest"


def secrets_of(keys: KeySet) -> Iterator[bytes]:
    """What gives a private key away: lines in the middle of its PEM text, and a piece of its bytes."""
    for path in keys.folder.glob("*.key.pem"):
        lines = path.read_bytes().splitlines()
        yield from (lines[len(lines) // 2], base64.b64decode(lines[len(lines) // 2]))


def holders(folder: Path, secrets: list[bytes]) -> list[Path]:
    """The files below a folder that hold one of the secrets (sstate archives are plain tar files here)."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [path for secret in secrets if secret in content]
    return found


@pytest.mark.slow
def test_build_that_signs_everything_leaves_no_private_key_anywhere(second: Builder, test_keys: KeySet, need, need_file) -> None:
    need("rauc")
    stub = need_file(Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub"), "systemd-boot-efi")
    roles = {"SECUREBOOT": "policy", "ATTESTATION": "verity", "UPDATE": "module"}
    settings = {f"IPE_{name}_KEY": test_keys.pair(role).uri for name, role in roles.items()}
    settings |= {f"IPE_{name}_CERT": str(test_keys.pair(role).certificate) for name, role in roles.items()}
    settings |= {"IMAGE_CLASSES": ALL, "IPE_UKI_STUB": str(stub), "IPE_SLOTS": "1", "IPE_UPDATE_FORMATS": "rauc swupdate"}
    settings |= {"IPE_POLICY_VERSION__pn-ipe-policy": "0.0.9", "ASSUME_PROVIDED__append": " rauc-native"}
    run = second.with_settings(**settings).built("small-image", "-k")
    ours = {f"small-image:do_ipe_{name}" for name in ("uki", "update", "attest", "measure")}
    assert shared(run.ran) >= ours | SIGN | DISK | {"ipe-policy:do_deploy"}
    for suffix in ("raucb", "swu", "uki.efi", "provenance.dsse.json"):
        assert (second.deploy / f"small-image-small.{suffix}").is_file()
    archives = list((second.topdir / "sstate-cache").glob("*.tar"))
    logs = list((second.topdir / "tmp/work").rglob("log.do_ipe_*")) + list((second.topdir / "tmp/work").rglob("run.do_ipe_*"))
    assert len(archives) > 5 and len(logs) > 10
    secrets = [b"PRIVATE KEY-----", *secrets_of(test_keys)]
    assert len(secrets) >= 9 and holders(test_keys.folder, secrets)
    assert holders(second.topdir, secrets) == []


@pytest.mark.slow
def test_token_signs_the_same_bytes_and_its_pin_is_nowhere(
    first_builder: Builder, second: Builder, test_keys: KeySet, token: Token, tmp_path: Path
) -> None:
    (tmp_path / "pin").write_text(PIN + "\n")
    query = f"&pin-source={tmp_path}/pin"
    settings = {"IPE_POLICY_KEY": token.uri("id=%01", query), "IPE_VERITY_KEY": token.uri("id=%02", query), "IPE_MODULE_KEY": ""}
    settings |= {"SSTATE_MIRROR": "", "export SOFTHSM2_CONF": str(token.config)}
    run = second.with_settings(**settings).built("small-image")
    assert run.ran >= SIGN | POLICY | DISK and not run.reused
    for name in ("ipe-policy.p7b", "small-image-small.erofs.roothash.p7s", "small-image-small.ipedisk"):
        assert (second.deploy / name).read_bytes() == (first_builder.deploy / name).read_bytes(), name
    named = [path for path in (second.topdir / "tmp/work").rglob("run.do_ipe_sign*") if b"pin-source" in path.read_bytes()]
    assert named, "the URI is in the task's script, the PIN is not"
    digits = re.compile(rb"(?<![0-9a-f])" + PIN.encode() + rb"(?![0-9a-f])")
    texts = [path for path in second.topdir.rglob("*") if re.match(r"(log|run)\.", path.name) or path.suffix in (".json", ".conf", ".env")]
    assert len(texts) > 20
    assert [path for path in texts if path.is_file() and digits.search(path.read_bytes())] == []


@pytest.mark.slow
def test_wrong_pin_signs_nothing_and_is_not_shown(second: Builder, token: Token, tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("424242424\n")
    settings = {"IPE_VERITY_KEY": token.uri("id=%02", f"&pin-source={tmp_path}/pin"), "export SOFTHSM2_CONF": str(token.config)}
    run = second.with_settings(SSTATE_MIRROR="", **settings).bitbake("small-image", "-c", "ipe_sign")
    assert not run.ok and "PIN" in run.output and "424242424" not in run.output
    assert not list(second.deploy.glob("*.p7s"))
