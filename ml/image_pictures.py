"""What images show of themselves: a sample of a data set, its sizes, and the pictures that a model got wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ml.overview import COLOURS, plain
from ml.pictures import plain_text
from ml.store import Store

COLUMNS, ROWS = 8, 6


def overview(store: Store) -> dict[str, Figure]:
    """Figures by name: a sample, and the sizes where they are known."""
    known = {"width", "height"} <= set(store.table.columns)
    return {"sample": sample(store)} | ({"sizes": sizes(store)} if known else {})


def sample(store: Store) -> Figure:
    """Training pictures, class by class, as the model gets them before augmentation."""
    table = store.table[store.table["part"] == "train"]
    turn = table.groupby("label").cumcount()  # the first of each class, then the second of each ...
    chosen = table.assign(turn=turn).sort_values(["turn", "label"], kind="stable").index[: COLUMNS * ROWS]
    chosen = sorted(chosen, key=lambda row: (store.labels[row], row))
    rows, (height, width, channels) = -(-len(chosen) // COLUMNS), store.array.shape[1:]
    tall = height + max(2, height // 5)  # with room for the name
    # One picture of all, on one pair of axes: a pair for each takes matplotlib seconds.
    montage = np.full((rows * tall, COLUMNS * (width + 2), channels), 255, dtype=np.uint8)
    figure = Figure(figsize=(COLUMNS, 1.25 * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    for place, (row, name) in enumerate(zip(chosen, store.named(np.array(chosen)), strict=True)):
        top, left = place // COLUMNS * tall + tall - height, place % COLUMNS * (width + 2) + 1
        montage[top : top + height, left : left + width] = store.array[row]
        axes.text(left + width / 2, top - 1, plain(name, 14), fontsize=8, ha="center", va="bottom")
    axes.imshow(montage.squeeze(-1) if channels == 1 else montage, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.axis("off")
    return figure


def sizes(store: Store) -> Figure:
    """Width against height of the originals, in pixels; a square marks the size that is stored."""
    width, height = store.table["width"], store.table["height"]
    sizes = store.table.groupby([width, height]).size()
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    points = np.array(sizes.index.to_list())
    axes.scatter(points[:, 0], points[:, 1], s=6 + 60 * np.sqrt(sizes.to_numpy() / sizes.max()), alpha=0.5, color=COLOURS["train"], linewidths=0)
    axes.scatter([store.spec.shape[-1]], [store.spec.shape[-2]], marker="s", s=60, facecolors="none", edgecolors=COLOURS["test"], label="stored")
    axes.set_xlabel("width in pixels")
    axes.set_ylabel("height in pixels")
    axes.set_title(f"median {width.median():.0f} x {height.median():.0f} pixels")
    axes.legend(loc="best")
    return figure


def mistakes(items: Sequence[Mapping[str, Any]], arrays: np.ndarray) -> Figure:
    """The most confident mistakes; `items` as in `Evaluation.mistakes`, `arrays` (M, H, W, C) uint8 in their order."""
    columns = min(6, max(1, len(items)))
    rows = max(1, -(-len(items) // columns))
    figure = Figure(figsize=(1.75 * columns, 2.25 * rows), layout="constrained")
    for position, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.axis("off")
        if position < len(items):
            item, array = items[position], arrays[position]
            axes.imshow(array[..., 0] if array.shape[-1] == 1 else array, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(f"said {plain_text(item['predicted'], 14)} {item['probability']:.0%}\nis {plain_text(item['label'], 16)}", fontsize=8.5)
    if not items:
        figure.suptitle("no mistakes")
    return figure
