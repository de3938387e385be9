"""Signed modules: the kernel's sign-file, kmod's modinfo, and the compressors agree with ours; damage is told apart."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from ipe_build.cli import main
from ipe_build.config.schema import Compression as ModuleCompression
from ipe_build.errors import FormatError, InputError, ToolFailedError
from ipe_build.formats.module_signature import MARKER, append_signature
from ipe_build.host import Host
from ipe_build.kernel import module_signing
from ipe_build.kernel.module_compression import COMPRESSIONS
from ipe_build.kernel.module_signing import sign_modules
from ipe_build.kernel.modules import ModuleVerdict, find_modules, read_module, verify_module
from ipe_build.signing.certificates import KeySet
from ipe_build.signing.loading import load_certificate, load_certificates
from ipe_build.signing.signer import Signer

UNPACK = {"none": ["cat"], "gzip": ["gzip", "-dc"], "xz": ["xz", "-dc"], "zstd": ["zstd", "-dqc"]}
PACK = {"none": ["cat"], "gzip": ["gzip", "-nc"], "xz": ["xz", "--check=crc32", "--lzma2=dict=1MiB", "-c"], "zstd": ["zstd", "-qc"]}
KINDS = [row.name for row in COMPRESSIONS]
SUFFIX = {row.name: row.suffix for row in COMPRESSIONS}


def _by_sign_file(module: bytes, keys: KeySet, host: Host, sign_file: Path, folder: Path, digest: str = "sha256") -> bytes:
    pair = keys.pair("module")
    (folder / "theirs").write_bytes(module)
    host.run([sign_file, digest, pair.key, pair.certificate, folder / "theirs"])
    return (folder / "theirs").read_bytes()


@pytest.fixture
def trusted(test_keys: KeySet) -> tuple[x509.Certificate, ...]:
    return load_certificates(test_keys.bundle)


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("kind", KINDS)
def test_signed_module_is_byte_identical_to_sign_file(
    kind: str, digest: str, unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, sign_file: Path, need
) -> None:
    if kind != "none":
        need(UNPACK[kind][0])
    path = tmp_path / f"demo.ko{SUFFIX[kind]}"
    path.write_bytes(host.run(PACK[kind], stdin=unsigned_module).stdout)
    path.chmod(0o640)
    (signed,) = sign_modules([path], test_keys.pair("module").signer(host), host, digest_name=digest)
    assert signed.path == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    wanted = _by_sign_file(unsigned_module, test_keys, host, sign_file, tmp_path, digest)
    assert host.run(UNPACK[kind], stdin=path.read_bytes()).stdout == wanted


def test_xz_module_has_the_checksum_and_dictionary_that_the_kernel_can_take(
    unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, need
) -> None:
    need("xz")
    path = tmp_path / "demo.ko"
    path.write_bytes(unsigned_module)
    (signed,) = sign_modules([path], test_keys.pair("module").signer(host), host, compression="xz")
    assert signed.path == tmp_path / "demo.ko.xz"
    assert not path.exists()
    listing = host.run(["xz", "--robot", "-lvv", signed.path]).text
    assert "CRC32" in listing
    assert "--lzma2=dict=1MiB" in listing
    assert [line for line in listing.splitlines() if line.startswith("block\t")] != []


@pytest.mark.parametrize("layers", [1, 2])
def test_signing_again_replaces_every_signature(
    layers: int, unsigned_module: bytes, test_keys: KeySet, foreign_keys: KeySet, host: Host, tmp_path: Path, sign_file: Path
) -> None:
    module = unsigned_module
    for _ in range(layers):
        module = _by_sign_file(module, foreign_keys, host, sign_file, tmp_path)
    path = tmp_path / "demo.ko"
    path.write_bytes(module)
    sign_modules([path], test_keys.pair("module").signer(host), host)
    assert path.read_bytes() == _by_sign_file(unsigned_module, test_keys, host, sign_file, tmp_path)


def test_modinfo_reads_our_signature(unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, need) -> None:
    need("modinfo")
    path = tmp_path / "demo.ko"
    path.write_bytes(unsigned_module)
    sign_modules([path], test_keys.pair("module").signer(host), host)
    fields = dict(line.split(":", 1) for line in host.run(["modinfo", path]).text.splitlines() if ":" in line and line[0] != "\t")
    certificate = load_certificate(test_keys.pair("module").certificate)
    assert fields["sig_id"].strip() == "PKCS#7"
    assert fields["sig_hashalgo"].strip() == "sha256"
    assert fields["signer"].strip() == "TEST ipe-build root"
    assert fields["sig_key"].replace(":", "").strip().lower() == f"{certificate.serial_number:x}"


def _verdict(path: Path, data: bytes, trusted: tuple[x509.Certificate, ...], vermagic: str | None = None) -> ModuleVerdict:
    path.write_bytes(data)
    return verify_module(path, trusted, vermagic)


def test_verdicts_tell_good_foreign_flipped_unsigned_and_damaged_apart(
    unsigned_module: bytes, test_keys: KeySet, foreign_keys: KeySet, host: Host, tmp_path: Path, sign_file: Path, trusted
) -> None:
    path = tmp_path / "demo.ko"
    signed = _by_sign_file(unsigned_module, test_keys, host, sign_file, tmp_path)
    good = _verdict(path, signed, trusted)
    assert (good.accepted, good.intact, good.errno) == (True, True, "")
    assert good.certificate == load_certificate(test_keys.pair("module").certificate)
    assert good.facts is not None
    assert good.facts.vermagic == "6.12.0-test SMP preempt mod_unload "
    assert (good.facts.algorithm, good.facts.digest_name) == ("rsa", "sha256")
    foreign = _verdict(path, _by_sign_file(unsigned_module, foreign_keys, host, sign_file, tmp_path), trusted)
    assert (foreign.accepted, foreign.intact, foreign.errno) == (False, None, "EKEYREJECTED")
    assert "ENOKEY" in foreign.reason
    flipped = bytearray(signed)
    flipped[len(unsigned_module) // 2] ^= 4
    changed = _verdict(path, bytes(flipped), trusted)
    assert (changed.accepted, changed.intact, changed.errno) == (False, False, "EKEYREJECTED")
    unsigned = _verdict(path, unsigned_module, trusted)
    assert (unsigned.accepted, unsigned.intact, unsigned.errno) == (False, None, "EKEYREJECTED")
    cut = _verdict(path, append_signature(unsigned_module, b"\x30\x03abc"), trusted)
    assert (cut.accepted, cut.intact, cut.errno) == (False, False, "EBADMSG")
    assert _verdict(path, b"text", trusted).errno == "ENOEXEC"
    other = _verdict(path, signed, trusted, "6.12.0-other SMP ")
    assert (other.accepted, other.intact, other.errno) == (False, True, "ENOEXEC")


def test_stripping_after_signing_is_detected(unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, need, trusted) -> None:
    need("strip")
    path = tmp_path / "demo.ko"
    path.write_bytes(unsigned_module)
    sign_modules([path], test_keys.pair("module").signer(host), host)
    assert verify_module(path, trusted).accepted
    host.run(["strip", "--strip-debug", path])
    verdict = verify_module(path, trusted)
    assert not verdict.accepted
    assert "stripped" in verdict.reason


def _tree(folder: Path, module: bytes, count: int) -> Path:
    for number in range(count):
        place = folder / f"kernel/{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"m{number}.ko").write_bytes(module + number.to_bytes(4, "little"))
    (folder / "modules.dep").write_text("")
    (folder / "link.ko").symlink_to("kernel/0/m0.ko")
    return folder


def _digests(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in find_modules([folder])}


def test_parallel_workers_give_the_same_bytes_as_one_process(unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path) -> None:
    tree = _tree(tmp_path / "in", unsigned_module, 70)
    before = _digests(tree)
    signer = test_keys.pair("module").signer(host)
    sign_modules(find_modules([tree]), signer, host, out=tmp_path / "one", root=tree, jobs=1)
    results = sign_modules(find_modules([tree]), signer, host, out=tmp_path / "many", root=tree, jobs=3)
    assert len(results) == 70
    assert _digests(tmp_path / "one") == _digests(tmp_path / "many")
    assert _digests(tree) == before
    assert all(data.endswith(MARKER) for data in _digests(tmp_path / "many").values())


def test_modules_that_workers_hash_together_are_those_that_sign_file_signs(
    unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, sign_file: Path
) -> None:
    modules = {f"m{number:02}.ko": unsigned_module + bytes(number * 997) for number in range(40)}
    modules["m07.ko"] += bytes(9 << 20)  # more than a worker holds at once
    modules["m11.ko"] += bytes(2 << 20)  # more than goes into a lane
    for name, data in modules.items():
        (tmp_path / name).write_bytes(data)
    sign_modules(find_modules([tmp_path]), test_keys.pair("module").signer(host), host, digest_name="sha384", jobs=2)
    for name in ("m00.ko", "m01.ko", "m07.ko", "m08.ko", "m11.ko", "m39.ko"):
        assert (tmp_path / name).read_bytes() == _by_sign_file(modules[name], test_keys, host, sign_file, tmp_path, "sha384"), name


@pytest.mark.parametrize("jobs", [1, 2])
def test_damaged_module_stops_signing_and_leaves_every_file_whole(
    jobs: int, unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, trusted
) -> None:
    tree = _tree(tmp_path, unsigned_module, 40)
    (tree / "kernel/0/m9.ko").write_bytes(b"not a module")
    signer = test_keys.pair("module").signer(host)
    with pytest.raises(FormatError, match=r"m9\.ko"):
        sign_modules(find_modules([tree]), signer, host, jobs=jobs)
    for path in find_modules([tree]):
        whole = path.read_bytes()
        assert whole == b"not a module" or read_module(path).payload.startswith(unsigned_module)
    assert list(tree.rglob("*.tmp")) == []
    (tree / "kernel/0/m9.ko").unlink()
    sign_modules(find_modules([tree]), signer, host, jobs=jobs)
    assert all(verify_module(path, trusted).accepted for path in find_modules([tree]))


class _Signer:
    """A signer to whose workers something happens: `event(number)` at the beginning of each one's signature `number`."""

    survives_fork = True

    def __init__(self, signer: Signer, event: Callable[[int], None]) -> None:
        self.certificate, self.signer, self.event, self.parent, self.number = signer.certificate, signer, event, os.getpid(), 0

    def sign(self, message: bytes, digest_name: str) -> bytes:
        if os.getpid() != self.parent:
            self.number += 1
            self.event(self.number)
        return self.signer.sign(message, digest_name)


