"""Where right targets stand among all, and how near texts lie to right and wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ml.pictures import BLUE, ORANGE

EDGES = (1, 2, 4, 11, 31, 101, 1001)
"""Where groups of ranks begin."""


def pictures(rows: Mapping[str, Any]) -> dict[str, Figure]:
    """Of each row its rank, and its cosines with the right target and with the nearest wrong one (None where there is none)."""
    return {"ranks": ranks(np.asarray(rows["ranks"], float), int(rows["candidates"])), "similarities": similarities(rows["own"], rows["other"])}


def ranks(rank_N: np.ndarray, candidates: int) -> Figure:
    """The share of the sources whose target has a rank in each group."""
    edges = [edge for edge in EDGES if edge <= candidates]
    group_N = np.searchsorted(edges, rank_N, side="right") - 1
    ends = [*(edge - 1 for edge in edges[1:]), candidates]
    names = [f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in zip(edges, ends, strict=True)]
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(names, np.bincount(group_N, minlength=len(edges)) / max(1, len(rank_N)), color=BLUE)
    axes.bar_label(bars, fmt="{:.1%}", fontsize=9)
    axes.set(xlabel="rank of the right target", ylabel="sources")
    axes.set_title(f"among {candidates:,} different targets", fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def similarities(own_N: Any, other_N: Any) -> Figure:
    """How many sources have such a cosine with the right target, and with the nearest wrong one."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    known = [np.array([one for one in values if one is not None], float) for values in (own_N, other_N)]
    bins = np.linspace(min([0.9, *(one.min() for one in known if len(one))]), 1, 50)
    for values, name, colour in zip(known, ("the right target", "the nearest wrong one"), (BLUE, ORANGE), strict=True):
        axes.hist(np.minimum(values, 1), bins=bins, color=colour, alpha=0.6, label=name)
    axes.set(xlabel="cosine of a source with a target", ylabel="sources")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
