"""Measures hash trees against their peers, side by side: `make bench`, or `python benchmarks/hashing.py --help`.

Every figure is of whole processes, Python's start included, input in the page cache. The two sides of a row run in turn (A B A B …), so a
machine that is busy with other things slows both; the ratio is the median of the ratios pair by pair. With --write the results go to
docs/performance.md and docs/verity-size.svg.
"""

from __future__ import annotations

import argparse
import compileall
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import ipe_build
from ipe_build.integrity import engine
from ipe_build.integrity.hashes import find_hash

MIB = 1 << 20
GIB = 1 << 30
SALT = "5a" * 32
UUID = "6d9ab20c-31c5-4d3b-8d6a-93d1dfe1a0f3"
DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


@dataclass(frozen=True, slots=True)
class Run:
    """One ended process: wall and processor seconds."""

    wall: float
    cpu: float


@dataclass(slots=True)
class Row:
    """A comparison: what, how many bytes were hashed, the runs of both sides, the ratio to reach (0: none)."""

    title: str
    size: int
    wanted: float
    peer: list[Run] = field(default_factory=list)
    ours: list[Run] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Returns peer's time / our time of each pair, ascending."""
        return sorted(peer.wall / ours.wall for peer, ours in zip(self.peer, self.ours, strict=True))

    @property
    def cpu_ratio(self) -> float:
        """Returns the same of processor time: what is left of the ratio on a machine that is busy with other things."""
        return statistics.median(peer.cpu / ours.cpu for peer, ours in zip(self.peer, self.ours, strict=True))

    def line(self) -> str:
        """Returns the row as Markdown."""
        peer, ours = (statistics.median(run.wall for run in side) for side in (self.peer, self.ours))
        low, middle, high = self.ratios[0], statistics.median(self.ratios), self.ratios[-1]
        reached = f"{self.wanted:g}" if self.wanted else "-"
        return (
            f"| {self.title} | {peer:.3f} | {ours:.3f} | {self.size / ours / 1e9:.2f} | {middle:.2f} ({low:.2f} … {high:.2f}) "
            f"| {self.cpu_ratio:.2f} | {reached} |"
        )


def timed(words: list[str | Path], env: dict[str, str] | None = None) -> Run:
    """Returns how long a process took; it must end with status 0."""
    words = [str(word) for word in words]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "SOURCE_DATE_EPOCH")}
    started = time.perf_counter()
    with open(os.devnull, "wb") as nothing:
        process = subprocess.Popen(words, stdout=nothing, stderr=subprocess.PIPE, env=clean | (env or {}))
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        message = process.stderr.read().decode() if process.stderr else ""
        raise SystemExit(f"{' '.join(words)}: status {process.returncode}\n{message}")
    return Run(wall, usage.ru_utime + usage.ru_stime)