@pytest.mark.parametrize("victims", ["one", "all"])
def test_killed_worker_is_an_error_and_not_a_hang(
    victims: str, unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, trusted
) -> None:
    tree = _tree(tmp_path / "tree", unsigned_module, 120)
    before = _digests(tree)

    def die(number: int) -> None:
        """Dies as a worker does when memory runs out."""
        with suppress(FileExistsError):
            (tmp_path / ("victim" if victims == "one" else str(os.getpid()))).mkdir()
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ToolFailedError, match="worker was killed"):
        sign_modules(find_modules([tree]), _Signer(test_keys.pair("module").signer(host), die), host, jobs=3)
    for name, data in _digests(tree).items():
        assert data == before[name] or verify_module(tree / name, trusted).accepted, name
    assert _children() == []


def test_interrupted_workers_end_after_the_module_that_they_sign(
    unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, trusted
) -> None:
    tree = _tree(tmp_path / "tree", unsigned_module, 120)
    before = _digests(tree)
    names = sorted(path.name for path in tree.rglob("*"))
    parent = os.getpid()

    def interrupt(number: int) -> None:
        """Is somebody who presses Ctrl-C, and again while the workers end."""
        with suppress(FileExistsError):
            if number >= 2:
                (tmp_path / "pressed").mkdir()
                for _ in range(2):
                    os.kill(parent, signal.SIGINT)
                    time.sleep(0.2)
        if number >= 2:
            time.sleep(0.5)

    with pytest.raises(KeyboardInterrupt):
        sign_modules(find_modules([tree]), _Signer(test_keys.pair("module").signer(host), interrupt), host, jobs=2)
    changed = [name for name, data in _digests(tree).items() if data != before[name]]
    assert 1 < len(changed) < 16, "a chunk is 16 modules"
    assert all(verify_module(tree / name, trusted).accepted for name in changed)
    assert sorted(path.name for path in tree.rglob("*")) == names
    assert _children() == []


