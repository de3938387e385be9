"""A tree as the texts that a boot needs: dm table, dm-mod.create=, veritysetup's and systemd's command lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipe_build.formats.dm_table import FecTable, OpenOptions, VerityTable

if TYPE_CHECKING:
    from ipe_build.integrity.verity import VerityTree


def dm_table(
    tree: VerityTree, data_device: str, hash_device: str, *, fec_device: str = "", options: tuple[str, ...] = (), signature_key: str = ""
) -> VerityTable:
    """Returns the dm table of a tree, whose root hash must be known, for devices as the target names them.

    `signature_key` is the description of the key that holds the root hash's signature.
    """
    parameters = tree.parameters
    fec = None
    if parameters.fec is not None and fec_device:
        fec = FecTable(fec_device, parameters.fec.roots, tree.fec_blocks, parameters.fec.offset // parameters.data_block_size)
    return VerityTable(
        data_device,
        hash_device,
        parameters.hash_type,
        parameters.data_block_size,
        parameters.hash_block_size,
        tree.data_blocks,
        tree.hash_start_block,
        parameters.hash_name,
        tree.root_hash,
        parameters.salt,
        options,
        fec,
        signature_key,
    )


def table_forms(
    tree: VerityTree,
    *,
    data_device: str,
    hash_device: str,
    fec_device: str = "",
    name: str = "vroot",
    options: tuple[str, ...] = (),
    signature: str = "",
) -> dict[str, str]:
    """Returns all forms by name. `signature` is the path of the root hash's signature, which only the last two can carry."""
    table = dm_table(tree, data_device, hash_device, fec_device=fec_device, options=options)
    fec_offset = tree.parameters.fec.offset if tree.parameters.fec is not None else 0
    opened = OpenOptions(table, tree.hash_offset, tree.parameters.superblock, fec_offset, signature)
    return {
        "dm": table.to_line(),
        "dm-mod": table.to_dm_mod_create(name, tree.parameters.uuid),
        "veritysetup": opened.to_veritysetup(name),
        "systemd": opened.to_systemd(),
    }
