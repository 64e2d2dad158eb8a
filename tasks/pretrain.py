"""A backbone pretrained on every row outside the test and the official validation part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import nn

from ml.engines import train
from ml.feed import Feed, rows_of, seed_of
from ml.model import save_backbone
from ml.pictures import picture
from ml.plan import Plan
from ml.pretraining import SEEN
from ml.recipe import Recipe
from ml.store import Store
from ml.weights import load_weights, weights_digest
from tasks.references import BackboneRef, DatasetRef
from tasks.stage import TASK, Run, arithmetic, dump, log_fitted, sha256
from tasks.tracking.artifacts import resolve_weights
from tasks.tracking.stages import StageRun


@task(name="pretrain", cache_policy=NO_CACHE, **TASK)
def pretrain(dataset: DatasetRef, recipe: Recipe, run: Run) -> BackboneRef:
    """Precedence of the weights: 1. an unfinished run of this very stage, 2. `recipe.weights`, 3. random."""
    start = _start(recipe.weights)
    options = {
        "seed": recipe.seed,
        "backbone": dump(recipe)["backbone"],
        "weights": "random" if start is None else "given",
        "pretraining": dump(recipe.pretraining) if recipe.pretraining.enabled else {"enabled": False},
        **arithmetic(recipe),
    }
    inputs = {"dataset": dataset.digest} | ({"weights": weights_digest(start)} if start is not None else {})
    modules = ["ml.fit", "ml.pretraining", "ml.weights", "ml.probe", "tasks.pretrain", recipe.backbone.chosen.__module__, recipe.data.modality.chosen.__module__]
    modules += [recipe.pretraining.objective.chosen.__module__]

    def body(stage: StageRun) -> dict:
        store = Store.open(Path(dataset.path))
        stage.log_input(recipe.name, store.digest, "pretraining", len(rows_of(store, *SEEN)))
        torch.manual_seed(seed_of(recipe.seed, "backbone"))
        backbone = recipe.backbone.make(store.spec)
        if start is not None:
            stage.log_json(load_weights(backbone, start, recipe.backbone, store.spec), "weights.json")
        seconds = _train(backbone, store, recipe, stage) if recipe.pretraining.enabled else 0.0
        save_backbone(backbone.cpu(), stage.workdir / "backbone", recipe.backbone, store.spec)
        stage.log_artifact(stage.workdir / "backbone" / "backbone.safetensors", "backbone")
        stage.log_artifact(stage.workdir / "backbone" / "backbone.json", "backbone")
        return {"digest": sha256(stage.workdir / "backbone" / "backbone.safetensors"), "seconds": seconds}

    summary, output = run.stage("pretrain", body, options=options, inputs=inputs, modules=modules)
    return BackboneRef(summary, output["digest"], SEEN if recipe.pretraining.enabled else (), output["seconds"])


def _train(backbone: nn.Module, store: Store, recipe: Recipe, stage: StageRun) -> float:
    """Trains in place; gives the seconds that it took."""
    training, fitted = train(Plan("pretrain", recipe, store), backbone, stage.workdir, stage.report)
    log_fitted(stage, fitted, len(training.feed.rows))
    _show(training.module.eval(), training.feed, training.shown, stage)
    return fitted.seconds


def _show(objective: nn.Module, feed: Feed, rows: np.ndarray, stage: StageRun) -> None:
    """What the objective makes of a few rows: pictures, or examples as text."""
    with torch.no_grad():
        batch = feed.batch(rows, 0, 0)
        for name, grid_CHW in (objective.pictures(batch) if hasattr(objective, "pictures") else {}).items():
            stage.log_figure(picture(grid_CHW.cpu().numpy()), f"pictures/{name}.png")
        if hasattr(objective, "examples"):
            stage.log_text("\n\n".join(objective.examples(batch, feed.modality.reader(feed.store.spec))), "examples.txt")


def _start(weights: str) -> str | Path | None:
    """What to load: a registered backbone's or a run's folder, a file, or a published name; None for random weights."""
    if weights == "random":
        return None
    return resolve_weights(weights) if weights.startswith(("models:/", "runs:/")) else weights
