"""Every arm measured on the test rows: the model, its baseline, the simple alternative and the trivial way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml import observed, onnx_graph, pictures
from ml.device import device_of
from ml.evaluation import Evaluation
from ml.evaluation import evaluate as measure
from ml.predictor import Predictor, primary
from ml.recipe import Recipe
from ml.splitting import Split
from ml.store import Store
from tasks.references import BackboneRef, ClassicalRef, DatasetRef, ModelRef, ReportRef, SplitsRef
from tasks.split import read_split
from tasks.stage import TASK, Run, dump, sha256
from tasks.tracking.artifacts import fetch
from tasks.tracking.stages import StageRun

METHODS = {"model": "metrics", "baseline": "baseline", "classical": "classical", "int8": "int8"}
SCORES, TRUTH, REFERENCE = "scores.npy", "truth.npz", "reference.npz"


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
    options = {"seed": recipe.seed, **dump(recipe.evaluation)} | ({"int8": onnx_graph.OPSET} if recipe.registration.int8 else {})
    arms = {"model": model, "baseline": baseline, "classical": classical}
    inputs = {"dataset": dataset.digest, "split": splits.digest} | {name: arm.digest for name, arm in arms.items() if arm is not None}
    modules = ["ml.evaluation", "ml.evidence", "ml.metrics", "ml.predictor", "ml.pictures", "tasks.evaluate", recipe.finetuning.head.chosen.__module__]
    modules += ["ml.onnx_graph", "ml.onnx_quantise"] if recipe.registration.int8 else []

    def body(stage: StageRun) -> dict:
        store, rows = Store.open(Path(dataset.path)), read_split(splits)
        stage.log_input(recipe.name, store.digest, "testing", len(rows.test))
        result, drawn, scores_NS, reference = _measure(stage, store, rows, model, baseline, classical, recipe)
        np.save(stage.workdir / SCORES, scores_NS, allow_pickle=False)
        stage.log_artifact(stage.workdir / SCORES)
        # What scores are measured against, so that two runs can be compared where the data are not at hand.
        np.savez(stage.workdir / TRUTH, targets=store.targets(rows.test), groups=store.table["group"].to_numpy()[rows.test])
        stage.log_artifact(stage.workdir / TRUTH)
        observed.save(stage.workdir / REFERENCE, reference)
        stage.log_artifact(stage.workdir / REFERENCE)
        content = result.to_dict() | {"seen_in_pretraining": seen(store, rows, backbone)}
        stage.log_json(content, "evaluation.json")
        result.predictions.to_parquet(stage.workdir / "predictions.parquet", index=False)
        stage.log_artifact(stage.workdir / "predictions.parquet")
        figures = {"arms": pictures.arms(content["metrics"], content["primary"]), **drawn(content), **_mistakes(content, store, rows, recipe)}
        for number, (name, figure) in enumerate(figures.items(), 1):
            stage.log_figure(figure, f"pictures/{number}_{name}.png")
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


def read_scores(report: ReportRef) -> np.ndarray:
    """The model's scores (N, S) on the test rows, as its head's metrics read them."""
    return np.load(fetch(report.stage.run_id, SCORES), allow_pickle=False)


def _measure(
    stage: StageRun, store: Store, rows: Split, model: ModelRef, baseline: ModelRef | None, classical: ClassicalRef | None, recipe: Recipe
) -> tuple[Evaluation, Callable[[dict[str, Any]], dict[str, Figure]], np.ndarray, Mapping[str, np.ndarray]]:
    """The evaluation, what draws its details, the scores (N, S) of the model, and what later rows are compared with."""
    device, truth = device_of(recipe.compute), store.rows(rows.test)
    folder = fetch(model.stage.run_id, "model")
    predictor = Predictor.load(folder, device)
    head, outputs_NS = predictor.model.head, predictor.outputs(primary(truth))
    answers = {"model": head.answers(outputs_NS, truth, predictor.temperature)}
    if baseline is not None:
        answers["baseline"] = Predictor.load(fetch(baseline.stage.run_id, "model"), device).answers(truth)
    if classical is not None:
        told = np.load(fetch(classical.stage.run_id, "answers.npy"), allow_pickle=False)
        answers["classical"] = told if head.labels else head.answers(told, truth, 1.0)
    if recipe.registration.int8:
        with onnx_graph.Graph(exported(stage, folder, int8=True), torch.get_num_threads(), "int8") as graph:
            answers["int8"] = replace(predictor, graph=graph).answers(truth)
    answers["trivial"] = head.trivial_answers(store.rows(rows.train), truth)
    before, table, count = head.answers(outputs_NS, truth, 1.0), store.table.iloc[rows.test], recipe.evaluation.mistakes

    def details(options: Mapping[str, Any]) -> tuple[Mapping[str, Any], pd.DataFrame]:
        return head.details(table, answers["model"], before, truth, temperature=predictor.temperature, mistakes=count, options=options)

    scores = {arm: head.scores(told, truth) for arm, told in answers.items()}
    measured = measure(
        table,
        truth["label"],
        scores,
        head.metrics,
        head.primary,
        details,
        trivial=head.trivial,
        resamples=recipe.evaluation.bootstrap,
        confidence=recipe.evaluation.confidence,
        seed=recipe.seed,
    )
    kept = observed.chosen(len(rows.test), recipe.seed)
    reference = observed.of_rows(predictor, store.rows(rows.test[kept]), [answers["model"][row] for row in kept])
    return measured, head.pictures, scores["model"], reference


def exported(stage: StageRun, folder: Path, int8: bool) -> Path:
    """A copy of the model's folder with its graph, and by choice the one with 8-bit weights."""
    copy = stage.workdir / "exported" / folder.name  # the name that it has in a version
    shutil.rmtree(copy, ignore_errors=True)  # half a one, of a run that was killed
    shutil.copytree(folder, copy)
    onnx_graph.export(copy)
    if int8:
        onnx_graph.quantise(copy)
    return copy


def _mistakes(content: dict[str, Any], store: Store, rows: Split, recipe: Recipe) -> dict[str, Figure]:
    if not recipe.finetuning.head.chosen.labels:  # what they are is told in the report's table
        return {}
    wrong = rows.test[[one["row"] for one in content["mistakes"]]] if content["mistakes"] else rows.test[:0]
    return {"mistakes": recipe.data.modality.make().mistakes(content["mistakes"], store, wrong)}


def seen(store: Store, rows: Split, backbone: BackboneRef) -> int:
    """How many test rows are among those that pretraining saw, counted by the content of the rows."""
    table = store.table
    trained = set(table.loc[table["part"].isin(backbone.seen), "row_id"])
    return int(table["row_id"].iloc[rows.test].isin(trained).sum())
