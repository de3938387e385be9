"""Measures `ipe-build audit` of a 2 GiB root against `veritysetup verify` on it alone: `python benchmarks/audit.py --help`.

Every figure is of whole processes, Python's start included, input in the page cache, the two in turn (A B A B …); the ratio is the median
of the ratios pair by pair. With --kernel and --initramfs these are audited too, as they are with a whole disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GIB = 1 << 30
WANTED = 1.5
FILE_BYTES = 4 << 20
MAKE: dict[str, Callable[[Path, Path, int], list[str | Path]]] = {
    "erofs": lambda image, root, size: ["mkfs.erofs", "--quiet", "-T0", image, root],
    "ext4": lambda image, root, size: ["mke2fs", "-q", "-t", "ext4", "-d", root, image, f"{size // 1024 * 9 // 8}k"],
    "squashfs": lambda image, root, size: [
        "mksquashfs",
        root,
        image,
        "-quiet",
        "-no-progress",
        "-comp",
        "zstd",
        "-Xcompression-level",
        "1",
    ],
}


def tool(name: str) -> str:
    """Returns a program's path; those of sbin are found too."""
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin") or name


def seconds(words: list[str | Path], ok: tuple[int, ...] = (0,)) -> float:
    """Returns how long a process took. An audit that finds something ends with 1."""
    started = time.perf_counter()
    done = subprocess.run([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode not in ok:
        raise SystemExit(f"{' '.join(map(str, words))}: status {done.returncode}\n{done.stderr}")
    return time.perf_counter() - started


def make_root(folder: Path, size: int) -> Path:
    """Returns a folder of files of 4 MiB that do not pack (every second one) or do (text)."""
    root = folder / "root"
    root.mkdir()
    for number in range(size // FILE_BYTES):
        data = os.urandom(FILE_BYTES) if number % 2 else (b"%08d lines of text\n" % number) * (FILE_BYTES // 22)
        (root / f"file{number}").write_bytes(data)
    shutil.copy("/bin/ls", root / "ls")
    return root


def compare(kind: str, root: Path, folder: Path, size: int, pairs: int, more: list[str | Path]) -> str:
    """Returns a row of the table for one filesystem."""
    image, area, named = folder / f"{kind}.img", folder / f"{kind}.hash", folder / f"{kind}.roothash"
    make = MAKE[kind](image, root, size)
    subprocess.run([tool(str(make[0])), *map(str, make[1:])], check=True, stdout=subprocess.DEVNULL)
    told = subprocess.run([tool("veritysetup"), "format", image, area], check=True, capture_output=True, text=True).stdout
    root_hash = next(line.split()[-1] for line in told.splitlines() if line.startswith("Root hash"))
    named.write_text(root_hash)
    program = Path(sys.executable).with_name("ipe-build")
    peer: list[float] = []
    ours: list[float] = []
    for number in range(pairs + 1):
        pair = (
            seconds([tool("veritysetup"), "verify", image, area, root_hash]),
            seconds([program, "audit", image, area, named, *more, "--quiet"], ok=(0, 1)),
        )
        if number:
            peer.append(pair[0])
            ours.append(pair[1])
    ratios = sorted(mine / theirs for mine, theirs in zip(ours, peer, strict=True))
    image_mib = image.stat().st_size >> 20
    image.unlink()
    area.unlink()
    return (
        f"| {kind}, {image_mib} MiB | {statistics.median(peer):.2f} | {statistics.median(ours):.2f} "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f}) | {WANTED} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--kernel", type=Path)
    parser.add_argument("--initramfs", type=Path)
    parser.add_argument("--filesystem", choices=sorted(MAKE), action="append")
    arguments = parser.parse_args()
    more: list[str | Path] = []
    for name in ("kernel", "initramfs"):
        if getattr(arguments, name) is not None:
            more += [f"--{name}", getattr(arguments, name)]
    if more:
        more += ["--command-line", "quiet"]
    print("| root | veritysetup verify, s | ipe-build audit, s | ours / peer | wanted at most |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="ipe-build-bench-") as name:
        folder = Path(name)
        root = make_root(folder, int(arguments.gib * GIB))
        for kind in arguments.filesystem or sorted(MAKE):
            print(compare(kind, root, folder, int(arguments.gib * GIB), arguments.pairs, more), flush=True)


if __name__ == "__main__":
    main()
