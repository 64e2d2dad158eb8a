"""Figures of an evaluation and of a training, each a matplotlib Figure of its own (no global state).

Names come from the data and are hostile input: `plain_text` keeps matplotlib from reading markup in them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter

BLUE, ORANGE, GRAY, RED = "#3b6fb6", "#d9822b", "#8a8f98", "#c0392b"
ARMS = {"model": ("pretrained", BLUE), "baseline": ("from scratch", ORANGE), "classical": ("simple alternative", "#6a9f58"), "int8": ("8-bit weights", "#8c6bb1"), "trivial": ("trivial", GRAY)}
"""Label and colour of each arm, wherever it is shown."""
NUMBERED = 20
"""Confusion matrices of at most so many classes show their counts; larger ones name what is most confused beside them."""
LISTED = 60
"""Classes that the per-class bars show at most, the worst first."""


def confusion(confusion_KK: np.ndarray, classes: Sequence[str]) -> Figure:
    """Rows are true classes and columns predicted ones; colour is the share of the true class, numbers are test rows."""
    counts = np.asarray(confusion_KK)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(classes) <= NUMBERED
    side = min(max(4.2, 1.8 + 0.55 * len(classes)), 11)
    figure = Figure(figsize=(side + (0.6 if few else 4.6), side), layout="constrained")
    axes, beside = (figure.subplots(), None) if few else figure.subplots(1, 2, width_ratios=[side, 4])
    # The square root brings out the rare confusions beside the diagonal.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    step = -(-len(classes) // 50)
    ticks, size = range(0, len(classes), step), 9 if few else max(5, 9 - len(classes) // 25)
    names = [plain_text(classes[k], 18) for k in ticks]
    axes.set_xticks(ticks, names, rotation=45 if few else 90, ha="right" if few else "center", rotation_mode="anchor" if few else "default", fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if few:
        for i, j in np.argwhere(counts > 0):
            axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=9 if len(classes) <= 12 else 7, color="white" if shares[i, j] > 0.4 else "#222222")
    else:
        _most_confused(beside, counts, classes)
    figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1), label="of the true class", ticks=[0, 0.05, 0.25, 0.5, 1])
    return figure


def reliability(calibration: Mapping[str, Any]) -> Figure:
    """Accuracy against confidence, before and after the temperature, over how many rows have that confidence."""
    figure = Figure(figsize=(5.2, 5.4), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color=GRAY, linewidth=1, linestyle="--", label="perfectly calibrated")
    for name, colour in (("before", ORANGE), ("after", BLUE)):
        curve, error = calibration[name]["curve"], calibration[name].get("expected_calibration_error")
        label = f"{name} dividing by the temperature of {calibration['temperature']:.2f}" + ("" if error is None else f" (error {error:.3f})")
        axes.plot(curve["confidence"], curve["accuracy"], marker="o", markersize=4, color=colour, label=label)
    curve = calibration["after"]["curve"]
    counts.bar(curve["confidence"], curve["count"], width=0.05, color=BLUE)
    counts.set_ylabel("rows")
    counts.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    counts.set_xlabel("confidence")
    axes.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", frameon=False, fontsize=9)
    for one in (axes, counts):
        _calm(one)
        one.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def per_class(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Precision and recall of each class with their intervals, the worst F1 first; `rows` as in `Evaluation.per_class`."""
    shown = sorted(rows, key=lambda row: _number(_part(row["f1"], "value"), 2.0))[:LISTED]
    figure = Figure(figsize=(7, 1.4 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for offset, name, colour in ((-0.19, "precision", BLUE), (0.19, "recall", ORANGE)):
        _bars(axes, np.arange(len(shown)) + offset, [row[name] for row in shown], 0.36, [colour] * len(shown), name)
    axes.set_yticks(range(len(shown)), [f"{plain_text(row['class'], 24)} ({row['support']:,})" for row in shown])
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.02), xlabel="share, with interval; in brackets test rows")
    if len(shown) < len(rows):
        axes.set_title(f"the {len(shown)} worst of {len(rows)} classes", fontsize=10)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    _calm(axes, "x")
    return figure


