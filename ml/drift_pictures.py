"""Pictures of a comparison of served rows with the reference: where they lie, and what is told of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ml.observed import INPUTS, PREDICTIONS
from ml.pictures import BLUE, ORANGE, plain_text

LISTED = 20
"""Classes whose shares are shown, those that changed most."""


def pictures(reference: Mapping[str, np.ndarray], recent: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, Figure]:
    """By name; those of predictions where both have some."""
    found = {"features": _features(reference[INPUTS], recent[INPUTS])}
    if PREDICTIONS in reference and PREDICTIONS in recent:
        found |= {"confidence": _confidence(reference[PREDICTIONS], recent[PREDICTIONS]), "classes": _classes(reference[PREDICTIONS], recent[PREDICTIONS], classes)}
    return found


def _features(reference_ND: np.ndarray, recent_MD: np.ndarray) -> Figure:
    """Both samples on the two directions in which the pooled features vary most."""
    pooled_PD = np.concatenate([reference_ND, recent_MD]).astype(np.float64)
    pooled_PD -= pooled_PD.mean(0)
    _, _, directions_DD = np.linalg.svd(pooled_PD, full_matrices=False)
    places_P2 = pooled_PD @ directions_DD[:2].T
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for name, colour, part in (("tested", BLUE, slice(0, len(reference_ND))), ("served lately", ORANGE, slice(len(reference_ND), None))):
        axes.scatter(places_P2[part, 0], places_P2[part, -1], s=10, alpha=0.5, color=colour, label=f"{name}, {len(places_P2[part]):,} rows", linewidths=0)
    axes.set(xlabel="first principal component of the features", ylabel="second")
    axes.legend()
    return figure


def _confidence(reference_NK: np.ndarray, recent_MK: np.ndarray) -> Figure:
    """How sure the model is: the share of rows by their largest probability."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    bins = np.linspace(0, 1, 21)
    for name, colour, one in (("tested", BLUE, reference_NK), ("served lately", ORANGE, recent_MK)):
        axes.hist(one.max(1), bins, weights=np.full(len(one), 1 / len(one)), histtype="stepfilled", alpha=0.45, color=colour, label=name)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="largest probability", ylabel="share of rows")
    axes.legend()
    return figure


def _classes(reference_NK: np.ndarray, recent_MK: np.ndarray, classes: Sequence[str]) -> Figure:
    """The mean probability of each class, before and now."""
    before_K, now_K = reference_NK.mean(0), recent_MK.mean(0)
    order = np.argsort(-np.abs(now_K - before_K))[:LISTED][::-1]
    figure = Figure(figsize=(6, 1.4 + 0.32 * len(order)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(order))
    axes.barh(places + 0.2, before_K[order], 0.38, color=BLUE, label="tested")
    axes.barh(places - 0.2, now_K[order], 0.38, color=ORANGE, label="served lately")
    axes.set_yticks(places, [plain_text(str(classes[k]), 24) for k in order])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set(xlabel="mean probability")
    axes.legend()
    return figure
