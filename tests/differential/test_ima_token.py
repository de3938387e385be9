"""Phase 1 of IMA with keys in hardware: a root signed by a PKCS#11 token (SoftHSM) is, byte for byte, the one of the key file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so")
PIN = "482910"


def test_token_signs_a_whole_root_filesystem_and_a_wrong_pin_leaves_nothing(test_keys, host, need, tmp_path: Path) -> None:
    for tool in ("softhsm2-util", "mkfs.erofs", "fakeroot"):
        need(tool)
    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    env = {"SOFTHSM2_CONF": str(config)}
    pair = test_keys.pair("ima")
    host.run(["softhsm2-util", "--init-token", "--free", "--label", "ima", "--pin", PIN, "--so-pin", "9876"], env=env)
    host.run(["softhsm2-util", "--import", pair.key, "--token", "ima", "--label", "k", "--id", "01", "--pin", PIN], env=env)
    (tmp_path / "root").mkdir()
    for number in range(40):
        (tmp_path / f"root/file-{number}").write_text(f"{number}\n" * number)
    module = next(path for path in _MODULES if Path(path).is_file())

    def sign(key: str, out: str, pin: str = PIN) -> subprocess.CompletedProcess[str]:
        words = ["ima", "sign", tmp_path / "root", "--evm", "--key", key, "--cert", pair.certificate, "-o", tmp_path / out]
        more = {**env, "IPE_BUILD_PIN": pin, "SOURCE_DATE_EPOCH": "1700000000"}
        return subprocess.run(
            [sys.executable, "-m", "ipe_build", *map(str, words)], capture_output=True, text=True, env={**os.environ, **more}, timeout=300
        )

    uri = f"pkcs11:token=ima;id=%01?module-path={module}"
    by_token, by_file, refused = sign(uri, "token.img"), sign(pair.uri, "file.img"), sign(uri, "refused.img", pin="000000")
    assert by_token.returncode == by_file.returncode == 0, by_token.stderr + by_file.stderr
    assert (tmp_path / "token.img").read_bytes() == (tmp_path / "file.img").read_bytes()
    assert refused.returncode == 2 and "PIN" in refused.stderr and "Traceback" not in refused.stderr, refused.stderr
    assert not (tmp_path / "refused.img").exists()
    assert PIN not in by_token.stderr + by_token.stdout and "000000" not in refused.stderr
