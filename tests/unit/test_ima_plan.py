"""IMA signatures made elsewhere: by plan and attach for files, and by a `plan:` key for whole images; EVM's follow in a second round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.host import Host
from ipe_build.image.contents import list_image
from ipe_build.signing.certificates import KeySet

FILES = {"bin/app": b"\x7fELF" + bytes(100_000), "etc/empty": b"", "etc/conf": b"a = b\n"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root filesystem of three files; the tests run in the folder above it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name, data in FILES.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(data)
    return tmp_path / "root"


def sign_digest(digest: bytes, keys: KeySet, host: Host) -> bytes:
    """A raw signature by OpenSSL, as somebody would make it who has the key and no ipe-build."""
    argv = ["openssl", "pkeyutl", "-sign", "-inkey", keys.pair("ima").key, "-pkeyopt", "digest:sha256"]
    return host.run(argv, stdin=digest).stdout


def test_attached_ima_signatures_are_those_of_signing_here(root: Path, test_keys: KeySet, host: Host, need, capsys) -> None:
    need("openssl")
    pair = test_keys.pair("ima")
    assert main(["sign", "plan", "--ima", "root", "--cert", f"ima={pair.certificate}", "-o", "plan.json"]) == 0
    rows = json.loads(Path("plan.json").read_text())["requests"]
    assert {row["source"] for row in rows} == {f"root/{name}" for name in FILES} and {row["profile"] for row in rows} == {"ima-file"}
    assert all(row["payload"] is None for row in rows)
    answers = Path("answers")
    answers.mkdir()
    for row in rows[:-1]:
        (answers / f"{row['id']}.sig").write_bytes(sign_digest(bytes.fromhex(row["digest"]), test_keys, host))
    attach = ["sign", "attach", "plan.json", "--signatures", "answers", "--cert", str(pair.certificate), "--json"]
    capsys.readouterr()
    assert main(attach) == 1
    said = json.loads(capsys.readouterr().out)
    assert (len(said["placed"]), [row["id"] for row in said["missing"]]) == (2, [rows[-1]["id"]])
    (answers / f"{rows[-1]['id']}.sig").write_bytes(sign_digest(bytes.fromhex(rows[-1]["digest"]), test_keys, host))
    assert main(attach) == 0
    for name in FILES:
        assert main(["sign", "ima", f"root/{name}", "--key", pair.uri, "--cert", str(pair.certificate), "-o", "here", "--force"]) == 0
        assert Path(f"root/{name}.sig").read_bytes() == Path("here").read_bytes()
    capsys.readouterr()


def test_changed_file_and_foreign_signature_are_not_placed(root: Path, test_keys, foreign_keys, host: Host, need, capsys) -> None:
    need("openssl")
    pair = test_keys.pair("ima")
    words = ["--ima", "root/etc/conf", "--ima", "root/bin/app", "--cert", str(pair.certificate)]
    assert main(["sign", "plan", *words, "-o", "plan.json"]) == 0
    rows = {row["source"]: row for row in json.loads(Path("plan.json").read_text())["requests"]}
    Path("answers").mkdir()
    for source, keys in (("root/etc/conf", test_keys), ("root/bin/app", foreign_keys)):
        answer = sign_digest(bytes.fromhex(rows[source]["digest"]), keys, host)
        Path("answers", f"{rows[source]['id']}.sig").write_bytes(answer)
    (root / "etc/conf").write_bytes(b"a = c\n")
    capsys.readouterr()
    assert main(["sign", "attach", "plan.json", "--signatures", "answers", "--cert", str(pair.certificate), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["placed"] == [] and len(said["wrong"]) == 2
    assert not list(root.rglob("*.sig"))


def test_image_is_signed_in_rounds_by_somebody_else(root: Path, test_keys: KeySet, host: Host, need, capsys) -> None:
    """First every security.ima is asked for, then every security.evm, which is over it; then the image is the one that is signed here."""
    for tool in ("openssl", "mkfs.erofs", "fakeroot"):
        need(tool)
    pair = test_keys.pair("ima")
    command = ["ima", "sign", "root", "--cert", str(pair.certificate), "--evm"]
    asked = []
    for _ in range(3):
        status = main([*command, "--key", "plan:to-sign", "-o", "out.img"])
        requests = [path for path in Path("to-sign").glob("*.digest") if not path.with_suffix(".sig").exists()]
        asked.append((status, len(requests)))
        for path in requests:
            path.with_suffix(".sig").write_bytes(sign_digest(path.read_bytes(), test_keys, host))
        assert Path("out.img").exists() == (status == 0)
    assert asked == [(1, 3), (1, 3), (0, 0)]
    assert main([*command, "--key", pair.uri, "-o", "here.img"]) == 0
    assert Path("out.img").read_bytes() == Path("here.img").read_bytes()
    assert sum(1 for row in list_image(Path("out.img"), host) if "security.evm" in dict(row.xattrs)) == 3
    capsys.readouterr()
