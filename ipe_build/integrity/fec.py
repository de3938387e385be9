"""Forward error correction of dm-verity: Reed-Solomon parity over data and hash blocks, like veritysetup's to the byte.

The covered blocks are the data's, then the hash area's from the tree on. With R roots, N = 255 - R and `rounds` = covered / N rounded up,
round r takes the N blocks r, r + rounds, r + 2 * rounds, … (those past the end are zeros); byte i of these is one codeword, whose R parity
bytes are at offset (r * block size + i) * R.
Source: cryptsetup lib/verity/verity_fec.c (FEC_process_inputs); kernel drivers/md/dm-verity-fec.h.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipe_build.errors import InputError
from ipe_build.integrity import engine
from ipe_build.integrity.reed_solomon import CODEWORD, parity
from ipe_build.integrity.verity import amount_shown

if TYPE_CHECKING:
    from ipe_build.host import Host
    from ipe_build.integrity.files import Input
    from ipe_build.integrity.verity import VerityTree


@dataclass(frozen=True, slots=True)
class Cover:
    """The blocks that are protected: from two open files, as rows of rounds."""

    data: int
    hash_area: int
    hash_offset: int
    block_size: int
    data_blocks: int
    blocks: int
    roots: int

    @classmethod
    def of(cls, data: int, hash_area: int, tree: VerityTree, covered: int) -> Cover:
        """Returns the cover of a tree's files, given as descriptors; `covered` is how many blocks there are in all."""
        parameters = tree.parameters
        if parameters.fec is None:
            raise InputError("the tree has no error correction", hint="say --fec-device FILE and --fec-roots")
        return cls(data, hash_area, parameters.tree_offset, parameters.data_block_size, tree.data_blocks, covered, parameters.fec.roots)

    @property
    def columns(self) -> int:
        """Returns how many blocks make a round: 255 - roots."""
        return CODEWORD - self.roots

    @property
    def rounds(self) -> int:
        """Returns how many rounds there are."""
        return -(-self.blocks // self.columns)

    @property
    def parity_size(self) -> int:
        """Returns how many bytes the parity of all rounds takes."""
        return self.rounds * self.block_size * self.roots

    def block(self, index: int) -> bytes:
        """Returns covered block `index`; zeros past the end, as also for what a file that is not padded lacks."""
        if index >= self.blocks:
            return bytes(self.block_size)
        if index < self.data_blocks:
            piece = os.pread(self.data, self.block_size, index * self.block_size)
        else:
            piece = os.pread(self.hash_area, self.block_size, self.hash_offset + (index - self.data_blocks) * self.block_size)
        return piece.ljust(self.block_size, b"\0")

    def rows(self, number: int) -> list[bytes]:
        """Returns the blocks of a round."""
        return [self.block(column * self.rounds + number) for column in range(self.columns)]


def encode(source: Input, hash_area: int, tree: VerityTree, covered: int, target: int, host: Host) -> None:
    """Writes the parity of all rounds into the open file `target`, from the FEC offset on. Raises: InputError, OSError."""
    cover = Cover.of(source.descriptor, hash_area, tree, covered)
    offset = tree.parameters.fec.offset if tree.parameters.fec is not None else 0
    extension = engine.native() if host.env.get(engine.KERNEL_VARIABLE) != "python" else None
    if extension is not None:
        place = (source.descriptor, hash_area, cover.hash_offset, cover.data_blocks, covered, cover.block_size, cover.roots)
        report = engine.Report(*extension.fec(*place, target, offset, host.jobs, None))
        if report.status != engine.STATUS_OK:
            raise OSError(report.errno, os.strerror(report.errno), str(source.path))
        return
    show = amount_shown(host, cover.rounds * cover.columns * cover.block_size)
    for number in range(cover.rounds):
        _write(target, round_parity(cover, number), offset)
        offset += cover.block_size * cover.roots
        show((number + 1) * cover.columns * cover.block_size)


def round_parity(cover: Cover, number: int) -> bytes:
    """Returns the parity bytes of one round, those of a codeword together."""
    return interleave(parity(cover.rows(number), cover.roots))


def interleave(rows: tuple[bytes, ...]) -> bytes:
    """Returns byte 0 of each row, then byte 1 of each, and so on."""
    mixed = bytearray(len(rows) * len(rows[0]))
    for index, row in enumerate(rows):
        mixed[index :: len(rows)] = row
    return bytes(mixed)


def _write(target: int, data: bytes, offset: int) -> None:
    """Writes all of `data` at `offset`."""
    while data:
        written = os.pwrite(target, data, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[written:]
        offset += written
