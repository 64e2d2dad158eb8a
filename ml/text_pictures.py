"""What texts show of themselves: their lengths, a sample, and those that a model got wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ml.overview import COLOURS
from ml.pictures import plain_text
from ml.store import Store

SAMPLE = 16
WIDTH, LINES = 110, 3
"""Characters in a line, and lines of a text that are shown."""


def overview(store: Store) -> dict[str, Figure]:
    """Figures by name: the lengths and a sample."""
    return {"lengths": lengths(store), "sample": sample(store)}


def lengths(store: Store) -> Figure:
    """How many tokens the texts have; a line marks where they are cut."""
    tokens, limit = store.array.lengths, store.spec.shape[0]
    title = f"median {np.median(tokens):,.0f} tokens; {(tokens > limit).mean():.0%} are cut; {store.spec.options['vocabulary']:,} tokens known"
    return histogram(store, "tokens", "texts", f"read up to {limit}", title)


def histogram(store: Store, tokens: str, rows: str, read: str, title: str) -> Figure:
    """How long the store's rows are, the words as they name `tokens` and `rows`; a line for what is `read` at once."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    lengths_N, limit = store.array.lengths, store.spec.shape[0]
    axes.hist(np.minimum(lengths_N, 4 * limit), bins=60, color=COLOURS["train"])
    axes.axvline(limit, color=COLOURS["test"], label=read)
    axes.set_xlabel(tokens + (" (longer ones at the end)" if lengths_N.max() > 4 * limit else ""))
    axes.set_ylabel(rows)
    axes.set_title(title, fontsize=10)
    axes.legend()
    return figure


def sample(store: Store) -> Figure:
    """Training texts, class by class."""
    table = store.table[store.table["part"] == "train"]
    turn = table.groupby("label").cumcount()  # the first of each class, then the second of each ...
    rows = table.assign(turn=turn).sort_values(["turn", "label"], kind="stable").index[:SAMPLE].to_numpy()
    return listed(list(zip(store.named(rows), _texts(store, rows), strict=True)))


def mistakes(items: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> Figure:
    """The most confident mistakes; `items` as in `Evaluation.mistakes`, `texts` in their order."""
    named = [f"said {one['predicted']} {one['probability']:.0%}, is {one['label']}" for one in items]
    return listed(list(zip(named, texts, strict=True))) if items else listed([("no mistakes", "")])


def _texts(store: Store, rows: np.ndarray) -> list[str]:
    return [bytes(row).decode() for row in store.arrays["text"][rows]]


def listed(entries: Sequence[tuple[str, str]]) -> Figure:
    """A heading and the first lines of a text for each entry."""
    blocks = []
    for heading, text in entries:
        lines = textwrap.wrap(plain_text(" ".join(text[: 2 * WIDTH * LINES].split()), WIDTH * LINES), WIDTH)[:LINES]
        blocks.append((plain_text(heading, 90), lines))
    height = sum(1.5 + len(lines) for _, lines in blocks) * 0.17 + 0.2
    figure, place = Figure(figsize=(9, height)), 0.1
    for heading, lines in blocks:
        figure.text(0.01, 1 - place / height, heading, fontsize=9, fontweight="bold", va="top")
        if lines:
            figure.text(0.01, 1 - (place + 0.17) / height, "\n".join(lines), fontsize=8.5, va="top", linespacing=1.2, color="#333333")
        place += (1.5 + len(lines)) * 0.17
    return figure
