"""`ipe-build policy` as a program: contract of --json, exit statuses, one clear error for bad input."""

from __future__ import annotations

import base64
import errno
import json
import os
from pathlib import Path

import pytest

from ipe_build.cli import main
from ipe_build.policy.facts import Digest

GOOD = b"policy_name=p policy_version=1.0.0\nDEFAULT action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n" + (
    b"op=KMODULE dmverity_signature=TRUE action=ALLOW\n"
)
ROOT = Digest(b"sha256", b"\xab" * 32)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "p.pol"
    path.write_bytes(GOOD)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, object]:
    status = main(["policy", *map(str, words), "--json", "--quiet"])
    return status, json.loads(capsys.readouterr().out)


def test_check_prints_the_contracts_objects_in_order(capsys, tmp_path: Path, good: Path) -> None:
    bad = tmp_path / "bad.pol"
    bad.write_bytes(GOOD.replace(b"1.0.0", b"1.0.99999"))
    status, value = run(capsys, "check", bad, good)
    assert status == 1
    assert [(row["file"], row["accepted"], row["errno"]) for row in value] == [(str(bad), False, "ERANGE"), (str(good), True, None)]
    assert value[1]["findings"] == []
    (finding,) = value[0]["findings"]
    assert {"rule", "severity", "line", "message", "hint"} <= finding.keys()
    assert (finding["severity"], finding["line"]) == ("error", 1)


def test_check_agrees_with_the_kernel_on_files(capsys, tmp_path: Path) -> None:
    vectors = json.loads((Path(__file__).parents[1] / "vectors" / "ipe-policies-linux-6.12.json").read_text())[:200]
    for number, vector in enumerate(vectors):
        (tmp_path / f"{number:04}.pol").write_bytes(base64.b64decode(vector["policy"]))
    _status, value = run(capsys, "check", tmp_path)
    answers = [row["errno"] for row in value]
    assert answers == [errno.errorcode[vector["errno"]] if vector["errno"] else None for vector in vectors]


def test_check_of_a_folder_leaves_keys_and_templates_out(capsys, tmp_path: Path, good: Path) -> None:
    for name in ("key.pem", ".hidden", "t.j2"):
        (tmp_path / name).write_bytes(b"x")
    status, value = run(capsys, "check", tmp_path)
    assert (status, [row["file"] for row in value]) == (0, [str(good)])


def test_check_as_a_boot_policy_says_that_nothing_would_be_enforced(capsys, tmp_path: Path) -> None:
    path = tmp_path / "boot.pol"
    path.write_bytes(b"policy_name=boot policy_version=1\n")
    status, value = run(capsys, "check", "--boot-policy", path)
    assert status == 1
    assert "boot with nothing enforced" in value[0]["findings"][0]["message"]


def test_check_against_a_configuration_finds_what_is_off(capsys, tmp_path: Path, good: Path) -> None:
    config = tmp_path / ".config"
    config.write_text("CONFIG_SECURITY_IPE=y\nCONFIG_AUDIT=y\nCONFIG_MODULES=y\nCONFIG_IPE_PROP_DM_VERITY=y\n")
    status, value = run(capsys, "check", "--target-config", config, good)
    assert status == 1
    assert {finding["rule"] for finding in value[0]["findings"]} == {"property-off"}
    config.write_text(config.read_text() + "CONFIG_IPE_PROP_DM_VERITY_SIGNATURE=y\n")
    assert run(capsys, "check", "--target-config", config, good)[0] == 0


def test_check_reads_the_text_of_a_signed_policy(capsys, tmp_path: Path, test_keys, host) -> None:
    from tests.fixtures.policy import policy_signer, sign_policy

    path = tmp_path / "p.p7b"
    path.write_bytes(sign_policy(GOOD, policy_signer(test_keys, host)))
    assert run(capsys, "check", path) == (0, [{"file": str(path), "accepted": True, "errno": None, "findings": []}])
    path.write_bytes(b"\x30\x82" + bytes(50))
    assert run(capsys, "check", path)[0] == 2


