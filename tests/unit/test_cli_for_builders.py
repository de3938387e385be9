"""Verbs that image builders (Yocto, Buildroot) call between other tools' steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.formats.verity_sig import parse_verity_signature
from ipe_build.kernel.slot import is_reserved

ROOT_HASH = "ab" * 32


def test_reserved_boot_policy_is_written_for_a_kernel_that_others_build(tmp_path: Path, capsys) -> None:
    out = tmp_path / "ipe-boot.pol"
    assert main(["kernel", "reserve", "--bytes", "1024", "-o", str(out), "--quiet"]) == 0
    assert out.stat().st_size == 1024 and is_reserved(out.read_bytes())
    assert main(["kernel", "reserve", "--bytes", "10", "-o", str(tmp_path / "small"), "--quiet"]) == 2
    assert not (tmp_path / "small").exists()


def test_signed_root_hash_comes_with_the_signature_partition(tmp_path: Path, test_keys) -> None:
    pair = test_keys.pair("verity")
    words = ["sign", "root-hash", ROOT_HASH, "--key", pair.uri, "--cert", str(pair.certificate), "--quiet"]
    assert main([*words, "-o", str(tmp_path / "r.p7s"), "--verity-sig", str(tmp_path / "r.verity-sig")]) == 0
    partition = parse_verity_signature((tmp_path / "r.verity-sig").read_bytes())
    assert partition.root_hash.hex() == ROOT_HASH and partition.signature == (tmp_path / "r.p7s").read_bytes()


@pytest.mark.parametrize("words", [["--kernel", "k"], ["--boot-loader", "l"]])
def test_disk_takes_a_uki_or_a_kernel_not_both(tmp_path: Path, capsys, words) -> None:
    arguments = ["image", "disk", "root", "--root-hash", ROOT_HASH, "--uki", "u.efi", "-o", str(tmp_path / "d"), "--quiet"]
    assert main([*arguments, *words]) == 2
    assert "a UKI is kernel, initramfs and command line in one" in capsys.readouterr().err


def test_disk_comes_with_its_flash_files_as_image_flash_makes_them(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(bytes(8192))
    assert main(["verity", "format", str(tmp_path / "root"), "--root-hash-file", str(tmp_path / "hash"), "--salt", "-", "--quiet"]) == 0
    words = ["image", "disk", str(tmp_path / "root"), "--root-hash", str(tmp_path / "hash"), "-o", str(tmp_path / "disk"), "--quiet"]
    assert main([*words, "--bmap", "--partitions"]) == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "disk.bmap", *(tmp_path / "disk.partitions").iterdir())}
    assert {"disk.bmap", "gpt.img", "flash.sh"} < made.keys() and not (tmp_path / "disk.zst").exists()
    (tmp_path / "again").mkdir()
    assert main(["image", "flash", str(tmp_path / "disk"), "--bmap", "--partitions", "-o", str(tmp_path / "again"), "--quiet"]) == 0
    for name, content in made.items():
        assert next((tmp_path / "again").rglob(name)).read_bytes() == content
    (tmp_path / "disk").unlink()
    assert main([*words, "--wks", "--zstd"]) == 2 and not (tmp_path / "disk").exists()


def test_audit_writes_its_findings_as_it_prints_them(tmp_path: Path, capsys) -> None:
    (tmp_path / "root").write_bytes(bytes(8192))
    assert main(["verity", "format", str(tmp_path / "root"), "--root-hash-file", str(tmp_path / "hash"), "--salt", "-", "--quiet"]) == 0
    words = ["image", "disk", str(tmp_path / "root"), "--root-hash", str(tmp_path / "hash"), "-o", str(tmp_path / "disk"), "--quiet"]
    assert main(words) == 0
    capsys.readouterr()
    findings = tmp_path / "findings.json"
    assert main(["audit", str(tmp_path / "disk"), "--findings", str(findings), "--json", "--quiet"]) == 1, "nothing on it would boot"
    assert findings.read_text() == capsys.readouterr().out
    assert main(["audit", str(tmp_path / "disk"), "--findings", str(findings), "--quiet"]) == 2, "it exists already"
