"""Every arm measured on the test rows: the model, its baseline, the simple alternative and the commonest class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml import pictures
from ml.classical import majority
from ml.evaluation import Evaluation
from ml.evaluation import evaluate as measure
from ml.predictor import Predictor
from ml.recipe import Recipe
from ml.splitting import Split
from ml.store import Store
from tasks.references import BackboneRef, ClassicalRef, DatasetRef, ModelRef, ReportRef, SplitsRef
from tasks.split import read_split
from tasks.stage import TASK, Run, device_of, dump, sha256
from tasks.tracking.artifacts import fetch
from tasks.tracking.stages import StageRun

METHODS = {"model": "metrics", "baseline": "baseline", "classical": "classical"}


@task(name="evaluate", cache_policy=NO_CACHE, **TASK)
def evaluate(
    dataset: DatasetRef,
    backbone: BackboneRef,
    splits: SplitsRef,
    model: ModelRef,
    baseline: ModelRef | None,
    classical: ClassicalRef | None,
    recipe: Recipe,
    run: Run,
) -> ReportRef:
    """Metrics with intervals, paired differences, pictures and predictions."""
    options = {"seed": recipe.seed, **dump(recipe.evaluation)}
    arms = {"model": model, "baseline": baseline, "classical": classical}
    inputs = {"dataset": dataset.digest, "split": splits.digest} | {name: arm.digest for name, arm in arms.items() if arm is not None}
    modules = ["ml.evaluation", "ml.evidence", "ml.metrics", "ml.predictor", "ml.pictures", "tasks.evaluate"]

    def body(stage: StageRun) -> dict:
        store, rows = Store.open(Path(dataset.path)), read_split(splits)
        stage.log_input(recipe.name, store.digest, "testing", len(rows.test))
        result = _measure(store, rows, model, baseline, classical, recipe)
        content = result.to_dict() | {"seen_in_pretraining": seen(store, rows, backbone)}
        stage.log_json(content, "evaluation.json")
        result.predictions.to_parquet(stage.workdir / "predictions.parquet", index=False)
        stage.log_artifact(stage.workdir / "predictions.parquet")
        for name, figure in _draw(result, content, store, rows, recipe).items():
            stage.log_figure(figure, f"pictures/{name}.png")
        for arm, name in METHODS.items():
            if arm in result.metrics:
                prefix = "test" if arm == "model" else f"test_{name}"
                stage.log_metrics({f"{prefix}/{metric}": one.value for metric, one in result.metrics[arm].items()})
        return {"digest": sha256(stage.workdir / "predictions.parquet")} | {
            name: content["metrics"].get(arm) for arm, name in METHODS.items()
        }

    summary, output = run.stage("evaluate", body, options=options, inputs=inputs, modules=modules)
    return ReportRef(summary, output["digest"], output["metrics"], output["baseline"], output["classical"])


def read_evaluation(report: ReportRef) -> dict[str, Any]:
    """The evaluation as plain data, as `Evaluation.to_dict` gives it."""
    return json.loads(fetch(report.stage.run_id, "evaluation.json").read_text(encoding="utf-8"))


def _measure(store: Store, rows: Split, model: ModelRef, baseline: ModelRef | None, classical: ClassicalRef | None, recipe: Recipe) -> Evaluation:
    device = device_of(recipe.compute)
    arrays, targets_N = store.array[rows.test], store.labels[rows.test]
    predictor = Predictor.load(fetch(model.stage.run_id, "model"), device)
    outputs_NK = predictor.outputs(arrays)
    arms = {"model": predictor.probabilities(outputs_NK)}
    if baseline is not None:
        arms["baseline"] = Predictor.load(fetch(baseline.stage.run_id, "model"), device).predict_arrays(arrays)
    if classical is not None:
        arms["classical"] = np.load(fetch(classical.stage.run_id, "probabilities.npy"), allow_pickle=False)
    arms["majority"] = majority(store.labels[rows.train], len(store.spec.classes), len(rows.test))
    head = predictor.model.head
    return measure(
        store.table.iloc[rows.test],
        targets_N,
        arms,
        store.spec.classes,
        head.metrics,
        head.primary,
        resamples=recipe.evaluation.bootstrap,
        confidence=recipe.evaluation.confidence,
        mistakes=recipe.evaluation.mistakes,
        seed=recipe.seed,
        uncalibrated_NK=Predictor(predictor.model, predictor.spec, 1.0, device).probabilities(outputs_NK),
        temperature=predictor.temperature,
    )


def seen(store: Store, rows: Split, backbone: BackboneRef) -> int:
    """How many test rows are among those that pretraining saw, counted by the content of the rows."""
    table = store.table
    trained = set(table.loc[table["part"].isin(backbone.seen), "row_id"])
    return int(table["row_id"].iloc[rows.test].isin(trained).sum())


def _draw(result: Evaluation, content: dict[str, Any], store: Store, rows: Split, recipe: Recipe) -> dict[str, Figure]:
    """The evaluation's pictures by name, in the order in which a reader wants them."""
    wrong = rows.test[[one["row"] for one in content["mistakes"]]] if content["mistakes"] else rows.test[:0]
    return {
        "1_arms": pictures.arms(content["metrics"], content["primary"]),
        "2_confusion": pictures.confusion(result.confusion_KK, result.classes),
        "3_reliability": pictures.reliability(content["calibration"]),
        "4_per_class": pictures.per_class(content["per_class"]),
        "5_mistakes": recipe.data.modality.make().mistakes(content["mistakes"], store, wrong),
    }