def test_strict_makes_warnings_fail(capsys, tmp_path: Path) -> None:
    path = tmp_path / "other-name.pol"
    path.write_bytes(GOOD)
    assert run(capsys, "check", path)[0] == 0
    assert run(capsys, "check", "--strict", path)[0] == 1


def test_ledger_makes_a_reused_version_fail(capsys, tmp_path: Path, good: Path) -> None:
    ledger = tmp_path / "policies.ledger"
    assert run(capsys, "record", good, "--ledger", ledger, "--begin")[0] == 0
    assert run(capsys, "check", good, "--ledger", ledger)[0] == 0
    good.write_bytes(GOOD + b"DEFAULT op=POLICY action=DENY\n")
    status, value = run(capsys, "check", good, "--ledger", ledger)
    assert (status, value[0]["findings"][0]["rule"]) == (1, "version-not-higher")
    before = ledger.read_bytes()
    assert run(capsys, "record", good, "--ledger", ledger)[0] == 1
    assert ledger.read_bytes() == before
    good.write_bytes(good.read_bytes().replace(b"1.0.0", b"1.0.1"))
    assert run(capsys, "record", good, "--ledger", ledger)[0] == 0


def test_a_misspelled_ledger_or_policy_begins_nothing_unless_asked(capsys, tmp_path: Path, good: Path) -> None:
    ledger, other = tmp_path / "policies.ledger", tmp_path / "other.pol"
    assert main(["policy", "record", str(good), "--ledger", str(ledger)]) == 2
    said = capsys.readouterr().err
    assert f"{ledger}: there is no such ledger" in said and "--begin" in said and not ledger.exists()
    assert run(capsys, "record", good, "--ledger", ledger, "--begin")[0] == 0
    before = ledger.read_bytes()
    other.write_bytes(GOOD.replace(b"policy_name=", b"policy_name=x"))
    assert main(["policy", "record", str(good), str(other), "--ledger", str(ledger)]) == 2
    said = capsys.readouterr().err
    name = GOOD.split()[0].partition(b"=")[2].decode()
    assert f"{ledger}: knows no policy x{name}; it knows {name}\n" in said and "--begin" in said
    assert ledger.read_bytes() == before
    assert run(capsys, "record", other, "--ledger", ledger, "--begin")[0] == 0
    assert run(capsys, "record", other, "--ledger", ledger)[0] == 0


def test_evaluate_says_decision_rule_and_why_not(capsys, good: Path) -> None:
    status, value = run(capsys, "evaluate", good, "--op", "KMODULE", "--signed", "--roothash", str(ROOT))
    assert (status, value["action"], value["line"]) == (0, "ALLOW", 4)
    status, value = run(capsys, "evaluate", good, "--op", "EXECUTE", "--boot-verified", "--signed", "FALSE")
    assert (value["action"], value["rule"]) == ("DENY", "DEFAULT action=DENY")
    assert value["misses"][0]["line"] == 3
    assert value["misses"][0]["reason"]


def test_render_writes_a_policy_that_check_accepts(capsys, tmp_path: Path) -> None:
    out = tmp_path / "ipe-policy.pol"
    words = ("render", "pinned-roothash", "--name", "ipe-policy", "--policy-version", "1.0.0", "--roothash", ROOT.value.hex(), "-o", out)
    status, value = run(capsys, *words)
    assert (status, value["text"]) == (0, out.read_text())
    assert str(ROOT) in out.read_text()
    assert run(capsys, "check", out)[0] == 0
    assert run(capsys, *words)[0] == 2, "an existing output is left as it is"
    assert run(capsys, *words, "--force")[0] == 0


@pytest.fixture
def make(tmp_path: Path, test_keys) -> list[object]:
    """The words of `policy make` for a signed device policy into the folder `made`."""
    (tmp_path / "made").mkdir()
    pair = test_keys.pair("policy")
    words = ["policy", "make", "signed-verity", "--name", "a", "--policy-version", "1.2.3", "-o", tmp_path / "made"]
    return [*words, "--key", pair.uri, "--cert", pair.certificate]


