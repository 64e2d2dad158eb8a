"""What pairs of texts show of themselves: the lengths of both sides, and a sample."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ml import text_pictures
from ml.overview import COLOURS
from ml.pictures import BLUE, ORANGE
from ml.store import Store
from ml.text_augment import PADDING

SAMPLE = 16


def overview(store: Store) -> dict[str, Figure]:
    """Figures by name: the lengths and a sample."""
    return {"lengths": lengths(store), "sample": sample(store)}


def lengths(store: Store) -> Figure:
    """How many tokens the sides have, as stored; a line marks where longer ones were cut."""
    ids, offsets, limit = np.asarray(store.array.values), store.array.offsets, store.spec.shape[0]
    targets = np.diff(np.concatenate([[0], np.cumsum(ids < PADDING)])[offsets])
    sources = store.array.lengths - targets
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(0, limit + 1, min(60, limit + 2))
    for name, counts, colour in (("source", sources, BLUE), ("target", targets[targets > 0], ORANGE)):
        axes.hist(counts, bins=bins, color=colour, alpha=0.6, label=f"{name}, median {np.median(counts) if len(counts) else 0:,.0f}")
    axes.axvline(limit, color=COLOURS["test"], label=f"read up to {limit}")
    axes.set_xlabel("tokens")
    axes.set_ylabel("texts")
    full = np.concatenate([sources, targets]) >= limit
    axes.set_title(f"{full.mean():.1%} of the texts fill the limit; {store.spec.options['vocabulary']:,} tokens known", fontsize=10)
    axes.legend()
    return figure


def sample(store: Store) -> Figure:
    """Training pairs over the whole part: a source above its target."""
    rows = np.flatnonzero(store.table["part"].isin(["train", "unlabelled"]).to_numpy())
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))]
    sides = [[bytes(one).decode() for one in store.arrays[name][rows]] for name in ("text", "target")]
    return text_pictures.listed(list(zip(*sides, strict=True)))