class Bench:
    """The folder, the number of pairs, the results so far."""

    def __init__(self, folder: Path, pairs: int) -> None:
        self.folder, self.pairs = folder, pairs
        self.program = Path(sys.executable).with_name("ipe-build")
        self.rows: list[Row] = []
        self.sizes: list[tuple[int, float, float]] = []
        self.memory: list[tuple[int, float]] = []
        self.shares: dict[str, list[float]] = {}

    def peer_verity(self, data: Path, name: str) -> list[str | Path]:
        """Returns veritysetup's command."""
        veritysetup = shutil.which("veritysetup", path=os.environ["PATH"] + ":/usr/sbin:/sbin") or "veritysetup"
        return [veritysetup, "format", data, self.folder / "peer", f"--hash={name}", f"--salt={SALT}", f"--uuid={UUID}"]

    def our_verity(self, data: Path, name: str) -> list[str | Path]:
        """Returns our command."""
        out = self.folder / "ours"
        return [self.program, "verity", "format", data, out, "--hash", name, "--salt", SALT, "--uuid", UUID, "--quiet"]

    def verity(self, title: str, data: Path, name: str, wanted: float, *, kernel: str = "", pairs: int = 0) -> Row:
        """Compares one image, one algorithm, one implementation; the hash areas must be the same bytes."""
        row = Row(title, data.stat().st_size, wanted)
        warm_up = row.size < 4 * GIB
        for number in range((pairs or self.pairs) + warm_up):
            for made in ("peer", "ours"):
                (self.folder / made).unlink(missing_ok=True)
            peer = timed(self.peer_verity(data, name))
            ours = timed(self.our_verity(data, name), {engine.KERNEL_VARIABLE: kernel})
            if number or not warm_up:
                row.peer.append(peer)
                row.ours.append(ours)
                if wanted and data.stat().st_blocks * 512 >= row.size >= GIB and not kernel:
                    # Measured in turn with the rest, since both change with what else the machine does.
                    limit = ceiling(name, engine.kernels(find_hash(name))[0])
                    self.shares.setdefault(title, []).append(row.size / ours.wall / 1e9 / limit)
            if not number and (self.folder / "peer").read_bytes() != (self.folder / "ours").read_bytes():
                raise SystemExit(f"{title}: the hash areas differ")
        self.rows.append(row)
        print(row.line(), flush=True)
        return row

    def measure_memory(self, data: Path) -> None:
        """Notes the peak memory of ours, as the process itself reads it (what wait4 tells also counts what we had when we forked)."""
        program = "import sys; from ipe_build.cli import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
        words = [sys.executable, "-c", program, *self.our_verity(data, "sha256")[1:], "--force"]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
        peak = int(done.stdout.split("VmHWM:")[1].split()[0]) / 1024
        self.memory.append((data.stat().st_size, peak))

    def fsverity(self, count: int, size: int) -> None:
        """Compares digests of many files: one call each, all files named."""
        root = self.folder / "files"
        root.mkdir()
        source = random.Random(1)
        noise = os.urandom(4 * MIB)
        for number in range(count):
            start, length = source.randrange(MIB), int(source.expovariate(1 / (size / count)))
            (root / f"{number:05}").write_bytes(noise[start : start + min(length, 2 * MIB)])
        files = sorted(root.iterdir())
        total = sum(file.stat().st_size for file in files)
        row = Row(f"fsverity digest, {count} files, {total / 1e9:.2f} GB", total, 3.5)
        for number in range(self.pairs + 1):
            peer = timed(["fsverity", "digest", *files])
            ours = timed([self.program, "fsverity", "digest", "--quiet", *files])
            if number:
                row.peer.append(peer)
                row.ours.append(ours)
        theirs = subprocess.run(["fsverity", "digest", *files], capture_output=True, check=True).stdout
        if subprocess.run([self.program, "fsverity", "digest", "--quiet", *files], capture_output=True, check=True).stdout != theirs:
            raise SystemExit("fsverity: the digests differ")
        self.rows.append(row)
        print(row.line(), flush=True)
        shutil.rmtree(root)

    def image(self, size: int, share: float = 1.0) -> Path:
        """Returns an image of random bytes, of which `share` are there, in pieces of 1 MiB at random places; the rest is a hole."""
        path = self.folder / "image"
        path.unlink(missing_ok=True)
        pieces = list(range(size // MIB))
        if share < 1:
            pieces = sorted(random.Random(2).sample(pieces, int(len(pieces) * share)))
        with path.open("wb") as handle:
            handle.truncate(size)
            for piece in pieces:
                handle.seek(piece * MIB)
                handle.write(os.urandom(MIB))
        return path


def ceilings() -> dict[tuple[str, str], float]:
    """Returns GB/s of each implementation hashing the same megabyte in the cache with all processors: what cannot be passed."""
    names = [(name, kernel) for name in ("sha256", "sha512") for kernel in engine.kernels(find_hash(name))]
    return {(name, kernel): max(ceiling(name, kernel) for _ in range(5)) for name, kernel in names}


def ceiling(name: str, kernel: str) -> float:
    """Returns one measurement of the ceiling in GB/s, of wall time."""
    extension = engine.native()
    started = time.perf_counter()
    done = extension.spin(name, kernel, bytes.fromhex(SALT), 4096, 1024, len(os.sched_getaffinity(0)))
    return done / (time.perf_counter() - started) / 1e9


def cpu_name() -> str:
    """Returns the processor's name as the kernel tells it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def plot(points: list[tuple[int, float, float]]) -> str:
    """Returns an SVG: seconds against size, both logarithmic, one line a program."""
    import math

    width, height, left, bottom = 720, 420, 70, 50
    sizes = [size for size, *_ in points]
    times = [value for _, *both in points for value in both]
    x_low, x_high = math.log2(min(sizes)), math.log2(max(sizes))
    y_low, y_high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))

    def at(size: float, seconds: float) -> tuple[float, float]:
        x = left + (math.log2(size) - x_low) / (x_high - x_low) * (width - left - 150)
        return x, height - bottom - (math.log10(seconds) - y_low) / (y_high - y_low) * (height - bottom - 30)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="18" font-size="14">dm-verity format, sha256: seconds of a whole process against image size</text>',
    ]
    for power in range(y_low, y_high + 1):
        _, y = at(min(sizes), 10.0**power)
        parts.append(f'<path d="M{left} {y:.1f}H{width - 150}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for size in sizes:
        x, _ = at(size, 1)
        label = f"{size // GIB} GiB" if size >= GIB else f"{size // MIB} MiB"
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{label}</text>')
    for index, (name, colour) in enumerate((("veritysetup", "#b33"), ("ipe-build", "#27c"))):
        places = [at(point[0], point[1 + index]) for point in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{places[-1][0] + 10:.1f}" y="{places[-1][1] + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def report(bench: Bench, limits: dict[tuple[str, str], float], load: tuple[float, float, float]) -> str:
    """Returns the results as Markdown."""
    lines = [
        f"Measured {time.strftime('%Y-%m-%d', time.gmtime())} on **{cpu_name()}**, {len(os.sched_getaffinity(0))} processors, "
        f"Linux {os.uname().release}, Python {sys.version.split()[0]}; load average when it began {load[0]:.1f}, "
        f"when it ended {os.getloadavg()[0]:.1f}.",
        "",
        "The in-memory ceiling (the same megabyte in the cache, all processors, salt of 32 bytes, best of five):",
        "",
        "| algorithm | implementation | GB/s |",
        "|---|---|---|",
        *(f"| {name} | {kernel} | {rate:.2f} |" for (name, kernel), rate in limits.items()),
        "",
        f"Whole processes, medians of up to {bench.pairs} pairs; lowest and highest ratio in brackets; CPU is the ratio of processor time:",
        "",
        "| what | peer, s | ours, s | ours, GB/s | ratio | CPU | wanted |",
        "|---|---|---|---|---|---|---|",
        *(row.line() for row in bench.rows),
        "",
    ]
    peaks = ", ".join(f"{size // MIB} MiB: {peak:.0f}" for size, peak in bench.memory)
    lines += [f"Peak memory of ours in MiB, by the image's size: {peaks}.", ""]
    for title, shares in bench.shares.items():
        low, middle, high = (100 * share for share in (min(shares), statistics.median(shares), max(shares)))
        lines.append(f"{title}: {middle:.0f}% ({low:.0f} … {high:.0f}) of the in-memory ceiling, which was measured after each pair.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs everything and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the images go: 9 GiB free (default: TMPDIR)"
    )
    parser.add_argument("--pairs", type=int, default=5, help="counted runs of each side (default: 5)")
    parser.add_argument("--quick", action="store_true", help="nothing above 1 GiB")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and docs/verity-size.svg")
    arguments = parser.parse_args()
    compileall.compile_dir(Path(ipe_build.__file__).parent, quiet=2)
    load = os.getloadavg()
    limits = ceilings()
    for (name, kernel), rate in limits.items():
        print(f"ceiling {name} {kernel}: {rate:.2f} GB/s", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="ipe-bench-") as folder:
        bench = Bench(Path(folder), arguments.pairs)
        data = bench.image(GIB)
        bench.verity("1 GiB sha256", data, "sha256", 3.5)
        bench.verity("1 GiB sha512", data, "sha512", 5)
        for name in ("sha256", "sha512"):
            for kernel in engine.kernels(find_hash(name)):
                bench.verity(f"1 GiB {name}, {kernel}", data, name, 0, kernel=kernel, pairs=max(1, bench.pairs - 2))
        bench.verity("1 GiB sha256, pure Python", data, "sha256", 2, kernel="python", pairs=max(1, bench.pairs - 2))
        bench.fsverity(20_000, 3_000_000_000)
        for size in [16 * MIB, 64 * MIB, 256 * MIB, GIB] + ([] if arguments.quick else [4 * GIB, 8 * GIB]):
            title = f"{size // GIB} GiB sha256 for the plot" if size >= GIB else f"{size // MIB} MiB sha256"
            wanted = 4.2 if size == 4 * GIB else 0
            row = bench.verity(
                "4 GiB sha256" if size == 4 * GIB else title, bench.image(size), "sha256", wanted, pairs=max(2, bench.pairs - 2)
            )
            bench.measure_memory(bench.folder / "image")
            bench.sizes.append((size, *(statistics.median(run.wall for run in side) for side in (row.peer, row.ours))))
        if not arguments.quick:
            bench.verity("4 GiB sha256, 5% data", bench.image(4 * GIB, 0.05), "sha256", 30, pairs=max(2, bench.pairs - 2))
    text = report(bench, limits, load)
    print(text)
    if arguments.write:
        place = DOCS / "performance.md"
        before, _, rest = place.read_text().partition(BEGIN)
        place.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")
        (DOCS / "verity-size.svg").write_text(plot(bench.sizes))


if __name__ == "__main__":
    main()
