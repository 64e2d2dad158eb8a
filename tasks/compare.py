"""What `warmstart compare` tells of pipeline runs: what they were asked for, what came out, how their models differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ml.comparison import Measured, apart, differences, differing
from ml.evaluation import plain
from tasks.tracking import history, listing
from tasks.tracking.parent import address

if TYPE_CHECKING:
    from tasks.tracking.history import Run, Stage

PARTS = {"pretrain": "pretraining", "finetune": "fine-tuning"}
CURVES = ("train/loss", "validation/loss")


@dataclass(frozen=True)
class Look:
    """One pipeline run with what is read of it more than once."""

    run: Run
    stages: dict[str, Stage]
    recipe: dict[str, Any]


def look(names: list[str]) -> list[Look]:
    """The pipeline runs that are meant, as `history.run` understands names."""
    return [Look(run, history.stages(run), history.recipe(run)) for run in map(history.run, names)]


def compare(runs: list[Look]) -> dict[str, Any]:
    """Everything but the curves, as JSON has it; `differences` are against the first run, one for each other run."""
    told = [_described(one.run, one.stages) for one in runs]
    measured = [_measured(one.stages.get("evaluate"), one.recipe) for one in runs]
    parameters = differing([one.recipe for one in runs])
    return plain({"runs": told, "parameters": parameters, "differences": _differences(told, measured, runs[0].recipe)})


def curves(runs: list[Look]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The runs' curves over each other, {panel: {runs: (steps, values)}}: runs that share a training share a line."""
    labels = history.short([one.run.info.run_id for one in runs])
    chosen = {(one.recipe.get("finetuning") or {}).get("metric") or _content(one.stages, "evaluate", "evaluation.json").get("primary") for one in runs}
    wanted = {*CURVES, *(f"validation/{metric}" for metric in chosen)}
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for part, words in PARTS.items():
        trainings: dict[str, tuple[Run, list[str]]] = {}
        for one, label in zip(runs, labels, strict=True):
            stage = one.stages.get(part)
            if stage is not None and stage.run is not None:
                trainings.setdefault(stage.run_id, (stage.run, []))[1].append(label)
        for made, named in trainings.values():
            for metric in sorted(made.data.metrics):
                if metric in wanted or metric.startswith("probe/"):
                    title = f"{words}: {metric.replace('/', ' ').replace('_', ' ')}"
                    panels.setdefault(title, {})[" and ".join(dict.fromkeys(named))] = history.curve(made, metric)
    return panels


def _described(run: Run, steps: Mapping[str, Stage]) -> dict[str, Any]:
    evaluation = _content(steps, "evaluate", "evaluation.json")
    facts = _content(steps, "preprocess", "data.json")
    inputs = {name: stage.inputs for name, stage in steps.items()}
    finished = [stage for stage in steps.values() if stage.run is not None]
    return {
        **listing.described(run),
        "link": address(run),
        "verdict": history.summary(run).get("verdict"),
        "primary": evaluation.get("primary"),
        "confidence": evaluation.get("confidence"),
        "metrics": evaluation.get("metrics", {}).get("model", {}),
        "data": {
            "source": inputs.get("preprocess", {}).get("source"),
            "store": inputs.get("split", {}).get("dataset") or facts.get("digest"),
            "split": inputs.get("evaluate", {}).get("split"),
            "rows": facts.get("rows"),
            "test rows": evaluation.get("n"),
        },
        "stages": [
            {"name": stage.name, "run_id": stage.run_id, "reused": stage.reused, "seconds": stage.run.data.metrics.get("seconds", history.seconds(stage.run))}
            for stage in finished
        ],
        "missing": {stage.name: stage.missing for stage in steps.values() if stage.missing},
    }


def _content(steps: Mapping[str, Stage], stage: str, path: str) -> dict[str, Any]:
    return (steps[stage].content(path) if stage in steps else None) or {}


def _measured(stage: Stage | None, recipe: Mapping[str, Any]) -> Measured | str:
    """What the evaluation kept of each test row; or why that is not there, in words."""
    if stage is None:
        return "was not evaluated"
    files = [stage.file(name) for name in ("predictions.parquet", "scores.npy", "truth.npz")]
    if None in files:
        return f"has no scores of its test rows any more ({stage.missing})" if stage.missing else "was evaluated by an older version, which did not keep what is right of its test rows"
    predictions, scores, truth = files
    try:
        with np.load(truth, allow_pickle=False) as found:
            targets_N, groups_N = found["targets"], found["groups"]
        ids = pd.read_parquet(predictions, columns=["row_id"])["row_id"].to_numpy(str)
        scores_NS = np.load(scores, allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        return f"has scores of its test rows that cannot be read ({type(error).__name__})"
    if not len(ids) == len(scores_NS) == len(targets_N) == len(groups_N):
        return "has scores of another number of test rows than there are"
    head = ((recipe.get("finetuning") or {}).get("head") or {}).get("name", "")
    classes = tuple((stage.content("evaluation.json") or {}).get("classes", ()))
    return Measured(ids, scores_NS, targets_N, groups_N, head, bool((targets_N >= 0).any()), classes, stage.inputs.get("dataset", ""))


def _differences(told: list[dict[str, Any]], measured: list[Measured | str], recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    first, found = measured[0], []
    for number, one in enumerate(measured[1:], 1):
        why = next((f"{told[at]['run_id'][: history.SHORT]} {words}" for at, words in ((0, first), (number, one)) if isinstance(words, str)), "") or apart(first, one)
        found.append({"run_id": told[number]["run_id"], "against": told[0]["run_id"], "why_not": why, "metrics": {}})
    paired = [number for number, one in enumerate(found) if not one["why_not"]]
    if paired:
        from ml.heads import HEADS  # torch with it

        if first.head not in HEADS:
            return [one | {"why_not": one["why_not"] or f"there is no head {first.head!r} here to measure with"} for one in found]
        asked = recipe.get("evaluation") or {}
        options = {"resamples": int(asked.get("bootstrap", 1000)), "confidence": float(asked.get("confidence", 0.95)), "seed": int(recipe.get("seed", 0))}
        for number, metrics in zip(paired, differences(first, [measured[number + 1] for number in paired], HEADS[first.head].metrics, **options), strict=True):
            found[number]["metrics"] = metrics
    return found
