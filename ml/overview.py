"""Pictures of a data set: its classes, a sample of it, its sizes, and what was set aside."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ml.store import Store

COLOURS = {"train": "#4c72b0", "validation": "#8172b3", "test": "#dd8452", "unlabelled": "#9a9a9a"}
COLUMNS, ROWS = 8, 6
MOST_CLASSES = 40


def overview(store: Store) -> dict[str, Figure]:
    """Figures by name: classes, sample, sizes (where known) and quarantine (where there is any)."""
    figures = {"classes": _classes(store), "sample": _sample(store)}
    if {"width", "height"} <= set(store.table.columns):
        figures["sizes"] = _sizes(store)
    if len(store.quarantine):
        figures["quarantine"] = _quarantine(store)
    return figures


def _classes(store: Store) -> Figure:
    """Rows of each class, stacked by part; of many classes the largest."""
    counts = store.manifest["classes"]
    names = list(store.spec.classes)
    if len(names) > MOST_CLASSES:
        names = sorted(names, key=lambda name: -sum(counts[name].values()))[:MOST_CLASSES]
    figure = Figure(figsize=(7, 1.6 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    start = np.zeros(len(names))
    for part, colour in COLOURS.items():
        rows = np.array([counts[name].get(part, 0) for name in names])
        if rows.any():
            axes.barh(range(len(names)), rows, left=start, color=colour, label=part)
        start += rows
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("rows")
    axes.set_title(f"{store.manifest['rows']:,} rows, {len(store.spec.classes)} classes" + _unlabelled(store))
    figure.legend(loc="outside lower center", ncols=len(COLOURS))
    return figure


def _sample(store: Store) -> Figure:
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
    for place, row in enumerate(chosen):
        top, left = place // COLUMNS * tall + tall - height, place % COLUMNS * (width + 2) + 1
        montage[top : top + height, left : left + width] = store.array[row]
        axes.text(left + width / 2, top - 1, _plain(store.spec.classes[store.labels[row]], 14), fontsize=8, ha="center", va="bottom")
    axes.imshow(montage.squeeze(-1) if channels == 1 else montage, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
    axes.axis("off")
    return figure


def _sizes(store: Store) -> Figure:
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


def _quarantine(store: Store) -> Figure:
    """How many items were set aside, by reason."""
    reasons = store.quarantine["reason"].value_counts().iloc[:12]
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(reasons)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(reasons)), reasons.to_numpy(), color=COLOURS["test"])
    axes.set_yticks(range(len(reasons)), [_plain(reason, 60) for reason in reasons.index])
    axes.invert_yaxis()
    axes.set_xlabel("items")
    axes.set_title(f"{len(store.quarantine):,} of {store.manifest['scanned']:,} items set aside")
    return figure


def _unlabelled(store: Store) -> str:
    rows = store.manifest["parts"].get("unlabelled", 0)
    return f", {rows:,} unlabelled" if rows else ""


def _plain(text: str, longest: int = 24) -> str:
    """Text as it stands: no mathematics between dollar signs, nothing unprintable, not too long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(text)).replace("$", r"\$")
    return text if len(text) <= longest else text[: longest - 1] + "…"
