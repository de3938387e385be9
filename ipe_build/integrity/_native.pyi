"""The C extension; see _native.c. Absent where it was not built: import it through `engine.native()` only."""

from collections.abc import Callable
from pathlib import Path

def kernels(algorithm: str, /) -> tuple[str, ...]: ...
def best(algorithm: str, /) -> str: ...
def level(
    algorithm: str,
    kernel: str,
    prefix: bytes,
    suffix: bytes,
    source: int,
    source_offset: int,
    source_bytes: int,
    block_size: int,
    target: int,
    target_offset: int,
    hash_block_size: int,
    per_block: int,
    slot_size: int,
    bitmap: bytearray | None,
    threads: int,
    progress: Callable[[int], object] | None,
    /,
) -> tuple[int, int, int]: ...
def measure(
    paths: list[str | Path],
    algorithm: str,
    kernel: str,
    salt: bytes,
    algorithm_number: int,
    log_block_size: int,
    big: int,
    threads: int,
    progress: Callable[[int], object] | None,
    /,
) -> bytes: ...
def digest(algorithm: str, message: bytes, /) -> bytes: ...
def digests(algorithm: str, kernel: str, messages: list[bytes], /) -> bytes: ...
def fec(
    data: int,
    hash_area: int,
    hash_offset: int,
    data_blocks: int,
    covered: int,
    block_size: int,
    roots: int,
    target: int,
    target_offset: int,
    threads: int,
    progress: Callable[[int], object] | None,
    /,
) -> tuple[int, int, int]: ...
def spin(algorithm: str, kernel: str, prefix: bytes, block_size: int, megabytes: int, threads: int, /) -> int: ...
