"""Signing kernel modules: ipe-build against the kernel's scripts/sign-file, as a shell loop and as `xargs -P`.

    python benchmarks/modules.py [--count 2000] [--keys rsa3072,rsa4096,p384] [--size 60000] [--runs 3] [--json OUT]

Every way signs a fresh copy of the same files in place, in turn, `--runs` times, each time in another order; medians are printed and
results are checked. So that no way pays for the one before it, each copy lies in a block group of its own (ext4 looks through the inodes
that were deleted in the last minute), nothing is deleted before the end, and the disk is idle (sync) when a way begins.

`ours` is the call that a build makes, `command` the whole process of `ipe-build modules sign`. Three bounds, each in as many processes as
do it fastest: `signature` is the signature operation alone, `files` the reading, writing and renaming alone, `both` both, module by module,
in a loop that does nothing else: what remains is what ipe-build itself adds. That loop hashes each module alone, with OpenSSL; ipe-build
hashes many together, so `of both` may exceed 100%. The second table is processor time a module.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ipe_build.formats.module_signature import split_signature
from ipe_build.host import Host, Progress
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.kernel.modules import find_modules
from ipe_build.signing.certificates import KeyPair, create_keys
from ipe_build.signing.loading import load_certificate
from ipe_build.signing.profiles import PROFILES
from ipe_build.signing.signer import Signer
from ipe_build.signing.verify import verify_signature

_SOURCE = Path("/usr/src/linux-source-6.12.tar.xz")
_DIGEST = "sha384"
_TRAILER_BYTES = 700
"""About what a signature adds to a module."""
_GET_FLAGS, _SET_FLAGS, _TOP_DIRECTORY = 0x80086601, 0x40086602, 0x00020000  # ioctl_iflags(2)
Way = Callable[[Path], None]
Row = dict[str, float]


def main() -> None:
    """Runs the comparison and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="modules (default: %(default)s)")
    parser.add_argument("--size", type=int, default=60_000, help="bytes a module, about (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way (default: %(default)s)")
    parser.add_argument("--keys", default="rsa3072,rsa4096,p384")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--sign-file", type=Path, help="the kernel's sign-file (default: compiled from Debian's linux-source-6.12)")
    arguments = parser.parse_args()
    host = Host(progress=Progress(io.StringIO(), quiet=True))
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as name:
        folder = Path(name)
        _spread(folder)
        sign_file = arguments.sign_file or _compile_sign_file(folder)
        originals = folder / "originals"
        _make_modules(originals, arguments.count, arguments.size)
        print(f"{arguments.count} modules of about {arguments.size} bytes, {host.jobs} processors, {_processor()}; {_filesystem(folder)}")
        _head("key | loop/s | xargs/s | ours/s | command/s | x loop | x xargs | signature/s | files/s | both/s | of signature | of both")
        for kind in arguments.keys.split(","):
            row = rows[kind] = _compare(kind, originals, folder, sign_file, host, arguments.runs)
            rates = " | ".join(f"{row[name]:.0f}" for name in ("loop", "xargs", "ours", "command"))
            bounds = " | ".join(f"{row[name]:.0f}" for name in ("signature", "files", "both"))
            times = f"{row['ours'] / row['loop']:.1f} | {row['ours'] / row['xargs']:.1f}"
            shares = f"{row['ours'] / row['signature']:.0%} | {row['ours'] / row['both']:.0%}"
            print(f"| {kind} | {rates} | {times} | {bounds} | {shares} |", flush=True)
        print("\nProcessor time, ms a module:")
        _head("key | sign-file | ours | command | signature | files | both")
        for kind, row in rows.items():
            spent = (row[f"{name} ms"] for name in ("loop", "ours", "command", "signature", "files", "both"))
            print(f"| {kind} | {' | '.join(f'{time_ms:.2f}' for time_ms in spent)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _head(columns: str) -> None:
    print(f"\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}")


def _processor() -> str:
    """Returns the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _filesystem(folder: Path) -> str:
    """Returns the type and the options of the filesystem that a folder is on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    best = max((mount for mount in mounts if folder.resolve().is_relative_to(mount[1])), key=lambda mount: len(mount[1]))
    return f"{best[2]} ({best[3]})"


def _spread(folder: Path) -> None:
    """Asks ext4 for another block group for each folder in this one; other filesystems have no such flag."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):
        flags = int.from_bytes(fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)), sys.byteorder)
        fcntl.ioctl(descriptor, _SET_FLAGS, (flags | _TOP_DIRECTORY).to_bytes(8, sys.byteorder))
    os.close(descriptor)


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


def _compare(kind: str, originals: Path, folder: Path, sign_file: Path, host: Host, runs: int) -> Row:
    """Returns modules a second of each way, and under "WAY ms" its milliseconds of processor time a module, with one kind of key."""
    keys = create_keys(folder / f"keys-{kind}", host, not_before=datetime(2024, 1, 1, tzinfo=UTC), key_type=kind)
    pair = keys.pair("module")
    ways = _ways(pair, pair.signer(host), sign_file, host)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(runs):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            checked = pair if name in ("loop", "xargs", "ours", "command") else None
            measured[name].append(_rate(ways[name], originals, folder / f"{kind}-{name}-{number}", checked))
    result: Row = {}
    for name, values in measured.items():
        result[name], result[f"{name} ms"] = (statistics.median(column) for column in zip(*values, strict=True))
    return result


def _ways(pair: KeyPair, signer: Signer, sign_file: Path, host: Host) -> dict[str, Way]:
    """Returns what is measured."""
    words = f"'{sign_file}' {_DIGEST} '{pair.key}' '{pair.certificate}'"
    options = ["--key", pair.uri, "--cert", str(pair.certificate), "--digest", _DIGEST, "--quiet"]

    def shell(command: str) -> Way:
        return lambda modules: _run(["/bin/sh", "-ec", command], modules)

    def ours(modules: Path) -> None:
        sign_modules(find_modules([modules]), pair.signer(host), host, digest_name=_DIGEST)

    return {
        "loop": shell(f"find . -name '*.ko' | while read -r m; do {words} \"$m\" || exit 1; done"),
        "xargs": shell(f"find . -name '*.ko' -print0 | xargs -0 -n 1 -P {host.jobs} {words}"),
        "ours": ours,
        "command": lambda modules: _run([sys.executable, "-m", "ipe_build", "modules", "sign", ".", *options], modules),
        "signature": lambda modules: _in_processes(modules, lambda _: _sign(signer, b"module"), host.jobs),
        "files": lambda modules: _in_processes(modules, lambda path: _replace(path, lambda _: b""), 4 * host.jobs),
        "both": lambda modules: _in_processes(modules, lambda path: _replace(path, lambda data: _sign(signer, data)), 3 * host.jobs),
    }


def _run(command: Sequence[str | Path], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _in_processes(modules: Path, work: Callable[[str], object], processes: int) -> None:
    """Does the work on every module in so many forked processes, each with its share."""
    files = [str(path) for path in find_modules([modules])]
    children = []
    for number in range(processes):
        child = os.fork()
        if not child:
            status = 1
            try:
                for path in files[number::processes]:
                    work(path)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise SystemExit("a process of the benchmark failed")


def _sign(signer: Signer, data: bytes) -> bytes:
    return signer.sign(data, _DIGEST)


def _replace(path: str, sign: Callable[[bytes], bytes]) -> None:
    """Does what replacing a module takes and nothing more: reads it, writes a new file, renames it."""
    descriptor = os.open(path, os.O_RDONLY)
    data = os.read(descriptor, os.fstat(descriptor).st_size)
    os.close(descriptor)
    trailer = sign(data).ljust(_TRAILER_BYTES)
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.writev(descriptor, (data, trailer))
    os.close(descriptor)
    os.rename(f"{path}.new", path)


def _rate(way: Way, originals: Path, work: Path, pair: KeyPair | None) -> tuple[float, float]:
    """Returns modules a second, and milliseconds of processor time a module, of one way over a fresh copy; then checks the results."""
    subprocess.run(["cp", "-r", originals, work], check=True)
    os.sync()
    started, cpu = time.perf_counter(), sum(os.times()[:4])
    way(work)
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:4]) - cpu
    files = find_modules([work])
    if pair is not None:
        _check(files, originals, work, pair)
    return len(files) / seconds, cpu / len(files) * 1e3


def _check(files: Sequence[Path], originals: Path, work: Path, pair: KeyPair) -> None:
    """Ends the benchmark unless each module is the original with a signature, and one of forty is found to be good."""
    certificate = load_certificate(pair.certificate)
    for number, path in enumerate(files):
        payload, signature = split_signature(path.read_bytes(), str(path))
        if signature is None or payload != (originals / path.relative_to(work)).read_bytes():
            raise SystemExit(f"{path}: is not the original with a signature")
        if number % 40 == 0:
            verify_signature(PROFILES["module"], payload, signature, [certificate])


if __name__ == "__main__":
    main()
