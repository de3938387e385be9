"""Our fs-verity digests, payloads and manifests against the real fsverity program's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipe_build.errors import InputError
from ipe_build.formats.fsverity import Descriptor, formatted_digest, parse_descriptor, parse_formatted_digest
from ipe_build.host import Host
from ipe_build.integrity.fsverity import FsVerityParameters, measure, measure_all
from ipe_build.integrity.manifest import make_manifest
from ipe_build.signing.certificates import KeySet
from tests.fixtures.integrity import kernels_of, noise, with_kernel

_SIZES = [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 65536, 131072, 524288, 524289, 1048576, 1048577, 3000001]


def _theirs(fsverity: Path, parameters: FsVerityParameters, *files: Path) -> list[bytes]:
    words = [f"--hash-alg={parameters.hash_name}", f"--block-size={parameters.block_size}", "--compact"]
    if parameters.salt:
        words.append(f"--salt={parameters.salt.hex()}")
    done = subprocess.run([fsverity, "digest", *words, *files], capture_output=True, text=True, check=True)
    return [bytes.fromhex(line) for line in done.stdout.split()]


@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
@pytest.mark.parametrize("block_size", [1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_digests_are_those_of_fsverity(hash_name: str, block_size: int, tmp_path: Path, host: Host, need: Callable[[str], Path]) -> None:
    files = []
    for size in _SIZES:
        files.append(tmp_path / str(size))
        files[-1].write_bytes(noise(size))
    for salt in (b"", b"\1", noise(20), noise(32)):
        parameters = FsVerityParameters(hash_name, block_size, salt)
        wanted = _theirs(need("fsverity"), parameters, *files)
        for kernel in kernels_of(hash_name):
            assert [found.digest for found in measure_all(files, parameters, with_kernel(host, kernel))] == wanted, kernel
        assert [measure(file, parameters, host).digest for file in files] == wanted


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(0, 300000), block_log=st.integers(10, 16), salt=st.binary(max_size=32), hash_name=st.sampled_from(["sha256", "sha512"])
)
def test_random_files_have_the_digest_of_fsverity(
    size: int,
    block_log: int,
    salt: bytes,
    hash_name: str,
    tmp_path_factory: pytest.TempPathFactory,
    host: Host,
    need: Callable[[str], Path],
) -> None:
    file = tmp_path_factory.mktemp("fsverity") / "file"
    file.write_bytes(noise(size))
    parameters = FsVerityParameters(hash_name, 1 << block_log, salt)
    assert [measure_all([file], parameters, host)[0].digest] == _theirs(need("fsverity"), parameters, file)


def test_a_file_too_big_for_one_thread_has_the_digest_of_fsverity(tmp_path: Path, host: Host, need: Callable[[str], Path]) -> None:
    file = tmp_path / "big"
    file.write_bytes(noise(1 << 20) * 33 + b"end")
    parameters = FsVerityParameters()
    assert [measure_all([file], parameters, host)[0].digest] == _theirs(need("fsverity"), parameters, file)


def test_a_manifest_names_every_file_with_its_digest(tmp_path: Path, host: Host, need: Callable[[str], Path]) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(noise(5000))
    (root / "usr/bin/same").write_bytes(noise(5000))
    (root / "usr/bin/link").symlink_to("tool")
    (root / "usr/bin/line\nbreak").write_bytes(b"x")
    parameters = FsVerityParameters()
    manifest = make_manifest(root, parameters, host)
    value = json.loads(manifest.to_json())
    assert [entry["path"] for entry in value["files"]] == ["/usr/bin/line\nbreak", "/usr/bin/same", "/usr/bin/tool"]
    digest = _theirs(need("fsverity"), parameters, root / "usr/bin/tool")[0].hex()
    assert [entry["digest"] for entry in value["files"]][1:] == [digest, digest]
    rules = [line for line in manifest.rules() if not line.startswith("#")]
    assert rules.count(f"op=EXECUTE fsverity_digest=sha256:{digest} action=ALLOW") == 1
    assert len(rules) == 2
    assert all("\n" not in line for line in manifest.rules())


@pytest.mark.parametrize("kernel", ["", "python"])
def test_what_is_not_a_file_is_refused_by_name(kernel: str, tmp_path: Path, host: Host) -> None:
    for path, reason in [
        (tmp_path, "regular file"),
        (Path("/dev/null"), "regular file"),
        (tmp_path / "none", "cannot be opened: No such file"),
    ]:
        with pytest.raises(InputError, match=reason) as caught:
            measure_all([path], FsVerityParameters(), with_kernel(host, kernel))
        assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "wrong", [{"hash_name": "sha1"}, {"block_size": 512}, {"block_size": 5000}, {"block_size": 131072}, {"salt": bytes(33)}]
)
def test_parameters_that_the_kernel_refuses_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        FsVerityParameters(**wrong)  # type: ignore[arg-type]


@given(digest=st.binary(min_size=64, max_size=64), size=st.integers(0, 2**64 - 1), salt=st.binary(max_size=32), log=st.integers(10, 16))
def test_descriptor_and_payload_round_trip(digest: bytes, size: int, salt: bytes, log: int) -> None:
    descriptor = Descriptor("sha512", 1 << log, salt, size, digest, 7)
    assert parse_descriptor(descriptor.build()) == descriptor
    assert parse_formatted_digest(formatted_digest("sha512", digest)) == ("sha512", digest)


def test_our_signature_file_is_that_of_fsverity(tmp_path: Path, need: Callable[[str], Path], test_keys: KeySet) -> None:
    pair = test_keys.pair("verity")
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.write_bytes(noise(70_001, file.name))
    options = ["--hash-alg=sha512", "--block-size=1024", "--salt=abcd"]
    for file in files:
        words = [need("fsverity"), "sign", file, f"{file}.theirs", f"--key={pair.key}", f"--cert={pair.certificate}", *options]
        subprocess.run(words, check=True, capture_output=True)
    words = [sys.executable, "-m", "ipe_build", "fsverity", "sign", *files, "--key", pair.uri, "--cert", pair.certificate, *options]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    for file in files:
        assert Path(f"{file}.fsverity.p7s").read_bytes() == Path(f"{file}.theirs").read_bytes()
