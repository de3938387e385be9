"""A treemap: rectangles whose areas are in the ratio of given weights, as near to squares as they get.

Source: Bruls, Huizing, van Wijk, Squarified Treemaps (2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rectangle(NamedTuple):
    """A rectangle; the origin is the top left corner."""

    x: float
    y: float
    width: float
    height: float


def squarify(weights: Sequence[float], area: Rectangle) -> tuple[Rectangle, ...]:
    """Returns one rectangle a weight, in the order given, that fill `area` without overlap.

    Weights are positive and best sorted from large to small. An area of no width or height gives rectangles without area.
    """
    total = sum(weights)
    if not weights or total <= 0 or area.width <= 0 or area.height <= 0:
        return tuple(Rectangle(area.x, area.y, 0.0, 0.0) for _ in weights)
    scale = area.width * area.height / total
    sizes = [weight * scale for weight in weights]
    placed: list[Rectangle] = []
    left, start = area, 0
    while start < len(sizes):
        end, row = start + 1, sizes[start]
        side = min(left.width, left.height)
        smallest = largest = sizes[start]
        while end < len(sizes):
            grown_small, grown_large, grown = min(smallest, sizes[end]), max(largest, sizes[end]), row + sizes[end]
            if _worst(grown_small, grown_large, grown, side) > _worst(smallest, largest, row, side):
                break
            smallest, largest, row, end = grown_small, grown_large, grown, end + 1
        rectangles, left = _lay(sizes[start:end], row, left)
        placed += rectangles
        start = end
    return tuple(placed)


def _worst(smallest: float, largest: float, row: float, side: float) -> float:
    """Returns the worst ratio of sides in a row of areas that sum to `row`, laid along a side."""
    if smallest <= 0 or side <= 0:
        return float("inf")
    return max(side * side * largest / (row * row), row * row / (side * side * smallest))


def _lay(sizes: Sequence[float], row: float, area: Rectangle) -> tuple[list[Rectangle], Rectangle]:
    """Returns the rectangles of one row, laid along the shorter side, and what is left of the area."""
    placed: list[Rectangle] = []
    if area.width >= area.height:
        thickness = min(row / area.height, area.width) if area.height > 0 else 0.0
        y = area.y
        for size in sizes:
            height = size / row * area.height if row > 0 else 0.0
            placed.append(Rectangle(area.x, y, thickness, height))
            y += height
        return placed, Rectangle(area.x + thickness, area.y, max(area.width - thickness, 0.0), area.height)
    thickness = min(row / area.width, area.height) if area.width > 0 else 0.0
    x = area.x
    for size in sizes:
        width = size / row * area.width if row > 0 else 0.0
        placed.append(Rectangle(x, area.y, width, thickness))
        x += width
    return placed, Rectangle(area.x, area.y + thickness, area.width, max(area.height - thickness, 0.0))
