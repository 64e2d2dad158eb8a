"""A comparison of runs as one HTML file with everything inside, which asks nothing of any network; names in it are hostile input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml.comparison_pictures import whiskers
from ml.comparison_words import points, shown
from ml.metrics import LOWER_IS_BETTER
from ml.pictures import curves, png
from ml.report import environment

Series = Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]


def render(comparison: Mapping[str, Any], labels: Sequence[str], series: Series, created: str) -> str:
    """The page; `comparison` as `tasks.compare.compare` gives it, a short label for each run, and their curves by panel."""
    runs = comparison["runs"]
    metrics = list(dict.fromkeys(name for run in runs for name in run["metrics"]))
    drawn = {"dots": whiskers([run["metrics"] for run in runs], labels), "curves": curves(series) if series else None}
    page = environment()
    page.filters |= {"shown": shown, "points": points}
    return page.get_template("comparison.html.j2").render(
        runs=list(zip(labels, runs, strict=True)),
        parameters=comparison["parameters"],
        differences=comparison["differences"],
        metrics=metrics,
        lower=LOWER_IS_BETTER,
        stages={name: [next((one for one in run["stages"] if one["name"] == name), None) for run in runs] for name in dict.fromkeys(stage["name"] for run in runs for stage in run["stages"])},
        facts=list(dict.fromkeys(fact for run in runs for fact in run["data"])),
        pictures={name: png(figure) for name, figure in drawn.items() if figure is not None},
        created=created,
    )

