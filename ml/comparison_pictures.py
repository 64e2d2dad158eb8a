"""What a comparison of runs draws: each metric of each run as a dot with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ml.metrics import LOWER_IS_BETTER
from ml.pictures import BLUE, GRAY, ORANGE, RED, plain_text

COLOURS = (BLUE, ORANGE, "#6a9f58", RED, GRAY)
COLUMNS = 3


def whiskers(metrics: Sequence[Mapping[str, Mapping[str, Any]]], labels: Sequence[str]) -> Figure | None:
    """A panel for each metric with a line for each run; `metrics` are {metric: {value, low, high}} of each run. None where there is no value."""
    names = list(dict.fromkeys(name for one in metrics for name, found in one.items() if found.get("value") is not None))
    if not names:
        return None
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    width, height = 3.6 * columns, rows * (0.75 + 0.3 * len(labels))
    figure = Figure(figsize=(width, height), layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).ravel(), [*names, *[None] * (rows * columns - len(names))], strict=True):
        if name is None:
            axes.axis("off")
            continue
        for position, one in enumerate(metrics):
            found = one.get(name, {})
            if found.get("value") is None:
                continue
            value = found["value"]
            low, high = (value if found.get(end) is None else found[end] for end in ("low", "high"))
            colour = COLOURS[position % len(COLOURS)]
            axes.errorbar(value, position, xerr=np.maximum([[value - low], [high - value]], 0), fmt="o", color=colour, markersize=5, elinewidth=1.6, capsize=3)
        axes.set_yticks(range(len(labels)), [plain_text(label, 14) for label in labels], fontsize=8)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_title(plain_text(name.replace("_", " "), 32) + (" (less is better)" if name in LOWER_IS_BETTER else ""), fontsize=9, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure
