"""A picture of a lineage: a box for each step, from the data at the top to the last promotion; backbones that were started from on the left.

Everything is in inches. Text is wrapped by letters, so that no text engine has to be asked for its size.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.transforms import Bbox, TransformedBbox

from ml import lineage as told
from ml.pictures import BLUE, GRAY, ORANGE, RED, plain_text

WIDTH, GAP, LINE, PAD = 3.35, 0.55, 0.155, 0.12
LETTERS = 56  # of a line
LINES = 11  # of a box
COLOURS = {"preprocess": GRAY, "split": GRAY, "pretrain": BLUE, "finetune": BLUE, "evaluate": "#6a9f58", "register": "#6a9f58"}


@dataclass(frozen=True)
class Box:
    """Its text, and where: the left edge and the top, which grow to the right and down."""

    title: str
    lines: list[str]
    colour: str
    left: float
    top: float
    missing: bool = False

    @property
    def height(self) -> float:
        return 2 * PAD + LINE * (1.25 + len(self.lines))

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def centre(self) -> float:
        return self.left + WIDTH / 2


def draw(lineage: Mapping[str, Any]) -> Figure:
    """The lineage, as `tasks.tracking.lineage.lineage` gives it."""
    boxes: list[Box] = []
    arrows: list[tuple[tuple[float, float], tuple[float, float]]] = []
    _place(lineage, boxes, arrows)
    left, right = min(box.left for box in boxes) - PAD, max(box.left for box in boxes) + WIDTH + PAD
    bottom = max(box.bottom for box in boxes) + PAD
    figure = Figure(figsize=(right - left, bottom + PAD))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(bottom, -PAD))
    axes.axis("off")
    for start, end in arrows:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0})
    for box in boxes:
        edge = RED if box.missing else box.colour
        shape = FancyBboxPatch((box.left, box.top), WIDTH, box.height, boxstyle="round,pad=0,rounding_size=0.07", facecolor="white", edgecolor=edge, linewidth=1.4)
        shape.set_linestyle("--" if box.missing else "-")
        axes.add_patch(shape)
        texts = [axes.text(box.left + PAD, box.top + PAD, box.title, va="top", fontsize=9.5, weight="bold", color=edge)]
        for number, line in enumerate(box.lines):
            texts.append(axes.text(box.left + PAD, box.top + PAD + LINE * (number + 1.45), line, va="top", fontsize=7.6, color="#222222"))
        room = TransformedBbox(Bbox.from_extents(box.left, box.top, box.left + WIDTH - PAD / 2, box.bottom), axes.transData)  # of wide letters fewer have it
        for text in texts:
            text.set(clip_on=True, clip_path=None, clip_box=room)
    return figure


def _place(lineage: Mapping[str, Any], boxes: list[Box], arrows: list, right: float = 0.0) -> tuple[float, float]:
    """Adds the boxes of a lineage whose right edge is `right`, and those of its backbones further left; gives where the arrow out of its version starts."""
    by_name = {step["name"]: step for step in lineage["steps"]}
    double = "pretrain" in by_name and "split" in by_name
    left = right - WIDTH * (2 if double else 1) - (GAP if double else 0)
    middle = (left + right - WIDTH) / 2
    top, above = 0.0, []
    for names in (("preprocess",), ("pretrain", "split"), ("finetune",), ("evaluate",), ("register",)):
        steps = [by_name[name] for name in names if name in by_name]
        places = [left, right - WIDTH] if len(steps) == 2 else [middle]
        row = [_box(told.title(step), told.lines(step), COLOURS[step["name"]], place, top, bool(step["missing"])) for step, place in zip(steps, places, strict=False)]
        for step, box in zip(steps, row, strict=True):
            if step["weights"]:
                start = _place(step["weights"], boxes, arrows, left - 2 * GAP)
                arrows.append((start, (box.left, box.top + box.height / 2)))
        above, top = _join(row, above, top, boxes, arrows)
    aliases = f" ({', '.join(lineage['aliases'])})" if lineage["aliases"] else ""
    version = _box(f"{lineage['uri']}{aliases}", told.head(lineage), ORANGE, middle, top, bool(lineage["missing"]))
    above, top = _join([version], above, top, boxes, arrows)
    for words, lines in told.moves(lineage):
        above, top = _join([_box(words, lines, ORANGE, middle, top, False)], above, top, boxes, arrows)
    return version.left + WIDTH, version.top + version.height / 2


def _join(row: list[Box], above: list[Box], top: float, boxes: list[Box], arrows: list) -> tuple[list[Box], float]:
    if not row:
        return above, top
    boxes += row
    for box in row:
        for one in above:
            # Where two boxes meet one, the arrows leave and arrive apart.
            shift = 0.0 if one.centre == box.centre else (WIDTH / 4 if box.centre > one.centre else -WIDTH / 4)
            arrows.append(((one.centre + shift, one.bottom), (box.centre - shift, box.top)))
    return row, max(box.bottom for box in row) + GAP


def _box(title: str, lines: Any, colour: str, left: float, top: float, missing: bool) -> Box:
    wrapped = [piece for line in lines for piece in textwrap.wrap(" ".join(line.split()), LETTERS, subsequent_indent="  ")]
    if len(wrapped) > LINES:
        last = [piece for piece in wrapped if piece.startswith(("run ", "missing:"))][-2:]
        wrapped = [*wrapped[: LINES - len(last) - 1], "…", *last]
    return Box(plain_text(title, 36), [plain_text(piece, LETTERS + 4) for piece in wrapped], colour, left, top, missing)

