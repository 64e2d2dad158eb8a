"""Pictures of a data set: its classes, its items, and what was set aside."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ml.store import Store

COLOURS = {"train": "#4c72b0", "validation": "#8172b3", "test": "#dd8452", "unlabelled": "#9a9a9a"}
MOST_CLASSES = 40


def overview(store: Store, modality: Any) -> dict[str, Figure]:
    """Figures by name: classes, what the modality shows of its items, and quarantine (where there is any)."""
    figures = {"classes": _classes(store), **modality.overview(store)}
    if len(store.quarantine):
        figures["quarantine"] = _quarantine(store)
    return figures


def _classes(store: Store) -> Figure:
    """Rows of each class, stacked by part; of many classes the largest."""
    counts = store.manifest["classes"]
    names = list(store.spec.classes or counts)
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
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("rows")
    kinds = f", {len(store.spec.classes)} classes" if store.spec.classes else ""
    kinds += f", {store.manifest['of_no_class']:,} of none" if "of_no_class" in store.manifest else ""
    axes.set_title(f"{store.manifest['rows']:,} rows{kinds}" + _unlabelled(store))
    figure.legend(loc="outside lower center", ncols=len(COLOURS))
    return figure


def _quarantine(store: Store) -> Figure:
    """How many items were set aside, by reason."""
    reasons = store.quarantine["reason"].value_counts().iloc[:12]
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(reasons)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(reasons)), reasons.to_numpy(), color=COLOURS["test"])
    axes.set_yticks(range(len(reasons)), [plain(reason, 60) for reason in reasons.index])
    axes.invert_yaxis()
    axes.set_xlabel("items")
    axes.set_title(f"{len(store.quarantine):,} of {store.manifest['scanned']:,} items set aside")
    return figure


def _unlabelled(store: Store) -> str:
    rows = store.manifest["parts"].get("unlabelled", 0)
    return f", {rows:,} unlabelled" if rows else ""


def plain(text: str, longest: int = 24) -> str:
    """Text as it stands: no mathematics between dollar signs, nothing unprintable, not too long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(text)).replace("$", r"\$")
    return text if len(text) <= longest else text[: longest - 1] + "…"