def _children() -> list[int]:
    return [child.pid or 0 for child in multiprocessing.active_children()]


def test_killed_run_leaves_each_module_old_or_new_no_other_file_and_no_process(
    unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path, trusted
) -> None:
    tree = _tree(tmp_path, unsigned_module, 400)
    before = _digests(tree)
    names = sorted(path.name for path in tree.rglob("*"))
    pair = test_keys.pair("module")
    argv = [sys.executable, "-m", "ipe_build", "modules", "sign", tree, "--key", pair.uri, "--cert", pair.certificate, "--jobs", "3"]
    changed: list[str] = []
    with subprocess.Popen(argv, start_new_session=True) as run:
        while len(changed) < 20 and run.poll() is None:
            changed = [name for name, data in _digests(tree).items() if data != before[name]]
        run.kill()
    for _ in range(400):
        if not _processes_of_session(run.pid):
            break
        time.sleep(0.05)
    assert _processes_of_session(run.pid) == []
    assert run.returncode == -signal.SIGKILL
    after = _digests(tree)
    for name, data in after.items():
        assert data == before[name] or verify_module(tree / name, trusted).accepted, name
    assert 20 <= sum(data != before[name] for name, data in after.items()) < 400
    assert sorted(path.name for path in tree.rglob("*")) == names
    sign_modules(find_modules([tree]), pair.signer(host), host)
    assert all(verify_module(path, trusted).accepted for path in find_modules([tree])[::20])