def arms(metrics: Mapping[str, Mapping[str, Any]], metric: str) -> Figure:
    """One metric of every arm with its interval; `metrics` as in `Evaluation.metrics`."""
    names = [name for name in metrics if metric in metrics[name]]
    figure = Figure(figsize=(7, 1.0 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    estimates = [metrics[name][metric] for name in names]
    labels, colours = zip(*(ARMS.get(name, (plain_text(name), GRAY)) for name in names), strict=True)
    _bars(axes, np.arange(len(names)), estimates, 0.6, list(colours), None)
    share = max(_number(_part(one, "high"), _number(_part(one, "value"), 0)) for one in estimates) <= 1
    for position, one in enumerate(estimates):
        value, end = _part(one, "value"), _number(_part(one, "high"), _number(_part(one, "value"), 0))
        if value is not None and np.isfinite(value):
            axes.annotate(f"{value:.1%}" if share else f"{value:.3f}", (end, position), (6, 0), textcoords="offset points", va="center", fontsize=10)
    axes.set_yticks(range(len(names)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(metric.replace("_", " "))
    if share:
        axes.set_xlim(0, 1.1)
        axes.set_xticks(np.arange(0, 1.01, 0.2))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    _calm(axes, "x")
    return figure


def scatter(x_N: Sequence[float], y_N: Sequence[float], x: str, y: str) -> Figure:
    """A point for each row, and the median of each tenth of the rows by `x`."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    x_N, y_N = np.asarray(x_N, float), np.asarray(y_N, float)
    axes.scatter(x_N, y_N, s=8, color=BLUE, alpha=max(0.05, min(0.6, 300 / max(1, len(x_N)))), linewidths=0)
    tenths = [part for part in np.array_split(np.argsort(x_N, kind="stable"), 10) if len(part)]
    axes.plot([np.median(x_N[part]) for part in tenths], [np.median(y_N[part]) for part in tenths], color=ORANGE, marker="o", markersize=4, label="median of a tenth")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=9)
    _calm(axes, "both")
    return figure


def curves(series: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> Figure:
    """One panel for each title with its lines, {title: {line: (steps, values)}}; in the order given."""
    columns = min(3, max(1, len(series)))
    rows = max(1, -(-len(series) // columns))
    width, height = 4.2 * columns, 2.9 * rows
    figure = Figure(figsize=(width, height))  # placed by hand: working a layout out takes as long as drawing it
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.15 / width, bottom=0.5 / height, top=1 - 0.3 / height, wspace=0.22, hspace=0.45)
    for axes, title in zip(figure.subplots(rows, columns, squeeze=False).ravel(), [*series, *[None] * (rows * columns - len(series))], strict=True):
        if title is None:
            axes.axis("off")
            continue
        for colour, (line, (steps, values)) in zip((BLUE, ORANGE, "#6a9f58", RED, GRAY) * len(series[title]), series[title].items(), strict=False):
            axes.plot(steps, values, label=plain_text(line, 30), color=colour, linewidth=1.5, marker="o" if len(steps) < 12 else None, markersize=3)
        axes.set_title(plain_text(title, 50), fontsize=10, loc="left")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
        if len(series[title]) > 1:
            axes.legend(frameon=False, fontsize=8)
        _calm(axes, "both")
    return figure


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def plain_text(text: object, length: int = 40) -> str:
    """A name as matplotlib shows it: no mathematics, nothing that its font cannot draw, at most `length` characters."""
    shown = "".join(letter if ord(letter) in _glyphs() and letter.isprintable() else "\N{WHITE SQUARE}" for letter in str(text))
    shown = shown if len(shown) <= length else shown[: length - 1] + "…"
    return shown.replace("$", r"\$")


@cache
def _glyphs() -> frozenset[int]:
    """What matplotlib's own font can draw; for anything else it warns."""
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _most_confused(axes: Any, counts: np.ndarray, classes: Sequence[str]) -> None:
    """The pairs confused most often, as a list."""
    wrong = counts - np.diag(np.diag(counts))
    axes.axis("off")
    axes.set_title("confused most often", loc="left", fontsize=10)
    pairs = [divmod(int(one), len(classes)) for one in np.argsort(-wrong, axis=None, kind="stable")[:25]]
    lines = [f"{wrong[i, j]:>4} × {plain_text(classes[i], 16)} as {plain_text(classes[j], 16)}" for i, j in pairs if wrong[i, j]]
    axes.text(0, 1, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.6)


def _bars(axes: Any, positions: np.ndarray, estimates: Sequence[Any], height: float, colours: list[str], label: str | None) -> None:
    value, low, high = (np.array([_number(_part(one, name), np.nan) for one in estimates]) for name in ("value", "low", "high"))
    axes.barh(positions, np.nan_to_num(value), height, color=colours, label=label)
    # An interval that does not hold the value (calibration errors) shows the side that it has.
    errors = np.nan_to_num(np.maximum([value - low, high - value], 0))
    axes.errorbar(np.nan_to_num(value), positions, xerr=errors, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)


def _part(estimate: Any, name: str) -> float | None:
    return estimate[name] if isinstance(estimate, Mapping) else getattr(estimate, name)


def _number(value: float | None, missing: float) -> float:
    return missing if value is None or not np.isfinite(value) else value


def _calm(axes: Any, grid: str = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def picture(grid_CHW: np.ndarray) -> Figure:
    """A picture or a grid of them, (C, H, W) in [0, 1]."""
    grid = np.clip(np.asarray(grid_CHW), 0, 1).transpose(1, 2, 0)
    figure = Figure(figsize=(8, 8 * grid.shape[0] / grid.shape[1]), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid[..., 0] if grid.shape[-1] == 1 else grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.axis("off")
    return figure
