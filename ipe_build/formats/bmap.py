"""Block maps (bmap 2.0): which blocks of an image must be written to a card, each range with its checksum.

Source: bmap-tools, docs and BmapCreate.py (the format is described by its own header and by what bmaptool reads).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from xml.etree import ElementTree

from ipe_build.errors import FormatError

BLOCK_BYTES = 4096
VERSION = "2.0"
_UNKNOWN = "0" * 64
_HEAD = """<?xml version="1.0" ?>
<!-- Written by ipe-build: the blocks of an image that have to be written to the device (bmaptool copy).
     Blocks that are not listed may hold anything; every block that dm-verity checks is listed, also those of zeros. -->
<bmap version="{version}">
    <ImageSize> {size} </ImageSize>
    <BlockSize> {block} </BlockSize>
    <BlocksCount> {blocks} </BlocksCount>
    <MappedBlocksCount> {mapped} </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <!-- Of this file, taken with zeros in its place. -->
    <BmapFileChecksum> {checksum} </BmapFileChecksum>
    <BlockMap>
"""


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Blocks `first` to `last` (both included), SHA-256 of their content (32 bytes; the image's last block may be short)."""

    first: int
    last: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class BlockMap:
    """A whole map: the image's size, its blocks' size, the ranges in rising order."""

    image_bytes: int
    ranges: tuple[BlockRange, ...]
    block_bytes: int = BLOCK_BYTES

    @property
    def mapped_blocks(self) -> int:
        """Returns how many blocks are listed."""
        return sum(one.last - one.first + 1 for one in self.ranges)

    def build(self) -> bytes:
        """Returns the file: XML, its own SHA-256 in BmapFileChecksum (computed with 64 zeros there)."""
        blocks = -(-self.image_bytes // self.block_bytes)
        head = _HEAD.format(
            version=VERSION,
            size=self.image_bytes,
            block=self.block_bytes,
            blocks=blocks,
            mapped=self.mapped_blocks,
            checksum=_UNKNOWN,
        )
        lines = [_range_line(one) for one in self.ranges]
        text = head + "".join(lines) + "    </BlockMap>\n</bmap>\n"
        return text.replace(_UNKNOWN, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def _range_line(one: BlockRange) -> str:
    place = str(one.first) if one.first == one.last else f"{one.first}-{one.last}"
    return f'        <Range chksum="{one.sha256.hex()}"> {place} </Range>\n'


def parse_bmap(data: bytes, *, where: str = "") -> BlockMap:
    """Returns a map of ours, or another's of version 2.0 with SHA-256; every number and the file's checksum are checked.

    Raises: FormatError.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise FormatError("a block map has no document type", where=where)
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 (no entities: checked above)
        texts = {child.tag: (child.text or "").strip() for child in root}
        size, block = int(texts["ImageSize"]), int(texts["BlockSize"])
        blocks, mapped = int(texts["BlocksCount"]), int(texts["MappedBlocksCount"])
        ranges = tuple(_parse_range(one) for one in root.iter("Range"))
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise FormatError(f"wanted a block map: {error}", where=where) from error
    if not _has_checksum(data, texts.get("BmapFileChecksum", "")):
        raise FormatError("its BmapFileChecksum is not that of the file", where=where)
    found = BlockMap(size, ranges, block)
    ends = [-1, *(one.last for one in ranges)]
    rising = all(before < one.first <= one.last for before, one in zip(ends, ranges, strict=False))
    if root.get("version") != VERSION or texts.get("ChecksumType") != "sha256" or block < 1 or size < 1:
        raise FormatError("wanted version 2.0 with sha256 and a size", where=where)
    if not rising or blocks != -(-size // block) or mapped != found.mapped_blocks or ends[-1] >= blocks:
        raise FormatError("its ranges do not rise, leave the image, or are not as many as it says", where=where)
    return found


def _parse_range(element: ElementTree.Element) -> BlockRange:
    """Returns one range. Raises: ValueError, KeyError."""
    first, _, last = (element.text or "").strip().partition("-")
    return BlockRange(int(first), int(last or first), bytes.fromhex(element.attrib["chksum"]))


def _has_checksum(data: bytes, checksum: str) -> bool:
    """Returns whether the file, with zeros for its checksum, has that checksum."""
    raw = checksum.encode()
    return len(raw) == len(_UNKNOWN) and hashlib.sha256(data.replace(raw, _UNKNOWN.encode(), 1)).hexdigest() == checksum
