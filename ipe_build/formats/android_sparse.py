"""Android sparse images: what fastboot writes to a partition. Chunks of data, chunks of one repeated word, chunks that do not matter.

Source: AOSP system/core libsparse/sparse_format.h.
"""

from __future__ import annotations

import struct
from enum import IntEnum

MAGIC = 0xED26FF3A
BLOCK_BYTES = 4096
_HEADER = struct.Struct("<IHHHHIIII")
"""magic, major, minor, header size, chunk header size, block size, blocks, chunks, checksum (0: none)."""
_CHUNK = struct.Struct("<HHII")
"""type, reserved, blocks of the output, bytes of the chunk with this header."""
HEADER_BYTES = _HEADER.size
CHUNK_HEADER_BYTES = _CHUNK.size


class ChunkType(IntEnum):
    """What follows a chunk's header: the blocks themselves; four bytes that fill them; nothing."""

    RAW = 0xCAC1
    FILL = 0xCAC2
    DONT_CARE = 0xCAC3


def header(blocks: int, chunks: int) -> bytes:
    """Returns the file's first 28 bytes, little-endian."""
    return _HEADER.pack(MAGIC, 1, 0, HEADER_BYTES, CHUNK_HEADER_BYTES, BLOCK_BYTES, blocks, chunks, 0)


def chunk_header(kind: ChunkType, blocks: int) -> bytes:
    """Returns a chunk's 12 bytes; after them come `blocks` blocks (RAW), four bytes (FILL) or nothing."""
    payload = {ChunkType.RAW: blocks * BLOCK_BYTES, ChunkType.FILL: 4, ChunkType.DONT_CARE: 0}[kind]
    return _CHUNK.pack(kind, 0, blocks, CHUNK_HEADER_BYTES + payload)
