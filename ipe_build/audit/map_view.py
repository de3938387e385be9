"""The map of executables as tiles: where each lies in the drawing, which colour its rule has, whether its name fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from ipe_build.audit.tree import Answer, Place, Program, Ruling
from ipe_build.audit.treemap import Rectangle, squarify

MAX_TILES = 1500
"""Files beyond these, the smallest, are drawn as one tile for each folder and rule; the table has them all."""
DESKTOP = (1120, 560)
PHONE = (340, 460)
"""The drawing's size in CSS pixels on a desktop and on a phone: decides which names fit."""
_HEADER_PX = 18
_CHARACTER_PX = 6.4
_PALETTE = {Answer.ADMITTED: 6, Answer.REFUSED: 3, Answer.UNJUDGED: 1}
"""How many colours there are for the rules of each answer; further rules share the last one."""


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule that decides about some program of the image: its number on the page, its colour's class, what it decides about.

    `note` is what all these programs have in common besides.
    """

    number: int
    ruling: Ruling
    colour: str
    count: int
    size_bytes: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile: its place in percentages of the drawing, the rule's row, what it stands for, its label ("" none; `phone`: fits there too)."""

    area: Rectangle
    rule: RuleRow
    title: str
    label: str
    phone: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A folder's tiles and its heading ("" where none fits), in percentages of the drawing."""

    area: Rectangle
    label: str
    phone: bool
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class MapView:
    """The whole drawing, and its legend: rules that refuse first, then by size."""

    rules: tuple[RuleRow, ...]
    groups: tuple[Group, ...]
    rule_of: dict[Program, RuleRow]


def map_view(programs: tuple[Program, ...]) -> MapView:
    """Returns the drawing for some programs; without any it is empty."""
    rules = _rules(programs)
    row_of = {row.ruling: row for row in rules}
    drawn = set(sorted(programs, key=lambda one: (-one.size_bytes, one.place, one.path))[:MAX_TILES])
    folders: dict[str, list[Program]] = {}
    for one in programs:
        folders.setdefault(_folder(one), []).append(one)
    ordered = sorted(folders.items(), key=lambda item: (-_weight(item[1]), item[0]))
    # Laid out for a square, the drawing is stretched a little on a desktop and a little the other way on a phone.
    areas = squarify([_weight(members) for _, members in ordered], Rectangle(0, 0, 100, 100))
    groups = tuple(_group(name, members, area, drawn, row_of) for (name, members), area in zip(ordered, areas, strict=True))
    return MapView(rules, groups, {one: row_of[one.ruling] for one in programs})


def _rules(programs: tuple[Program, ...]) -> tuple[RuleRow, ...]:
    """Returns the rules that decide about any program, each with its colour."""
    count = Counter(one.ruling for one in programs)
    size: Counter[Ruling] = Counter()
    for one in programs:
        size[one.ruling] += one.size_bytes
    notes: dict[Ruling, set[str]] = {}
    for one in programs:
        notes.setdefault(one.ruling, set()).add(one.note)
    order = list(Answer)
    ranked = sorted(count, key=lambda one: (-order.index(one.answer), -size[one], one.judge, one.line, one.rule))
    ranked.sort(key=lambda one: one.answer is not Answer.REFUSED)
    used: Counter[Answer] = Counter()
    rows = []
    for number, ruling in enumerate(ranked):
        shade = min(used[ruling.answer], _PALETTE[ruling.answer] - 1)
        used[ruling.answer] += 1
        note = next(iter(notes[ruling])) if len(notes[ruling]) == 1 else ""
        rows.append(RuleRow(number, ruling, f"{ruling.answer}-{shade}", count[ruling], size[ruling], note))
    return tuple(rows)


def _folder(one: Program) -> str:
    """Returns the folder that a program is shown in: at most two levels, with the initramfs as a place of its own."""
    parts = PurePosixPath(one.path).parts[1:-1][:2]
    name = "/" + "/".join(parts)
    return f"initramfs {name}" if one.place is Place.INITRAMFS else name


def _weight(members: Iterable[Program]) -> float:
    return sum(max(one.size_bytes, 1) for one in members)


def _group(name: str, members: list[Program], area: Rectangle, drawn: set[Program], row_of: dict[Ruling, RuleRow]) -> Group:
    """Returns a folder's tiles below its heading."""
    alone = len(members) == 1
    label = "" if alone else _label(name, area, DESKTOP, lines=3)
    header = 100 * _HEADER_PX / DESKTOP[1] if label else 0.0
    inner = Rectangle(area.x, area.y + header, area.width, area.height - header)
    pieces = [
        (float(max(one.size_bytes, 1)), row_of[one.ruling], _title(one), PurePosixPath(one.path).name) for one in members if one in drawn
    ]
    rest: dict[Ruling, list[Program]] = {}
    for one in members:
        if one not in drawn:
            rest.setdefault(one.ruling, []).append(one)
    pieces += [(_weight(some), row_of[rule], f"{name}: {len(some)} smaller files", f"{len(some)} smaller") for rule, some in rest.items()]
    pieces.sort(key=lambda piece: (-piece[0], piece[2]))
    rectangles = squarify([piece[0] for piece in pieces], inner)
    tiles = tuple(
        Tile(
            area=_rounded(rectangle),
            rule=rule,
            title=title,
            label=_label(short, rectangle, DESKTOP),
            phone=_fits(_label(short, rectangle, DESKTOP), rectangle, PHONE),
        )
        for (_, rule, title, short), rectangle in zip(pieces, rectangles, strict=True)
    )
    return Group(_rounded(area), label, _fits(label, area, PHONE), tiles)


def _rounded(area: Rectangle) -> Rectangle:
    return Rectangle(round(area.x, 3), round(area.y, 3), round(area.width, 3), round(area.height, 3))


def _title(one: Program) -> str:
    place = "initramfs " if one.place is Place.INITRAMFS else ""
    return f"{place}{one.path}{f' ({one.note})' if one.note else ''}"


def _label(text: str, area: Rectangle, screen: tuple[int, int], lines: int = 1) -> str:
    """Returns the text, shortened to what fits into an area; "" when hardly anything would."""
    room = int((area.width / 100 * screen[0] - 10) / _CHARACTER_PX)
    if area.height / 100 * screen[1] < 19 * lines or room < 3:
        return ""
    return text if len(text) <= room else f"{text[: room - 1]}…" if room >= 5 else ""


def _fits(text: str, area: Rectangle, screen: tuple[int, int]) -> bool:
    """Returns whether a label that is drawn fits on another screen as it is."""
    return bool(text) and len(text) * _CHARACTER_PX + 8 <= area.width / 100 * screen[0] and area.height / 100 * screen[1] >= 19
