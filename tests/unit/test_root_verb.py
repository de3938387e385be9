"""`ipe-build root`: sidecars that veritysetup and openssl agree with; nothing unsigned passes for signed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from ipe_build.cli import main
from ipe_build.formats.verity_sig import parse_verity_signature

SIDECARS = {"a.ext4.verity", "a.ext4.roothash", "a.ext4.roothash.p7s", "a.ext4.verity-sig", "a.ext4.verity.env"}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.ext4"
    path.write_bytes(bytes(range(256)) * 16 * 8)
    return path


def signed(image: Path, keys, *more: str) -> int:
    pair = keys.pair("verity")
    return main(["root", str(image), "--key", pair.uri, "--cert", str(pair.certificate), "--quiet", *more])


def test_others_tools_accept_the_sidecars(image: Path, test_keys, need) -> None:
    assert signed(image, test_keys) == 0
    assert {path.name for path in image.parent.iterdir()} == SIDECARS | {"a.ext4"}
    root_hash = (image.parent / "a.ext4.roothash").read_text().strip()
    subprocess.run([need("veritysetup"), "verify", image, f"{image}.verity", root_hash], check=True)
    payload = image.parent / "payload"
    payload.write_text(root_hash)
    certificate = test_keys.pair("verity").certificate
    words = ["smime", "-verify", "-binary", "-inform", "der", "-in", f"{image}.roothash.p7s", "-content", payload, "-certfile", certificate]
    checked = subprocess.run([need("openssl"), *words, "-noverify", "-nointern"], capture_output=True)
    assert checked.returncode == 0, checked.stderr
    parsed = parse_verity_signature((image.parent / "a.ext4.verity-sig").read_bytes())
    assert parsed.root_hash.hex() == root_hash


def test_environment_is_shell_with_dm_verity_img_names(image: Path, test_keys) -> None:
    assert signed(image, test_keys) == 0
    text = (image.parent / "a.ext4.verity.env").read_text()
    shown = subprocess.run(["sh", "-euc", f"{text}\necho $ROOT_HASH $DATA_BLOCKS $DATA_SIZE $ROOT_UUID"], capture_output=True, text=True)
    root_hash, blocks, size, uuid = shown.stdout.split()
    assert root_hash == (image.parent / "a.ext4.roothash").read_text().strip()
    assert (int(blocks), int(size)) == (8, 32768)
    assert UUID(uuid).bytes == bytes.fromhex(root_hash)[:16]


def test_same_image_gives_the_same_bytes_and_another_salt_text_others(image: Path, test_keys) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in image.parent.iterdir() if path.name in SIDECARS}

    assert signed(image, test_keys) == 0
    first = contents()
    assert signed(image, test_keys, "--force") == 0
    assert contents() == first
    assert signed(image, test_keys, "--force", "--salt-from", "other") == 0
    assert contents()["a.ext4.roothash"] != first["a.ext4.roothash"]


def test_signature_made_elsewhere_is_taken_and_a_foreign_one_refused(image: Path, test_keys, foreign_keys, capsys) -> None:
    pair = test_keys.pair("verity")
    assert main(["root", str(image), "--quiet"]) == 0
    assert not image.with_name("a.ext4.verity-sig").exists()
    elsewhere = image.with_name("elsewhere.p7s")
    words = ["sign", "root-hash", f"{image}.roothash", "--key", pair.uri, "--cert", str(pair.certificate), "-o", str(elsewhere), "--quiet"]
    assert main(words) == 0
    again = ["root", str(image), "--force", "--signature", str(elsewhere), "--quiet"]
    assert main([*again, "--cert", str(foreign_keys.pair("verity").certificate)]) == 1
    assert not image.with_name("a.ext4.verity-sig").exists()
    assert main([*again, "--cert", str(pair.certificate)]) == 0
    assert image.with_name("a.ext4.roothash.p7s").read_bytes() == elsewhere.read_bytes()


@pytest.mark.parametrize(
    "words", [["--key", "file:x"], ["--cert", "x"], ["--key", "a", "--signature", "b", "--cert", "c"], ["--salt", "abc"], ["--uuid", "1"]]
)
def test_wrong_usage_is_one_clear_error(image: Path, words: list[str], capsys) -> None:
    assert main(["root", str(image), "--json", *words]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["status"] == 2
    assert {path.name for path in image.parent.iterdir()} == {"a.ext4"}
