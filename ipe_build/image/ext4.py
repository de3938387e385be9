"""ext4 images with nothing in them that the inputs did not say: no host configuration, no clock, no random seed."""

from __future__ import annotations

import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from ipe_build.image.rootfs import Entry, Rootfs
from ipe_build.image.stage import Stage

if TYPE_CHECKING:
    from ipe_build.host import Host

BLOCK_BYTES = 4096
INODE_BYTES = 256
_BLOCKS_PER_GROUP = 8 * BLOCK_BYTES
_ROOT_INODE = 2
_FIRST_INODE = 11
_FEATURES = "ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
_CONFIGURATION = f"""[defaults]
\tbase_features = {_FEATURES}
\tdefault_mntopts = acl,user_xattr
\tenable_periodic_fsck = 0
\tblocksize = {BLOCK_BYTES}
\tinode_size = {INODE_BYTES}
\tinode_ratio = 16384
[fs_types]
\text4 = {{
\t\tinode_size = {INODE_BYTES}
\t}}
"""
_TIMES = ("ctime", "atime", "mtime")


def make_ext4(staged: Stage, out: Path, scratch: Path, uuid: UUID, epoch: int, size_bytes: int, host: Host) -> None:
    """Writes a read-only root's ext4 image (no journal) to `out`; `size_bytes` 0 means as small as fits with a little room.

    mke2fs takes the status-change time of the files it copies, which no one can set, and not the mode of the root folder: debugfs
    then writes every inode's times and that mode.
    """
    configuration = scratch / "mke2fs.conf"
    configuration.write_text(_CONFIGURATION)
    inodes = len({entry.inode_path for entry in staged.rootfs.entries}) + _FIRST_INODE + 5
    blocks = -(-size_bytes // BLOCK_BYTES) if size_bytes else _blocks_needed(staged.rootfs, inodes)
    root = staged.rootfs.entries[0]
    extended = f"hash_seed={uuid},root_owner={root.uid}:{root.gid},lazy_itable_init=0,nodiscard"
    options = ("-q", "-t", "ext4", "-b", str(BLOCK_BYTES), "-m", "0", "-N", str(inodes), "-U", str(uuid), "-E", extended)
    host.run(
        [*staged.prefix, host.tool("mke2fs"), *options, "-d", staged.folder, out, str(blocks)],
        env={"MKE2FS_CONFIG": str(configuration), "E2FSPROGS_FAKE_TIME": str(epoch or 1)},
    )
    script = scratch / "debugfs.script"
    lines = [*_time_lines(out, epoch), f"set_inode_field <{_ROOT_INODE}> mode 0{root.mode:o}"]
    script.write_text("".join(f"{line}\n" for line in lines))
    host.run(["debugfs", "-w", "-f", script, out], env={"E2FSPROGS_FAKE_TIME": str(epoch or 1), "DEBUGFS_PAGER": "cat"})


def _time_lines(image: Path, epoch: int) -> list[str]:
    """Returns debugfs commands that set the times of every inode in use.

    mke2fs hands out inodes in order and frees none, so those in use are the root and the first N after the reserved ones.
    Source: Linux Documentation/filesystems/ext4/super.rst (s_inodes_count at 0x0, s_free_inodes_count at 0x10).
    """
    with image.open("rb") as handle:
        handle.seek(1024)
        superblock = handle.read(1024)
    (total,) = struct.unpack_from("<I", superblock, 0)
    (free,) = struct.unpack_from("<I", superblock, 16)
    used = [_ROOT_INODE, *range(_FIRST_INODE, total - free + 1)]
    return [f"set_inode_field <{number}> {name} @{epoch}" for number in used for name in _TIMES]


def _blocks_needed(rootfs: Rootfs, inodes: int) -> int:
    """Returns how many blocks hold the contents and ext4's own tables, with 3% and 256 KiB to spare."""
    names: dict[str, int] = {}
    data = 4
    for entry in rootfs.entries:
        parent = entry.path.rpartition("/")[0]
        names[parent] = names.get(parent, 24) + _name_bytes(entry)
        if entry.is_file and not entry.hardlink:
            blocks = -(-entry.size_bytes // BLOCK_BYTES)
            data += blocks + blocks // 4096
        elif stat.S_ISLNK(entry.mode) or entry.is_folder or entry.xattrs:
            data += 1
        data += bool(entry.xattrs)
    data += sum(size // (BLOCK_BYTES - 300) + 1 for size in names.values())
    data += -(-inodes * INODE_BYTES // BLOCK_BYTES)
    data += (data // _BLOCKS_PER_GROUP + 1) * 8
    return data + data * 3 // 100 + 64


def _name_bytes(entry: Entry) -> int:
    """Returns what a directory record for the entry takes (linux_dirent: 8 bytes and the name, rounded up to 4)."""
    name = entry.path.rpartition("/")[2].encode("utf-8", "surrogateescape")
    return (8 + len(name) + 3) & ~3
