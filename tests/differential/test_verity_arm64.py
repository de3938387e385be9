"""The kernel for arm64's cryptography extensions, cross-compiled and run by QEMU, gives what hashlib gives."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ipe_build.integrity
from tests.fixtures.integrity import noise

_DRIVER = r"""
#include "native.h"
#include <stdio.h>
#include <stdlib.h>

/* Prints the digests of COUNT blocks of SIZE bytes, after PREFIX bytes of prefix; all come from stdin. */
int main(int argc, char **argv)
{
    size_t size = atoi(argv[1]), count = atoi(argv[2]), before = atoi(argv[3]);
    uint8_t prefix[256], out[64][64], *outs[64], *data = malloc(size * count);
    const uint8_t *blocks[64];
    hasher h;
    hasher_thread t;

    if (fread(prefix, 1, before, stdin) != before || fread(data, size, count, stdin) != count)
        return 2;
    if (hasher_init(&h, argv[4], argv[5], prefix, before, prefix, 0, size) || hasher_thread_init(&h, &t))
        return 3;
    for (size_t i = 0; i < count; i++) {
        blocks[i] = data + i * size;
        outs[i] = out[i];
    }
    hasher_many(&h, &t, blocks, outs, count);
    for (size_t i = 0; i < count; i++, puts(""))
        for (size_t b = 0; b < h.algorithm->digest_size; b++)
            printf("%02x", out[i][b]);
    return 0;
}
"""


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], Path]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs the driver as an arm64 process."""
    compiler, emulator = need("aarch64-linux-gnu-gcc"), need("qemu-aarch64")
    folder = tmp_path_factory.mktemp("arm64")
    (folder / "driver.c").write_text(_DRIVER)
    sources = Path(ipe_build.integrity.__file__).parent
    words = [compiler, "-static", "-O2", "-w", f"-I{sources}", "-o", folder / "driver", folder / "driver.c", *sources.glob("native_*.c")]
    subprocess.run([*words, "-lpthread", "-ldl"], check=True, capture_output=True)

    def run(*words: object, data: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([emulator, folder / "driver", *map(str, words)], input=data, capture_output=True, check=False)

    return run


@pytest.mark.parametrize("name", ["sha256", "sha224"])
@pytest.mark.parametrize(("size", "count", "prefix"), [(4096, 7, 0), (4096, 9, 32), (512, 4, 256), (1024, 5, 77), (65536, 3, 64)])
def test_armv8_kernel_computes_what_hashlib_does(name: str, size: int, count: int, prefix: int, arm64) -> None:
    before, data = noise(prefix, "prefix"), noise(size * count)
    done = arm64(size, count, prefix, name, "armv8-ce", data=before + data)
    assert done.returncode == 0
    wanted = [hashlib.new(name, before + data[at : at + size]).hexdigest() for at in range(0, len(data), size)]
    assert done.stdout.decode().split() == wanted


def test_a_kernel_of_another_processor_is_refused(arm64) -> None:
    assert arm64(512, 1, 0, "sha256", "sha-ni", data=bytes(512)).returncode == 3
