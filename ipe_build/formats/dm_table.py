"""The texts that hand a verity device to the kernel, veritysetup or systemd.

Source: kernel Documentation/admin-guide/device-mapper/verity.rst and dm-init.rst; veritysetup(8); systemd-veritysetup-generator(8).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipe_build.errors import InputError

if TYPE_CHECKING:
    from uuid import UUID

SECTOR = 512


@dataclass(frozen=True, slots=True)
class FecTable:
    """Error correction in a table: the device, roots, covered blocks and the parity's first block."""

    device: str
    roots: int
    blocks: int
    start_block: int


@dataclass(frozen=True, slots=True)
class VerityTable:
    """A dm-verity target. Sizes in bytes, `hash_start_block` in hash blocks; digests and salt in bytes.

    `options` are further optional words, such as `panic_on_corruption`; `signature_key` describes the key in the user keyring
    that holds the root hash's signature (root_hash_sig_key_desc).
    """

    data_device: str
    hash_device: str
    hash_type: int
    data_block_size: int
    hash_block_size: int
    data_blocks: int
    hash_start_block: int
    algorithm: str
    root_hash: bytes
    salt: bytes
    options: tuple[str, ...] = ()
    fec: FecTable | None = None
    signature_key: str = ""

    def to_line(self) -> str:
        """Returns the line that `dmsetup create` takes: start and length in sectors of 512 bytes, `verity`, the target's words."""
        optional = [word for option in self.options for word in option.split()]
        if self.fec is not None:
            optional += ["use_fec_from_device", self.fec.device, "fec_roots", str(self.fec.roots)]
            optional += ["fec_blocks", str(self.fec.blocks), "fec_start", str(self.fec.start_block)]
        if self.signature_key:
            optional += ["root_hash_sig_key_desc", self.signature_key]
        words = [
            *("0", str(self.data_blocks * self.data_block_size // SECTOR), "verity", str(self.hash_type)),
            *(self.data_device, self.hash_device, str(self.data_block_size), str(self.hash_block_size)),
            *(str(self.data_blocks), str(self.hash_start_block), self.algorithm, self.root_hash.hex(), self.salt.hex() or "-"),
            *((str(len(optional)), *optional) if optional else ()),
        ]
        return " ".join(words)

    def to_dm_mod_create(self, name: str, uuid: UUID | None = None, *, read_only: bool = True) -> str:
        """Returns the kernel parameter `dm-mod.create="NAME,UUID,MINOR,FLAGS,TABLE"` that makes /dev/dm-0 without an initramfs.

        Raises: InputError for what the parameter cannot carry: commas and semicolons separate its parts, and there is no way yet to
        hand over a root hash signature so early.
        """
        table = self.to_line()
        for text in (name, table):
            if any(mark in text for mark in ',;"'):
                raise InputError(f"dm-mod.create= cannot carry a comma, semicolon or quote: {text!r}")
        if self.signature_key:
            raise InputError("dm-mod.create= cannot carry a root hash signature", hint="use an initramfs, or dmverity_roothash= rules")
        return f'dm-mod.create="{name},{uuid or ""},,{"ro" if read_only else "rw"},{table}"'


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """What `veritysetup open` is told beyond the devices and the root hash. `superblock` False: every parameter is spelled out."""

    table: VerityTable
    hash_offset: int
    superblock: bool
    fec_offset: int = 0
    signature: str = ""

    def words(self) -> tuple[str, ...]:
        """Returns veritysetup's options."""
        table = self.table
        words = [f"--hash-offset={self.hash_offset}"] if self.hash_offset else []
        if not self.superblock:
            words += ["--no-superblock", f"--format={table.hash_type}", f"--hash={table.algorithm}", f"--salt={table.salt.hex() or '-'}"]
            words += [f"--data-block-size={table.data_block_size}", f"--hash-block-size={table.hash_block_size}"]
            words += [f"--data-blocks={table.data_blocks}"]
        if table.fec is not None:
            words += [f"--fec-device={table.fec.device}", f"--fec-roots={table.fec.roots}", f"--fec-offset={self.fec_offset}"]
        words += [f"--{option.split()[0].replace('_', '-')}" for option in table.options]
        if self.signature:
            words.append(f"--root-hash-signature={self.signature}")
        return tuple(words)

    def to_veritysetup(self, name: str) -> str:
        """Returns the command line of `veritysetup open`, quoted for a shell."""
        table = self.table
        return shlex.join(
            ["veritysetup", "open", table.data_device, name, table.hash_device, table.root_hash.hex(), *self.words()],
        )

    def to_systemd(self, usr: bool = False) -> str:
        """Returns the kernel command line for systemd's generator: root (or /usr) hash, devices, options."""
        table = self.table
        prefix, short = ("usr", "usrhash") if usr else ("root", "roothash")
        words = [f"{short}={table.root_hash.hex()}"]
        words += [f"systemd.verity_{prefix}_data={table.data_device}", f"systemd.verity_{prefix}_hash={table.hash_device}"]
        options = [word.removeprefix("--") for word in self.words()]
        renamed = [("superblock=no" if word == "no-superblock" else word) for word in options]
        if renamed:
            words.append(f"systemd.verity_{prefix}_options={','.join(renamed)}")
        return " ".join(words)
