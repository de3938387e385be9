"""Plan, sign elsewhere, attach: the same bytes as signing here; what is wrong or missing is said and never placed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.host import Host
from ipe_build.signing.certificates import KeySet

POLICY = "policy_name=ipe-policy policy_version=0.0.1\nDEFAULT action=DENY\n"
ROOT_HASH = "ef" * 32
WHOLE = {"ipe-policy": "policy", "dm-verity-root-hash": "verity", "fs-verity-builtin": "verity", "module": "module"}


@pytest.fixture
def build(tmp_path: Path, unsigned_module: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build's outputs before signing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ipe-policy.pol").write_text(POLICY)
    (tmp_path / "root.roothash").write_text(ROOT_HASH + "\n")
    (tmp_path / "application").write_bytes(b"application" * 1000)
    (tmp_path / "modules").mkdir()
    for number in range(3):
        (tmp_path / f"modules/m{number}.ko").write_bytes(unsigned_module + bytes([number]))
    return tmp_path


def _plan(keys: KeySet, capsys) -> dict[str, dict[str, str]]:
    argv = [
        "sign",
        "plan",
        "--policy",
        "ipe-policy.pol",
        "--root-hash",
        "root.roothash",
        "--fsverity",
        "application",
        "--module",
        "modules",
    ]
    pairs = [pair for pair in keys.pairs if pair.role != "ima"]
    certificates = [word for pair in pairs for word in ("--cert", f"{pair.role}={pair.certificate}")]
    assert main([*argv, *certificates, "-o", "plan.json"]) == 0
    capsys.readouterr()
    return {row["id"]: row for row in json.loads(Path("plan.json").read_text())["requests"]}


def _sign_elsewhere(rows: dict[str, dict[str, str]], keys: KeySet, host: Host) -> None:
    """Signs each digest with OpenSSL, as somebody would who has the keys and no ipe-build."""
    Path("answers").mkdir(exist_ok=True)
    for name, row in rows.items():
        key = keys.pair(WHOLE[row["profile"]]).key
        argv = ["openssl", "pkeyutl", "-sign", "-inkey", key, "-pkeyopt", f"digest:{row['digest_name']}"]
        raw = host.run(argv, stdin=bytes.fromhex(row["digest"])).stdout
        Path("answers", f"{name}.sig").write_bytes(raw)


def _attach(keys: KeySet, capsys, *more: str, answers: str = "answers") -> tuple[int, dict[str, list[dict[str, str]]]]:
    status = main(["sign", "attach", "plan.json", "--signatures", answers, "--cert", str(keys.bundle), "--json", *more])
    return status, json.loads(capsys.readouterr().out)


def test_attached_signatures_are_those_of_signing_here(build: Path, test_keys: KeySet, host: Host, capsys, need) -> None:
    need("openssl")
    rows = _plan(test_keys, capsys)
    assert len(rows) == 6
    _sign_elsewhere(rows, test_keys, host)
    status, value = _attach(test_keys, capsys)
    assert (status, len(value["placed"]), value["missing"], value["wrong"]) == (0, 6, [], [])
    policy, verity = test_keys.pair("policy"), test_keys.pair("verity")
    here = {"ipe-policy.p7b": ("policy", "ipe-policy.pol", policy), "root.roothash.p7s": ("root-hash", "root.roothash", verity)}
    here["application.fsverity.p7s"] = ("fsverity", "application", verity)
    for output, (verb, source, pair) in here.items():
        assert main(["sign", verb, source, "--key", pair.uri, "--cert", str(pair.certificate), "-o", "here"]) == 0
        assert (build / output).read_bytes() == Path("here").read_bytes()
        Path("here").unlink()
    assert main(["modules", "verify", "modules", "--trusted", str(test_keys.bundle)]) == 0


def test_missing_signature_is_said_and_the_rest_placed_then_a_second_run_completes(
    build: Path, test_keys: KeySet, host: Host, capsys, need
) -> None:
    need("openssl")
    rows = _plan(test_keys, capsys)
    _sign_elsewhere(rows, test_keys, host)
    late = next(name for name, row in rows.items() if row["profile"] == "dm-verity-root-hash")
    signature = Path("answers", f"{late}.sig").read_bytes()
    Path("answers", f"{late}.sig").unlink()
    status, value = _attach(test_keys, capsys)
    assert (status, [row["id"] for row in value["missing"]], len(value["placed"])) == (1, [late], 5)
    assert not Path("root.roothash.p7s").exists()
    Path("late.json").write_text(json.dumps({"signatures": {late: base64.b64encode(signature).decode()}}))
    status, value = _attach(test_keys, capsys, "--signatures", "late.json")
    assert (status, len(value["placed"])) == (0, 6)
    assert Path("root.roothash.p7s").exists()


def test_wrong_signatures_are_never_placed(build: Path, test_keys: KeySet, foreign_keys: KeySet, host: Host, capsys, need) -> None:
    need("openssl")
    rows = _plan(test_keys, capsys)
    _sign_elsewhere(rows, foreign_keys, host)
    before = {path: path.read_bytes() for path in Path("modules").iterdir()}
    status, value = _attach(test_keys, capsys)
    assert (status, len(value["wrong"]), value["placed"]) == (1, 6, [])
    assert not Path("ipe-policy.p7b").exists()
    assert {path: path.read_bytes() for path in Path("modules").iterdir()} == before


def test_module_changed_since_the_plan_is_not_signed(build: Path, test_keys: KeySet, host: Host, capsys, need) -> None:
    need("openssl")
    rows = _plan(test_keys, capsys)
    _sign_elsewhere(rows, test_keys, host)
    with Path("modules/m1.ko").open("ab") as handle:
        handle.write(b"x")
    changed = Path("modules/m1.ko").read_bytes()
    status, value = _attach(test_keys, capsys)
    assert status == 1
    assert [row["reason"] for row in value["wrong"]] == ["modules/m1.ko changed since the plan was made"]
    assert Path("modules/m1.ko").read_bytes() == changed


def test_changed_plan_is_refused(build: Path, test_keys: KeySet, host: Host, capsys, need) -> None:
    need("openssl")
    rows = _plan(test_keys, capsys)
    _sign_elsewhere(rows, test_keys, host)
    value = json.loads(Path("plan.json").read_text())
    value["requests"][0]["payload"] = base64.b64encode(POLICY.replace("DENY", "ALLOW").encode()).decode()
    Path("plan.json").write_text(json.dumps(value))
    assert main(["sign", "attach", "plan.json", "--signatures", "answers", "--cert", str(test_keys.bundle)]) == 2
    assert "does not have the digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"format": "x", "version": 1, "requests": []}',
        '{"format": "ipe-build signing plan", "version": 1, "requests": [{}]}',
    ],
)
def test_garbage_is_not_a_plan(content: str, build: Path, test_keys: KeySet, capsys) -> None:
    Path("plan.json").write_text(content)
    Path("answers").mkdir()
    assert main(["sign", "attach", "plan.json", "--signatures", "answers", "--cert", str(test_keys.bundle)]) == 2
    assert "plan.json" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"signatures": {"a": "%%%"}}', '{"signatures": {"unasked": "AAAA"}}'])
def test_garbage_answers_are_refused(content: str, build: Path, test_keys: KeySet, capsys) -> None:
    _plan(test_keys, capsys)
    Path("answers.json").write_text(content)
    assert main(["sign", "attach", "plan.json", "--signatures", "answers.json", "--cert", str(test_keys.bundle)]) == 2
    assert "answers.json" in capsys.readouterr().err


def test_plan_without_a_certificate_for_a_role_is_refused(build: Path, test_keys: KeySet, capsys) -> None:
    certificate = f"policy={test_keys.pair('policy').certificate}"
    assert main(["sign", "plan", "--root-hash", ROOT_HASH, "--cert", certificate, "-o", "plan.json"]) == 2
    assert "--cert verity=PEM" in capsys.readouterr().err
    assert not Path("plan.json").exists()


def test_plan_holds_no_private_key(build: Path, test_keys: KeySet, capsys) -> None:
    _plan(test_keys, capsys)
    assert "PRIVATE" not in Path("plan.json").read_text()
