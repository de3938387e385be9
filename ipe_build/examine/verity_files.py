"""What fs-verity says of a file of an ext4 image, and whether the file's content is what it says: hashed again where it lies."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ipe_build.audit.facts import Region
from ipe_build.audit.file_tree import VerityOfFile
from ipe_build.errors import IpeBuildError
from ipe_build.formats.ext4 import Ext4, Ext4Inode
from ipe_build.formats.fsverity import DESCRIPTOR_SIZE, Descriptor, parse_descriptor
from ipe_build.integrity.fsverity import FsVerityParameters, root_hash_of_range

if TYPE_CHECKING:
    from ipe_build.host import Host

_COPY_BYTES = 8 << 20


class Image(Protocol):
    """An image that is read within bounds."""

    region: Region

    @property
    def left(self) -> int:
        """Returns how many bytes may still be read."""

    def take(self, length: int) -> None:
        """Counts bytes that are read."""

    def read(self, offset: int, length: int) -> bytes:
        """Returns bytes of the image."""


class VerityFiles:
    """Reads fs-verity's descriptors and hashes contents. Hard links of one file are hashed once."""

    def __init__(self, filesystem: Ext4, image: Image, scratch: Path, host: Host) -> None:
        self._filesystem, self._image, self._scratch, self._host = filesystem, image, scratch, host
        self._known: dict[int, VerityOfFile] = {}

    def of(self, inode: Ext4Inode) -> VerityOfFile:
        """Returns what fs-verity says of a file. A descriptor that cannot be is said with an empty digest: no rule matches it."""
        if inode.number not in self._known:
            self._known[inode.number] = self._look(inode)
        return self._known[inode.number]

    def _look(self, inode: Ext4Inode) -> VerityOfFile:
        try:
            raw = self._filesystem.verity_descriptor(inode)
            descriptor = parse_descriptor(raw)
            digest = hashlib.new(descriptor.hash_name, replace(descriptor, signature_size=0).build()).digest()
        except IpeBuildError:
            return VerityOfFile("", b"", b"", matches=False)
        signature = raw[DESCRIPTOR_SIZE : DESCRIPTOR_SIZE + descriptor.signature_size]
        matches: bool | None = False
        if descriptor.data_size == inode.size_bytes:
            # What would use up what may be read of the image is left alone, and said to be.
            matches = self._matches(inode, descriptor) if 2 * inode.size_bytes < self._image.left else None
        return VerityOfFile(descriptor.hash_name, digest, signature, matches)

    def _matches(self, inode: Ext4Inode, descriptor: Descriptor) -> bool:
        """Returns whether the content has the descriptor's root hash. Raises: OSError."""
        parameters = FsVerityParameters(descriptor.hash_name, descriptor.block_size, descriptor.salt)
        region, size = self._image.region, inode.size_bytes
        self._image.take(size)
        with tempfile.TemporaryFile(dir=self._scratch) as levels:

            def hashed(file: int, offset: int) -> bool:
                found = root_hash_of_range(file, offset, size, parameters, levels.fileno(), self._host, name=str(region.path))
                return found == descriptor.root_hash

            if len(inode.pieces) == 1 and inode.pieces[0][0] >= 0:
                return self._in_place(hashed, region.offset_bytes + inode.pieces[0][0])
            with tempfile.TemporaryFile(dir=self._scratch) as copy:
                self._copy(inode, copy.fileno())
                return hashed(copy.fileno(), 0)

    def _in_place(self, hashed: Callable[[int, int], bool], offset: int) -> bool:
        descriptor = os.open(self._image.region.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return hashed(descriptor, offset)
        finally:
            os.close(descriptor)

    def _copy(self, inode: Ext4Inode, target: int) -> None:
        """Writes the pieces of a file one behind the other; holes stay holes."""
        os.ftruncate(target, inode.size_bytes)
        at = 0
        for place, length in inode.pieces:
            for start in range(0, length if place >= 0 else 0, _COPY_BYTES):
                os.pwrite(target, self._image.read(place + start, min(_COPY_BYTES, length - start)), at + start)
            at += length
