"""Signing kernel modules: ipe-build against the kernel's scripts/sign-file, as a shell loop and as `xargs -P`.

    python benchmarks/modules.py [--count 2000] [--keys rsa3072,rsa4096,p384] [--size 60000] [--json OUT]

Every way signs the same fresh files in place; each result is checked. The limit is the signature operation itself, measured in as
many processes as there are workers; "of limit" is the share of it that ipe-build reaches. The second table is processor time
a module, which a busy machine does not distort.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ipe_build.host import Host, Progress
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.kernel.modules import find_modules, verify_module
from ipe_build.signing.certificates import KeyPair, create_keys
from ipe_build.signing.loading import load_certificate
from ipe_build.signing.signer import Signer

_SOURCE = Path("/usr/src/linux-source-6.12.tar.xz")


def main() -> None:
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="modules (default: %(default)s)")
    parser.add_argument("--size", type=int, default=60_000, help="bytes a module, about (default: %(default)s)")
    parser.add_argument("--keys", default="rsa3072,rsa4096,p384")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--sign-file", type=Path, help="the kernel's sign-file (default: compiled from Debian's linux-source-6.12)")
    arguments = parser.parse_args()
    host = Host(progress=Progress(io.StringIO(), quiet=True))
    rows = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        folder = Path(name)
        sign_file = arguments.sign_file or _compile_sign_file(folder)
        originals = folder / "originals"
        _make_modules(originals, arguments.count, arguments.size)
        print(f"{arguments.count} modules of about {arguments.size} bytes, {host.jobs} processors, {platform.machine()}")
        print(f"{'key':8} {'loop/s':>8} {'xargs/s':>8} {'ours/s':>8} {'x loop':>7} {'x xargs':>8} {'limit/s':>8} {'of limit':>9}")
        for kind in arguments.keys.split(","):
            row = _compare(kind, originals, folder, sign_file, host)
            rows.append(row)
            print(
                f"{kind:8} {row['loop']:8.0f} {row['xargs']:8.0f} {row['ours']:8.0f} {row['ours'] / row['loop']:7.1f}"
                f" {row['ours'] / row['xargs']:8.1f} {row['limit']:8.0f} {row['ours'] / row['limit']:9.0%}",
                flush=True,
            )
        print(f"\n{'key':8} {'sign-file ms':>13} {'ours ms':>8} {'signature ms':>13} {'x sign-file':>12} {'of limit':>9}")
        for row in rows:
            theirs, mine, pure = (float(row[name]) for name in ("loop_cpu_ms", "ours_cpu_ms", "signature_cpu_ms"))
            print(f"{row['key']:8} {theirs:13.2f} {mine:8.2f} {pure:13.2f} {theirs / mine:12.1f} {pure / mine:9.0%}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _compile_sign_file(folder: Path) -> Path:
    """Returns sign-file, compiled from the two files of the kernel's source that it needs."""
    wanted = [f"linux-source-6.12/scripts/{name}" for name in ("sign-file.c", "ssl-common.h")]
    subprocess.run(["tar", "-xJf", _SOURCE, "-C", folder, "--strip-components=2", *wanted], check=True)
    program = folder / "sign-file"
    subprocess.run(["gcc", "-O2", "-o", program, f"-I{folder}", folder / "sign-file.c", "-lcrypto"], check=True)
    return program


def _make_modules(folder: Path, count: int, size: int) -> None:
    """Writes files that begin like ELF and differ from each other; sizes spread from a half to one and a half of `size`."""
    for number in range(count):
        place = folder / f"{number % 40:02}"
        place.mkdir(parents=True, exist_ok=True)
        seed = hashlib.sha256(str(number).encode()).digest()
        length = size // 2 + int.from_bytes(seed[:4], "little") % size
        (place / f"m{number:05}.ko").write_bytes(b"\x7fELF" + (seed * (length // 32 + 1))[:length])


def _compare(kind: str, originals: Path, folder: Path, sign_file: Path, host: Host) -> dict[str, float | str]:
    """Returns modules a second of each way, with one kind of key."""
    keys = create_keys(folder / f"keys-{kind}", host, not_before=datetime(2024, 1, 1, tzinfo=UTC), key_type=kind)
    pair = keys.pair("module")
    words = f"'{sign_file}' sha384 '{pair.key}' '{pair.certificate}'"
    loop = f"find . -name '*.ko' | while read -r m; do {words} \"$m\" || exit 1; done"
    xargs = f"find . -name '*.ko' -print0 | xargs -0 -n 1 -P {host.jobs} {words}"
    signer = pair.signer(host)

    def ours(modules: Path) -> None:
        sign_modules(find_modules([modules]), pair.signer(host), host, digest_name="sha384")

    def shell(command: str) -> Callable[[Path], None]:
        return lambda modules: subprocess.run(["/bin/sh", "-ec", command], cwd=modules, check=True) and None

    result: dict[str, float | str] = {"key": kind}
    ways = {"loop": shell(loop), "xargs": shell(xargs), "ours": ours}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    # There and back again: ext4 is slower the more files were deleted in the last minute, and each way deletes them all.
    for name in (*ways, *reversed(ways)):
        measured[name].append(_rate(ways[name], originals, folder / "work", pair))
    for name, runs in measured.items():
        result[name], result[f"{name}_cpu_ms"] = (sum(values) / len(values) for values in zip(*runs, strict=True))
    result["limit"] = _limit(signer, host.jobs)
    started = time.process_time()
    _sign_many(signer, 200)
    result["signature_cpu_ms"] = (time.process_time() - started) / 200 * 1e3
    return result


def _rate(way: Callable[[Path], None], originals: Path, work: Path, pair: KeyPair) -> tuple[float, float]:
    """Returns modules a second, and milliseconds of processor time a module, of one way over a fresh copy; then checks the results."""
    subprocess.run(["cp", "-r", originals, work], check=True)
    os.sync()
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    way(work)
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    files = find_modules([work])
    certificate = load_certificate(pair.certificate)
    for path in files[:: max(1, len(files) // 50)]:
        verdict = verify_module(path, [certificate])
        if verdict.reason.startswith(("unsigned", "signed by")):
            raise SystemExit(f"{path}: {verdict.reason}")
    subprocess.run(["rm", "-rf", work], check=True)
    return len(files) / seconds, cpu / len(files) * 1e3


def _limit(signer: Signer, workers: int) -> float:
    """Returns signatures a second when nothing else is done: the signature operation in as many processes as there are workers."""
    context = multiprocessing.get_context("fork")
    count = 400
    with context.Pool(workers, _hold, (signer,)) as pool:
        pool.map(_sign_held, [10] * workers, chunksize=1)
        started = time.perf_counter()
        pool.map(_sign_held, [count] * workers, chunksize=1)
        return workers * count / (time.perf_counter() - started)


_held: list[Signer] = []


def _hold(signer: Signer) -> None:
    _held.append(signer)


def _sign_held(count: int) -> None:
    _sign_many(_held[-1], count)


def _sign_many(signer: Signer, count: int) -> None:
    for _ in range(count):
        signer.sign(b"module", "sha384")


if __name__ == "__main__":
    main()
