"""What the kernel knows about a file at the moment it asks IPE: the input of every decision."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Digest:
    """An algorithm's name and a digest, as the kernel compares them: the name byte for byte, the digest by value and length."""

    algorithm: bytes
    value: bytes

    def __str__(self) -> str:
        return f"{self.algorithm.decode('latin-1')}:{self.value.hex()}"


@dataclass(frozen=True, slots=True)
class Facts:
    """A file, or no file at all (`has_file=False`): anonymous executable memory, init_module(), firmware from a buffer.

    `root_hash` is that of the dm-verity device the file's filesystem is on, None where it is on none; `root_hash_signed` says
    whether the kernel checked a signature when that device was opened. `fsverity_digest` is the file's, None without fs-verity.
    Source: security/ipe/eval.c, ipe_build_eval_ctx().
    """

    has_file: bool = True
    boot_verified: bool = False
    root_hash: Digest | None = None
    root_hash_signed: bool = False
    fsverity_digest: Digest | None = None
    fsverity_signed: bool = False


NO_FILE = Facts(has_file=False)
"""What a load from a buffer looks like."""
