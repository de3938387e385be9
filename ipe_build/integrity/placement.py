"""Where a new hash area and its error correction go: into files of their own, or behind the data in its own file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ipe_build.errors import InputError, OutputError
from ipe_build.integrity.files import Input, is_same_file

if TYPE_CHECKING:
    from ipe_build.host import Host
    from ipe_build.integrity.verity import VerityTree

_CHUNK = 1 << 20


class Placement:
    """The open files that a tree is being written to; nothing that a reader sees changes before `finish`.

    What goes behind the data is made in a scratch file first, at the same offsets, and added to the data at the very end.
    """

    def __init__(self, source: Input, hash_area: Path, fec_area: Path | None, tree: VerityTree, host: Host, *, force: bool) -> None:
        """`tree` needs no root hash yet. Nothing is opened before the `with` block begins. Raises: InputError, OutputError."""
        self._source = source
        self._tree = tree
        self._host = host
        self._force = force
        self._stack = ExitStack()
        self._inside = is_same_file(source.path, hash_area)
        self._hash_area = hash_area
        self._fec_area = fec_area
        self._fec_inside = fec_area is not None and is_same_file(source.path, fec_area)
        self._fec_with_hash = fec_area is not None and is_same_file(hash_area, fec_area)
        self.hash_name = str(hash_area)
        self.hash_descriptor = -1
        self._fec_descriptor = -1
        self._check_overlap()

    def _check_overlap(self) -> None:
        """Raises: InputError when data, tree and error correction would lie on each other."""
        tree, fec = self._tree, self._tree.parameters.fec
        if (fec is None) != (self._fec_area is None):
            raise InputError("error correction needs both its parameters and a place to write it to", hint="say --fec-device FILE")
        if self._inside and tree.hash_offset < tree.data_size:
            raise InputError(
                f"the data area ({tree.data_size} bytes) overlaps the hash area at {tree.hash_offset}",
                where=self.hash_name,
                hint=f"say --hash-offset {-(-tree.data_size // 4096) * 4096} or more, or name another file for the hash area",
            )
        if fec is not None and self._fec_with_hash and fec.offset < tree.end_offset:
            raise InputError(
                f"the hash area (up to {tree.end_offset}) overlaps the FEC area at {fec.offset}",
                where=str(self._fec_area),
                hint=f"say --fec-offset {-(-tree.end_offset // 4096) * 4096} or more, or name another file for it",
            )
        if fec is not None and self._fec_inside and fec.offset < tree.data_size:
            raise InputError(f"the data area ({tree.data_size} bytes) overlaps the FEC area at {fec.offset}", where=str(self._fec_area))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            scratch = stack.enter_context(self._host.scratch(beside=self._source.path)) if self._inside or self._fec_inside else None
            if self._inside and scratch is not None:
                self.hash_descriptor = self._open(stack, scratch / "hash")
            else:
                self.hash_descriptor = self._open(stack, stack.enter_context(self._host.output(self._hash_area, force=self._force)))
            if self._fec_area is None or self._fec_with_hash:
                self._fec_descriptor = self.hash_descriptor
            elif self._fec_inside and scratch is not None:
                self._fec_descriptor = self._open(stack, scratch / "fec")
            else:
                self._fec_descriptor = self._open(stack, stack.enter_context(self._host.output(self._fec_area, force=self._force)))
            if self._inside:
                self._check_room(self._tree.hash_offset)
            if self._fec_inside and self._tree.parameters.fec is not None:
                self._check_room(self._tree.parameters.fec.offset)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    @staticmethod
    def _open(stack: ExitStack, path: Path) -> int:
        """Returns a descriptor of a new file, closed before `stack` renames it."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        stack.callback(os.close, descriptor)
        return descriptor

    def _check_room(self, offset: int) -> None:
        """Raises: OutputError when bytes that are not zero lie where something would be added to the data."""
        if self._force:
            return
        while piece := os.pread(self._source.descriptor, _CHUNK, offset):
            if piece.count(0) != len(piece):
                raise OutputError(
                    f"there is something behind the data already, from byte {offset}",
                    where=str(self._source.path),
                    hint="name another --hash-offset, or say --force to write over it",
                )
            offset += len(piece)

    def finish(self, tree: VerityTree) -> VerityTree:
        """Returns the tree with the error correction's extent, after writing that and what goes into the data's own file."""
        if tree.parameters.fec is not None:
            from ipe_build.integrity import fec

            covered = self._covered(tree)
            with self._host.progress.step("verity: error correction"):
                fec.encode(self._source, self.hash_descriptor, tree, covered, self._fec_descriptor, self._host)
            tree = replace(tree, fec_blocks=covered)
        self._grow(tree)
        return tree

    def _covered(self, tree: VerityTree) -> int:
        """Returns how many blocks the error correction covers: the data's, then the hash area from the tree on.

        Up to the FEC area when that lies in the hash area's file, up to the file's end otherwise.
        Source: cryptsetup lib/verity/verity_fec.c (VERITY_FEC_blocks).
        """
        parameters = tree.parameters
        if self._fec_with_hash and parameters.fec is not None:
            end = parameters.fec.offset
        else:
            end = os.fstat(self.hash_descriptor).st_size
            end = max(end, self._source.size) if self._inside else end
        return tree.data_blocks + max(0, end // parameters.data_block_size - tree.hash_start_block)

    def _grow(self, tree: VerityTree) -> None:
        """Adds to the data's own file: its padding, the hash area, the error correction; takes it back when that fails."""
        fec = tree.parameters.fec
        parts = []
        if self._inside:
            parts.append((self.hash_descriptor, tree.hash_offset))
        if self._fec_inside and not self._fec_with_hash and fec is not None:
            parts.append((self._fec_descriptor, fec.offset))
        target = self._source.descriptor
        try:
            if self._source.size < tree.data_size:
                os.ftruncate(target, tree.data_size)
            for descriptor, offset in parts:
                size = os.fstat(descriptor).st_size
                if size <= offset:
                    continue
                os.posix_fallocate(target, offset, size - offset)
                _copy(descriptor, target, offset, size)
            if parts:
                os.fsync(target)
        except OSError as error:
            os.ftruncate(target, self._source.size)
            raise OutputError(f"cannot be lengthened: {error.strerror}; it has its old size again", where=str(self._source.path)) from error


def _copy(source: int, target: int, offset: int, end: int) -> None:
    """Copies the bytes from `offset` to `end` between two files, to the same place."""
    while offset < end:
        piece = os.pread(source, min(_CHUNK, end - offset), offset)
        offset += os.pwrite(target, piece, offset)