def _processes_of_session(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_two_modules_are_never_written_to_one_file(unsigned_module: bytes, test_keys: KeySet, host: Host, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "demo.ko").write_bytes(unsigned_module)
    signer = test_keys.pair("module").signer(host)
    with pytest.raises(InputError, match="same file"):
        sign_modules(find_modules([tmp_path / "a", tmp_path / "b"]), signer, host, out=tmp_path / "out")


@pytest.mark.parametrize("kind", ["gzip", "xz", "zstd"])
def test_cut_or_extended_compressed_module_is_a_format_error(kind: str, unsigned_module: bytes, host: Host, tmp_path: Path, need) -> None:
    need(PACK[kind][0])
    packed = host.run(PACK[kind], stdin=unsigned_module).stdout
    path = tmp_path / f"demo.ko{SUFFIX[kind]}"
    for damaged in (packed[:-5], packed[: len(packed) // 2], packed + b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            read_module(path)
    path.write_bytes(packed)
    assert read_module(path).payload == unsigned_module


def test_verbs_sign_and_verify_a_folder(
    unsigned_module: bytes, test_keys: KeySet, foreign_keys: KeySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = _tree(tmp_path / "in", unsigned_module, 5)
    pair = test_keys.pair("module")
    argv = ["modules", "sign", str(tree), "--key", pair.uri, "--cert", str(pair.certificate), "-o", str(tmp_path / "out")]
    assert main([*argv, "--compression", "zst", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["modules"]) == 5
    assert main(["modules", "verify", str(tmp_path / "out"), "--trusted", str(test_keys.bundle), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["accepted"], row["compression"], row["algorithm"]) for row in rows} == {(True, "zstd", "rsa")}
    assert main(["modules", "verify", str(tmp_path / "out"), "--trusted", str(foreign_keys.bundle)]) == 1
    assert "0 accepted, 5 refused" in capsys.readouterr().out
    assert main(argv) == 2


def test_the_verbs_words_are_those_of_the_configuration_and_suffixes_are_taken_for_them(
    unsigned_module: bytes, test_keys: KeySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(ModuleCompression) == KINDS
    pair = test_keys.pair("module")
    for word, suffix in (("zstd", ".zst"), ("zst", ".zst"), ("gz", ".gz"), ("gzip", ".gz")):
        tree = _tree(tmp_path / f"in-{word}", unsigned_module, 1)
        argv = ["modules", "sign", str(tree), "--key", pair.uri, "--cert", str(pair.certificate), "--compression", word, "--quiet"]
        assert main(argv) == 0
        assert [path.name.partition(".ko")[2] for path in find_modules([tree])] == [suffix]
    capsys.readouterr()
    assert main([*argv[:-2], "lz4"]) == 2
    assert "'none', 'gzip', 'xz', 'zstd'" in capsys.readouterr().err


def test_a_misspelled_folder_for_signed_modules_is_not_made(
    unsigned_module: bytes, test_keys: KeySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, out, pair = _tree(tmp_path / "in", unsigned_module, 1), tmp_path / "absent/out", test_keys.pair("module")
    argv = ["modules", "sign", str(tree), "--key", pair.uri, "--cert", str(pair.certificate), "-o", str(out), "--quiet"]
    assert main(argv) == 2
    assert f"error: {out}: the folder {out.parent} does not exist" in capsys.readouterr().err and not out.parent.exists()
    out.parent.mkdir()
    assert main(argv) == 0


@pytest.mark.parametrize("workers", [1, 2, 6])
@pytest.mark.parametrize("count", [2, 5, 17, 33, 97, 98, 2000])
def test_workers_are_given_every_module_but_the_first_once(count: int, workers: int) -> None:
    chunks = module_signing._chunks(count, workers)
    order = module_signing._apart(len(chunks), workers)
    assert sorted(order) == list(range(len(chunks)))
    assert [number for chunk in chunks for number in chunk] == list(range(1, count))
