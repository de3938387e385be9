"""Whether the kernel mounts the root's filesystem from its verity volume: drivers, compressors, sizes of blocks, a clean journal."""

from __future__ import annotations

from ipe_build.audit.facts import ImageFacts
from ipe_build.formats.mounting import mount_needs

_HEAD_BYTES = 2048
_PAGES = {"ARM64_16K_PAGES": 16384, "ARM64_64K_PAGES": 65536}


def page_bytes(facts: ImageFacts) -> int:
    """Returns the size of the kernel's pages: dm-verity takes no larger data blocks."""
    config = facts.kernel_config
    return next((size for symbol, size in _PAGES.items() if config is not None and config.enabled(symbol)), 4096)


def mount_problem(facts: ImageFacts, options: str = "") -> str:
    """Returns why the kernel, whose driver for it is there, does not mount the root; "" when nothing speaks against it."""
    if facts.root is None or facts.root.data_region is None or facts.files is None:
        return ""
    needs = mount_needs(facts.root.data_region.read(0, _HEAD_BYTES))
    missing = next((symbol for symbol in needs.symbols if facts.has_driver(symbol) is False), "")
    blocks = facts.superblock.data_block_size if facts.superblock is not None else 0
    if needs.problem or missing:
        return needs.problem or f"the kernel has no CONFIG_{missing}, which the root is compressed with"
    if blocks > needs.block_bytes:
        return f"the filesystem's blocks of {needs.block_bytes} bytes are smaller than those of the volume, {blocks}"
    if needs.dirty and not {"noload", "norecovery"} & set(options.split(",")):
        return "its journal has to be replayed first, and the volume is read-only"
    return ""
