"""fs-verity laid into a finished ext4 image, without mounting it and without being root.

The kernel keeps a verity file's Merkle tree behind its data: from the first multiple of 64 KiB past the end, then, from the next
filesystem block, the descriptor with its signature, and the descriptor's size in the last four bytes of the last block. debugfs allocates
those blocks one by one (`bmap -a`; its `fallocate` would mark them uninitialised, and the kernel read zeros), their content is written
into the image where they lie, the inode gets EXT4_VERITY_FL and the filesystem the `verity` feature.
Source: kernel fs/ext4/verity.c; e2fsprogs debugfs(8).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ipe_build.errors import FormatError, InputError, ToolFailedError
from ipe_build.formats.fsverity import Descriptor, formatted_digest
from ipe_build.integrity.files import copy_file, open_input
from ipe_build.integrity.fsverity import FsVerityParameters, write_tree

if TYPE_CHECKING:
    from ipe_build.host import Host

_ALIGNMENT = 65536
_EXTENTS_FLAG = 0x80000
_VERITY_FLAG = 0x100000
_FORBIDDEN_FLAGS = {0x800: "is encrypted", 0x10000000: "has its data in the inode", _VERITY_FLAG: "is a verity file already"}
_ENTRY = re.compile(rb"/(\d+)/(\d{6})/\d+/\d+/([^/\n]+)/(\d*)/")
_BATCH = 500
_NEEDS_RECOVERY = 4

Signer = Callable[[bytes], bytes]
"""Returns the builtin signature (detached PKCS#7 in DER) of a formatted digest."""


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file that is a verity file now: its paths in the image (hard links share an inode), inode number, size in bytes, digest."""

    paths: tuple[str, ...]
    inode: int
    size_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be laid behind one file: first block past the data, the bytes by their offset in the file, the last block."""

    file: SealedFile
    flags: int
    first_block: int
    tree: Path
    tree_offset: int
    descriptor: bytes
    descriptor_offset: int
    end_block: int


def seal_ext4(
    image: Path, parameters: FsVerityParameters, host: Host, *, paths: Sequence[str] | None = None, sign: Signer | None = None
) -> tuple[SealedFile, ...]:
    """Returns the files of an ext4 image that were made verity files: `paths` (absolute in the image), or all regular files.

    The image is replaced in one step when all is done, and left alone when anything fails. Raises: InputError when a file is not there
    or cannot be a verity file, or the image has no room for the trees; ToolFailedError, ToolMissingError (debugfs).
    """
    with host.scratch(beside=image) as scratch, host.progress.step(f"fs-verity: {image.name}"):
        work = _Image(image, image, host, scratch)
        work.check(parameters)
        files = work.regular_files()
        chosen = files if paths is None else _choose(files, paths, image)
        with open_input(image) as source, host.output(image, force=True) as temporary:
            copy_file(source, temporary)
            source.check_unchanged()
            work = replace(work, path=temporary)
            # In batches, so that the scratch space holds some of the files only.
            sealed: list[SealedFile] = []
            for start in range(0, len(chosen), _BATCH):
                plans = work.plan(chosen[start : start + _BATCH], parameters, sign)
                work.lay_down(plans)
                sealed += [plan.file for plan in plans]
            work.debugfs(["feature verity"], writable=True)
    return tuple(sealed)


def _choose(files: tuple[SealedFile, ...], paths: Sequence[str], image: Path) -> tuple[SealedFile, ...]:
    """Returns the files that have one of the paths. Raises: InputError for a path that no regular file has."""
    by_path = {path: file for file in files for path in file.paths}
    missing = [path for path in paths if path not in by_path]
    if missing:
        raise InputError(f"has no regular file {missing[0]!r}", where=str(image), hint="name paths as the device sees them: /usr/bin/tool")
    return tuple({by_path[path].inode: by_path[path] for path in paths}.values())


@dataclass(frozen=True, slots=True)
class _Image:
    """An ext4 image that debugfs works on."""

    path: Path
    name: Path
    host: Host
    scratch: Path
    block_size: int = 0

    def debugfs(self, commands: Sequence[str], *, writable: bool = False) -> list[bytes]:
        """Returns what each command printed. Raises: ToolFailedError when one complains (debugfs itself always ends with 0)."""
        script = self.scratch / "commands"
        script.write_text("".join(f"{command}\n" for command in commands), "utf-8", "surrogateescape")
        words: list[str | Path] = ["debugfs", *(["-w"] if writable else []), "-f", script, self.path]
        epoch = str(self.host.source_date_epoch or 1)
        done = self.host.run(words, env={"E2FSPROGS_FAKE_TIME": epoch, "DEBUGFS_PAGER": "cat"})
        complaints = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line and not line.startswith("debugfs 1.")]
        if complaints:
            if any("allocate" in line or "No space" in line or "free space" in line for line in complaints):
                raise InputError(
                    "has no room for the Merkle trees", where=str(self.name), hint="make the filesystem larger: resize2fs IMAGE SIZE"
                )
            raise ToolFailedError(f"debugfs: {complaints[0]}", where=str(self.name))
        return done.stdout.split(b"debugfs: ")[1:]

    def check(self, parameters: FsVerityParameters) -> None:
        """Raises: FormatError when this is no ext4 image, InputError when its kernel could not open such verity files."""
        with open_input(self.path) as source:
            superblock = source.read(1024, 1024)
        if len(superblock) < 1024 or superblock[56:58] != b"\x53\xef":
            raise FormatError(f"wanted the ext4 magic 53 ef, got {superblock[56:58].hex(' ')}", where=f"{self.name}: offset 0x438")
        if superblock[96] & _NEEDS_RECOVERY:
            raise InputError("was not unmounted: its journal must be replayed first", where=str(self.name), hint="e2fsck -f IMAGE")
        object.__setattr__(self, "block_size", 1024 << int.from_bytes(superblock[24:28], "little"))
        if parameters.block_size > self.block_size:
            raise InputError(
                f"its blocks have {self.block_size} bytes: a Merkle tree cannot have larger ones ({parameters.block_size})",
                where=str(self.name),
                hint=f"say --block-size {self.block_size}, or make it with mke2fs -b 4096",
            )

    def regular_files(self) -> tuple[SealedFile, ...]:
        """Returns all regular files, sorted by path, with the paths that share an inode together; no digests yet."""
        found: dict[int, tuple[list[str], int]] = {}
        folders = [(2, "")]
        seen = {2}
        while folders:
            outputs = self.debugfs([f"ls -p <{number}>" for number, _ in folders])
            below = []
            for (_, folder), text in zip(folders, outputs, strict=True):
                for number, mode, raw, size in _entries(text):
                    path = f"{folder}/{os.fsdecode(raw)}"
                    if mode >> 12 == 4 and raw not in (b".", b"..") and number not in seen:
                        seen.add(number)
                        below.append((number, path))
                    elif mode >> 12 == 8:
                        found.setdefault(number, ([], size))[0].append(path)
            folders = below
        files = [SealedFile(tuple(sorted(names)), number, size, b"") for number, (names, size) in found.items()]
        return tuple(sorted(files, key=lambda file: os.fsencode(file.paths[0])))

    def plan(self, files: Sequence[SealedFile], parameters: FsVerityParameters, sign: Signer | None) -> tuple[_Plan, ...]:
        """Returns what is to be laid behind each file, after hashing its content."""
        dumps = [self.scratch / f"file{number}" for number in range(len(files))]
        texts = self.debugfs([f"stat <{file.inode}>" for file in files])
        flags = [self._checked_flags(file, text) for file, text in zip(files, texts, strict=True)]
        self.debugfs([f"dump <{file.inode}> {dump}" for file, dump in zip(files, dumps, strict=True)])
        rows = zip(files, flags, dumps, strict=True)
        return tuple(self._plan_one(file, flag, dump, parameters, sign) for file, flag, dump in rows)

    def _checked_flags(self, file: SealedFile, text: bytes) -> int:
        """Returns an inode's flags. Raises: InputError when it cannot be a verity file."""
        flags = _flags(text)
        wrong = next((reason for flag, reason in _FORBIDDEN_FLAGS.items() if flags & flag), "")
        if wrong or not flags & _EXTENTS_FLAG:
            raise InputError(
                f"{file.paths[0]} {wrong or 'does not use extents'}", where=str(self.name), hint="fs-verity needs plain extent files"
            )
        return flags

    def _plan_one(self, file: SealedFile, flags: int, dump: Path, parameters: FsVerityParameters, sign: Signer | None) -> _Plan:
        """Returns the plan of one file, whose content is in `dump`, which is removed."""
        import hashlib

        tree = dump.with_suffix(".tree")
        with open_input(dump) as source, tree.open("w+b") as target:
            if source.size != file.size_bytes:
                raise ToolFailedError(
                    f"debugfs gave {source.size} bytes of {file.paths[0]}, wanted {file.size_bytes}", where=str(self.name)
                )
            root_hash = write_tree(source, parameters, target.fileno(), 0, self.host)
        dump.unlink()
        plain = Descriptor(parameters.hash_name, parameters.block_size, parameters.salt, file.size_bytes, root_hash)
        digest = hashlib.new(parameters.hash_name, plain.build()).digest()
        signature = sign(formatted_digest(parameters.hash_name, digest)) if sign is not None else b""
        descriptor = replace(plain, signature_size=len(signature)).build() + signature
        tree_offset = -(-file.size_bytes // _ALIGNMENT) * _ALIGNMENT
        descriptor_offset = self._up(tree_offset + tree.stat().st_size)
        end = self._up(descriptor_offset + len(descriptor) + 4)
        past = self._up(file.size_bytes) // self.block_size
        return _Plan(replace(file, digest=digest), flags, past, tree, tree_offset, descriptor, descriptor_offset, end // self.block_size)

    def _up(self, offset: int) -> int:
        """Returns an offset rounded up to a whole filesystem block."""
        return -(-offset // self.block_size) * self.block_size

    def lay_down(self, plans: Sequence[_Plan]) -> None:
        """Allocates the blocks behind the files, writes what belongs there, sets the flags."""
        commands = []
        for plan in plans:
            # Blocks that a file has past its end already would be taken for the descriptor's.
            commands.append(f"punch <{plan.file.inode}> {plan.first_block}")
            commands += [f"bmap -a <{plan.file.inode}> {number}" for number in _numbers(plan, self.block_size)]
        printed = iter(self.debugfs(commands, writable=True))
        with self.path.open("r+b") as image:
            for plan in plans:
                next(printed)
                content = dict(_blocks(plan, self.block_size))
                for number in _numbers(plan, self.block_size):
                    place = _last_number(next(printed), plan, self.name)
                    os.pwrite(image.fileno(), content.get(number, bytes(self.block_size)), place * self.block_size)
                plan.tree.unlink()
        self.debugfs([f"set_inode_field <{plan.file.inode}> flags {plan.flags | _VERITY_FLAG:#x}" for plan in plans], writable=True)


def _numbers(plan: _Plan, size: int) -> range:
    """Returns the file's blocks that its verity metadata takes."""
    return range(plan.tree_offset // size, plan.end_block)


def _last_number(text: bytes, plan: _Plan, image: Path) -> int:
    """Returns the block of the image that `bmap` printed. Raises: ToolFailedError when it printed none."""
    line = text.strip().splitlines()[-1].strip()
    if not line.isdigit() or line == b"0":
        raise ToolFailedError(f"debugfs allocated no block for {plan.file.paths[0]}: {line!r}", where=str(image))
    return int(line)


def _flags(text: bytes) -> int:
    """Returns the flags that debugfs's `stat` printed. Raises: ToolFailedError."""
    found = re.search(rb"Flags: 0x([0-9a-fA-F]+)", text)
    if found is None:
        raise ToolFailedError(f"debugfs: stat printed no flags: {text[:80]!r}")
    return int(found[1], 16)


def _entries(text: bytes) -> Iterator[tuple[int, int, bytes, int]]:
    """Yields inode, mode, name and size of each entry that `ls -p` printed."""
    for number, mode, name, size in _ENTRY.findall(text):
        if int(number):
            yield int(number), int(mode, 8), name, int(size or b"0")


def _blocks(plan: _Plan, size: int) -> Iterator[tuple[int, bytes]]:
    """Yields the blocks of a file's verity metadata by their number in the file; those not yielded are zeros."""
    tree = plan.tree.read_bytes()
    start = plan.tree_offset // size
    for at in range(0, len(tree), size):
        yield start + at // size, tree[at : at + size].ljust(size, b"\0")
    tail = plan.descriptor.ljust(plan.end_block * size - plan.descriptor_offset - 4, b"\0") + len(plan.descriptor).to_bytes(4, "little")
    for at in range(0, len(tail), size):
        yield (plan.descriptor_offset + at) // size, tail[at : at + size]