def test_make_renders_checks_and_signs_as_the_three_verbs_do(capsys, tmp_path: Path, make, test_keys) -> None:
    pair = test_keys.pair("policy")
    assert run(capsys, *make[1:])[0] == 0
    main(["policy", "render", "signed-verity", "--name", "a", "--policy-version", "1.2.3", "-o", str(tmp_path / "a.pol")])
    words = ["sign", "policy", tmp_path / "a.pol", "--key", pair.uri, "--cert", pair.certificate, "-o", tmp_path / "a.p7b"]
    assert main([str(word) for word in words]) == 0
    for name in ("a.pol", "a.p7b"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_make_writes_nothing_when_the_check_finds_an_error(capsys, tmp_path: Path, make) -> None:
    config = tmp_path / "config"
    config.write_text("CONFIG_SECURITY_IPE=y\n")
    status, value = run(capsys, *make[1:], "--target-config", config)
    assert status == 1 and value["files"] == [] and any(row["severity"] == "error" for row in value["findings"])
    assert list((tmp_path / "made").iterdir()) == []


def test_make_signs_no_boot_policy(capsys, tmp_path: Path, make) -> None:
    assert main([str(word) for word in [*make, "--role", "boot"]]) == 2
    assert "a boot policy is compiled into the kernel" in capsys.readouterr().err
    unsigned = [word for word in make if word not in make[-4:]]
    assert main([str(word) for word in [*unsigned, "--role", "boot"]]) == 0
    assert [one.name for one in (tmp_path / "made").iterdir()] == ["a.pol"]


@pytest.mark.parametrize("left_out", ["--key", "--cert"])
def test_make_wants_key_and_certificate_together(capsys, make, left_out: str) -> None:
    at = make.index(left_out)
    assert main([str(word) for word in [*make[:at], *make[at + 2 :]]]) == 2
    assert "--key and --cert belong together" in capsys.readouterr().err


@pytest.mark.parametrize(("release", "told"), [("6.12.117", False), ("6.6.30-custom", True), (None, False)])
def test_kernel_is_the_one_that_the_configuration_is_of(capsys, tmp_path: Path, release: str | None, told: bool) -> None:
    """Linux 6.6 has no IPE, and the linter says so."""
    config = tmp_path / "config"
    head = f"#\n# Automatically generated file; DO NOT EDIT.\n# Linux/x86 {release} Kernel Configuration\n#\n" if release else ""
    config.write_text(f"{head}CONFIG_SECURITY_IPE=y\nCONFIG_IPE_PROP_DM_VERITY_SIGNATURE=y\n")
    policy = tmp_path / "a.pol"
    policy.write_text("policy_name=a policy_version=0.0.1\nDEFAULT action=DENY\nop=EXECUTE dmverity_signature=TRUE action=ALLOW\n")
    _, value = run(capsys, "check", policy, "--target-config", config)
    _, said = run(capsys, "check", policy, "--kernel-version", release or "6.12", "--target-config", config)
    _, oldest = run(capsys, "check", policy, "--kernel-version", "6.12", "--target-config", config)
    assert value == said and (value != oldest) is told


def test_diff_wants_weakening_to_be_allowed(capsys, tmp_path: Path, good: Path) -> None:
    new = tmp_path / "new.pol"
    new.write_bytes(GOOD.replace(b"1.0.0", b"1.1.0") + b"op=EXECUTE boot_verified=TRUE action=ALLOW\n")
    status, value = run(capsys, "diff", good, new)
    assert (status, value["weakens"], value["update"]["accepted"]) == (1, True, True)
    assert "initramfs" in value["changes"][0]["sentence"]
    assert run(capsys, "diff", good, new, "--allow-weakening")[0] == 0
    status, value = run(capsys, "diff", new, good)
    assert (status, value["weakens"], value["update"]["errno"]) == (1, False, "ESTALE")


def test_learn_explains_and_proposes(capsys, tmp_path: Path, good: Path) -> None:
    (tmp_path / "root" / "opt").mkdir(parents=True)
    (tmp_path / "root" / "opt" / "app").write_bytes(b"x" * 5000)
    log = tmp_path / "log"
    log.write_text(
        'type=1420 audit(1.000:1): ipe_op=EXECUTE ipe_hook=BPRM_CHECK enforcing=1 pid=7 comm="sh" path="/opt/app" dev="vda2" ino=9 '
        'rule="DEFAULT action=DENY"\ntype=1420 audit(1.000:2): broken\n'
    )
    status, value = run(capsys, "learn", log, "--policy", good, "--root", tmp_path / "root")
    assert (status, value["records"], [row["line"] for row in value["skipped"]]) == (0, 1, [2])
    assert [row["trust"] for row in value["denials"][0]["proposals"]] == ["signature", "digest"]
    assert value["rules"] == ["op=EXECUTE fsverity_signature=TRUE action=ALLOW"]


@pytest.mark.parametrize(
    "words",
    [
        ("check",),
        ("check", "missing.pol"),
        ("check", "/dev/null"),
        ("check", "--kernel-version", "new", "GOOD"),
        ("check", "--target-config", "missing", "GOOD"),
        ("check", "--ledger", "GOOD", "GOOD"),
        ("check", "--image", "missing", "GOOD"),
        ("check", "--image", "GOOD", "GOOD"),
        ("evaluate", "GOOD"),
        ("evaluate", "GOOD", "--op", "READ"),
        ("evaluate", "GOOD", "--op", "EXECUTE", "--roothash", "sha256:xyz"),
        ("evaluate", "GOOD", "--op", "EXECUTE", "--signed", "MAYBE"),
        ("evaluate", "BAD", "--op", "EXECUTE"),
        ("render",),
        ("render", "no-such-profile"),
        ("render", "signed-verity"),
        ("render", "signed-verity", "--set", "name"),
        ("render", "signed-verity", "--name", "p", "--policy-version", "1.0.0", "--roothash", "zz"),
        ("diff", "GOOD", "BAD"),
        ("diff", "GOOD"),
        ("learn", "missing"),
        ("record", "BAD", "--ledger", "LEDGER"),
        ("nonsense",),
        (),
    ],
)
def test_bad_input_is_one_error_with_status_2(capsys, tmp_path: Path, good: Path, words: tuple[str, ...]) -> None:
    bad = tmp_path / "bad.pol"
    bad.write_bytes(b"\xff\0\xfe")
    places = {"GOOD": str(good), "BAD": str(bad), "LEDGER": str(tmp_path / "l"), "missing": str(tmp_path / "missing")}
    status = main(["policy", *(places.get(word, word) for word in words)])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("subverb", ["check", "render"])
def test_lists_are_printed(capsys, subverb: str) -> None:
    status, value = run(capsys, subverb, "--list")
    assert status == 0
    assert value


def test_bytes_that_are_no_text_are_escaped_on_the_terminal_and_in_json(capsys, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"p\xff.pol")
    path.write_bytes(GOOD + b"op=EXECUTE dmverity_roothash=\x1b[2J\xff:00 action=ALLOW\n")
    log = tmp_path / "log"
    rule = b'rule="DEFAULT action=DENY"'
    log.write_bytes(b"type=1420 audit(1.0:1): ".replace(b"1.0", b"1.000") + b"ipe_op=EXECUTE ipe_hook=MMAP enforcing=1 pid=7 comm=1B5B324A "
                    b"path=2FFF1B dev=FF ino=9 " + rule)  # fmt: skip
    for words in (("check", path), ("evaluate", path, "--op", "EXECUTE"), ("diff", path, path), ("learn", log)):
        assert main(["policy", *map(str, words), "--quiet"]) in (0, 1)
        out = capsys.readouterr().out
        assert out
        assert "\x1b" not in out
        out.encode()
        _status, value = run(capsys, *words)
        json.dumps(value, ensure_ascii=False).encode()
    assert run(capsys, "learn", log)[1]["records"] == 1


@pytest.mark.parametrize("subverb", ["", "check", "evaluate", "render", "diff", "record", "learn"])
def test_help_is_printed(capsys, subverb: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["policy", *([subverb] if subverb else []), "--help"])
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out
